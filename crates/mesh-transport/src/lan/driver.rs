//! The handle of the swarm, as a driver.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
};

use futures_util::future::BoxFuture;
use mesh_identity::{DIRECT_ADDRS_MAX, NodeAddr, NodeId, NodeKey, ScopeId};
use tokio::sync::{Mutex, mpsc};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    BindError, Config, Discovery,
    connection::LanConnection,
    dial,
    peers::{self, StaticPeer},
    swarm::{Command, Listening, Task},
};
use crate::{
    connection::{Carried, Connection, DialVia, Driver, Found, TransportKind},
    error::DialError,
    internet,
};

/// Connections that passed the handshake and wait for the transport; more are refused.
const BACKLOG: usize = 64;
/// Commands that wait for the swarm; more callers wait.
const COMMANDS: usize = 64;

/// Findings that wait for the transport; more are lost, and found again later.
const FOUND: usize = 4096;

/// Links on the local network, by one libp2p swarm for all scopes.
pub struct Lan {
    commands: mpsc::Sender<Command>,
    incoming: Mutex<mpsc::Receiver<LanConnection>>,
    found: Mutex<mpsc::Receiver<Found>>,
    listening: Listening,
    confirmed: Listening,
    external_addrs: Vec<SocketAddr>,
    scopes: Carried,
    /// Ends the search for static peers.
    stop: CancellationToken,
    _last_handle: DropGuard,
    /// The swarm's task and those of streams.
    tasks: TaskTracker,
}

impl Lan {
    /// Opens the sockets. Carries every scope until [`Lan::carry`] names some.
    /// Not cancel safe: a dropped future may leave sockets open for a moment.
    pub async fn bind(key: &NodeKey, config: Config) -> Result<Arc<Self>, BindError> {
        let (commands, queue) = mpsc::channel(COMMANDS);
        let (accepted, incoming) = mpsc::channel(BACKLOG);
        let (found_sender, found) = mpsc::channel(FOUND);
        let bootstrap = match &config.discovery {
            Discovery::Kademlia { bootstrap } => bootstrap.as_slice(),
            Discovery::Mdns | Discovery::None => &[],
        };
        let peers = config.peers.iter().chain(bootstrap).map(|addr| {
            let peer = StaticPeer::parse(addr).ok_or_else(|| BindError::Peer { addr: addr.clone() })?;
            Ok((peer, addr.clone()))
        });
        let peers: Vec<_> = peers.collect::<Result<_, BindError>>()?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let task = Task::start(key, &config, queue, accepted, found_sender, tasks.clone()).await?;
        let (listening, confirmed) = (task.listening(), task.confirmed());
        tasks.spawn(task.run());
        for (peer, given) in peers {
            let watch = peers::watch(peer, given, commands.clone());
            tasks.spawn(stop.clone().run_until_cancelled_owned(watch));
        }
        Ok(Arc::new(Self {
            commands,
            incoming: Mutex::new(incoming),
            found: Mutex::new(found),
            listening,
            confirmed,
            external_addrs: config.external_addrs,
            scopes: Carried::default(),
            _last_handle: stop.clone().drop_guard(),
            stop,
            tasks,
        }))
    }

    /// Carries this scope; after the first call only scopes that were named.
    pub fn carry(&self, scope: ScopeId) {
        self.scopes.carry(scope);
    }

    /// The sockets at which others can reach this node on its networks, as known now.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.listening.read().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

#[cfg(test)]
impl Lan {
    /// A connection to one address, as it is inside.
    pub(super) async fn dial_at(&self, node: NodeId, addr: libp2p::Multiaddr) -> Option<LanConnection> {
        dial::connect(self.commands.clone(), crate::convert::peer_id(&node), addr).await?.ok()
    }

    /// The next connection, as it is inside.
    pub(super) async fn accept_inside(&self) -> Option<LanConnection> {
        self.incoming.lock().await.recv().await
    }
}

impl Driver for Lan {
    fn transport(&self) -> TransportKind {
        TransportKind::Lan
    }

    fn name(&self) -> &'static str {
        "lan"
    }

    fn carries(&self, scope: &ScopeId) -> bool {
        self.scopes.carries(scope)
    }

    fn dial(
        &self,
        _scope: &ScopeId,
        to: NodeId,
        addr: &NodeAddr,
        via: DialVia,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, DialError>> {
        Box::pin(dial::dial(self.commands.clone(), to, addr.lan.clone(), via.direct_only))
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async {
            let conn = self.incoming.lock().await.recv().await?;
            Some(Arc::new(conn) as Arc<dyn Connection>)
        })
    }

    fn found(&self) -> BoxFuture<'_, Option<Found>> {
        Box::pin(async { self.found.lock().await.recv().await })
    }

    fn local_addr(&self, _scope: &ScopeId) -> NodeAddr {
        let confirmed = self.confirmed.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut lan = self.external_addrs.clone();
        for addr in internet::best_first(confirmed.into_iter().chain(self.listening())) {
            if !lan.contains(&addr) {
                lan.push(addr);
            }
        }
        lan.truncate(DIRECT_ADDRS_MAX);
        NodeAddr { lan, ..NodeAddr::default() }
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.stop.cancel();
            // Fails when the swarm has ended already.
            drop(self.commands.send(Command::Shutdown).await);
            self.tasks.close();
            self.tasks.wait().await;
            let mut incoming = self.incoming.lock().await;
            incoming.close();
            while incoming.try_recv().is_ok() {}
        })
    }
}
