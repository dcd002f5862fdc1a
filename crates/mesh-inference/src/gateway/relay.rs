//! A backend's answer on its way to the caller, piece by piece, unchanged.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::error::ApiError;
use super::pool::Lease;
use super::ticket::Ticket;

/// The end of a stream that is complete: what follows is only the transport's goodbye.
const DONE: &[u8] = b"data: [DONE]";
/// Enough of a stream's end to recognise [`DONE`] and the blank line behind it.
const TAIL_BYTES: usize = DONE.len() + 4;

/// How a stream of events says that it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamForm {
    /// `data: {"error":…}`, as chat and text completions do.
    Completions,
    /// `event: error`, as `/v1/responses` does.
    Responses,
}

/// Why an answer could not be completed. The caller's connection is cut, so that it cannot take the part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off: {0}")]
pub(crate) struct Broken(String);

/// The answer of one backend to one request. Dropping it before its end closes the backend's connection.
pub(crate) struct Relay {
    incoming: Incoming,
    /// None once the answer is complete or given up.
    lease: Option<Lease>,
    first: Option<Bytes>,
    /// None when a failure can only be told by cutting the connection.
    form: Option<StreamForm>,
    /// The caller is another gateway: a word of this one would pass for the end of the answer, with which it can go on.
    for_gateway: bool,
    tail: Tail,
    done: bool,
    /// A failure that only a cut can tell, held back for one turn so that what was sent before it gets out.
    cut: Option<String>,
    ticket: Ticket,
    silence: Silence,
}

impl Relay {
    /// `silence_max`: the longest wait for the next piece.
    pub(crate) fn new(
        incoming: Incoming,
        lease: Lease,
        form: Option<StreamForm>,
        ticket: Ticket,
        silence_max: Duration,
    ) -> Self {
        // With a length announced there is no room for a last event.
        let form = form.filter(|_| incoming.size_hint().exact().is_none());
        let silence = Silence { max: silence_max, since: None, alarm: None };
        Self {
            incoming,
            lease: Some(lease),
            first: None,
            form,
            for_gateway: false,
            tail: Tail::default(),
            done: false,
            cut: None,
            ticket,
            silence,
        }
    }

    /// Waits for the first piece, so that a backend that dies before it can still be replaced by another.
    ///
    /// `Ok` also when the answer is empty. Cancel safe: a piece that came is kept.
    pub(crate) async fn first_piece(&mut self) -> Result<(), Broken> {
        let first = poll_fn(|cx| self.poll_upstream(cx)).await;
        match first {
            Some(Ok(piece)) => {
                self.first = Some(piece);
                Ok(())
            }
            Some(Err(why)) => Err(Broken(why)),
            None => Ok(()),
        }
    }

    /// Notes that the answer failed.
    pub(crate) fn failed(&mut self) {
        self.ticket.failed();
    }

    /// The next piece as it comes, or why none comes any more. For whoever has its own word for a failure.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => self.poll_upstream(cx),
        }
    }

    /// [`Relay::poll_piece`] as a future. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, String>> {
        poll_fn(|cx| self.poll_piece(cx)).await
    }

    /// The next piece if it is there already.
    pub(crate) fn take_ready(&mut self) -> Option<Option<Result<Bytes, String>>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match self.poll_piece(&mut cx) {
            Poll::Ready(piece) => Some(piece),
            Poll::Pending => None,
        }
    }

    /// Whether this is a stream of events without an announced length.
    pub(crate) fn is_open_stream(&self) -> bool {
        self.form.is_some()
    }

    /// The same, to be cut when it fails.
    pub(crate) fn for_gateway(self) -> Self {
        Self { for_gateway: true, ..self }
    }

    /// Notes whole events that go to the caller next: with the last one the answer is there, though its connection has not
    /// ended.
    pub(crate) fn note_passed(&mut self, events: &[u8]) {
        if events.trim_ascii_end().ends_with(DONE) {
            self.ticket.complete();
        }
    }

    /// Notes what went to the caller before [`Relay::poll_next`] took over.
    pub(crate) fn note_sent(&mut self, piece: &[u8]) {
        self.tail.push(piece);
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        if let Some(first) = self.first.take() {
            self.tail.push(&first);
            return Poll::Ready(Some(Ok(first)));
        }
        if let Some(why) = self.cut.take() {
            return Poll::Ready(Some(Err(Broken(why))));
        }
        match std::task::ready!(self.poll_upstream(cx)) {
            Some(Ok(piece)) => {
                self.tail.push(&piece);
                if self.form.is_some() && self.tail.is_done() {
                    self.ticket.complete();
                }
                Poll::Ready(Some(Ok(piece)))
            }
            None => Poll::Ready(None),
            Some(Err(why)) => {
                let last_words = self.last_words(why);
                if self.cut.is_some() {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(last_words.map(Ok))
            }
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done && self.first.is_none()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        match self.incoming.size_hint().exact() {
            Some(rest) if !self.done || rest == 0 => SizeHint::with_exact(rest + first),
            _ => SizeHint::default(),
        }
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        loop {
            let Some(lease) = &mut self.lease else {
                return Poll::Ready(None);
            };
            if let Poll::Ready(why) = lease.poll_cut_off(cx) {
                self.lease = None;
                return Poll::Ready(Some(Err(why.to_owned())));
            }
            match lease.wire.poll_body(&mut self.incoming, cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers end at this hop.
                    let Ok(piece) = frame.into_data() else { continue };
                    self.ticket.note_piece();
                    self.silence.since = None;
                    if self.incoming.is_end_stream() {
                        self.complete();
                    }
                    return Poll::Ready(Some(Ok(piece)));
                }
                Poll::Ready(Some(Err(error))) => {
                    // A cut closes the link as well, and which of the two is seen first is chance.
                    let why = if let Poll::Ready(why) = lease.poll_cut_off(cx) {
                        why.to_owned()
                    } else if error.is_incomplete_message() || error.is_closed() {
                        "the backend went away".to_owned()
                    } else {
                        chain(&error)
                    };
                    self.lease = None;
                    return Poll::Ready(Some(Err(why)));
                }
                Poll::Ready(None) => {
                    self.complete();
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    std::task::ready!(self.silence.poll(cx));
                    self.lease = None;
                    return Poll::Ready(Some(Err(format!(
                        "the backend was silent for {:?}",
                        self.silence.max
                    ))));
                }
            }
        }
    }

    /// Notes that the answer is complete, though its connection may not have ended.
    pub(crate) fn complete(&mut self) {
        self.done = true;
        self.ticket.complete();
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    /// What the caller is told of a failure in mid-stream, exactly once.
    fn last_words(&mut self, why: String) -> Option<Bytes> {
        if self.form.is_some() && self.tail.is_done() {
            self.done = true;
            self.ticket.complete();
            return None;
        }
        tracing::warn!(why, "an answer broke off");
        self.ticket.failed();
        let Some(form) = self.form.filter(|_| !self.for_gateway) else {
            self.cut = Some(why);
            return None;
        };
        self.done = true;
        let event = ApiError::upstream_lost(&why).last_event(form);
        let event = match self.tail.gap() {
            "" => event,
            gap => [gap.as_bytes(), &event].concat().into(),
        };
        Some(event)
    }
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The last bytes sent.
#[derive(Default)]
struct Tail {
    bytes: [u8; TAIL_BYTES],
    len: usize,
}

impl Tail {
    fn push(&mut self, piece: &[u8]) {
        let piece = &piece[piece.len().saturating_sub(TAIL_BYTES)..];
        let kept = self.len.min(TAIL_BYTES - piece.len());
        self.bytes.copy_within(self.len - kept..self.len, 0);
        self.bytes[kept..kept + piece.len()].copy_from_slice(piece);
        self.len = kept + piece.len();
    }

    fn is_done(&self) -> bool {
        self.bytes[..self.len].trim_ascii_end().ends_with(DONE) && self.gap().len() < 2
    }

    /// What is missing for the next line to begin a new event.
    fn gap(&self) -> &'static str {
        let sent = &self.bytes[..self.len];
        if sent.is_empty() || sent.ends_with(b"\n\n") || sent.ends_with(b"\r\n\r\n") {
            ""
        } else if sent.ends_with(b"\n") {
            "\n"
        } else {
            "\n\n"
        }
    }
}

/// Watches for the longest wait between two pieces. Its timer is set once per wait that matters, not once per piece.
struct Silence {
    max: Duration,
    /// Since when a piece is waited for.
    since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = *self.since.get_or_insert_with(Instant::now) + self.max;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        loop {
            std::task::ready!(alarm.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(pieces: &[&str]) -> Tail {
        let mut tail = Tail::default();
        for piece in pieces {
            tail.push(piece.as_bytes());
        }
        tail
    }

    #[test]
    fn the_end_of_a_stream_is_recognised_across_pieces() {
        assert!(tail(&["data: {\"long\": \"event before\"}\n\nda", "ta: [DO", "NE]\n", "\n"]).is_done());
        assert!(tail(&["data: [DONE]\r\n\r\n"]).is_done());
        assert!(tail(&["data: [DONE]\n"]).is_done());
        assert!(!tail(&["data: [DONE]"]).is_done());
        assert!(!tail(&["data: {}\n\n"]).is_done());
    }

    #[test]
    fn a_last_event_begins_on_its_own_line() {
        assert_eq!(tail(&[]).gap(), "");
        assert_eq!(tail(&["data: x\n", "\n"]).gap(), "");
        assert_eq!(tail(&["data: x\n"]).gap(), "\n");
        assert_eq!(tail(&["data: x"]).gap(), "\n\n");
    }
}
