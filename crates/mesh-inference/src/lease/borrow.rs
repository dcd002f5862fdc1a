//! The host's side of a lease.

use std::sync::Arc;
use std::time::Duration;

use mesh_identity::{NodeId, ScopeId};
use mesh_transport::{
    FrameError, FrameReader, OpenError, RecvStream, ResetCode, SendStream, StreamFault, Transport,
    write_message,
};
use mesh_tunnel::ServiceName;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::beat::keep;
use super::wire::{Ask, FRAME_BYTES_MAX, RefusalCode, ToHost, ToWorker, bounded};
use super::{LeaseConfig, PROTOCOL};

/// Why a worker does not lend. Nothing is held there.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// No stream to the worker. Ask again as the source says.
    #[error("no stream to the worker")]
    Stream(#[from] OpenError),
    /// The worker refuses.
    #[error("the worker refuses: {text}")]
    Refused {
        /// Its reason.
        code: RefusalCode,
        /// Its words: untrusted, bounded.
        text: String,
        /// Who has it instead, and the epoch of that.
        holder: Option<(NodeId, u64)>,
    },
    /// No word in [`LeaseConfig::word_within`], or no answer in [`LeaseConfig::answer_within`].
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The stream broke, or what came is no answer.
    #[error("no proper answer from the worker")]
    Broken(#[source] Arc<FrameError>),
    /// The worker ended the stream without an answer.
    #[error("the worker hung up")]
    HungUp,
}

/// Memory of a worker that this node has. Given back when this is dropped.
#[derive(Debug)]
pub struct Lease {
    scope: ScopeId,
    worker: NodeId,
    bytes: u64,
    service: ServiceName,
    lost: watch::Receiver<Option<String>>,
    _end: DropGuard,
}

impl Lease {
    /// Asks a worker. Must be called on a tokio runtime.
    ///
    /// Cancel safe: dropped early, the worker takes back what it may have lent.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn ask(
        transport: &Transport,
        scope: ScopeId,
        worker: NodeId,
        ask: Ask,
        config: &LeaseConfig,
    ) -> Result<Self, LeaseError> {
        let bytes = ask.bytes;
        let asked = question(transport, &scope, &worker, ask, config);
        let asked = tokio::time::timeout(config.answer_within, asked);
        let (service, send, recv) = asked.await.map_err(|_| LeaseError::Timeout(config.answer_within))??;
        let end = CancellationToken::new();
        let (told, lost) = watch::channel(None);
        let (config, stop) = (config.clone(), end.clone());
        tokio::spawn(async move {
            let why = tokio::select! {
                biased;
                () = stop.cancelled() => "given back".to_owned(),
                why = hold(send, recv, &config) => why,
            };
            told.send_replace(Some(why));
        });
        Ok(Self { scope, worker, bytes, service, lost, _end: end.drop_guard() })
    }

    /// The scope of the link.
    pub fn scope(&self) -> ScopeId {
        self.scope
    }

    /// Who lends.
    pub fn worker(&self) -> NodeId {
        self.worker
    }

    /// How much.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the worker's tunnels lead to its rpc-server.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Why it is over; `None` while it holds.
    pub fn is_lost(&self) -> Option<String> {
        self.lost.borrow().clone()
    }

    /// Resolves to the reason once the lease is over. Cancel safe.
    pub async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "its task ended".into(),
        }
    }
}

type Reader = FrameReader<RecvStream>;

async fn question(
    transport: &Transport,
    scope: &ScopeId,
    worker: &NodeId,
    ask: Ask,
    config: &LeaseConfig,
) -> Result<(ServiceName, SendStream, Reader), LeaseError> {
    let silent = |_| LeaseError::Timeout(config.word_within);
    let opened = tokio::time::timeout(config.word_within, transport.open(scope, worker, PROTOCOL));
    let stream = opened.await.map_err(silent)??;
    let (mut send, recv) = stream.split();
    // A worker that refuses at once may have stopped reading: its answer says why, so it is read all the same.
    let asked = write_message(&mut send, &ToWorker::Ask(ask), FRAME_BYTES_MAX).await;
    let mut reader = FrameReader::new(recv, FRAME_BYTES_MAX);
    loop {
        let word = tokio::time::timeout(config.word_within, reader.next_message::<ToHost>());
        match word.await.map_err(silent)? {
            // It lives, and is not ready to answer.
            Ok(Some(ToHost::Beat)) => {}
            Ok(Some(ToHost::Granted { service })) => {
                asked.map_err(broken)?;
                let service = ServiceName::new(service).map_err(|_| broken(FrameError::Malformed))?;
                return Ok((service, send, reader));
            }
            Ok(Some(ToHost::Refused(refused))) => {
                return Err(LeaseError::Refused {
                    code: RefusalCode::from_wire(refused.code),
                    text: bounded(refused.text),
                    holder: refused.holder,
                });
            }
            Ok(Some(ToHost::Ended { why })) => {
                let text = bounded(why);
                return Err(LeaseError::Refused { code: RefusalCode::NoServer, text, holder: None });
            }
            Ok(None) => return Err(LeaseError::HungUp),
            Err(FrameError::Io(error)) if is_not_allowed(&error) => {
                let text = "only members borrow memory".to_owned();
                return Err(LeaseError::Refused { code: RefusalCode::NotLending, text, holder: None });
            }
            Err(error) => return Err(broken(error)),
        }
    }
}

fn broken(error: FrameError) -> LeaseError {
    LeaseError::Broken(Arc::new(error))
}

/// Whether the worker's transport has turned us away, since only members get through, or since it lends nothing at all.
fn is_not_allowed(error: &std::io::Error) -> bool {
    let fault = StreamFault::of(error);
    matches!(
        fault,
        Some(StreamFault::Reset(ResetCode::NOT_ALLOWED) | StreamFault::Stopped(ResetCode::NOT_ALLOWED))
    )
}

/// Keeps the lease until one side ends it, and says why it ended.
async fn hold(mut send: SendStream, mut reader: Reader, config: &LeaseConfig) -> String {
    let ends = |message| match message {
        ToHost::Beat => None,
        ToHost::Ended { why } => Some(bounded(why)),
        _ => Some("the worker broke the rules of a lease".into()),
    };
    keep(&mut send, &mut reader, config, &ToWorker::Beat, "worker", ends).await
}
