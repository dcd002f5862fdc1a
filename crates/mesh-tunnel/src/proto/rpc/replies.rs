//! Replies: where each ends, and what the HELLO's says.

use super::RpcFault;
use super::command::{HELLO_BYTES_MAX, REPLY_HEAD_BYTES, Version};
use super::requests::WHOLE_BYTES_MAX;

/// What is behind the size of a reply.
pub(crate) fn reply_payload(reply: &[u8]) -> &[u8] {
    reply.get(REPLY_HEAD_BYTES..).unwrap_or_default()
}

/// Follows the replies of one connection.
#[derive(Debug)]
pub(crate) struct Replies {
    bytes_max: u64,
    said_hello: bool,
    /// What is left of the reply that is passing.
    passing: u64,
    /// Replies begun so far.
    pub(crate) begun: u64,
}

/// What to do with the first bytes of those at hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReplyStep {
    /// Nothing before there are so many.
    Need(usize),
    /// They pass as they are.
    Pass(usize),
    /// The reply to HELLO, its capabilities cleared; it passes.
    Hello(usize, Version),
    /// The reply that is awaited, whole; it passes.
    Awaited(usize),
}

impl Replies {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, said_hello: false, passing: 0, begun: 0 }
    }

    /// Whether the bytes so far end with a whole reply.
    pub(crate) fn is_whole(&self) -> bool {
        self.passing == 0
    }

    /// The next step. `asked` is the number of replies that were asked for, if known, and `awaited` that of the one which is to
    /// be looked at, from 1 on.
    ///
    /// # Errors
    /// [`RpcFault`]: a reply that nothing asked for, or above the bound.
    pub(crate) fn step(
        &mut self,
        bytes: &mut [u8],
        asked: Option<u64>,
        awaited: Option<u64>,
    ) -> Result<ReplyStep, RpcFault> {
        let mut run = 0;
        loop {
            let rest = &mut bytes[run..];
            let passed = usize::try_from(self.passing).unwrap_or(usize::MAX).min(rest.len());
            self.passing -= passed as u64;
            run += passed;
            let rest = &mut rest[passed..];
            let judged = if self.passing > 0 { Ok(Err(1)) } else { self.judge(rest, asked) };
            let is_awaited = awaited == Some(self.begun + 1);
            match judged {
                Ok(Ok(frame)) if self.said_hello && !is_awaited => self.passing = frame,
                // What goes before is handed over first; the rest is judged again then.
                _ if run > 0 => return Ok(ReplyStep::Pass(run)),
                Ok(Ok(frame)) => {
                    self.begun += 1;
                    let whole = usize::try_from(frame).unwrap_or(usize::MAX);
                    if self.said_hello {
                        // A longer one is none that is awaited: it passes as it comes.
                        self.passing = frame.saturating_sub(rest.len() as u64);
                        return Ok(ReplyStep::Awaited(whole.min(rest.len())));
                    }
                    self.said_hello = true;
                    let payload = &mut rest[REPLY_HEAD_BYTES..whole];
                    let version = Version::of(payload);
                    // What follows the version are offers to leave TCP for a transport that the tunnel could not carry.
                    payload.iter_mut().skip(4).for_each(|byte| *byte = 0);
                    return Ok(ReplyStep::Hello(whole, version));
                }
                Ok(Err(needed)) => return Ok(ReplyStep::Need(needed)),
                Err(fault) => return Err(fault),
            }
            self.begun += 1;
        }
    }

    /// How long the reply at hand is with its head, when it may pass (`Ok`), or how much of it is needed first.
    fn judge(&self, bytes: &[u8], asked: Option<u64>) -> Result<Result<u64, usize>, RpcFault> {
        let Some(head) = bytes.first_chunk() else { return Ok(Err(REPLY_HEAD_BYTES)) };
        let payload = u64::from_le_bytes(*head);
        let bytes_max = if self.said_hello { self.bytes_max } else { HELLO_BYTES_MAX };
        if payload > bytes_max {
            return Err(RpcFault::Size { command: "reply", code: 0, bytes: payload, bytes_max });
        }
        if asked.is_some_and(|asked| self.begun >= asked) {
            return Err(RpcFault::Unasked);
        }
        let frame = payload.saturating_add(REPLY_HEAD_BYTES as u64);
        let whole = usize::try_from(frame).unwrap_or(usize::MAX);
        Ok(if whole <= WHOLE_BYTES_MAX && bytes.len() < whole { Err(whole) } else { Ok(frame) })
    }
}
