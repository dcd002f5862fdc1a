//! `write_file`: a whole file at once.

use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::files::{Fault, Files, Work};
use super::secrets::MARK;
use super::workspace::Written;

pub(crate) struct WriteFile;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arguments {
    path: String,
    content: String,
}

impl Work for WriteFile {
    const NAME: &'static str = "write_file";
    const DESCRIPTION: &'static str = "Writes a whole text file of the workspace; creates it, and the folders that it \
        lies in, or replaces all of it. To change a part of a file use `edit`.";
    const ONLY_READS: bool = false;
    type Arguments = Arguments;

    fn parameters() -> (Value, Value) {
        let properties = json!({
            "path": {"type": "string", "description": "Path of the file, from the workspace's root on"},
            "content": {"type": "string", "description": "All of the file's text"},
        });
        (properties, json!(["path", "content"]))
    }

    fn work(files: &Files, asked: Arguments, cancel: &CancellationToken) -> Result<String, Fault> {
        let bytes = asked.content.len();
        let bytes_max = files.limits.file_bytes;
        if bytes as u64 > bytes_max {
            return Err(format!("the content has {bytes} bytes; the bound is {bytes_max}").into());
        }
        let written = files.workspace.replace(&asked.path, bytes_max, |old| -> Result<_, Fault> {
            if cancel.is_cancelled() {
                return Err(Fault::Cancelled);
            }
            refuse_lost_secret(files, old.unwrap_or_default(), asked.content.as_bytes())?;
            Ok(asked.content.as_bytes().to_vec())
        })?;
        Ok(match written {
            Written::Created => format!("created {} ({bytes} bytes)", asked.path),
            Written::Replaced => format!("replaced {} ({bytes} bytes)", asked.path),
        })
    }
}

/// A model that was shown [`MARK`] in place of a secret would write the mark over it.
pub(crate) fn refuse_lost_secret(files: &Files, old: &[u8], new: &[u8]) -> Result<(), Fault> {
    let marks = |text: &[u8]| text.windows(MARK.len()).filter(|part| *part == MARK.as_bytes()).count();
    if files.secrets.are_in(old) && marks(new) > marks(old) {
        return Err(
            format!("the file holds a secret, and {MARK} would be written over it; leave it out").into()
        );
    }
    Ok(())
}
