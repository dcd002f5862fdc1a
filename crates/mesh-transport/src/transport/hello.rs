//! Runs the two sides of hello on a connection, and judges what is shown.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use mesh_identity::{Grant, InviteError, InviteGrant, NodeId, RevocationSet, ScopeId, SignedGrant};
use tokio::io::AsyncWriteExt;

use super::Inner;
use crate::{
    connection::Connection,
    error::{CloseCode, ClosedWhy, ConnectionLost, DialError, Refusal, StreamFault},
    frame::{self, FrameError, FrameReader},
    proto::{
        hello::{Acceptor, Dialer, Input, Judge, Outcome, Output, PeerFault, Shown, Verdict},
        wire::HELLO_BYTES_MAX,
    },
    stream::{RecvStream, SendStream},
};

/// What a hello that went well has proved.
pub(super) struct Linked {
    /// The other side's run.
    pub(super) instance: u64,
    /// Its verified grant; `None` for a dialer that redeemed an invite.
    pub(super) proof: Option<Proof>,
    /// The grant that was issued in this hello.
    pub(super) issued: Option<Box<SignedGrant>>,
}

/// A grant as it was shown, and what it says.
pub(super) struct Proof {
    pub(super) signed: SignedGrant,
    pub(super) grant: Grant,
}

/// Why a hello did not end with a link.
#[derive(Debug)]
pub(super) enum HelloFailure {
    Refused(Refusal),
    Untrusted(Refusal),
    BadIssue(mesh_identity::GrantError),
    TimedOut,
    Fault(String),
    Lost(ConnectionLost),
}

impl HelloFailure {
    /// How the connection is to be closed.
    pub(super) fn close_code(&self) -> CloseCode {
        match self {
            Self::Refused(_) | Self::Untrusted(_) | Self::BadIssue(_) => CloseCode::Refused,
            Self::TimedOut => CloseCode::HelloTimeout,
            Self::Fault(_) => CloseCode::Malformed,
            Self::Lost(_) => CloseCode::Done,
        }
    }

    pub(super) fn into_dial_error(self, node: NodeId, inner: &Inner) -> DialError {
        match self {
            Self::Refused(refusal) => DialError::Refused { node, refusal },
            Self::Untrusted(refusal) => DialError::Untrusted { node, refusal },
            Self::BadIssue(error) => DialError::Untrusted { node, refusal: Refusal::from(&error) },
            Self::TimedOut => DialError::TimedOut { node, after: inner.config.hello_timeout },
            Self::Fault(detail) => DialError::Protocol { node, detail },
            Self::Lost(ConnectionLost { why: ClosedWhy::Peer { code: CloseCode::Busy, .. } }) => {
                DialError::Refused { node, refusal: Refusal::Busy }
            }
            Self::Lost(source) => DialError::Lost { node, source },
        }
    }
}

/// A side of hello, so that both run through one loop.
enum Core {
    Dialer(Dialer),
    Acceptor(Acceptor),
}

impl Core {
    fn handle(&mut self, input: Input, now: Instant) -> Result<(), PeerFault> {
        match self {
            Self::Dialer(core) => core.handle(input, now),
            Self::Acceptor(core) => core.handle(input, now),
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        match self {
            Self::Dialer(core) => core.poll_output(),
            Self::Acceptor(core) => core.poll_output(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Dialer(core) => core.next_deadline(),
            Self::Acceptor(core) => core.next_deadline(),
        }
    }
}

/// Says hello as the dialer. Dropped, it leaves the connection to be closed by the caller.
pub(super) async fn as_dialer(
    inner: &Inner,
    conn: &Arc<dyn Connection>,
    scope: ScopeId,
    shown: &Shown,
    invite: Option<InviteGrant>,
) -> Result<Linked, HelloFailure> {
    let core = Core::Dialer(Dialer::new(inner.local_hello(), scope, shown, invite, now()));
    let stream = within(&core, conn.open()).await?;
    let redeeming = matches!(shown, Shown::Invite(_));
    Exchange { inner, conn, judged: Judged::new(Some(scope), redeeming) }.run(core, stream?.split()).await
}

/// Answers hello as the acceptor. After a refusal the connection stays open until the dialer has read it.
pub(super) async fn as_acceptor(
    inner: &Inner,
    conn: &Arc<dyn Connection>,
) -> Result<(ScopeId, Linked), HelloFailure> {
    let core = Core::Acceptor(Acceptor::new(inner.local_hello(), now()));
    let stream = within(&core, conn.accept()).await?;
    let exchange = Exchange { inner, conn, judged: Judged::new(None, false) };
    let linked = exchange.run(core, stream?.split()).await?;
    let scope = exchange.judged.scope().ok_or_else(|| HelloFailure::Fault("no scope was named".into()))?;
    Ok((scope, linked))
}

/// Bounds the wait for the hello stream by the core's own deadline.
async fn within<F: Future>(core: &Core, work: F) -> Result<F::Output, HelloFailure> {
    let deadline = core.next_deadline().unwrap_or_else(now);
    tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| HelloFailure::TimedOut)
}

struct Exchange<'a> {
    inner: &'a Inner,
    conn: &'a Arc<dyn Connection>,
    judged: Judged,
}

/// What judging has found; read once hello is over.
struct Judged {
    redeeming: bool,
    state: Mutex<JudgedState>,
}

#[derive(Default)]
struct JudgedState {
    scope: Option<ScopeId>,
    proof: Option<Proof>,
    issued: Option<Box<SignedGrant>>,
    bad_issue: Option<mesh_identity::GrantError>,
}

impl Judged {
    fn new(scope: Option<ScopeId>, redeeming: bool) -> Self {
        Self { redeeming, state: Mutex::new(JudgedState { scope, ..JudgedState::default() }) }
    }

    fn set(&self, change: impl FnOnce(&mut JudgedState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn scope(&self) -> Option<ScopeId> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).scope
    }
}

impl Exchange<'_> {
    async fn run(
        &self,
        mut core: Core,
        (mut send, recv): (SendStream, RecvStream),
    ) -> Result<Linked, HelloFailure> {
        let mut frames = FrameReader::new(recv, HELLO_BYTES_MAX);
        loop {
            while let Some(output) = core.poll_output() {
                let deadline =
                    core.next_deadline().unwrap_or_else(|| now() + self.inner.config.hello_timeout);
                let performed =
                    tokio::time::timeout_at(deadline.into(), self.perform(output, &mut send)).await;
                match performed.map_err(|_| HelloFailure::TimedOut)? {
                    Performed::Sent(sent) => sent.map_err(|error| self.failed(error))?,
                    Performed::Judged(verdict) => self.input(&mut core, Input::Verdict(verdict))?,
                    Performed::Done(outcome) => return self.end(outcome, send, frames).await,
                }
            }
            let deadline = core.next_deadline().unwrap_or_else(now);
            let input = tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline.into()) => Input::Tick,
                frame = frames.next() => match frame {
                    Ok(Some(frame)) => Input::Frame(frame),
                    Ok(None) => return Err(self.failed(FrameError::Half)),
                    Err(error) => return Err(self.failed(error)),
                },
            };
            self.input(&mut core, input)?;
        }
    }

    fn input(&self, core: &mut Core, input: Input) -> Result<(), HelloFailure> {
        core.handle(input, now()).map_err(|fault| HelloFailure::Fault(fault.to_string()))
    }

    async fn perform(&self, output: Output, send: &mut SendStream) -> Performed {
        match output {
            Output::Send(bytes) => Performed::Sent(frame::write_frame(send, &bytes, HELLO_BYTES_MAX).await),
            Output::Judge(judge) => Performed::Judged(self.judge(judge).await),
            Output::Done(outcome) => Performed::Done(outcome),
        }
    }

    async fn end(
        &self,
        outcome: Outcome,
        mut send: SendStream,
        mut frames: FrameReader<RecvStream>,
    ) -> Result<Linked, HelloFailure> {
        drop(send.shutdown().await);
        let mut state =
            std::mem::take(&mut *self.judged.state.lock().unwrap_or_else(PoisonError::into_inner));
        let linked = match outcome {
            Outcome::Linked { instance, .. } => {
                Linked { instance, proof: state.proof.take(), issued: state.issued.take() }
            }
            Outcome::Refused(refusal) => return Err(HelloFailure::Refused(refusal)),
            Outcome::Untrusted(refusal) => {
                return Err(state.bad_issue.map_or(HelloFailure::Untrusted(refusal), HelloFailure::BadIssue));
            }
            Outcome::TimedOut => return Err(HelloFailure::TimedOut),
        };
        self.judged.set(|s| s.scope = state.scope);
        // The other side ends its half with hello, so this read ends with it and the stream is left clean.
        drop(tokio::time::timeout(self.inner.config.hello_timeout, frames.next()).await);
        Ok(linked)
    }

    fn failed(&self, error: FrameError) -> HelloFailure {
        match error {
            FrameError::Io(error) => match StreamFault::of(&error) {
                Some(StreamFault::Lost(lost)) => HelloFailure::Lost(lost.clone()),
                _ => HelloFailure::Fault(error.to_string()),
            },
            other => HelloFailure::Fault(other.to_string()),
        }
    }

    async fn judge(&self, judge: Judge) -> Verdict {
        let verdict = match judge {
            Judge::Dialer { scope, shown } => self.judge_dialer(scope, shown).await,
            Judge::Unreadable(error) => Err(Refusal::Invite(error)),
            Judge::Acceptor { grant, issued } => {
                self.judge_acceptor(&grant, issued).map(|()| Verdict::Content)
            }
        };
        verdict.unwrap_or_else(Verdict::Refuse)
    }

    async fn judge_dialer(&self, scope: ScopeId, shown: Shown) -> Result<Verdict, Refusal> {
        let proved = self.conn.peer();
        self.judged.set(|state| state.scope = Some(scope));
        let (own, issued) = match shown {
            Shown::Grant(shown) => {
                let own = self.inner.admission.credential(&scope).ok_or(Refusal::NotAdmitted)?;
                let grant = check(self.inner, &scope, proved, &shown).map_err(told_to_stranger)?;
                self.judged.set(|state| state.proof = Some(Proof { signed: *shown, grant }));
                // Before the answer, so that the dialer can use the link as soon as it has read it.
                self.conn.admitted();
                (own, None)
            }
            Shown::Invite(request) => {
                // What the token itself shows is the same whether or not the scope exists here.
                let invite = request.token.verify(self.inner.unix_now()).map_err(Refusal::Invite)?;
                if invite.grant().scope != scope {
                    return Err(Refusal::Invite(InviteError::WrongScope));
                }
                let own = self.inner.admission.credential(&scope).ok_or(Refusal::NotAdmitted)?;
                let issued =
                    self.inner.admission.admit(&scope, proved, *request).await.map_err(Refusal::Invite)?;
                let issued = Box::new(issued);
                self.judged.set(|state| state.issued = Some(issued.clone()));
                (own, Some(issued))
            }
        };
        Ok(Verdict::Welcome { grant: Box::new((*own).clone()), issued })
    }

    fn judge_acceptor(&self, shown: &SignedGrant, issued: Option<Box<SignedGrant>>) -> Result<(), Refusal> {
        let scope = self.judged.scope().ok_or(Refusal::NotAdmitted)?;
        let node = self.conn.peer();
        if !self.judged.redeeming {
            let grant = check(self.inner, &scope, node, shown)?;
            self.judged.set(|state| state.proof = Some(Proof { signed: shown.clone(), grant }));
            self.conn.admitted();
            return Ok(());
        }
        // Not a member yet: the scope's own signatures are all there is to go by.
        let now = self.inner.unix_now();
        let verify = |grant: &SignedGrant| grant.verify(&scope, now, &RevocationSet::new(scope));
        let theirs = verify(shown).map_err(|error| Refusal::from(&error))?;
        if theirs.subject != node {
            return Err(Refusal::NotAdmitted);
        }
        let issued = issued.ok_or(Refusal::NotAdmitted)?;
        match verify(&issued) {
            Ok(ours) if ours.subject == self.inner.me => {
                self.judged.set(|state| state.issued = Some(issued));
                Ok(())
            }
            Ok(_) => Err(Refusal::NotAdmitted),
            Err(error) => {
                let refusal = Refusal::from(&error);
                self.judged.set(|state| state.bad_issue = Some(error));
                Err(refusal)
            }
        }
    }
}

enum Performed {
    Sent(Result<(), FrameError>),
    Judged(Verdict),
    Done(Outcome),
}

/// Asks the node, and holds its answer to what the connection proved.
pub(super) fn check(
    inner: &Inner,
    scope: &ScopeId,
    node: NodeId,
    shown: &SignedGrant,
) -> Result<Grant, Refusal> {
    let grant = inner.admission.check(scope, node, shown)?;
    if grant.subject != node || grant.scope != *scope {
        return Err(Refusal::NotAdmitted);
    }
    Ok(grant)
}

/// A former member may know why; anybody else learns only that it is refused.
fn told_to_stranger(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::GrantExpired | Refusal::GrantRevoked | Refusal::Busy => refusal,
        _ => Refusal::NotAdmitted,
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl From<ConnectionLost> for HelloFailure {
    fn from(lost: ConnectionLost) -> Self {
        Self::Lost(lost)
    }
}
