//! The side of the service: what is offered, to whom, and the answer to a question.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mesh_transport::{FrameReader, Member, ResetCode, Stream, write_message};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::carry::carry;
use crate::proto::wire::{Answer, FRAME_BYTES_MAX, Open, RefusalCode};
use crate::tunnels::Inner;
use crate::{OfferError, ServiceName};

/// The services that this node offers to members.
#[derive(Debug, Default)]
pub(crate) struct Services(Mutex<BTreeMap<ServiceName, SocketAddr>>);

/// A service on offer. Dropping it ends the offer; connections that are open stay open.
#[derive(Debug)]
#[must_use = "dropping it ends the offer"]
pub struct Offered {
    services: Weak<Services>,
    name: ServiceName,
}

impl Services {
    pub(crate) fn offer(self: &Arc<Self>, name: ServiceName, at: SocketAddr) -> Result<Offered, OfferError> {
        if !at.ip().is_loopback() {
            return Err(OfferError::NotLoopback(at));
        }
        let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if services.contains_key(&name) {
            return Err(OfferError::Taken);
        }
        services.insert(name.clone(), at);
        Ok(Offered { services: Arc::downgrade(self), name })
    }

    fn find(&self, name: &str) -> Option<SocketAddr> {
        let name = ServiceName::new(name).ok()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied()
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

/// Serves one inbound stream to its end.
pub(crate) async fn serve(inner: Arc<Inner>, peer: Member, stream: Stream) {
    let cancel = inner.cancel.clone();
    tokio::select! {
        () = cancel.cancelled() => {}
        () = answer(&inner, &peer, stream) => {}
    }
}

async fn answer(inner: &Inner, peer: &Member, stream: Stream) {
    let (mut send, recv) = stream.split();
    let mut reader = FrameReader::new(recv, FRAME_BYTES_MAX);
    let admitted = tokio::time::timeout(inner.config.handshake_timeout, admit(inner, &mut reader)).await;
    let (refusal, service) = match admitted {
        Err(_) => return send.reset(ResetCode::BAD_HEADER),
        Ok(Err(refusal)) => (refusal, None),
        Ok(Ok(socket)) => (Answer::Accepted, Some(socket)),
    };
    let answered = write_message(&mut send, &refusal, FRAME_BYTES_MAX);
    let Ok(Ok(())) = tokio::time::timeout(inner.config.handshake_timeout, answered).await else { return };
    let Some((socket, _room)) = service else {
        inner.counters.refused.fetch_add(1, Relaxed);
        tracing::debug!(peer = %peer.id.short(), ?refusal, "tunnel refused");
        let _ = tokio::time::timeout(inner.config.handshake_timeout, send.shutdown()).await;
        return;
    };
    let stream = Stream::join(send, reader.into_inner());
    if let Err(error) = carry(socket, stream, &[&inner.counters], inner.config.buffer_bytes).await {
        tracing::debug!(peer = %peer.id.short(), error = &error as &dyn std::error::Error, "tunnel connection broke");
    }
}

type Admitted = (TcpStream, tokio::sync::OwnedSemaphorePermit);

/// Whether the service is to be had now.
async fn admit(
    inner: &Inner,
    reader: &mut FrameReader<mesh_transport::RecvStream>,
) -> Result<Admitted, Answer> {
    let Ok(Some(open)) = reader.next_message::<Open>().await else {
        return Err(Answer::refused(RefusalCode::Malformed, "not a question of tunnel/1"));
    };
    let Some(at) = inner.services.find(&open.service) else {
        return Err(Answer::refused(RefusalCode::UnknownService, "no such service is offered here"));
    };
    let Ok(room) = inner.exit_room.clone().try_acquire_owned() else {
        let text = format!("this node carries {} tunnel connections already", inner.config.connections_max);
        return Err(Answer::refused(RefusalCode::Full, text));
    };
    match TcpStream::connect(at).await {
        Ok(socket) => {
            // Small requests wait for nobody; an error here costs latency only.
            let _ = socket.set_nodelay(true);
            Ok((socket, room))
        }
        Err(error) => {
            tracing::warn!(service = %open.service, error = &error as &dyn std::error::Error, "service does not answer");
            Err(Answer::refused(RefusalCode::Unreachable, "nothing answers there"))
        }
    }
}
