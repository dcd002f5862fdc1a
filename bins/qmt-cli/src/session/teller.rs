//! Events as a person reads them: what was said to standard output, all else to standard error.

use std::collections::BTreeMap;

use mesh_control::{Client, ContentQuery, EventPart, EventText, Happened};

use super::seen::Calls;
use crate::chat::{Piece, Writer};
use crate::failure::Failure;
use crate::screen::{Screen, harmless};

/// Longest line of what a tool said that is shown, in characters.
const LINE_CHARS_MAX: usize = 200;
/// The most lines that are shown of what one call prints: the rest is for the model, and in the log.
const PRINTED_LINES_MAX: usize = 200;

/// Shows the events of a session, one after the other.
pub(crate) struct Teller<'a> {
    screen: &'a Screen,
    writer: Writer<'a>,
    calls: Calls,
    /// Some of an answer was shown that is not complete: it counts for nothing when the model is asked again.
    has_shown: bool,
    /// What running tools have printed, by their calls.
    printed: BTreeMap<String, Printed>,
    /// Prompts that this program sent, which its user has typed already.
    own: Vec<String>,
}

/// What a tool has printed so far.
#[derive(Default)]
struct Printed {
    /// The line that has not ended.
    line: String,
    lines: usize,
}

impl<'a> Teller<'a> {
    pub(crate) fn new(screen: &'a Screen) -> Self {
        let (writer, calls) = (Writer::new(screen), Calls::default());
        Self { screen, writer, calls, has_shown: false, printed: BTreeMap::new(), own: Vec::new() }
    }

    /// A prompt that need not be shown when it comes as an event.
    pub(crate) fn is_own(&mut self, prompt: &str) {
        self.own.push(prompt.to_owned());
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Shows one event. Texts that are too long to stand in it are fetched from `session`.
    pub(crate) async fn tell(
        &mut self,
        client: &Client,
        session: &str,
        happened: &Happened,
    ) -> Result<(), Failure> {
        self.calls.take(happened);
        match happened {
            Happened::Prompted { prompt, parts, .. } => {
                if let Some(at) = self.own.iter().position(|own| own == prompt) {
                    self.own.swap_remove(at);
                    return Ok(());
                }
                let said = said(client, session, parts).await;
                self.note(&format!("> {said}"))
            }
            Happened::Posted { parts, .. } => {
                let said = said(client, session, parts).await;
                self.note(&format!("> {said}"))
            }
            Happened::Steered { parts, .. } => {
                let said = said(client, session, parts).await;
                self.note(&format!(">> {said}"))
            }
            Happened::ModelCalled { .. } => {
                if std::mem::take(&mut self.has_shown) {
                    return self.note("(the answer broke off and begins again)");
                }
                Ok(())
            }
            Happened::TextAdded { text, .. } => {
                self.has_shown = true;
                self.writer.write(Piece::Text(text))
            }
            Happened::Answered { .. } => {
                self.has_shown = false;
                self.writer.end()
            }
            Happened::ReasoningAdded { text, .. } => self.writer.write(Piece::Thought(text)),
            Happened::ModelFailed { why, retry_ms, .. } => {
                let then = match retry_ms {
                    Some(ms) => format!(
                        "; asked again in {:.1} s, from the beginning of its answer",
                        *ms as f64 / 1e3
                    ),
                    None => String::new(),
                };
                self.note(&format!("the model failed: {why}{then}"))
            }
            Happened::ToolAsked { call, why, .. } => {
                self.note(&format!("{} waits to be allowed: {why}", self.calls.line(call)))
            }
            Happened::ToolStarted { call, .. } => self.note(&format!("[{}]", self.calls.line(call))),
            Happened::ToolPrinted { call, text, .. } => self.print(call, text),
            Happened::ToolEnded { call, result, .. } => {
                if let Some(printed) = self.printed.remove(call).filter(|printed| !printed.line.is_empty()) {
                    self.note(&format!("  | {}", printed.line))?;
                }
                let (name, _) = self.calls.named(call);
                let said = said(client, session, &result.parts).await;
                let line: String =
                    said.lines().next().unwrap_or_default().chars().take(LINE_CHARS_MAX).collect();
                match result.outcome.as_str() {
                    "done" => Ok(()),
                    "unknown" => self.note(&format!("[{name}] may have run when its node went down")),
                    outcome => self.note(&format!("[{name}] {outcome}: {line}")),
                }
            }
            Happened::TurnEnded { outcome, .. } => {
                self.has_shown = false;
                self.printed.clear();
                self.writer.end()?;
                match (outcome.word.as_str(), &outcome.why, &outcome.limit) {
                    ("done", ..) => Ok(()),
                    ("limit_reached", _, Some(limit)) => {
                        self.note(&format!("(the turn reached its limit of {})", limit.replace('_', " ")))
                    }
                    (word, Some(why), _) => self.note(&format!("(the turn {word}: {why})")),
                    (word, ..) => self.note(&format!("(the turn was {word})")),
                }
            }
            Happened::Suspended { why } => self.note(&format!("(suspended: {why})")),
            Happened::Resumed => self.note("(resumed)"),
            Happened::Archived => self.note("(archived)"),
            Happened::HandedOver { to, .. } => {
                self.note(&format!("(handed over to {})", to.chars().take(16).collect::<String>()))
            }
            _ => Ok(()),
        }
    }

    /// Shows the lines that a tool has completed by this, the first few of them.
    fn print(&mut self, call: &str, text: &str) -> Result<(), Failure> {
        let mut printed = self.printed.remove(call).unwrap_or_default();
        for piece in text.split_inclusive('\n') {
            let room = LINE_CHARS_MAX.saturating_sub(printed.line.chars().count());
            printed.line.extend(piece.trim_end_matches(['\n', '\r']).chars().take(room));
            if !piece.ends_with('\n') {
                continue;
            }
            printed.lines += 1;
            let line = std::mem::take(&mut printed.line);
            match printed.lines {
                lines if lines < PRINTED_LINES_MAX => self.note(&format!("  | {line}"))?,
                PRINTED_LINES_MAX => self.note("  | …")?,
                _ => {}
            }
        }
        if printed.lines >= PRINTED_LINES_MAX {
            printed.line.clear();
        }
        self.printed.insert(call.to_owned(), printed);
        Ok(())
    }

    /// A remark on a line of its own.
    pub(crate) fn note(&mut self, text: &str) -> Result<(), Failure> {
        self.writer.end()?;
        self.screen.note(&harmless(text));
        Ok(())
    }

    /// Ends the line that an answer left open.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        self.writer.end()
    }
}

/// The words of a prompt or a tool; what cannot be shown is named.
pub(crate) async fn said(client: &Client, session: &str, parts: &[EventPart]) -> String {
    let mut said = Vec::new();
    for part in parts {
        said.push(match part {
            EventPart::Text { text } => whole(client, session, text).await,
            EventPart::Image { media_type, bytes, .. } => format!("[{media_type}, {bytes} bytes]"),
            _ => "[something that this version does not know]".to_owned(),
        });
    }
    said.join("\n")
}

/// The text itself, or why it is not to be had.
pub(crate) async fn whole(client: &Client, session: &str, text: &EventText) -> String {
    match text {
        EventText::Inline(text) => text.clone(),
        EventText::Blob { blob, bytes } => {
            let query = ContentQuery { session: session.to_owned(), blob: blob.clone() };
            match client.session_content(&query).await {
                Ok(content) => String::from_utf8_lossy(&content).into_owned(),
                Err(error) => format!("[{bytes} bytes that cannot be read: {error}]"),
            }
        }
    }
}
