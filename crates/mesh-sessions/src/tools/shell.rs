//! `shell`: a command line in the workspace.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use super::confinement::Confinement;
use super::environment::Environment;
use super::files::arguments;
use super::guard::{Guard, Guarded};
use super::output::{HeadTail, cut_short};
use super::process::{End, Running};
use super::secrets::{Redactor, Secrets};
use super::workspace::Workspace;
use crate::content::ToolOutcome;
use crate::model::{Shown, ToolSpec};
use crate::tool::{Ran, Tool, ToolRun};

/// Command lines that a model means are shorter.
const COMMAND_BYTES_MAX: usize = 128 * 1024;
/// So much of the output is handed on while the command runs; who watches gets the rest with the result, as far as it is kept.
const PRINTED_BYTES_MAX: usize = 256 * 1024;

/// The tool `shell`: runs command lines by `sh` in a workspace, each behind a [`Guard`].
///
/// Nothing that a command starts outlives its call: background jobs, and on Linux daemons too, are ended with it.
#[derive(Debug, Clone)]
pub struct Shell {
    /// Where commands start.
    pub workspace: Workspace,
    /// Between the node and each command.
    pub guard: Guard,
    /// What is taken out of outputs.
    pub secrets: Secrets,
    /// The variables that commands see.
    pub environment: Environment,
    /// What commands reach of the disk; none for all that the node's user does.
    pub confinement: Option<Confinement>,
    /// How long and how much.
    pub limits: ShellLimits,
}

/// How long commands run and how much of their output is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShellLimits {
    /// The time of a call that names none. Default 2 min.
    pub timeout: Duration,
    /// The longest time that a call may ask for. Default 1 h.
    pub timeout_max: Duration,
    /// From SIGTERM to SIGKILL. Default 3 s.
    pub grace: Duration,
    /// The longest result in bytes: the beginning and the end of the output are kept. Default 32 KiB.
    pub result_bytes: usize,
}

impl Default for ShellLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(120),
            timeout_max: Duration::from_secs(3600),
            grace: Duration::from_secs(3),
            result_bytes: 32 * 1024,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    command: String,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

impl Tool for Shell {
    fn spec(&self) -> ToolSpec {
        let seconds = self.limits.timeout.as_secs();
        let description = format!(
            "Runs a command line by sh in the workspace and returns what it prints, standard error included, and its exit \
             status. There is no terminal and no input. After {seconds} s, or the time asked for, it is ended. Whatever \
             still runs in the background when the command is over is ended too; each call starts anew in the workspace's \
             root.",
        );
        ToolSpec {
            name: "shell".to_owned(),
            description,
            parameters: json!({
                "type": "object",
                "properties": {
                    "command": {"type": "string", "description": "The command line"},
                    "path": {"type": "string", "description": "Folder to run it in, from the workspace's root on (default: the root)"},
                    "timeout_seconds": {
                        "type": "integer", "minimum": 1, "maximum": self.limits.timeout_max.as_secs(),
                        "description": "When to end it",
                    },
                },
                "required": ["command"],
                "additionalProperties": false,
            }),
        }
    }

    fn only_reads(&self, _: &Value) -> bool {
        false
    }

    fn run(&self, run: ToolRun) -> BoxFuture<'static, Ran> {
        let shell = self.clone();
        Box::pin(async move {
            match shell.result(run).await {
                Ok(ran) => ran,
                Err(why) => Ran::failed(shell.secrets.redact(&why)),
            }
        })
    }
}

impl Shell {
    async fn result(&self, run: ToolRun) -> Result<Ran, String> {
        let asked: Arguments = arguments(run.arguments)?;
        if asked.command.len() > COMMAND_BYTES_MAX || asked.command.contains('\0') {
            return Err(format!("a command has at most {COMMAND_BYTES_MAX} bytes, and no NUL"));
        }
        let folder = self.folder(asked.path.as_deref())?;
        let timeout = asked.timeout_seconds.map_or(self.limits.timeout, Duration::from_secs);
        let timeout = timeout.min(self.limits.timeout_max);
        let line: [OsString; 2] = ["-c".into(), asked.command.into()];
        let how = Guarded { grace: self.limits.grace, talks: false, confinement: self.confinement.as_ref() };
        let program = OsStr::new("/bin/sh");
        let mut running = Running::spawn(&self.guard, &how, &self.environment, &folder, program, &line)
            .map_err(|error| format!("the command could not be started: {error}"))?;
        let mut said = Said::new(self, run.printed);
        let end = running.finish(timeout, &run.cancel, |bytes| said.push(bytes)).await;
        let end = end.map_err(|error| format!("the command was lost: {error}"))?;
        let (outcome, note) = match end {
            End::Exited(0) => (ToolOutcome::Done, String::new()),
            End::Exited(status @ 129..=192) => {
                (ToolOutcome::Failed, format!("[ended by signal {}, exit status {status}]", status - 128))
            }
            End::Exited(status) => (ToolOutcome::Failed, format!("[exit status {status}]")),
            End::TimedOut => (ToolOutcome::Failed, format!("[ended: its {} s were up]", timeout.as_secs())),
            End::Cancelled => (ToolOutcome::Cancelled, "[cancelled]".to_owned()),
        };
        let mut text = said.into_text();
        if text.is_empty() && note.is_empty() {
            text.push_str("[no output]");
        }
        if !text.is_empty() && !note.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&note);
        Ok(Ran { outcome, parts: vec![Shown::Text(text)] })
    }

    /// The folder to start in. It is inside when it is looked at; what a command does later is the confinement's affair.
    fn folder(&self, path: Option<&str>) -> Result<PathBuf, String> {
        let root = self.workspace.root();
        let Some(path) = path.filter(|path| !path.is_empty()) else { return Ok(root.to_owned()) };
        let (_, relative) = self.workspace.dir(path).map_err(|error| error.to_string())?;
        let inside = self.workspace.root_dir().canonicalize(&relative);
        Ok(root.join(inside.map_err(|error| format!("{path}: {error}"))?))
    }
}

/// What a command has said so far.
struct Said {
    redactor: Redactor,
    kept: HeadTail,
    printed: Arc<dyn Fn(&str) + Send + Sync>,
    /// The beginning of a character whose end has not come.
    begun: Vec<u8>,
    printed_bytes: usize,
}

impl Said {
    fn new(shell: &Shell, printed: Arc<dyn Fn(&str) + Send + Sync>) -> Self {
        let kept = HeadTail::new(shell.limits.result_bytes);
        Self { redactor: shell.secrets.stream(), kept, printed, begun: Vec::new(), printed_bytes: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        let bytes = self.redactor.push(bytes);
        self.keep(&bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.push(bytes);
        if self.printed_bytes > PRINTED_BYTES_MAX {
            return;
        }
        self.begun.extend_from_slice(bytes);
        let open = self.begun.split_off(self.begun.len() - cut_short(&self.begun));
        let whole = std::mem::replace(&mut self.begun, open);
        self.printed_bytes += whole.len();
        if !whole.is_empty() {
            (self.printed)(&String::from_utf8_lossy(&whole));
        }
        if self.printed_bytes > PRINTED_BYTES_MAX {
            (self.printed)("\n[… the rest is not shown while it runs …]\n");
        }
    }

    fn into_text(mut self) -> String {
        let rest = self.redactor.finish();
        self.keep(&rest);
        self.kept.into_text()
    }
}
