//! The two sides of hello as state machines. See `docs/protocols/hello.md`.
//!
//! **Invariant:** neither side reads a clock, waits, or judges a credential itself: judging is an output.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use mesh_identity::{
    AdmissionRequest, DeviceDelegation, InviteError, InviteGrant, InviteToken, NodeName, ScopeId, SignedGrant,
};

use super::wire::{self, Answer, Credential, Hello, Preamble, Redemption, Refused, Welcome};
use crate::{error::Refusal, frame};

/// What the dialer shows.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    Grant(Box<SignedGrant>),
    Invite(Box<AdmissionRequest>),
}

/// What happens to either side.
#[derive(Debug)]
pub(crate) enum Input {
    /// The peer's next frame, without its length prefix.
    Frame(Vec<u8>),
    /// The answer to [`Output::Judge`].
    Verdict(Verdict),
    /// The deadline may have passed.
    Tick,
}

/// The outcome of judging.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The acceptor welcomes; it shows its own grant and, for a redemption, the new one.
    Welcome { grant: Box<SignedGrant>, issued: Option<Box<SignedGrant>> },
    /// The dialer is content with the acceptor's grant.
    Content,
    /// No.
    Refuse(Refusal),
}

/// What a side wants done, in order.
#[derive(Debug)]
pub(crate) enum Output {
    /// Write this frame.
    Send(Vec<u8>),
    /// Judge what the peer showed and come back with a verdict.
    Judge(Judge),
    /// Hello is over.
    Done(Outcome),
}

/// A question to the node.
#[derive(Debug)]
pub(crate) enum Judge {
    /// Acceptor: may this dialer link?
    Dialer { scope: ScopeId, shown: Shown },
    /// Acceptor: the token itself could not be read.
    Unreadable(InviteError),
    /// Dialer: is this acceptor a member, and is what it issued good?
    Acceptor { grant: Box<SignedGrant>, issued: Option<Box<SignedGrant>> },
}

/// How hello ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// Both sides are content.
    Linked { version: u16, instance: u64, features: Vec<String> },
    /// The acceptor refused (told to the dialer, or by it).
    Refused(Refusal),
    /// The dialer does not accept the acceptor's grant.
    Untrusted(Refusal),
    /// The deadline passed.
    TimedOut,
}

/// The peer broke the protocol; the side is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerFault {
    #[error("not a hello message")]
    Unreadable,
    #[error("message in the wrong state")]
    OutOfTurn,
    #[error("answer chose a version that was not offered")]
    Version,
}

/// What a side brings along.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub(crate) instance: u64,
    pub(crate) features: Vec<String>,
    pub(crate) deadline: Duration,
}

#[derive(Debug)]
enum Waiting {
    Frame,
    Verdict,
    Over,
}

/// The side that dialed.
#[derive(Debug)]
pub(crate) struct Dialer {
    waiting: Waiting,
    deadline: Instant,
    /// What the invite shown says, to name a refusal by its code.
    invite: Option<InviteGrant>,
    welcome: Option<(u16, u64, Vec<String>)>,
    outputs: VecDeque<Output>,
}

impl Dialer {
    /// Says hello: the first output is the frame to send.
    pub(crate) fn new(
        local: Local,
        scope: ScopeId,
        shown: &Shown,
        invite: Option<InviteGrant>,
        now: Instant,
    ) -> Self {
        let credential = match shown {
            Shown::Grant(grant) => Credential::Grant(grant.encode()),
            Shown::Invite(request) => Credential::Invite(Redemption {
                token: request.token.to_string(),
                node_name: request.node_name.to_string(),
                device: request.device.as_ref().map(DeviceDelegation::encode),
            }),
        };
        let hello = Hello {
            preamble: preamble(),
            features: local.features,
            scope: *scope.as_bytes(),
            instance: local.instance,
            credential,
        };
        let bytes = frame::encode(&hello).expect("own types always encode");
        let outputs = VecDeque::from([Output::Send(bytes)]);
        Self { waiting: Waiting::Frame, deadline: now + local.deadline, invite, welcome: None, outputs }
    }

    /// Takes one input. After an error the side is over and wants nothing more.
    pub(crate) fn handle(&mut self, input: Input, now: Instant) -> Result<(), PeerFault> {
        match (input, &self.waiting) {
            (_, Waiting::Over) => Ok(()),
            (Input::Tick, _) if now >= self.deadline => {
                self.finish(Outcome::TimedOut);
                Ok(())
            }
            (Input::Tick, _) => Ok(()),
            (Input::Frame(bytes), Waiting::Frame) => {
                self.handle_answer(&bytes).inspect_err(|_| self.waiting = Waiting::Over)
            }
            (Input::Frame(_), _) => {
                self.waiting = Waiting::Over;
                Err(PeerFault::OutOfTurn)
            }
            (Input::Verdict(Verdict::Refuse(refusal)), Waiting::Verdict) => {
                self.finish(Outcome::Untrusted(refusal));
                Ok(())
            }
            (Input::Verdict(_), Waiting::Verdict) => {
                let (version, instance, features) =
                    self.welcome.take().expect("set before the question was asked");
                self.finish(Outcome::Linked { version, instance, features });
                Ok(())
            }
            (Input::Verdict(_), _) => Ok(()),
        }
    }

    fn handle_answer(&mut self, bytes: &[u8]) -> Result<(), PeerFault> {
        let answer: Answer = decode_open(bytes)?;
        match answer {
            Answer::Refused(refused) => {
                let refusal = refusal_from_wire(&refused, self.invite.as_ref());
                self.finish(Outcome::Refused(refusal));
            }
            Answer::Welcome(welcome) => {
                if !(wire::VERSION_MIN..=wire::VERSION_MAX).contains(&welcome.version) {
                    return Err(PeerFault::Version);
                }
                check_features(&welcome.features)?;
                let grant = decode_grant(&welcome.grant)?;
                let issued = welcome.issued.as_deref().map(decode_grant).transpose()?;
                self.welcome = Some((welcome.version, welcome.instance, welcome.features));
                self.waiting = Waiting::Verdict;
                self.outputs.push_back(Output::Judge(Judge::Acceptor { grant, issued }));
            }
        }
        Ok(())
    }

    fn finish(&mut self, outcome: Outcome) {
        self.waiting = Waiting::Over;
        self.outputs.push_back(Output::Done(outcome));
    }

    /// The next thing to do; drain to `None` after every input.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to come with a tick.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        (!matches!(self.waiting, Waiting::Over)).then_some(self.deadline)
    }
}

/// The side that was dialed.
#[derive(Debug)]
pub(crate) struct Acceptor {
    local: Local,
    waiting: Waiting,
    deadline: Instant,
    hello: Option<(u16, u64, Vec<String>)>,
    outputs: VecDeque<Output>,
}

impl Acceptor {
    /// Waits for hello.
    pub(crate) fn new(local: Local, now: Instant) -> Self {
        let deadline = now + local.deadline;
        Self { local, waiting: Waiting::Frame, deadline, hello: None, outputs: VecDeque::new() }
    }

    /// Takes one input. After an error the side is over; the dialer is told nothing but the close code.
    pub(crate) fn handle(&mut self, input: Input, now: Instant) -> Result<(), PeerFault> {
        match (input, &self.waiting) {
            (_, Waiting::Over) => Ok(()),
            (Input::Tick, _) if now >= self.deadline => {
                self.finish(Outcome::TimedOut);
                Ok(())
            }
            (Input::Tick, _) => Ok(()),
            (Input::Frame(bytes), Waiting::Frame) => {
                self.handle_hello(&bytes).inspect_err(|_| self.waiting = Waiting::Over)
            }
            (Input::Frame(_), _) => {
                self.waiting = Waiting::Over;
                Err(PeerFault::OutOfTurn)
            }
            (Input::Verdict(verdict), Waiting::Verdict) => {
                self.handle_verdict(verdict);
                Ok(())
            }
            (Input::Verdict(_), _) => Ok(()),
        }
    }

    fn handle_hello(&mut self, bytes: &[u8]) -> Result<(), PeerFault> {
        let preamble: Preamble = decode_open(bytes)?;
        if preamble.magic != wire::MAGIC || preamble.version_min > preamble.version_max {
            return Err(PeerFault::Unreadable);
        }
        let version = preamble.version_max.min(wire::VERSION_MAX);
        if version < preamble.version_min.max(wire::VERSION_MIN) {
            self.refuse(Refusal::Version { min: wire::VERSION_MIN, max: wire::VERSION_MAX });
            return Ok(());
        }
        let hello: Hello = decode_open(bytes)?;
        check_features(&hello.features)?;
        let scope = ScopeId::from_bytes(hello.scope);
        let judge = match hello.credential {
            Credential::Grant(bytes) => Judge::Dialer { scope, shown: Shown::Grant(decode_grant(&bytes)?) },
            Credential::Invite(redemption) => judge_redemption(scope, &redemption)?,
        };
        self.hello = Some((version, hello.instance, hello.features));
        self.waiting = Waiting::Verdict;
        self.outputs.push_back(Output::Judge(judge));
        Ok(())
    }

    fn handle_verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Welcome { grant, issued } => {
                let (version, instance, features) =
                    self.hello.take().expect("set before the question was asked");
                let welcome = Welcome {
                    version,
                    features: self.local.features.clone(),
                    instance: self.local.instance,
                    grant: grant.encode(),
                    issued: issued.map(|grant| grant.encode()),
                };
                self.send(&Answer::Welcome(welcome));
                self.finish(Outcome::Linked { version, instance, features });
            }
            Verdict::Refuse(refusal) => self.refuse(refusal),
            Verdict::Content => self.refuse(Refusal::NotAdmitted),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.send(&Answer::Refused(refusal_to_wire(&refusal)));
        self.finish(Outcome::Refused(refusal));
    }

    fn send(&mut self, answer: &Answer) {
        self.outputs.push_back(Output::Send(frame::encode(answer).expect("own types always encode")));
    }

    fn finish(&mut self, outcome: Outcome) {
        self.waiting = Waiting::Over;
        self.outputs.push_back(Output::Done(outcome));
    }

    /// The next thing to do; drain to `None` after every input.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to come with a tick.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        (!matches!(self.waiting, Waiting::Over)).then_some(self.deadline)
    }
}

fn preamble() -> Preamble {
    Preamble { magic: wire::MAGIC, version_min: wire::VERSION_MIN, version_max: wire::VERSION_MAX }
}

/// A token that cannot be read is a matter for the verdict (the dialer is told why); the rest is a fault.
fn judge_redemption(scope: ScopeId, redemption: &Redemption) -> Result<Judge, PeerFault> {
    let token = match InviteToken::parse(&redemption.token) {
        Ok(token) => token,
        Err(error) => return Ok(Judge::Unreadable(error)),
    };
    let node_name = NodeName::new(&redemption.node_name).map_err(|_| PeerFault::Unreadable)?;
    let device = match &redemption.device {
        Some(bytes) => Some(DeviceDelegation::decode(bytes).map_err(|_| PeerFault::Unreadable)?),
        None => None,
    };
    Ok(Judge::Dialer { scope, shown: Shown::Invite(Box::new(AdmissionRequest { token, node_name, device })) })
}

/// Decodes a message whose later versions may be longer.
fn decode_open<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, PeerFault> {
    postcard::take_from_bytes(bytes).map(|(message, _)| message).map_err(|_| PeerFault::Unreadable)
}

fn decode_grant(bytes: &[u8]) -> Result<Box<SignedGrant>, PeerFault> {
    SignedGrant::decode(bytes).map(Box::new).map_err(|_| PeerFault::Unreadable)
}

fn check_features(features: &[String]) -> Result<(), PeerFault> {
    let fits =
        features.len() <= wire::FEATURES_MAX && features.iter().all(|f| f.len() <= wire::FEATURE_BYTES_MAX);
    fits.then_some(()).ok_or(PeerFault::Unreadable)
}

fn refusal_to_wire(refusal: &Refusal) -> Refused {
    let (code, detail) = match refusal {
        Refusal::NotAdmitted => (1, 0),
        Refusal::GrantExpired => (2, 0),
        Refusal::GrantRevoked => (3, 0),
        Refusal::Version { .. } => (4, 0),
        Refusal::Busy => (5, 0),
        Refusal::Malformed => (6, 0),
        Refusal::Invite(error) => (7, error.code()),
        Refusal::Other(code) => (*code, 0),
    };
    let text = match refusal {
        Refusal::Invite(error) => error.to_string(),
        other => other.to_string(),
    };
    let text = truncated(&text, wire::TEXT_BYTES_MAX).to_owned();
    Refused { code, detail, version_min: wire::VERSION_MIN, version_max: wire::VERSION_MAX, text }
}

fn refusal_from_wire(refused: &Refused, invite: Option<&InviteGrant>) -> Refusal {
    match refused.code {
        1 => Refusal::NotAdmitted,
        2 => Refusal::GrantExpired,
        3 => Refusal::GrantRevoked,
        4 => Refusal::Version { min: refused.version_min, max: refused.version_max },
        5 => Refusal::Busy,
        6 => Refusal::Malformed,
        7 => match invite {
            Some(invite) => Refusal::Invite(InviteError::from_code(refused.detail, invite)),
            None => Refusal::Other(refused.code),
        },
        other => Refusal::Other(other),
    }
}

/// The longest prefix of whole characters within `bytes_max`.
pub(crate) fn truncated(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
