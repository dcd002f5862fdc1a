//! What runs inside libp2p for one connection: it opens and takes streams, and says goodbye.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use libp2p::{
    StreamProtocol,
    core::{InboundUpgrade, OutboundUpgrade, UpgradeInfo},
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::connection::{Opened, Shared};
use crate::error::{CloseCode, ClosedWhy};

/// Carries every stream of ours; what runs on it is named by the stream's own header.
pub(super) const STREAM: StreamProtocol = StreamProtocol::new("/qmt/stream/1");
/// Carries nothing but why a connection is closed.
pub(super) const CLOSE: StreamProtocol = StreamProtocol::new("/qmt/close/1");

/// From asking for a stream to having agreed on its protocol.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a stream of the peer's, waiting for room included.
const ARRIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the last words may take, at either side.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// A code and the most words.
const GOODBYE_BYTES_MAX: usize = 4 + 256;

/// The handler of one connection.
pub(super) struct Handler {
    shared: Arc<Shared>,
    opens: mpsc::Receiver<oneshot::Sender<Opened>>,
    stage: Stage,
    arrived: Telling,
    /// Told to the behaviour once.
    over: bool,
}

/// Whether the behaviour knows of the peer's first stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Telling {
    NotYet,
    Due,
    Told,
}

/// How far the end of the connection has come.
enum Stage {
    /// In use; resolves when it has ended here.
    Open(BoxFuture<'static, ClosedWhy>),
    /// Our goodbye is being negotiated.
    Parting,
    /// Last words are on their way, from here or from there.
    LastWords(BoxFuture<'static, ()>),
    /// Nothing is left to do.
    Done,
}

/// What the behaviour is told.
#[derive(Debug)]
pub(super) enum Told {
    /// The peer has opened its first stream: it dialed for a link, and not for libp2p's own protocols alone.
    Arrived,
    /// The connection has ended and said why: libp2p may close it.
    Over,
}

impl Handler {
    pub(super) fn new(shared: Arc<Shared>, opens: mpsc::Receiver<oneshot::Sender<Opened>>) -> Self {
        let stage = Stage::Open(closed(shared.clone()));
        Self { shared, opens, stage, arrived: Telling::NotYet, over: false }
    }

    /// The stage's next step; the event that it asks for, if any.
    fn poll_stage(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Upgrade, Asked, Told>> {
        loop {
            match &mut self.stage {
                Stage::Open(closed) => match std::task::ready!(closed.poll_unpin(cx)) {
                    ClosedWhy::Local(_) => {
                        self.stage = Stage::Parting;
                        let protocol = SubstreamProtocol::new(Upgrade::Close, Asked::Close);
                        let protocol = protocol.with_timeout(GOODBYE_TIMEOUT);
                        return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
                    }
                    _ => self.stage = Stage::Done,
                },
                Stage::LastWords(words) => {
                    std::task::ready!(words.poll_unpin(cx));
                    self.stage = Stage::Done;
                }
                Stage::Done if !self.over => {
                    self.over = true;
                    return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Told::Over));
                }
                Stage::Parting | Stage::Done => return Poll::Pending,
            }
        }
    }
}

fn closed(shared: Arc<Shared>) -> BoxFuture<'static, ClosedWhy> {
    Box::pin(async move { shared.closed().await })
}

/// Tells why, then gives the peer time to close: closing here at once could overtake the words.
async fn say_goodbye(io: libp2p::Stream, code: CloseCode, words: String) {
    let said = async {
        let mut io = io.compat();
        let mut message = code.code().to_be_bytes().to_vec();
        message.extend_from_slice(words.as_bytes());
        io.write_all(&message).await?;
        io.shutdown().await?;
        // The peer sends nothing; this ends when it lets go of the stream.
        io.read_u8().await
    };
    drop(tokio::time::timeout(GOODBYE_TIMEOUT, said).await);
}

/// Hears why; a peer that says nothing readable has closed all the same.
async fn hear_goodbye(io: libp2p::Stream, shared: Arc<Shared>) {
    let mut message = Vec::new();
    let heard = async { io.compat().take(GOODBYE_BYTES_MAX as u64).read_to_end(&mut message).await };
    drop(tokio::time::timeout(GOODBYE_TIMEOUT, heard).await);
    let (code, reason) = match message.split_first_chunk::<4>() {
        Some((code, words)) => {
            (CloseCode::from_code(u32::from_be_bytes(*code)), String::from_utf8_lossy(words).into_owned())
        }
        None => (CloseCode::Done, String::new()),
    };
    shared.end(ClosedWhy::Peer { code, reason: crate::proto::hello::truncated(&reason, 256).to_owned() });
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Told;
    type InboundProtocol = Arrival;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Asked;

    fn listen_protocol(&self) -> SubstreamProtocol<Arrival> {
        SubstreamProtocol::new(Arrival(self.shared.clone()), ()).with_timeout(ARRIVE_TIMEOUT)
    }

    fn connection_keep_alive(&self) -> bool {
        // In use, a connection ends by being closed, or when pings go unanswered.
        self.shared.is_used()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Upgrade, Asked, Told>> {
        if let Poll::Ready(event) = self.poll_stage(cx) {
            return Poll::Ready(event);
        }
        if self.arrived == Telling::Due {
            self.arrived = Telling::Told;
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Told::Arrived));
        }
        if matches!(self.stage, Stage::Open(_))
            && let Poll::Ready(Some(asked)) = self.opens.poll_recv(cx)
        {
            let protocol = SubstreamProtocol::new(Upgrade::Stream, Asked::Stream(asked));
            let protocol = protocol.with_timeout(OPEN_TIMEOUT);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Arrival, Upgrade, (), Asked>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                match protocol {
                    Arrived::Stream(io, room) => {
                        self.shared.arrive(io, room);
                        if self.arrived == Telling::NotYet {
                            self.arrived = Telling::Due;
                        }
                    }
                    Arrived::Close(io) => {
                        self.stage = Stage::LastWords(Box::pin(hear_goodbye(io, self.shared.clone())));
                    }
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: io, info }) => {
                match info {
                    // Whoever asked may have gone; the stream is then dropped, which resets it.
                    Asked::Stream(asked) => drop(asked.send(Ok(io))),
                    Asked::Close if matches!(self.stage, Stage::Parting) => {
                        let (code, words) = self.shared.goodbye().unwrap_or((CloseCode::Done, String::new()));
                        self.stage = Stage::LastWords(Box::pin(say_goodbye(io, code, words)));
                    }
                    Asked::Close => {}
                }
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => match info {
                Asked::Stream(asked) => drop(asked.send(Err(describe(&error)))),
                Asked::Close if matches!(self.stage, Stage::Parting) => self.stage = Stage::Done,
                Asked::Close => {}
            },
            _ => {}
        }
    }
}

fn describe(error: &StreamUpgradeError<Infallible>) -> String {
    match error {
        StreamUpgradeError::Timeout => "no stream in time".into(),
        StreamUpgradeError::NegotiationFailed => "the peer does not speak /qmt/stream/1".into(),
        other => other.to_string(),
    }
}

/// For whom a stream is being opened.
pub(super) enum Asked {
    Stream(oneshot::Sender<Opened>),
    Close,
}

/// A stream that we open.
#[derive(Clone, Copy, Debug)]
pub(super) enum Upgrade {
    Stream,
    Close,
}

impl UpgradeInfo for Upgrade {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(match self {
            Self::Stream => STREAM,
            Self::Close => CLOSE,
        })
    }
}

impl OutboundUpgrade<libp2p::Stream> for Upgrade {
    type Output = libp2p::Stream;
    type Error = Infallible;
    type Future = std::future::Ready<Result<libp2p::Stream, Infallible>>;

    fn upgrade_outbound(self, io: libp2p::Stream, _: StreamProtocol) -> Self::Future {
        std::future::ready(Ok(io))
    }
}

/// A stream that the peer opens.
pub(super) struct Arrival(Arc<Shared>);

/// What the peer opened.
pub(super) enum Arrived {
    Stream(libp2p::Stream, OwnedSemaphorePermit),
    Close(libp2p::Stream),
}

impl UpgradeInfo for Arrival {
    type Info = StreamProtocol;
    type InfoIter = std::array::IntoIter<StreamProtocol, 2>;

    fn protocol_info(&self) -> Self::InfoIter {
        [STREAM, CLOSE].into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for Arrival {
    type Output = Arrived;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Arrived, Infallible>>;

    /// Waits for room: libp2p takes no more streams than it may negotiate at once, so a peer with too many is held back.
    fn upgrade_inbound(self, io: libp2p::Stream, protocol: StreamProtocol) -> Self::Future {
        Box::pin(async move {
            if protocol == CLOSE {
                return Ok(Arrived::Close(io));
            }
            let room = self.0.inbound_room().await;
            Ok(Arrived::Stream(io, room))
        })
    }
}
