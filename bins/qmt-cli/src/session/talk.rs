//! `chat --agent`: a conversation with an agent, which goes on where it was.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IsTerminal};

use mesh_control::{
    Address, CancelTurn, Client, ClientError, CreateSession, DecideTool, EndReason, ErrorCode, Followed,
    Happened, PromptPart, PromptSession, SessionFollow, SessionView, SteerSession,
};

use tokio::signal::unix::Signal;
use tokio::task::{JoinError, JoinSet};

use super::args::Tools;
use super::begun;
use super::teller::Teller;
use super::turn::{Saying, address, at_first, ended, interrupts, is_yes, new_id, patiently, prompt, verdict};
use crate::args::ChatArgs;
use crate::chat::{prompt as prompt_of, typed_lines};
use crate::failure::Failure;
use crate::screen::Screen;

/// Events at the end of a session that are shown again when a conversation goes on.
const SHOWN_AGAIN: u64 = 2_000;

const HELP: &str = "a line is a prompt; /steer TEXT speaks into the turn, /cancel or Ctrl-C ends it, /exit or Ctrl-D leaves \
                    the session, which can be gone on with";

pub(crate) async fn chat(client: &Client, screen: &Screen, args: ChatArgs) -> Result<(), Failure> {
    let first = prompt_of(&args.prompt)?;
    if first.is_none() && screen.is_json() {
        return Err(Failure::usage("--json needs a prompt: an argument, or standard input"));
    }
    let (session, is_new) = match &args.session {
        Some(session) => (known(client, screen, session, args.agent.as_deref()).await?, false),
        None => (new(client, screen, args.agent.unwrap_or_default()).await?, true),
    };
    screen.note(&begun(&session));
    let Some(text) = first else {
        let after = if is_new { session.last } else { session.last.saturating_sub(SHOWN_AGAIN) };
        return Box::pin(talk(client, screen, session, after, args.tools)).await;
    };
    let saying = Saying { id: new_id(), parts: vec![PromptPart::Text { text }], tools: args.tools };
    let seen = prompt(client, screen, &session, saying).await?;
    screen.show(&seen, |_| String::new())?;
    verdict(&seen)
}

async fn new(client: &Client, screen: &Screen, agent: String) -> Result<SessionView, Failure> {
    let new =
        CreateSession { id: new_id(), agent, capabilities: Vec::new(), name: None, labels: BTreeMap::new() };
    Ok(at_first(|text| screen.note(text), || client.create_session(&new)).await?)
}

async fn known(
    client: &Client,
    screen: &Screen,
    session: &str,
    agent: Option<&str>,
) -> Result<SessionView, Failure> {
    let view = at_first(|text| screen.note(text), || client.session(session)).await?;
    match agent.map(|agent| Address::of(agent).what) {
        Some(agent) if agent != view.agent => Err(Failure::new(
            "conflict",
            format!("session {session} is one with {}, not with {agent}", view.agent),
        )),
        _ => Ok(view),
    }
}

/// A conversation under way.
struct Talk<'a> {
    client: &'a Client,
    screen: &'a Screen,
    teller: Teller<'a>,
    id: String,
    session: String,
    follow: SessionFollow,
    turn: Option<u32>,
    /// The terminal shows that a prompt may be typed, and nothing behind it yet.
    is_inviting: bool,
    tools: Tools,
    /// What was typed and is not sent yet, in order; one at a time is on its way.
    typed: VecDeque<Typed>,
    sending: JoinSet<Result<(), ClientError>>,
    /// Decisions and cancels, which wait for nothing.
    asides: JoinSet<Result<(), ClientError>>,
    /// The last call that was decided as it was told to.
    decided: Option<(u32, String)>,
}

/// What was typed for the agent.
enum Typed {
    Prompt(PromptSession),
    Steer(SteerSession),
}

async fn talk(
    client: &Client,
    screen: &Screen,
    session: SessionView,
    after: u64,
    tools: Tools,
) -> Result<(), Failure> {
    if after > 0 && after < session.last {
        screen.note(&format!("… {after} events before; `qmt-cli session attach {}` shows all", session.id));
    }
    let address = address(&session.id, &session.node);
    let talk = Talk {
        client,
        screen,
        teller: Teller::new(screen),
        id: session.id,
        follow: client.follow_session(&address, after),
        session: address,
        turn: None,
        is_inviting: false,
        tools,
        typed: VecDeque::new(),
        sending: JoinSet::new(),
        asides: JoinSet::new(),
        decided: None,
    };
    screen.note(HELP);
    talk.run(session.last).await
}

/// What is to be done after something was typed.
enum Then {
    GoOn,
    Leave,
}

impl Talk<'_> {
    /// Reads and writes until the user leaves. `last` is the event up to which things happened before.
    async fn run(mut self, last: u64) -> Result<(), Failure> {
        let mut interrupts = interrupts()?;
        let mut lines = typed_lines();
        let mut is_caught_up = self.follow.at() >= last;
        if is_caught_up {
            self.invite()?;
        }
        loop {
            tokio::select! {
                followed = self.follow.next() => {
                    let followed = followed?;
                    if self.followed(followed).await?.is_leaving() {
                        return Ok(());
                    }
                    if !is_caught_up && self.follow.at() >= last {
                        is_caught_up = true;
                        self.invite()?;
                    }
                    if is_caught_up {
                        self.decide_as_told();
                    }
                }
                line = lines.recv() => {
                    let Some(line) = line else {
                        self.teller.end()?;
                        self.screen.print("\n")?;
                        return self.leave(&mut interrupts).await;
                    };
                    if self.typed(line.trim())?.is_leaving() {
                        return self.leave(&mut interrupts).await;
                    }
                }
                Some(sent) = self.sending.join_next() => {
                    self.shown(sent)?;
                    self.send_next();
                }
                Some(said) = self.asides.join_next() => self.shown(said)?,
                _ = interrupts.recv() => match self.turn {
                    Some(turn) => self.cancel(Some(turn)),
                    None => self.teller.note("\n/exit or Ctrl-D leaves the session")?,
                },
            }
        }
    }

    async fn followed(&mut self, followed: Followed) -> Result<Then, Failure> {
        let event = match followed {
            Followed::Event(event) => event,
            Followed::Lost(why) => {
                self.teller.note(&format!("{why}; waiting for the session"))?;
                return Ok(Then::GoOn);
            }
            Followed::End(end) if end.end == EndReason::Moved && end.node.is_some() => {
                self.session = address(&self.id, &end.node.unwrap_or_default());
                self.follow = self.client.follow_session(&self.session, self.follow.at());
                return Ok(Then::GoOn);
            }
            Followed::End(end) if end.end == EndReason::Archived => return Ok(Then::Leave),
            Followed::End(end) => return Err(ended(end.end, end.why.as_deref())),
        };
        let happened = event.happened();
        if matches!(happened, Happened::TurnStarted { .. }) && std::mem::take(&mut self.is_inviting) {
            self.screen.print("\r\x1b[2K")?;
        }
        self.teller.tell(self.client, &self.session, &happened).await?;
        match happened {
            Happened::TurnStarted { turn, .. } => self.turn = Some(turn),
            Happened::TurnEnded { .. } => {
                self.turn = None;
                self.invite()?;
            }
            _ => {}
        }
        Ok(Then::GoOn)
    }

    /// Shows that a prompt may be typed.
    fn invite(&mut self) -> Result<(), Failure> {
        if self.turn.is_none() && io::stdout().is_terminal() {
            self.screen.print("> ")?;
            self.is_inviting = true;
        }
        Ok(())
    }

    /// Decides by itself what it was told to decide; the rest is for who types.
    fn decide_as_told(&mut self) {
        let allowed = match self.tools {
            Tools::Allow => true,
            Tools::Deny => false,
            Tools::Ask => return,
        };
        // The one that waits longest: the next comes when the events say that it was decided.
        let Some(asked) = self.teller.calls().asked().first().cloned() else { return };
        let call = Some((asked.turn, asked.call.clone()));
        if self.decided != call {
            self.decided = call;
            self.decide(asked.turn, asked.call, allowed);
        }
    }

    fn typed(&mut self, line: &str) -> Result<Then, Failure> {
        self.is_inviting = false;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "" => self.invite()?,
            "/exit" | "/quit" | "/bye" => return Ok(Then::Leave),
            "/help" | "/?" => self.teller.note(HELP)?,
            "/cancel" => self.cancel(None),
            "/steer" if !rest.trim().is_empty() => self.steer(rest.trim()),
            _ => match self.teller.calls().asked().first().cloned() {
                Some(asked) if is_yes(line) => self.decide(asked.turn, asked.call, true),
                Some(asked) if matches!(line, "n" | "no" | "deny") => {
                    self.decide(asked.turn, asked.call, false);
                }
                Some(_) => self.teller.note("a tool waits to be allowed: y or n, or /cancel")?,
                None => self.say(line),
            },
        }
        Ok(Then::GoOn)
    }

    fn say(&mut self, line: &str) {
        let parts = vec![PromptPart::Text { text: line.to_owned() }];
        let request = PromptSession { session: self.session.clone(), prompt: new_id(), parts };
        self.teller.is_own(&request.prompt);
        self.typed.push_back(Typed::Prompt(request));
        self.send_next();
    }

    fn steer(&mut self, text: &str) {
        let parts = vec![PromptPart::Text { text: text.to_owned() }];
        let steer = SteerSession { session: self.session.clone(), turn: self.turn, parts };
        self.typed.push_back(Typed::Steer(steer));
        self.send_next();
    }

    /// Sends what was typed first, unless something is on its way.
    fn send_next(&mut self) {
        if !self.sending.is_empty() {
            return;
        }
        let Some(typed) = self.typed.pop_front() else { return };
        let client = self.client.clone();
        self.sending.spawn(async move {
            match typed {
                Typed::Prompt(prompt) => patiently(|_| (), || client.prompt(&prompt)).await.map(drop),
                Typed::Steer(steer) => client.steer(&steer).await.map(drop),
            }
        });
    }

    fn cancel(&mut self, turn: Option<u32>) {
        let (client, cancel) = (self.client.clone(), CancelTurn { session: self.session.clone(), turn });
        self.asides.spawn(async move { client.cancel(&cancel).await.map(drop) });
    }

    fn decide(&mut self, turn: u32, call: String, allowed: bool) {
        let decision = DecideTool { session: self.session.clone(), turn, call, allowed };
        let client = self.client.clone();
        self.asides.spawn(async move {
            match patiently(|_| (), || client.decide(&decision)).await {
                // Somebody else was quicker, which the events say.
                Err(ClientError::Api(error)) if error.code == ErrorCode::UnknownCall => Ok(()),
                decided => decided.map(drop),
            }
        });
    }

    /// What failed is shown, and the conversation goes on.
    fn shown(&mut self, result: Result<Result<(), ClientError>, JoinError>) -> Result<(), Failure> {
        let failure = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.into(),
            Err(error) => Failure::new("internal", format!("a request failed: {error}")),
        };
        self.teller.end()?;
        let _ = self.screen.fail(&failure);
        Ok(())
    }

    /// Leaves when what was typed is safe; Ctrl-C leaves at once.
    async fn leave(mut self, interrupts: &mut Signal) -> Result<(), Failure> {
        self.send_next();
        loop {
            tokio::select! {
                sent = self.sending.join_next() => match sent {
                    Some(sent) => {
                        self.shown(sent)?;
                        self.send_next();
                    }
                    None => return Ok(()),
                },
                _ = interrupts.recv() => return Err(Failure::interrupted("left before all prompts were safe")),
            }
        }
    }
}

impl Then {
    fn is_leaving(&self) -> bool {
        matches!(self, Self::Leave)
    }
}
