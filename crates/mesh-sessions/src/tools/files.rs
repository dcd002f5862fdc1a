//! The tools that read and write files of a workspace.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::secrets::Secrets;
use super::workspace::{PathError, Workspace};
use crate::content::ToolOutcome;
use crate::model::{Shown, ToolSpec};
use crate::tool::{Ran, Tool, ToolRun};

/// How much the file tools read, write and say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLimits {
    /// The longest result in bytes. Default 48 KiB: with it a result stands in its event, and a context of 128,000 tokens
    /// takes some ten of them.
    pub result_bytes: usize,
    /// The largest file that is searched, edited or written in bytes. Default 8 MiB. Reading by lines has no such bound.
    pub file_bytes: u64,
    /// How long a listing or a search may take. Default 20 s.
    pub walk: Duration,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { result_bytes: 48 * 1024, file_bytes: 8 * 1024 * 1024, walk: Duration::from_secs(20) }
    }
}

/// What the file tools work with.
#[derive(Debug, Clone)]
pub struct Files {
    /// Where.
    pub workspace: Workspace,
    /// What they do not show.
    pub secrets: Secrets,
    /// How much.
    pub limits: FileLimits,
}

impl Files {
    /// The tools `read_file`, `write_file`, `edit`, `list` and `search`.
    pub fn tools(&self) -> Vec<Arc<dyn Tool>> {
        vec![
            FileTool::<super::read_file::ReadFile>::shared(self),
            FileTool::<super::write_file::WriteFile>::shared(self),
            FileTool::<super::edit::Edit>::shared(self),
            FileTool::<super::list::List>::shared(self),
            FileTool::<super::search::Search>::shared(self),
        ]
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.limits.walk
    }
}

/// Why a file tool did not do what was asked.
#[derive(Debug)]
pub(crate) enum Fault {
    /// What the model is told.
    Failed(String),
    Cancelled,
}

impl From<PathError> for Fault {
    fn from(error: PathError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// What a file tool does, as plain code that may wait for the disk.
pub(crate) trait Work: Send + Sync + 'static {
    const NAME: &'static str;
    const DESCRIPTION: &'static str;
    const ONLY_READS: bool;
    type Arguments: DeserializeOwned + Send + 'static;

    /// The `properties` of the arguments' schema, and which of them are required.
    fn parameters() -> (Value, Value);

    fn work(files: &Files, arguments: Self::Arguments, cancel: &CancellationToken) -> Result<String, Fault>;
}

pub(crate) struct FileTool<W> {
    files: Files,
    work: PhantomData<W>,
}

impl<W: Work> FileTool<W> {
    pub(crate) fn shared(files: &Files) -> Arc<dyn Tool> {
        Arc::new(Self { files: files.clone(), work: PhantomData })
    }
}

impl<W: Work> Tool for FileTool<W> {
    fn spec(&self) -> ToolSpec {
        let (properties, required) = W::parameters();
        ToolSpec {
            name: W::NAME.to_owned(),
            description: W::DESCRIPTION.to_owned(),
            parameters: json!({
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": false,
            }),
        }
    }

    fn only_reads(&self, _: &Value) -> bool {
        W::ONLY_READS
    }

    fn run(&self, run: ToolRun) -> BoxFuture<'static, Ran> {
        let files = self.files.clone();
        Box::pin(async move {
            let arguments = match arguments::<W::Arguments>(run.arguments) {
                Ok(arguments) => arguments,
                Err(why) => return Ran::failed(why),
            };
            let secrets = files.secrets.clone();
            let cancel = run.cancel.child_token();
            // Dropped with this future, it ends the work on its thread too.
            let _ends = cancel.clone().drop_guard();
            let work = tokio::task::spawn_blocking(move || W::work(&files, arguments, &cancel));
            match work.await {
                Ok(Ok(text)) => Ran::done(secrets.redact(&text)),
                Ok(Err(Fault::Failed(why))) => Ran::failed(secrets.redact(&why)),
                Ok(Err(Fault::Cancelled)) => cancelled(),
                Err(_) => Ran::failed("the tool broke off"),
            }
        })
    }
}

pub(crate) fn cancelled() -> Ran {
    Ran { outcome: ToolOutcome::Cancelled, parts: vec![Shown::Text("cancelled".to_owned())] }
}

/// The arguments of a call in their type; the error tells the model what is wrong with them.
pub(crate) fn arguments<A: DeserializeOwned>(arguments: Value) -> Result<A, String> {
    if !arguments.is_object() {
        return Err("the arguments are not a JSON object".to_owned());
    }
    serde_json::from_value(arguments).map_err(|error| format!("the arguments do not fit: {error}"))
}
