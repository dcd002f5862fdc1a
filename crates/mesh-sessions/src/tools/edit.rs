//! `edit`: replaces a text in a file by another.

use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::files::{Fault, Files, Work};
use super::read_file::is_binary;
use super::write_file::refuse_lost_secret;

/// So many places are named when a text is found too often.
const PLACES_SHOWN: usize = 10;

pub(crate) struct Edit;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arguments {
    path: String,
    old_string: String,
    new_string: String,
    #[serde(default)]
    replace_all: Option<bool>,
}

impl Work for Edit {
    const NAME: &'static str = "edit";
    const DESCRIPTION: &'static str = "Replaces a text in a file of the workspace by another. `old_string` is compared \
        exactly, blanks and line breaks included, and must be found exactly once, unless `replace_all` is true. Leave out \
        the line numbers that `read_file` shows.";
    const ONLY_READS: bool = false;
    type Arguments = Arguments;

    fn parameters() -> (Value, Value) {
        let properties = json!({
            "path": {"type": "string", "description": "Path of the file, from the workspace's root on"},
            "old_string": {"type": "string", "description": "The text to replace"},
            "new_string": {"type": "string", "description": "The text to put there"},
            "replace_all": {"type": "boolean", "description": "Replace it wherever it stands (default false)"},
        });
        (properties, json!(["path", "old_string", "new_string"]))
    }

    fn work(files: &Files, asked: Arguments, cancel: &CancellationToken) -> Result<String, Fault> {
        if asked.old_string.is_empty() {
            return Err("old_string is empty; to write a whole file use write_file".to_owned().into());
        }
        if asked.old_string == asked.new_string {
            return Err("old_string and new_string are the same".to_owned().into());
        }
        let bytes_max = files.limits.file_bytes;
        let mut lines = Vec::new();
        files.workspace.replace(&asked.path, bytes_max, |content| -> Result<_, Fault> {
            let missing = || Fault::from(format!("{} does not exist", asked.path));
            let old = content.ok_or_else(missing)?;
            let (new, at) = replaced(old, &asked)?;
            if new.len() as u64 > bytes_max {
                return Err(
                    format!("the file would have {} bytes; the bound is {bytes_max}", new.len()).into()
                );
            }
            refuse_lost_secret(files, old, &new)?;
            lines = at;
            if cancel.is_cancelled() { Err(Fault::Cancelled) } else { Ok(new) }
        })?;
        let places = if lines.len() == 1 { "place" } else { "places" };
        Ok(format!("changed {} in {} {places}: {}", asked.path, lines.len(), named(&lines)))
    }
}

/// The content with the text replaced, and the lines where it stood.
fn replaced(content: &[u8], asked: &Arguments) -> Result<(Vec<u8>, Vec<usize>), Fault> {
    if is_binary(content) {
        return Err(format!("{} is a binary file", asked.path).into());
    }
    let (mut old, mut new) = (asked.old_string.clone(), asked.new_string.clone());
    let mut places = found(content, old.as_bytes());
    if places.is_empty() && old.contains('\n') && !old.contains('\r') {
        // Models write line breaks without the carriage return that some files have.
        (old, new) = (old.replace('\n', "\r\n"), new.replace('\n', "\r\n"));
        places = found(content, old.as_bytes());
    }
    let lines: Vec<usize> = places.iter().map(|at| line_of(content, *at)).collect();
    match lines.len() {
        0 => {
            let why = format!("old_string is not in {}; read the file and copy the text exactly", asked.path);
            return Err(why.into());
        }
        1 => {}
        _ if asked.replace_all == Some(true) => {}
        count => {
            let why = format!(
                "old_string stands in {} {count} times ({}); take more of the text around it, or set replace_all",
                asked.path,
                named(&lines),
            );
            return Err(why.into());
        }
    }
    let mut out = Vec::with_capacity(content.len() + new.len());
    let mut done = 0;
    for at in places {
        out.extend_from_slice(&content[done..at]);
        out.extend_from_slice(new.as_bytes());
        done = at + old.len();
    }
    out.extend_from_slice(&content[done..]);
    Ok((out, lines))
}

/// Where `text` stands in `content`, overlaps left out.
fn found(content: &[u8], text: &[u8]) -> Vec<usize> {
    memchr::memmem::find_iter(content, text).collect()
}

fn line_of(content: &[u8], at: usize) -> usize {
    memchr::memchr_iter(b'\n', &content[..at]).count() + 1
}

fn named(lines: &[usize]) -> String {
    let shown: Vec<String> = lines.iter().take(PLACES_SHOWN).map(usize::to_string).collect();
    let more = if lines.len() > PLACES_SHOWN { ", …" } else { "" };
    let word = if lines.len() == 1 { "line" } else { "lines" };
    format!("{word} {}{more}", shown.join(", "))
}
