//! Links on use: one dial for all who ask at once.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_identity::{NodeAddr, NodeId, ScopeId};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use super::{
    Inner,
    hello::{self, Linked, Proof},
    links::{self, Claim, DialResult, DialWatch, LinkConn, Marks, StreamCount},
    rule::Class,
    serve,
};
use crate::{
    connection::{Connection, DialVia, Driver},
    error::DialError,
    peer::Peer,
    proto::hello::Shown,
};

/// The link to a peer. Cancel safe: the dial is a task of the transport.
pub(super) async fn link(inner: &Arc<Inner>, scope: &ScopeId, node: &NodeId) -> DialResult {
    if *node == inner.me {
        return Err(DialError::Oneself);
    }
    if inner.is_closing() {
        return Err(DialError::Closed);
    }
    let watch = match inner.links.claim(scope, node) {
        Claim::Linked(conn) => return Ok(conn),
        Claim::Wait(watch) => watch,
        Claim::Dial(number, watch) => {
            let dial = Dial {
                inner: inner.clone(),
                scope: *scope,
                node: *node,
                number,
                result: Some(Err(DialError::Closed)),
            };
            let span = tracing::debug_span!("transport.dial", peer = %node.short());
            inner.tasks.spawn(dial.run().instrument(span));
            watch
        }
    };
    // A link that owes an answer is better than none.
    wait(watch).await.or_else(|error| inner.links.linked(scope, node).ok_or(error))
}

async fn wait(mut watch: DialWatch) -> DialResult {
    match watch.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(DialError::Closed)),
        Err(_) => Err(DialError::Closed),
    }
}

/// One dial. Dropped in any way, it tells those who wait.
struct Dial {
    inner: Arc<Inner>,
    scope: ScopeId,
    node: NodeId,
    number: u64,
    result: Option<DialResult>,
}

impl Drop for Dial {
    fn drop(&mut self) {
        if let Some(result) = self.result.take() {
            self.inner.links.dialed(&self.scope, &self.node, self.number, result);
        }
    }
}

impl Dial {
    async fn run(mut self) {
        let inner = self.inner.clone();
        let mut network = inner.network.subscribe();
        let mut restarts = 0..RESTARTS_MAX;
        let result = loop {
            tokio::select! {
                biased;
                () = inner.stop_accepting.cancelled() => break Err(DialError::Closed),
                result = self.dial() => break result,
                // What was sent into the old network is not answered any more.
                Ok(()) = network.changed(), if !restarts.is_empty() => drop(restarts.next()),
            }
        };
        match &result {
            Ok(_) => inner.metrics.dials_linked.add(),
            Err(error) => {
                inner.metrics.dials_failed.add();
                inner.unreached.note(self.scope, self.node, error.clone());
                tracing::debug!(error = error as &dyn std::error::Error, "no link");
            }
        }
        self.result = Some(result);
    }

    async fn dial(&self) -> DialResult {
        let (inner, scope) = (&self.inner, &self.scope);
        let addr = inner.book.to_dial(scope, &self.node);
        make_link(inner, scope, self.node, &addr, inner.drivers_for(scope), DialVia::default()).await
    }
}

/// Connects, says hello, and registers what came of it; the connection to use for the peer from then on.
pub(super) async fn make_link(
    inner: &Arc<Inner>,
    scope: &ScopeId,
    node: NodeId,
    addr: &NodeAddr,
    drivers: Vec<Arc<dyn Driver>>,
    via: DialVia,
) -> DialResult {
    let credential = inner.admission.credential(scope);
    let credential = credential.ok_or_else(|| DialError::NoCredential(scope.short()))?;
    let permit = connection_permit(inner)?;
    let conn = connect(inner, drivers, scope, node, addr, via).await?;
    let shown = Shown::Grant(Box::new((*credential).clone()));
    let closer = CloseOnDrop(Some(conn.clone()));
    let linked = match hello::as_dialer(inner, &conn, *scope, &shown, None).await {
        Ok(linked) => linked,
        Err(failure) => {
            conn.close(failure.close_code(), "hello failed");
            return Err(failure.into_dial_error(node, inner));
        }
    };
    let conn = link_conn(inner, conn, *scope, linked, true, permit).ok_or(DialError::Closed)?;
    closer.keep();
    Ok(serve::adopt(inner, conn))
}

/// Room for one more connection.
pub(super) fn connection_permit(inner: &Inner) -> Result<OwnedSemaphorePermit, DialError> {
    inner.connections.clone().try_acquire_owned().map_err(|_| DialError::Limit(inner.connections_max))
}

/// How often a dial begins anew because the network changed: one that never stands still must not keep it from ending.
const RESTARTS_MAX: usize = 3;

/// How long a driver is tried alone before the next one is tried beside it: time for a whole dial on a LAN.
const HEAD_START: Duration = Duration::from_millis(300);

/// Connects by the first driver that can, in their order; the first telling error otherwise. A driver at whose addresses
/// nobody answers does not hold up the next one.
pub(super) async fn connect(
    inner: &Inner,
    drivers: Vec<Arc<dyn Driver>>,
    scope: &ScopeId,
    node: NodeId,
    addr: &NodeAddr,
    via: DialVia,
) -> Result<Arc<dyn Connection>, DialError> {
    let after = inner.config.dial_timeout;
    let mut waiting = drivers.into_iter();
    let mut dials = FuturesUnordered::new();
    let mut telling = None;
    loop {
        if dials.is_empty() {
            match waiting.next() {
                Some(driver) => dials.push(dial_by(driver, *scope, node, addr, via.clone(), after)),
                None => return Err(telling.unwrap_or(DialError::NoAddress(node))),
            }
        }
        let dialed = tokio::select! {
            biased;
            Some(dialed) = dials.next() => dialed,
            () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => {
                let next = waiting.next().expect("one is left");
                dials.push(dial_by(next, *scope, node, addr, via.clone(), after));
                continue;
            }
        };
        match dialed {
            Ok(conn) if conn.peer() == node => return Ok(conn),
            Ok(conn) => {
                conn.close(crate::error::CloseCode::Malformed, "another node answers here");
                telling = Some(DialError::WrongIdentity(node));
            }
            Err(DialError::NoAddress(_)) => {}
            Err(error) => telling = telling.or(Some(error)),
        }
    }
}

async fn dial_by(
    driver: Arc<dyn Driver>,
    scope: ScopeId,
    node: NodeId,
    addr: &NodeAddr,
    via: DialVia,
    after: Duration,
) -> Result<Arc<dyn Connection>, DialError> {
    let dial = driver.dial(&scope, node, addr, via);
    tokio::time::timeout(after, dial).await.unwrap_or(Err(DialError::TimedOut { node, after }))
}

/// What hello proved, as a link; `None` if the scope was left meanwhile.
pub(super) fn link_conn(
    inner: &Inner,
    conn: Arc<dyn Connection>,
    scope: ScopeId,
    linked: Linked,
    dialed_by_us: bool,
    permit: OwnedSemaphorePermit,
) -> Option<Arc<LinkConn>> {
    let Proof { signed, grant } = linked.proof?;
    inner.admission.credential(&scope)?;
    let shown = links::Shown::new(signed, &grant);
    let peer = Peer {
        id: conn.peer(),
        scope,
        role: grant.permissions.role,
        name: grant.name,
        permissions: grant.permissions,
    };
    Some(Arc::new(LinkConn {
        class: Class::of(conn.path()),
        conn,
        peer,
        dialed_by_us,
        marks: Marks::default(),
        instance: linked.instance,
        shown,
        since: SystemTime::now(),
        streams: Arc::new(StreamCount::default()),
        cut: Arc::default(),
        _permit: permit,
    }))
}

/// Closes a connection whose hello was abandoned half-way.
pub(super) struct CloseOnDrop(pub(super) Option<Arc<dyn Connection>>);

impl CloseOnDrop {
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            conn.close(crate::error::CloseCode::Done, "given up");
        }
    }
}
