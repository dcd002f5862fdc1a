//! A conversation at the terminal.

use std::io::{self, BufRead};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::answer::{Answer, Piece};
use super::gateway::{Gateway, Question, Turn};
use super::{Writer, hint_at_base_model};
use crate::failure::Failure;
use crate::screen::Screen;

/// Lines typed ahead while an answer comes; who types more waits.
const LINES_MAX: usize = 64;

const HELP: &str = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer";

/// Asks line by line, with the conversation so far, until the user ends it. Ctrl-C stops an answer and nothing else.
pub(super) async fn talk(screen: &Screen, gateway: &Gateway, mut question: Question) -> Result<(), Failure> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| Failure::new("signal", format!("Ctrl-C cannot be watched: {error}")))?;
    let mut lines = typed_lines();
    let beginning = question.turns.len();
    screen.note(&format!("{}; {HELP}", question.model));
    loop {
        screen.print("> ")?;
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = interrupts.recv() => {
                screen.note("\n/exit or Ctrl-D ends the conversation");
                continue;
            }
        };
        let Some(line) = line else {
            return screen.print("\n");
        };
        match line.trim() {
            "" => {}
            "/exit" | "/quit" | "/bye" => return Ok(()),
            "/clear" => question.turns.truncate(beginning),
            "/help" | "/?" => screen.note(HELP),
            prompt => {
                question.turns.push(Turn::user(prompt.to_owned()));
                turn(screen, gateway, &mut question, &mut interrupts).await?;
            }
        }
    }
}

/// One question and its answer. A failed one leaves the conversation as it was; of a stopped one stays what was seen.
async fn turn(
    screen: &Screen,
    gateway: &Gateway,
    question: &mut Question,
    interrupts: &mut Signal,
) -> Result<(), Failure> {
    let mut answer = Answer::default();
    let mut writer = Writer::new(screen);
    let mut write = |piece: Piece<'_>| writer.write(piece);
    let outcome = tokio::select! {
        outcome = gateway.ask(question, &mut answer, &mut write) => Some(outcome),
        _ = interrupts.recv() => None,
    };
    writer.end()?;
    match outcome {
        None => screen.note("(stopped)"),
        Some(Err(failure)) if failure.is_said() => return Err(failure), // nobody reads
        Some(Err(failure)) => {
            let _ = screen.fail(&failure);
        }
        Some(Ok(())) => hint_at_base_model(screen, &answer),
    }
    if answer.text.is_empty() {
        question.turns.pop();
    } else {
        question.turns.push(Turn::assistant(answer.text));
    }
    Ok(())
}

/// The lines of standard input. They come from a thread of its own, which ends with the program: a read of a terminal cannot
/// be cancelled, and a task of the runtime would keep the program until the next line.
pub(crate) fn typed_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES_MAX);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}
