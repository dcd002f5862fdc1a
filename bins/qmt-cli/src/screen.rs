//! What goes to standard output, to standard error, and only to a terminal.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Failure;

/// Where a command shows its results. Results go to standard output, remarks to standard error; with `--json` standard output
/// has one JSON value and standard error nothing.
#[derive(Debug)]
pub(crate) struct Screen {
    json: bool,
    /// Progress is shown: somebody watches, and did not ask for JSON.
    live: bool,
    progress_shown: Cell<bool>,
}

impl Screen {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, live: !json && io::stderr().is_terminal(), progress_shown: Cell::new(false) }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Shows the result: as it is with `--json`, else as `text` puts it.
    pub(crate) fn show<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let shown = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|error| Failure::new("internal", format!("the result is no JSON: {error}")))?
        } else {
            text(value)
        };
        self.clear_progress();
        if shown.is_empty() {
            return Ok(());
        }
        self.print(&format!("{}\n", shown.trim_end_matches('\n')))
    }

    /// Writes to standard output at once.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        self.print_bytes(text.as_bytes())
    }

    /// Writes to standard output at once, whatever it is.
    pub(crate) fn print_bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::unread(),
            _ => Failure::new("output", format!("standard output cannot be written: {error}")),
        })
    }

    /// A remark beside the result.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            self.clear_progress();
            let _ = writeln!(io::stderr(), "{text}"); // a remark that nobody can read is no failure
        }
    }

    /// Replaces the line of progress.
    pub(crate) fn progress(&self, text: &str) {
        if self.live {
            self.progress_shown.set(true);
            let _ = write!(io::stderr(), "\r\x1b[2K{text}");
            let _ = io::stderr().flush();
        }
    }

    pub(crate) fn clear_progress(&self) {
        if self.progress_shown.take() {
            let _ = write!(io::stderr(), "\r\x1b[2K");
            let _ = io::stderr().flush();
        }
    }

    /// Says why the command failed.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        self.clear_progress();
        if !failure.is_said() {
            if self.json {
                let _ = self.print(&format!("{}\n", serde_json::json!({ "error": failure })));
            } else {
                self.note(&format!("error: {}", failure.message()));
                if let Some(mend) = failure.mend() {
                    self.note(&format!("mend: {mend}"));
                }
            }
        }
        ExitCode::from(failure.exit())
    }
}

/// Text from elsewhere (a model, another node) without what would steer a terminal: control characters other than line feeds
/// and tabs become `?`.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\n\tb\x1b]0;owned\x07\r\u{9b}2Jé"), "a\n\tb?]0;owned???2Jé");
    }
}
