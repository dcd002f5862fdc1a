//! One prompt and its turn: sent exactly once, shown while it comes, whatever restarts meanwhile.

use std::future::Future;
use std::io::{self, BufRead, IsTerminal, Write};
use std::pin::pin;
use std::time::Duration;

use mesh_control::{
    CancelTurn, Client, ClientError, DecideTool, EndReason, Followed, GRACE, Happened, PromptPart,
    PromptSession, SessionView,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::args::Tools;
use super::seen::{Asked, TurnSeen, line};
use super::teller::Teller;
use crate::failure::Failure;
use crate::screen::Screen;

/// Between two attempts of a request that the node could not answer.
const RETRY: Duration = Duration::from_millis(500);
/// A request that takes longer is said to be under way: the node that it is for may be away, and is waited for.
const SILENT: Duration = Duration::from_secs(3);

/// The exit code of a turn that a limit ended.
pub(crate) const LIMIT: u8 = 4;
/// The exit code of a turn that somebody ended.
pub(crate) const CANCELLED: u8 = 5;

/// A new id for a session or a prompt: in order of time.
pub(crate) fn new_id() -> String {
    Uuid::now_v7().to_string()
}

/// A session's id and host, by which it is found again whatever it is called by then.
pub(crate) fn address(session: &str, node: &str) -> String {
    if node.is_empty() { session.to_owned() } else { format!("{session}@{node}") }
}

/// Waits for an answer, and says so when it takes long, unless something was said already.
async fn not_in_silence<T>(note: &impl Fn(&str), is_noted: &mut bool, asked: impl Future<Output = T>) -> T {
    let mut asked = pin!(asked);
    if !*is_noted {
        tokio::select! {
            answer = &mut asked => return answer,
            () = sleep(SILENT) => note("no answer yet: the node that is asked may be away; waiting for it"),
        }
        *is_noted = true;
    }
    asked.await
}

/// Asks until there is an answer, for the grace period; only for requests that may be repeated, to a node that answered before.
pub(crate) async fn patiently<T, F>(note: impl Fn(&str), ask: impl Fn() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let since = Instant::now();
    let mut is_noted = false;
    loop {
        let error = match not_in_silence(&note, &mut is_noted, ask()).await {
            Err(error) if error.may_pass() && since.elapsed() < GRACE => error,
            answer => return answer,
        };
        if !std::mem::replace(&mut is_noted, true) {
            note(&format!("{error}; trying again"));
        }
        sleep(RETRY).await;
    }
}

/// The same for the first request: a node that never ran is no node that restarts.
pub(crate) async fn at_first<T, F>(note: impl Fn(&str), ask: impl Fn() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    match not_in_silence(&note, &mut false, ask()).await {
        Err(error) if error.may_pass() && !matches!(error, ClientError::NoNode { .. }) => {
            note(&format!("{error}; trying again"));
            sleep(RETRY).await;
            patiently(|_| (), ask).await
        }
        answer => answer,
    }
}

/// What is to be said, and how.
pub(crate) struct Saying {
    /// The prompt's id.
    pub(crate) id: String,
    pub(crate) parts: Vec<PromptPart>,
    pub(crate) tools: Tools,
}

/// Prompts the session, shows the turn, and returns what was seen of it. Ctrl-C ends the turn too.
pub(crate) async fn prompt(
    client: &Client,
    screen: &Screen,
    session: &SessionView,
    saying: Saying,
) -> Result<TurnSeen, Failure> {
    let mut interrupts = interrupts()?;
    let Saying { id, parts, tools } = saying;
    let request = PromptSession { session: address(&session.id, &session.node), prompt: id, parts };
    let written = tokio::select! {
        written = patiently(|text| screen.note(text), || client.prompt(&request)) => written?,
        _ = interrupts.recv() => return Err(Failure::interrupted("ended before the prompt was safe")),
    };
    let mut seen = TurnSeen::of(&session.id, &session.node, &request.prompt);
    let mut teller = Teller::new(screen);
    let watch = Watch { client, screen, tools };
    let after = written.number.saturating_sub(1);
    let shown = watch.turn(&mut teller, &mut seen, after, &mut interrupts).await;
    teller.end()?;
    shown.map(|()| seen)
}

pub(crate) fn interrupts() -> Result<Signal, Failure> {
    signal(SignalKind::interrupt())
        .map_err(|error| Failure::new("signal", format!("Ctrl-C cannot be watched: {error}")))
}

struct Watch<'a> {
    client: &'a Client,
    screen: &'a Screen,
    tools: Tools,
}

impl Watch<'_> {
    /// Shows the prompt's turn until it ends.
    async fn turn(
        &self,
        teller: &mut Teller<'_>,
        seen: &mut TurnSeen,
        after: u64,
        interrupts: &mut Signal,
    ) -> Result<(), Failure> {
        let mut session = address(&seen.session, &seen.node);
        let mut follow = self.client.follow_session(&session, after);
        loop {
            let followed = tokio::select! {
                followed = follow.next() => followed?,
                _ = interrupts.recv() => {
                    self.cancel(&session, seen.turn).await;
                    return Err(Failure::interrupted("the turn was cancelled"));
                }
            };
            let event = match followed {
                Followed::Event(event) => event,
                Followed::Lost(why) => {
                    teller.note(&format!("{why}; waiting for the session"))?;
                    continue;
                }
                Followed::End(end) if end.end == EndReason::Moved && end.node.is_some() => {
                    seen.node = end.node.unwrap_or_default();
                    session = address(&seen.session, &seen.node);
                    follow = self.client.follow_session(&session, follow.at());
                    continue;
                }
                Followed::End(end) => return Err(ended(end.end, end.why.as_deref())),
            };
            let happened = event.happened();
            if !seen.take(&happened) {
                continue;
            }
            teller.tell(self.client, &session, &happened).await?;
            if let Happened::ToolAsked { call, .. } = &happened
                && let Some(asked) = teller.calls().asked().iter().find(|asked| asked.call == *call)
            {
                self.decide(teller, &session, asked.clone(), interrupts).await?;
            }
            if seen.outcome.is_some() {
                return Ok(());
            }
        }
    }

    async fn decide(
        &self,
        teller: &mut Teller<'_>,
        session: &str,
        asked: Asked,
        interrupts: &mut Signal,
    ) -> Result<(), Failure> {
        let is_asked = !self.screen.is_json() && io::stdin().is_terminal();
        let allowed = match self.tools {
            Tools::Allow => true,
            Tools::Deny => false,
            Tools::Ask if is_asked => {
                let question = format!("allow {}? [y/N] ", line(&asked.name, &asked.arguments));
                tokio::select! {
                    answer = yes(question) => answer,
                    _ = interrupts.recv() => {
                        self.cancel(session, Some(asked.turn)).await;
                        return Err(Failure::interrupted("the turn was cancelled"));
                    }
                }
            }
            Tools::Ask => {
                return teller.note(&format!("decide with `qmt-cli session allow {session}`, or `deny`"));
            }
        };
        let decision =
            DecideTool { session: session.to_owned(), turn: asked.turn, call: asked.call, allowed };
        match patiently(|text| self.screen.note(text), || self.client.decide(&decision)).await {
            // Somebody else was quicker, which the events say.
            Err(ClientError::Api(error)) if error.code == mesh_control::ErrorCode::UnknownCall => Ok(()),
            decided => Ok(decided.map(drop)?),
        }
    }

    /// Ends the turn as far as the node can still be told.
    async fn cancel(&self, session: &str, turn: Option<u32>) {
        let cancel = CancelTurn { session: session.to_owned(), turn };
        if let Err(error) = self.client.cancel(&cancel).await {
            self.screen.note(&format!("the turn may go on: {error}"));
        }
    }
}

/// Asks at the terminal, on a thread of its own: a read of a terminal cannot be cancelled.
async fn yes(question: String) -> bool {
    let (answer, answered) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = write!(io::stderr(), "{}", crate::screen::harmless(&question));
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        let _ = answer.send(read.is_ok() && is_yes(&line));
    });
    answered.await.unwrap_or(false)
}

/// Whether an answer means yes.
pub(crate) fn is_yes(line: &str) -> bool {
    matches!(line.trim().to_lowercase().as_str(), "y" | "yes" | "allow")
}

/// Why a stream ended before its turn did.
pub(crate) fn ended(end: EndReason, why: Option<&str>) -> Failure {
    let (code, message) = match end {
        EndReason::Archived => ("archived", "the session is archived"),
        EndReason::Moved => ("moved", "the session was handed over to a node that this one cannot follow"),
        EndReason::Gone => ("gone", "the session was deleted, or is not shared with this node any more"),
        EndReason::Failed => ("failed", "the session's host is lost"),
        EndReason::Past | EndReason::Stopping | EndReason::Unknown => ("ended", "the session's events ended"),
    };
    Failure::new(code, why.map_or_else(|| message.to_owned(), |why| format!("{message}: {why}")))
}

/// What the end of a turn is to the program's caller.
pub(crate) fn verdict(seen: &TurnSeen) -> Result<(), Failure> {
    match seen.outcome.as_deref() {
        Some("done") => Ok(()),
        Some("limit_reached") => Err(Failure::shown().with_exit(LIMIT)),
        Some("cancelled") => Err(Failure::shown().with_exit(CANCELLED)),
        _ => Err(Failure::shown()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_told_once_and_only_when_it_takes_long() {
        let said = RefCell::new(Vec::new());
        let note = |text: &str| said.borrow_mut().push(text.to_owned());
        let quick = at_first(note, || async { Ok::<_, ClientError>(7) }).await;
        assert_eq!((quick.expect("answered"), said.borrow().len()), (7, 0));

        let tries = Cell::new(0);
        let slow = patiently(note, || {
            tries.set(tries.get() + 1);
            let is_last = tries.get() == 3;
            async move {
                sleep(SILENT * 2).await;
                if is_last { Ok(()) } else { Err(ClientError::Deadline { what: "/api", after: SILENT }) }
            }
        });
        slow.await.expect("answered at last");
        assert_eq!(tries.get(), 3);
        let said = said.into_inner();
        assert!(matches!(&said[..], [only] if only.contains("no answer yet")), "{said:?}");
    }
}
