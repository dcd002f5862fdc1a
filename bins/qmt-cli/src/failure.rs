//! Why a command failed, and the exit code that says so.

use mesh_control::ClientError;
use serde::Serialize;

/// The node refused, or something failed.
pub(crate) const FAILED: u8 = 1;
/// The arguments make no sense.
pub(crate) const USAGE: u8 = 2;
/// No node is running.
pub(crate) const NO_NODE: u8 = 3;
/// Ended by Ctrl-C, as shells say it: 128 and the number of SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    /// What went wrong, for programs: the node's word, or one of this program's.
    code: String,
    /// What went wrong, for people.
    message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
    #[serde(skip)]
    exit: u8,
    /// All that can be said was shown already.
    #[serde(skip)]
    said: bool,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), mend: None, exit: FAILED, said: false }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: USAGE, ..Self::new("usage", message) }
    }

    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self { exit: INTERRUPTED, ..Self::new("interrupted", message) }
    }

    /// The output shows the failure by itself; only the exit code is left to say.
    pub(crate) fn shown() -> Self {
        Self { said: true, ..Self::new("failed", "") }
    }

    /// Nobody reads the output any more, such as `head` after its lines.
    pub(crate) fn unread() -> Self {
        Self { exit: 0, said: true, ..Self::new("unread", "") }
    }

    pub(crate) fn with_mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    pub(crate) fn with_exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    pub(crate) fn code(&self) -> &str {
        &self.code
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn mend(&self) -> Option<&str> {
        self.mend.as_deref()
    }

    pub(crate) fn exit(&self) -> u8 {
        self.exit
    }

    pub(crate) fn is_said(&self) -> bool {
        self.said
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self {
            exit: if matches!(error, ClientError::NoNode { .. }) { NO_NODE } else { FAILED },
            mend: error.mend().map(str::to_owned),
            ..Self::new(error.code(), chain(&error))
        }
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
