//! The host's side of `session/1`.

use std::sync::Arc;

use mesh_identity::UnixTime;
use mesh_transport::{Peer, ResetCode, SendStream, Stream, Transport, handler_fn};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::frame::{Broken, Reader, parse, write, write_content};
use super::hand_over::write_log;
use super::{Config, PROTOCOL};
use crate::chain::{Chain, ChainError, SignedChain};
use crate::event::{Body, Party, Right};
use crate::host::{CommandError, NewSession, Sessions, moved_to};
use crate::ids::{AgentId, BlobId, EventNumber, SessionId};
use crate::model::Shown;
use crate::proto::wire::{
    AgentFacts, Ask, Beat, CONTENTS_BYTES_MAX, Code, Deed, HitFacts, PartHead, SessionFacts, Tell,
};
use crate::proto::{Command, PARTS_MAX, Refusal};
use crate::store::{BLOB_BYTES_MAX, Filter, Hit, Kind, Listed};

/// The most sessions of a page, and of their bytes: a page is one frame.
const PAGE_MAX: u32 = 100;
const PAGE_BYTES_MAX: usize = 512 * 1024;

/// Tells peers to try again, until [`serve`] is called. A node that has just been started is linked with before its sessions
/// are at work: whoever held one there before waits for them instead of hearing that there are none.
pub fn announce(transport: &Transport) {
    let later = |_: Peer, stream: Stream| async move { stream.reset(ResetCode::CANCELLED) };
    transport.serve(PROTOCOL, handler_fn(later));
}

/// Serves the sessions to peers from now on: to each what its node, scope and role may have, as the link has proved them.
/// The transport does not keep the sessions alive.
pub fn serve(transport: &Transport, sessions: &Sessions, config: Config) {
    let weak = sessions.downgrade();
    let (config, uploads) = (Arc::new(config.clone()), Arc::new(Semaphore::new(config.uploads_max)));
    transport.serve(
        PROTOCOL,
        handler_fn(move |peer: Peer, stream: Stream| {
            let served = weak.upgrade();
            let (config, uploads) = (config.clone(), uploads.clone());
            async move {
                let Some(sessions) = served else { return stream.reset(ResetCode::CANCELLED) };
                let by = Party::peer(peer.id, peer.scope, peer.role);
                let (send, recv) = stream.split();
                let caller = Caller { sessions, config, uploads, by, send, frames: Reader::new(recv) };
                Box::pin(caller.serve()).await;
            }
        }),
    );
}

/// A stream that a peer has opened.
struct Caller {
    sessions: Sessions,
    config: Arc<Config>,
    uploads: Arc<Semaphore>,
    by: Party,
    send: SendStream,
    frames: Reader,
}

impl Caller {
    async fn serve(mut self) {
        let ended = self.sessions.ended();
        let served = tokio::select! {
            biased;
            // The caller tries again, and finds them when the node is back.
            () = ended => Err(Broken::Ended),
            served = self.serve_call() => served,
        };
        match served {
            Ok(()) => drop(self.send.shutdown().await),
            Err(broken) => {
                tracing::debug!(peer = %self.by.node.short(), error = &broken as &dyn std::error::Error, "session stream broken off");
                self.send.reset(ResetCode::CANCELLED);
            }
        }
    }

    async fn serve_call(&mut self) -> Result<(), Broken> {
        match self.frames.message(self.config.ask).await {
            Ok(Ask::Attach { session, after }) => self.attach(session, after).await,
            Ok(Ask::Content { session, blob }) => self.content(session, blob).await,
            Ok(Ask::Export { session }) => self.export(session).await,
            Ok(ask) => self.answer(ask).await,
            Err(Broken::Malformed) => self.refuse(Code::Malformed, "no such call").await,
            Err(broken) => Err(broken),
        }
    }

    async fn refuse(&mut self, code: Code, text: &str) -> Result<(), Broken> {
        let refused = Tell::Refused { code, text: text.to_owned(), to: None };
        write(&mut self.send, &refused, self.config.idle).await
    }

    /// Answers a call, and says meanwhile that somebody is at it.
    async fn answer(&mut self, ask: Ask) -> Result<(), Broken> {
        let Self { sessions, config, uploads, by, send, frames } = self;
        let told = {
            let answer = Box::pin(answer(sessions, config, uploads, by, frames, ask));
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    biased;
                    told = &mut answer => break told?,
                    () = send.cancelled() => return Err(Broken::Ended),
                    () = tokio::time::sleep(config.beat) => write(send, &Tell::Beat, config.idle).await?,
                }
            }
        };
        let tell = told.unwrap_or_else(|error| refused(&error));
        write(send, &tell, config.idle).await
    }

    /// Sends events until the reader is gone, or may not read on.
    async fn attach(&mut self, session: SessionId, after: EventNumber) -> Result<(), Broken> {
        let mut following = match self.sessions.follow(session, &self.by, after).await {
            Ok(following) => following,
            Err(error) => return write(&mut self.send, &refused(&error), self.config.idle).await,
        };
        let Config { idle, beat, .. } = *self.config;
        if let Some(moved) = self.moved(session, following.is_live()).await {
            return write(&mut self.send, &moved, idle).await;
        }
        // At once, so that the reader knows that it is heard.
        write(&mut self.send, &Tell::Beat, idle).await?;
        let (mut heard, mut said) = (Instant::now(), Instant::now());
        loop {
            let next = tokio::select! {
                biased;
                () = tokio::time::sleep_until(heard + idle) => return Err(Broken::Silent(idle)),
                frame = self.frames.next() => match frame? {
                    Some(frame) => {
                        let Beat { .. } = parse(&frame)?;
                        heard = Instant::now();
                        continue;
                    }
                    None => return Ok(()),
                },
                next = following.next() => next,
                () = tokio::time::sleep_until(said + beat) => {
                    write(&mut self.send, &Tell::Beat, idle).await?;
                    said = Instant::now();
                    continue;
                }
            };
            match next {
                Ok(event) => {
                    write(&mut self.send, &Tell::Event { event: (*event).clone() }, idle).await?;
                    let may_be_last = matches!(event.body, Body::HandedOver { .. }) && following.is_live();
                    if let Some(moved) = self.moved(session, may_be_last).await {
                        return write(&mut self.send, &moved, idle).await;
                    }
                }
                Err(error) => return write(&mut self.send, &refused(&error), idle).await,
            }
            said = Instant::now();
        }
    }

    /// What a reader is told who has all that there will ever be here.
    async fn moved(&self, session: SessionId, has_all: bool) -> Option<Tell> {
        let host = match has_all {
            true => self.sessions.host_of(session).await.ok()?,
            false => None,
        };
        host.map(|to| refused(&Refusal::Moved { to }.into()))
    }

    async fn export(&mut self, session: SessionId) -> Result<(), Broken> {
        let refusal = match self.sessions.right(session, &self.by).await {
            Ok(Some(_)) => None,
            Ok(None) => Some(CommandError::Refused(Refusal::NoSuchSession)),
            Err(error) => Some(error),
        };
        let idle = self.config.idle;
        if let Some(error) = refusal {
            return write(&mut self.send, &refused(&error), idle).await;
        }
        write(&mut self.send, &Tell::Log, idle).await?;
        write_log(&mut self.send, self.sessions.store(), session, &|_, _| None, idle).await
    }

    async fn content(&mut self, session: SessionId, blob: BlobId) -> Result<(), Broken> {
        let idle = self.config.idle;
        let found = async {
            if self.sessions.right(session, &self.by).await?.is_none() {
                return Err(CommandError::Refused(Refusal::NoSuchSession));
            }
            let store = self.sessions.store();
            match store.names_blob(session, blob).await? {
                true => Ok(store.blob(blob).await?),
                false => Ok(None),
            }
        };
        match found.await {
            Ok(Some(bytes)) => {
                write(&mut self.send, &Tell::Content { bytes: bytes.len() as u64 }, idle).await?;
                write_content(&mut self.send, &bytes, idle).await
            }
            Ok(None) => self.refuse(Code::NoSuchContent, "the content is not stored here").await,
            Err(error) => write(&mut self.send, &refused(&error), idle).await,
        }
    }
}

/// Does what is asked.
async fn answer(
    sessions: &Sessions,
    config: &Config,
    uploads: &Semaphore,
    by: &Party,
    frames: &mut Reader,
    ask: Ask,
) -> Result<Result<Tell, CommandError>, Broken> {
    let done = |number| Tell::Done { number };
    let made = |()| Tell::Done { number: EventNumber::START };
    Ok(match ask {
        Ask::Agents => Ok(Tell::Agents { agents: agents(sessions, by) }),
        Ask::Create { id, agent, name, labels, chain } => {
            match chain.map(|chain| believed(sessions, by, &agent, chain)) {
                Some(Err(error)) => {
                    return Ok(Ok(Tell::Refused {
                        code: Code::NotAllowed,
                        text: error.to_string(),
                        to: None,
                    }));
                }
                chain => {
                    let chain = chain.and_then(Result::ok);
                    sessions.create(id, by, NewSession { agent, name, labels, chain }).await.map(made)
                }
            }
        }
        Ask::Fork { parent, at, id } => sessions.fork(parent, at, id, by).await.map(made),
        Ask::Prompt { session, prompt, parts } => {
            match contents(sessions, config, uploads, by, session, frames, &parts).await? {
                Ok(parts) => sessions.prompt(session, by, prompt, parts).await.map(done),
                Err(error) => Err(error),
            }
        }
        Ask::Post { session, post, agent, parts } => {
            match contents(sessions, config, uploads, by, session, frames, &parts).await? {
                Ok(parts) => sessions.post(session, by, post, agent, parts).await.map(done),
                Err(error) => Err(error),
            }
        }
        Ask::Steer { session, turn, parts } => {
            match contents(sessions, config, uploads, by, session, frames, &parts).await? {
                Ok(parts) => sessions.steer(session, by, turn, parts).await.map(done),
                Err(error) => Err(error),
            }
        }
        Ask::Do { session, what } => sessions.command(session, by, command(what)).await.map(done),
        Ask::Resolve { text, boards } => {
            sessions.resolve(by, &text, kind(boards)).await.map(|id| Tell::Session { id })
        }
        Ask::List { agent, before, limit, boards } => {
            let limit = Some(limit.min(PAGE_MAX));
            let filter = Filter { kind: kind(boards), agent, before, limit, ..Filter::default() };
            sessions.list(by, filter).await.map(|(listed, next)| page(sessions, listed, next))
        }
        Ask::Take { session, epoch } => {
            take(sessions, config, uploads, by, frames, (session, epoch)).await.map(made)
        }
        Ask::Show { session } => sessions.show(session, by).await.map(|(listed, session)| {
            let right = session.right_of(by);
            let shares = (right == Some(Right::Own)).then(|| session.shares().to_vec());
            let state = session.state().as_str().to_owned();
            let facts = SessionFacts { state, right, shares, ..facts(sessions, listed) };
            Tell::Sessions { sessions: vec![facts], next: None }
        }),
        Ask::Search { words, limit } => {
            let hits = sessions.search(by, &words, limit).await;
            hits.map(|hits| Tell::Hits { hits: hits.into_iter().map(hit).collect() })
        }
        Ask::Attach { .. } | Ask::Content { .. } | Ask::Export { .. } => return Err(Broken::Malformed),
    })
}

/// The delegations that a peer says have led to its call.
fn believed(
    sessions: &Sessions,
    by: &Party,
    agent: &AgentId,
    chain: SignedChain,
) -> Result<Chain, ChainError> {
    let scope = by.scope.ok_or(ChainError::Misdirected)?;
    let chain = chain.verify(&scope, &by.node, &sessions.me(), UnixTime::now())?;
    if chain.at().agent == *agent { Ok(chain) } else { Err(ChainError::Misdirected) }
}

/// Takes a session over that a peer brings, unless that is done already.
async fn take(
    sessions: &Sessions,
    config: &Config,
    uploads: &Semaphore,
    by: &Party,
    frames: &mut Reader,
    (session, epoch): (SessionId, u64),
) -> Result<(), CommandError> {
    let _taking = sessions.taking(session).ok_or(CommandError::Busy)?;
    // First of all: who is told no goes on with the session itself.
    if sessions.has_taken(session, epoch).await? {
        return Ok(());
    }
    if !sessions.may_bring(by) {
        return Err(CommandError::NotTaken { why: "only members bring sessions".to_owned() });
    }
    let _upload = uploads.acquire().await.map_err(|_| CommandError::Closed)?;
    sessions.take(session, by, frames.pieces(config.idle)).await
}

/// What follows a prompt, when its caller may prompt at all.
async fn contents(
    sessions: &Sessions,
    config: &Config,
    uploads: &Semaphore,
    by: &Party,
    session: SessionId,
    frames: &mut Reader,
    heads: &[PartHead],
) -> Result<Result<Vec<Shown>, CommandError>, Broken> {
    match sessions.right(session, by).await {
        Ok(Some(right)) if right >= Right::Prompt => {}
        Ok(Some(_)) => return Ok(Err(Refusal::NotAllowed { needs: Right::Prompt }.into())),
        Ok(None) => return Ok(Err(Refusal::NoSuchSession.into())),
        Err(error) => return Ok(Err(error)),
    }
    let bytes = heads.iter().map(PartHead::bytes).fold(0, u64::saturating_add);
    let longest = heads.iter().map(PartHead::bytes).max().unwrap_or(0);
    if heads.len() > PARTS_MAX || bytes > CONTENTS_BYTES_MAX || longest > BLOB_BYTES_MAX as u64 {
        return Ok(Err(CommandError::TooLong { bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }));
    }
    let Ok(_upload) = uploads.acquire().await else { return Ok(Err(CommandError::Closed)) };
    let mut shown = Vec::with_capacity(heads.len());
    for head in heads {
        let content = frames.content(head.bytes(), config.idle).await?;
        shown.push(match head {
            PartHead::Text { .. } => {
                Shown::Text(String::from_utf8(content.into()).map_err(|_| Broken::Malformed)?)
            }
            PartHead::Image { media_type, .. } => {
                Shown::Image { media_type: media_type.clone(), bytes: content }
            }
        });
    }
    Ok(Ok(shown))
}

fn kind(boards: bool) -> Option<Kind> {
    Some(if boards { Kind::Board } else { Kind::Session })
}

fn agents(sessions: &Sessions, by: &Party) -> Vec<AgentFacts> {
    let facts = |agent: &Arc<crate::agent::Agent>| AgentFacts {
        id: agent.id.clone(),
        description: agent.description.clone(),
        model: agent.model.clone(),
    };
    sessions.agents(by).iter().map(facts).collect()
}

fn page(here: &Sessions, listed: Vec<Listed>, next: Option<SessionId>) -> Tell {
    let (mut sessions, mut bytes) = (Vec::new(), 0);
    for listed in listed {
        let facts = facts(here, listed);
        bytes += serde_json::to_vec(&facts).map_or(0, |json| json.len());
        if bytes > PAGE_BYTES_MAX && !sessions.is_empty() {
            let next = sessions.last().map(|facts: &SessionFacts| facts.id);
            return Tell::Sessions { sessions, next };
        }
        sessions.push(facts);
    }
    Tell::Sessions { sessions, next }
}

fn facts(here: &Sessions, listed: Listed) -> SessionFacts {
    SessionFacts {
        id: listed.session,
        agent: listed.agent,
        owner: listed.owner,
        name: listed.name,
        labels: listed.labels,
        state: listed.state.word().to_owned(),
        turn: listed.turn,
        waiting: listed.waiting,
        right: None,
        shares: None,
        parent: listed.parent,
        last: listed.last,
        epoch: listed.epoch,
        moved_to: here.elsewhere(listed.host),
        created_ms: listed.created_ms,
        updated_ms: listed.updated_ms,
    }
}

fn hit(hit: Hit) -> HitFacts {
    let Hit { session, name, number, at_ms, excerpt } = hit;
    HitFacts { session, name, number, at_ms, excerpt }
}

fn command(what: Deed) -> Command {
    match what {
        Deed::Cancel { turn } => Command::Cancel { turn },
        Deed::Decide { turn, tool_call, allowed } => Command::Decide { turn, call: tool_call, allowed },
        Deed::Name { name } => Command::Name { name },
        Deed::Label { labels } => Command::Label { labels },
        Deed::Share { shares } => Command::Share { shares },
        Deed::Suspend { why } => Command::Suspend { why },
        Deed::Resume => Command::Resume,
        Deed::Archive => Command::Archive,
        Deed::HandOver { to } => Command::HandOver { to },
    }
}

fn refused(error: &CommandError) -> Tell {
    let code = match error {
        CommandError::Refused(refusal) => match refusal {
            Refusal::NoSuchSession => Code::NoSuchSession,
            Refusal::NotAllowed { .. } => Code::NotAllowed,
            Refusal::Archived => Code::Archived,
            Refusal::Moved { .. } => Code::Moved,
            Refusal::NoAgent => Code::NoSuchAgent,
            Refusal::WrongKind { .. } => Code::WrongKind,
            Refusal::NoSuchTurn => Code::NoSuchTurn,
            Refusal::NoSuchCall => Code::NoSuchCall,
            Refusal::NoSuchEvent => Code::NoSuchEvent,
            Refusal::TooMuch { .. } => Code::TooMuch,
            Refusal::QueueFull | Refusal::Closing => Code::Busy,
        },
        CommandError::NoSuchAgent(_) => Code::NoSuchAgent,
        CommandError::Busy | CommandError::Closed => Code::Busy,
        CommandError::TooLong { .. } => Code::TooMuch,
        CommandError::NotTaken { .. } => Code::NotTaken,
        CommandError::Ambiguous(_) => Code::Ambiguous,
        CommandError::Storage(_) => Code::Storage,
    };
    Tell::Refused { code, text: error.to_string(), to: moved_to(error) }
}
