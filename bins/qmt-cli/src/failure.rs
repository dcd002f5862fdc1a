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

/// The words in `error.code` that are this program's own, beside those of the node (`mesh_control::ErrorCode`) and of the
/// gateway, and what each means. `docs/reference/errors.md` is written from it.
pub(crate) const WORDS: &[(&str, &str)] = &[
    ("usage", "The arguments make no sense; nothing was done. Exit code 2."),
    ("no_node", "No node is running in this QMT_HOME. Exit code 3."),
    ("not_yours", "The node runs as another user, whose control socket this one may not open."),
    ("path_too_long", "The path of the control socket is longer than the system allows."),
    ("connect", "The control socket is there and cannot be connected to."),
    ("timeout", "The node or the gateway did not answer in time."),
    (
        "broken",
        "The connection, or what came over it, broke off before its end; of an audit trail: a row was changed or removed.",
    ),
    ("too_long", "An answer is longer than this program reads."),
    ("not_understood", "An answer is not what this version understands."),
    ("no_gateway", "The node runs no gateway, or one whose address cannot be used."),
    ("gateway", "The gateway refused with a status and no code of its own."),
    ("no_model", "No model of the mesh answers, and none was named."),
    ("model_not_ready", "The model is there and does not answer yet."),
    ("not_loaded", "The model was to be served and did not come up."),
    ("dropped", "The model was dropped while it was waited for."),
    ("stopped", "The download was stopped or is not known any more."),
    ("interrupted", "Ctrl-C ended the command. Exit code 130."),
    ("cancelled", "Whoever called took the call back, and the turn with it."),
    ("input", "Standard input cannot be read."),
    ("output", "Standard output or a file cannot be written."),
    ("io", "A file of the CA cannot be read or written."),
    ("key", "No key could be made."),
    ("request", "The request for a certificate cannot be signed as it is."),
    ("invalid", "A certificate does not hold, or a file holds none."),
    ("qr", "The invite does not fit into a QR code."),
    ("import", "The YAML file cannot be read or turned into a configuration."),
    ("setup", "llama.cpp or the model could not be installed; the lines say which step."),
    ("service", "The service manager refused, or its file cannot be written."),
    ("mcp", "The caller does not speak the Model Context Protocol."),
    ("unknown_tool", "The MCP server has no tool of that name."),
    ("signal", "The system does not let the program watch for Ctrl-C."),
    ("runtime", "The program cannot start its runtime."),
    ("failed", "The output itself says what failed, such as a finding of `doctor`."),
    ("unread", "Nobody reads the output any more. Exit code 0."),
];

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
