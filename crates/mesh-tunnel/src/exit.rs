//! The side of the service: what is offered, to whom, and the answer to a question.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mesh_transport::{FrameReader, Member, RecvStream, ResetCode, SendStream, Stream, write_message};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::carry::carry;
use crate::proto::rpc::wire;
use crate::proto::wire::{Answer, FRAME_BYTES_MAX, Open, RefusalCode};
use crate::rpc::exit::Leaving;
use crate::rpc::lent::Lent;
use crate::rpc::open::offer_list;
use crate::tunnels::Inner;
use crate::{OfferError, RpcOffer, ServiceName};

/// The services that this node offers to members.
#[derive(Debug, Default)]
pub(crate) struct Services(Mutex<BTreeMap<ServiceName, Service>>);

#[derive(Debug, Clone)]
struct Service {
    at: SocketAddr,
    /// For an rpc-server, which nobody reaches but by `rpc/2`.
    rpc: Option<Arc<Lent>>,
}

/// A service on offer. Dropping it ends the offer; connections that are open stay open.
#[derive(Debug)]
#[must_use = "dropping it ends the offer"]
pub struct Offered {
    services: Weak<Services>,
    name: ServiceName,
}

impl Services {
    pub(crate) fn offer(
        self: &Arc<Self>,
        name: ServiceName,
        at: SocketAddr,
        rpc: Option<RpcOffer>,
    ) -> Result<Offered, OfferError> {
        if !at.ip().is_loopback() {
            return Err(OfferError::NotLoopback(at));
        }
        let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if services.contains_key(&name) {
            return Err(OfferError::Taken);
        }
        services.insert(name.clone(), Service { at, rpc: rpc.map(|offer| Arc::new(Lent::new(offer))) });
        Ok(Offered { services: Arc::downgrade(self), name })
    }

    fn find(&self, name: &str) -> Option<Service> {
        let name = ServiceName::new(name).ok()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned()
    }

    /// Where the rpc-server of this name is, and how it is offered.
    pub(crate) fn find_rpc(&self, name: &str) -> Option<(SocketAddr, Arc<Lent>)> {
        let service = self.find(name)?;
        Some((service.at, service.rpc?))
    }

    /// The name of the rpc-server at a port of this machine.
    pub(crate) fn rpc_at(&self, port: u16) -> Option<ServiceName> {
        let services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rpc = services.iter().filter(|(_, service)| service.rpc.is_some());
        rpc.find(|(_, service)| service.at.port() == port).map(|(name, _)| name.clone())
    }

    /// The names on offer, sorted.
    pub(crate) fn names(&self) -> Vec<ServiceName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Offered {
    /// The name under which members reach it.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        if let Some(services) = self.services.upgrade() {
            services.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        }
    }
}

/// Serves one inbound stream of `tunnel/1` to its end.
pub(crate) async fn serve(inner: Arc<Inner>, peer: Member, stream: Stream) {
    let cancel = inner.cancel.clone();
    tokio::select! {
        () = cancel.cancelled() => {}
        () = answer(&inner, &peer, stream) => {}
    }
}

/// Serves one inbound stream of `rpc/2` to its end.
pub(crate) async fn serve_rpc(inner: Arc<Inner>, peer: Member, stream: Stream) {
    let cancel = inner.cancel.clone();
    tokio::select! {
        () = cancel.cancelled() => {}
        () = answer_rpc(&inner, &peer, stream) => {}
    }
}

async fn answer(inner: &Inner, peer: &Member, stream: Stream) {
    let (mut send, recv) = stream.split();
    let mut reader = FrameReader::new(recv, FRAME_BYTES_MAX);
    let admitted = tokio::time::timeout(inner.config.handshake_timeout, admit(inner, &mut reader)).await;
    let (answer, service) = match admitted {
        Err(_) => return send.reset(ResetCode::BAD_HEADER),
        Ok(Err((code, text))) => (Answer::refused(code, text), None),
        Ok(Ok(service)) => (Answer::Accepted, Some(service)),
    };
    let answered = write_message(&mut send, &answer, FRAME_BYTES_MAX);
    let Ok(Ok(())) = tokio::time::timeout(inner.config.handshake_timeout, answered).await else { return };
    let Some((socket, _room)) = service else {
        return refused(inner, peer, send, &answer).await;
    };
    let stream = Stream::join(send, reader.into_inner());
    if let Err(error) = carry(socket, stream, &[&inner.counters], inner.config.buffer_bytes).await {
        tracing::debug!(peer = %peer.id.short(), error = &error as &dyn std::error::Error, "tunnel connection broke");
    }
}

async fn answer_rpc(inner: &Arc<Inner>, peer: &Member, stream: Stream) {
    let (mut send, recv) = stream.split();
    let mut reader = FrameReader::new(recv, wire::FRAME_BYTES_MAX);
    let timeout = inner.config.handshake_timeout;
    let admitted = match tokio::time::timeout(timeout, admit_rpc(inner, peer, &mut reader)).await {
        Err(_) => return send.reset(ResetCode::BAD_HEADER),
        Ok(admitted) => admitted,
    };
    let (lent, wanted, socket, _room) = match admitted {
        Ok(admitted) => admitted,
        Err((code, text)) => {
            let Answer::Refused { code, text } = Answer::refused(code, text) else { return };
            let answer = wire::Answer::Refused { code, text };
            let answered = write_message(&mut send, &answer, wire::FRAME_BYTES_MAX);
            let Ok(Ok(())) = tokio::time::timeout(timeout, answered).await else { return };
            return refused(inner, peer, send, &answer).await;
        }
    };
    let listed = offer_list(&mut send, lent.offer.weights.as_ref(), wanted);
    let Ok(Ok(list)) = tokio::time::timeout(timeout, listed).await else { return };
    let leaving = Leaving::new(inner, &lent, peer, &list);
    if let Err(fault) = leaving.carry(socket, Stream::join(send, reader.into_inner())).await {
        let fault = &fault as &dyn std::error::Error;
        tracing::warn!(peer = %peer.id.short(), fault, "connection to the rpc-server broke");
    }
}

async fn refused(inner: &Inner, peer: &Member, mut send: SendStream, answer: &impl std::fmt::Debug) {
    inner.counters.refused.fetch_add(1, Relaxed);
    tracing::debug!(peer = %peer.id.short(), ?answer, "tunnel refused");
    let _ = tokio::time::timeout(inner.config.handshake_timeout, send.shutdown()).await;
}

type Refusal = (RefusalCode, String);

/// Whether the service is to be had now.
async fn admit(
    inner: &Inner,
    reader: &mut FrameReader<RecvStream>,
) -> Result<(TcpStream, OwnedSemaphorePermit), Refusal> {
    let Ok(Some(open)) = reader.next_message::<Open>().await else {
        return Err((RefusalCode::Malformed, "not a question of tunnel/1".into()));
    };
    let plain = inner.services.find(&open.service).filter(|service| service.rpc.is_none());
    let Some(service) = plain else { return Err(unknown_service()) };
    reach(inner, &open.service, service.at).await
}

type Admitted = (Arc<Lent>, wire::Wanted, TcpStream, OwnedSemaphorePermit);

/// Whether the rpc-server is lent to this member, and is to be had now.
async fn admit_rpc(
    inner: &Inner,
    peer: &Member,
    reader: &mut FrameReader<RecvStream>,
) -> Result<Admitted, Refusal> {
    let Ok(Some(open)) = reader.next_message::<wire::Open>().await else {
        return Err((RefusalCode::Malformed, "not a question of rpc/2".into()));
    };
    let Some((at, lent)) = inner.services.find_rpc(&open.service) else { return Err(unknown_service()) };
    let offer = &lent.offer;
    if !(offer.allowed)(peer) {
        return Err((RefusalCode::NotAllowed, "this memory is lent to others".into()));
    }
    if open.build != wire::bounded(&offer.build) {
        let short = |build: &str| build.chars().take(BUILD_CHARS).collect::<String>();
        let (here, there) = (short(&offer.build), short(&open.build));
        let text = format!("the worker runs llama.cpp {here}, the host {there}: both must run one build");
        return Err((RefusalCode::OtherBuild, text));
    }
    let (socket, room) = reach(inner, &open.service, at).await?;
    Ok((lent, open.weights, socket, room))
}

/// Of each build in a refusal, so that both fit its text.
const BUILD_CHARS: usize = 30;

fn unknown_service() -> Refusal {
    (RefusalCode::UnknownService, "no such service is offered here".into())
}

async fn reach(
    inner: &Inner,
    name: &str,
    at: SocketAddr,
) -> Result<(TcpStream, OwnedSemaphorePermit), Refusal> {
    let Ok(room) = inner.exit_room.clone().try_acquire_owned() else {
        let text = format!("this node carries {} tunnel connections already", inner.config.connections_max);
        return Err((RefusalCode::Full, text));
    };
    match TcpStream::connect(at).await {
        Ok(socket) => {
            // Small requests wait for nobody; an error here costs latency only.
            let _ = socket.set_nodelay(true);
            Ok((socket, room))
        }
        Err(error) => {
            tracing::warn!(
                service = name,
                error = &error as &dyn std::error::Error,
                "service does not answer"
            );
            Err((RefusalCode::Unreachable, "nothing answers there".into()))
        }
    }
}
