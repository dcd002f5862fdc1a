//! Typed request and response: one stream a call, a deadline on both sides.

use std::{future::Future, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::AsyncWriteExt;

use crate::{
    error::{CallError, OpenError, ResetCode, StreamFault},
    frame::{self, FrameError, FrameReader},
    handler::handler_fn,
    peer::{Caller, Protocol},
    proto::wire::{CallRequest, Fault},
    stream::Stream,
    transport::Transport,
};

/// A request type, with the reply it earns and the protocol it travels on.
pub trait Call: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Names the call and its version on the wire.
    const PROTOCOL: Protocol;
    /// What a successful call returns.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}

/// An error that the server of a call answers with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct CallFault {
    /// What kind, in the words of the protocol. Codes from 65,000 are this crate's.
    pub code: u16,
    /// For people; untrusted when received.
    pub message: String,
}

impl CallFault {
    /// The request did not decode.
    pub const BAD_REQUEST: u16 = 65_000;
    /// The server did not finish before the caller's deadline. Callers see [`CallError::Deadline`].
    pub const DEADLINE: u16 = 65_001;
    /// The caller's role does not allow the call.
    pub const NOT_ALLOWED: u16 = 65_002;

    /// A fault with a code of the protocol's own.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The refusal for a caller whose role is not enough.
    pub fn not_allowed(message: impl Into<String>) -> Self {
        Self::new(Self::NOT_ALLOWED, message)
    }
}

/// Serves every call of type `C` with `answer`, whose first parameter says by its type who may call: [`crate::Member`] or
/// [`crate::Peer`]. Anybody else gets [`CallFault::NOT_ALLOWED`] before `answer` is asked. The future is dropped when the
/// caller gives up, its deadline passes or the link ends.
pub fn serve_call<C, P, Fut>(transport: &Transport, answer: impl Fn(P, C) -> Fut + Send + Sync + 'static)
where
    C: Call,
    P: Caller,
    Fut: Future<Output = Result<C::Reply, CallFault>> + Send + 'static,
{
    let bytes_max = transport.config().call_bytes_max;
    let answer = Arc::new(answer);
    transport.serve(
        C::PROTOCOL,
        handler_fn(move |caller: P, stream| {
            let answer = answer.clone();
            async move { serve_one(caller, stream, bytes_max, &*answer).await }
        }),
    );
}

/// Serves one call on a stream that a peer has opened.
pub(crate) async fn serve_one<C, P, F, Fut>(caller: P, stream: Stream, bytes_max: usize, answer: &F)
where
    C: Call,
    F: Fn(P, C) -> Fut,
    Fut: Future<Output = Result<C::Reply, CallFault>>,
{
    let (mut send, recv) = stream.split();
    let mut requests = FrameReader::new(recv, bytes_max);
    let reply = match requests.next_message::<CallRequest<C>>().await {
        Ok(Some(request)) => {
            let deadline = Duration::from_millis(request.deadline_ms.into());
            tokio::select! {
                () = send.cancelled() => return,
                reply = tokio::time::timeout(deadline, answer(caller, request.body)) => reply.unwrap_or_else(|_| {
                    Err(CallFault::new(CallFault::DEADLINE, "not done before the caller's deadline"))
                }),
            }
        }
        Ok(None) | Err(FrameError::Io(_)) => return send.reset(ResetCode::CANCELLED),
        Err(FrameError::Malformed) => Err(CallFault::new(CallFault::BAD_REQUEST, "request does not decode")),
        Err(_) => return send.reset(ResetCode::FAULT),
    };
    let reply = reply.map_err(|fault| Fault { code: fault.code, message: fault.message });
    let written = frame::write_message(&mut send, &reply, bytes_max);
    match written.await {
        Ok(()) => drop(send.shutdown().await),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "reply not sent");
            send.reset(ResetCode::FAULT);
        }
    }
}

/// The calling side, on a stream that was just opened.
pub(crate) async fn call_on<C: Call>(
    stream: Stream,
    call: &C,
    deadline: Duration,
    bytes_max: usize,
) -> Result<C::Reply, CallError> {
    let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
    let (mut send, recv) = stream.split();
    let request = CallRequest { deadline_ms, body: call };
    frame::write_message(&mut send, &request, bytes_max).await.map_err(call_error::<C>)?;
    send.shutdown().await.map_err(|error| call_error::<C>(error.into()))?;
    let mut replies = FrameReader::new(recv, bytes_max);
    let reply: Option<Result<C::Reply, Fault>> = replies.next_message().await.map_err(call_error::<C>)?;
    let reply = reply.ok_or_else(|| call_error::<C>(FrameError::Half))?;
    reply.map_err(|fault| match fault.code {
        // The server counts the same time, and its word may overtake our own timer.
        CallFault::DEADLINE => CallError::Deadline(deadline),
        code => CallError::Fault(CallFault { code, message: fault.message }),
    })
}

fn call_error<C: Call>(error: FrameError) -> CallError {
    let FrameError::Io(error) = error else { return CallError::Frame(Arc::new(error)) };
    match StreamFault::of(&error) {
        Some(
            StreamFault::Reset(ResetCode::UNKNOWN_PROTOCOL)
            | StreamFault::Stopped(ResetCode::UNKNOWN_PROTOCOL),
        ) => OpenError::UnknownProtocol(C::PROTOCOL.to_string()).into(),
        Some(StreamFault::Reset(ResetCode::NOT_ALLOWED) | StreamFault::Stopped(ResetCode::NOT_ALLOWED)) => {
            CallFault::not_allowed("only members may call this").into()
        }
        _ => CallError::Lost(Arc::new(error)),
    }
}
