//! `read_file`: lines of a file, with their numbers.

use std::io::{BufRead, BufReader};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::files::{Fault, Files, Work};
use super::output::{Report, cut_line};
use super::workspace::fault;

/// Lines of a call that names no number.
const LINES_DEFAULT: usize = 2000;
/// The longest line that is shown whole: generated files have lines of megabytes.
const LINE_BYTES_MAX: usize = 2000;
/// So much of a line is read for it; the rest is skipped without being kept.
const LINE_BYTES_READ: usize = 64 * 1024;
/// In its first bytes a binary file shows what it is, as git has it.
pub(crate) const SNIFFED_BYTES: usize = 8000;
/// So far a file is read to tell how many lines it has, in bytes.
const COUNTED_BYTES: u64 = 64 * 1024 * 1024;

pub(crate) struct ReadFile;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arguments {
    path: String,
    #[serde(default)]
    offset: Option<usize>,
    #[serde(default)]
    limit: Option<usize>,
}

impl Work for ReadFile {
    const NAME: &'static str = "read_file";
    const DESCRIPTION: &'static str = "Reads a text file of the workspace. Each line comes with its number and a tab \
        before it. Long files come in parts: the last line of the result says how to go on.";
    const ONLY_READS: bool = true;
    type Arguments = Arguments;

    fn parameters() -> (Value, Value) {
        let properties = json!({
            "path": {"type": "string", "description": "Path of the file, from the workspace's root on"},
            "offset": {"type": "integer", "minimum": 1, "description": "The first line to read (default 1)"},
            "limit": {"type": "integer", "minimum": 1, "description": "How many lines to read (default 2000)"},
        });
        (properties, json!(["path"]))
    }

    fn work(files: &Files, asked: Arguments, cancel: &CancellationToken) -> Result<String, Fault> {
        let (file, bytes) = files.workspace.file(&asked.path)?;
        let io = |error| Fault::from(fault(&asked.path, error));
        let mut reader = BufReader::with_capacity(LINE_BYTES_READ, file);
        let head = reader.fill_buf().map_err(io)?;
        if is_binary(head) {
            return Err(format!("{} is a binary file of {bytes} bytes", asked.path).into());
        }
        let first = asked.offset.unwrap_or(1).max(1);
        let limit = asked.limit.unwrap_or(LINES_DEFAULT).max(1);
        let mut report = Report::new(files.limits.result_bytes);
        let (mut number, mut shown, mut read, mut is_full, mut is_odd) = (0, 0, 0, false, false);
        let mut line = Vec::new();
        loop {
            if cancel.is_cancelled() {
                return Err(Fault::Cancelled);
            }
            let Some(length) = next_line(&mut reader, &mut line).map_err(io)? else { break };
            number += 1;
            read += length;
            if number >= first && shown < limit && !is_full {
                let text = String::from_utf8_lossy(&line);
                is_odd |= matches!(text, std::borrow::Cow::Owned(_));
                let text = files.secrets.redact(&text);
                let text = cut_line(&text, LINE_BYTES_MAX);
                is_full = !report.line(&format!("{number:>6}\t{text}"));
                shown += usize::from(!is_full);
            }
            if read > COUNTED_BYTES && number >= first.saturating_add(limit) {
                let next = first + shown;
                let note = format!("[lines {first}-{} of many; go on with offset {next}]", next - 1);
                return Ok(report.close(Some(&note)));
            }
        }
        let odd = if is_odd { " It is not all UTF-8: \u{fffd} stands for other bytes." } else { "" };
        let last = first - 1 + shown;
        let note = match () {
            () if number == 0 => "[the file is empty]".to_owned(),
            () if shown == 0 => return Err(format!("{} has only {number} lines", asked.path).into()),
            () if last < number => {
                format!("[lines {first}-{last} of {number}; go on with offset {}]{odd}", last + 1)
            }
            () if first > 1 => format!("[lines {first}-{last} of {number}]{odd}"),
            () if is_odd => format!("[{}]", odd.trim()),
            () => return Ok(report.close(None)),
        };
        Ok(report.close(Some(&note)))
    }
}

/// Whether a file that begins so is not for reading: text has no NUL.
pub(crate) fn is_binary(head: &[u8]) -> bool {
    head[..head.len().min(SNIFFED_BYTES)].contains(&0)
}

/// Reads a line, its end left off, and tells its whole length; of a very long one only the beginning is kept. None at the
/// end of the file.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<Option<u64>> {
    line.clear();
    let mut length = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok((length > 0).then_some(length));
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(buffer.len(), |end| end + 1);
        let kept = end.unwrap_or(taken).min(LINE_BYTES_READ - line.len());
        line.extend_from_slice(&buffer[..kept]);
        reader.consume(taken);
        length += taken as u64;
        if end.is_some() {
            if line.ends_with(b"\r") {
                line.pop();
            }
            return Ok(Some(length));
        }
    }
}
