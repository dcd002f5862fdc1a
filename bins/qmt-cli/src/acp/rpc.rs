//! JSON-RPC 2.0 as lines: what comes in, bounded, and what goes out.

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Longest line that is read, bytes: a prompt with an image of 32 MiB as base64. Longer ones are skipped and answered so.
pub(super) const LINE_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Error codes of JSON-RPC.
pub(super) const PARSE: i64 = -32700;
pub(super) const INVALID_REQUEST: i64 = -32600;
pub(super) const NO_METHOD: i64 = -32601;
pub(super) const INVALID_PARAMS: i64 = -32602;
pub(super) const INTERNAL: i64 = -32603;

/// What a line says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Message {
    /// A request; its id is repeated in the answer.
    Request { id: Value, method: String, params: Value },
    /// A request that wants no answer.
    Notice { method: String, params: Value },
    /// The answer to a request of this side; none when it is an error.
    Answer { id: Value, result: Option<Value> },
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub(super) code: i64,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<mesh_control::ClientError> for Fault {
    fn from(error: mesh_control::ClientError) -> Self {
        let mend = error.mend().map(|mend| format!(" ({mend})")).unwrap_or_default();
        Self::new(INTERNAL, format!("{error}{mend}"))
    }
}

/// Reads a line; its fault names no request, since none is known.
pub(super) fn parse(line: &[u8]) -> Result<Message, Fault> {
    let value: Value =
        serde_json::from_slice(line).map_err(|error| Fault::new(PARSE, format!("no JSON: {error}")))?;
    let Value::Object(mut message) = value else {
        return Err(Fault::new(INVALID_REQUEST, "a message is an object; batches are not taken"));
    };
    let id = message.remove("id").filter(|id| id.is_string() || id.is_number());
    let params = message.remove("params").unwrap_or(Value::Null);
    match (message.remove("method"), id) {
        (Some(Value::String(method)), Some(id)) => Ok(Message::Request { id, method, params }),
        (Some(Value::String(method)), None) => Ok(Message::Notice { method, params }),
        (None, Some(id)) if message.contains_key("result") || message.contains_key("error") => {
            let is_error = message.contains_key("error");
            Ok(Message::Answer { id, result: message.remove("result").filter(|_| !is_error) })
        }
        _ => Err(Fault::new(INVALID_REQUEST, "neither a request nor an answer")),
    }
}

/// The answer to a request.
pub(super) fn answer(id: Value, result: Result<Value, Fault>) -> Value {
    match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(Fault { code, message }) => {
            json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
        }
    }
}

pub(super) fn notice(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "method": method, "params": params})
}

pub(super) fn request(id: u64, method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// What the next line is.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    Whole(Vec<u8>),
    /// It was longer than the bound, and is skipped.
    TooLong,
    End,
}

/// Lines of at most `max` bytes. Cancel safe.
pub(super) struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    skips: bool,
    max: usize,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(super) fn new(reader: R, max: usize) -> Self {
        Self { reader, line: Vec::new(), skips: false, max }
    }

    pub(super) async fn next(&mut self) -> std::io::Result<Line> {
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(Line::End);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(bytes.len(), |end| end + 1);
            let part = &bytes[..end.unwrap_or(taken)];
            if self.line.len() + part.len() > self.max {
                self.skips = true;
                self.line = Vec::new();
            } else if !self.skips {
                self.line.extend_from_slice(part);
            }
            self.reader.consume(taken);
            if end.is_none() {
                continue;
            }
            if std::mem::take(&mut self.skips) {
                return Ok(Line::TooLong);
            }
            let line = std::mem::take(&mut self.line);
            if !line.trim_ascii().is_empty() {
                return Ok(Line::Whole(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_notices_and_answers_are_told_apart() {
        let request = parse(br#"{"jsonrpc":"2.0","id":"a","method":"m","params":[1]}"#).expect("a request");
        assert_eq!(request, Message::Request { id: json!("a"), method: "m".into(), params: json!([1]) });
        let notice = parse(br#"{"method":"m","id":null}"#).expect("a notice");
        assert_eq!(notice, Message::Notice { method: "m".into(), params: Value::Null });
        let answer = parse(br#"{"id":3,"result":null}"#).expect("an answer");
        assert_eq!(answer, Message::Answer { id: json!(3), result: Some(Value::Null) });
        let error = parse(br#"{"id":3,"error":{"code":1},"result":1}"#).expect("an answer");
        assert_eq!(error, Message::Answer { id: json!(3), result: None });
    }

    #[test]
    fn what_is_none_of_them_is_refused() {
        for (line, code) in [
            (&b"{"[..], PARSE),
            (b"\xff\xfe", PARSE),
            (b"[]", INVALID_REQUEST),
            (b"7", INVALID_REQUEST),
            (b"{}", INVALID_REQUEST),
            (br#"{"method":5,"id":1}"#, INVALID_REQUEST),
            (br#"{"id":{"a":1},"result":1}"#, INVALID_REQUEST),
        ] {
            assert_eq!(parse(line).expect_err("refused").code, code, "{}", String::from_utf8_lossy(line));
        }
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_skipped_alone() {
        let text = format!("one\n\n{}\n  \ntwo\nunfinished", "x".repeat(100));
        let mut lines = Lines::new(text.as_bytes(), 10);
        let mut read = Vec::new();
        loop {
            match lines.next().await.expect("it reads") {
                Line::End => break,
                Line::Whole(line) => read.push(String::from_utf8(line).expect("text")),
                Line::TooLong => read.push("too long".to_owned()),
            }
        }
        assert_eq!(read, ["one", "too long", "two"]);
    }
}
