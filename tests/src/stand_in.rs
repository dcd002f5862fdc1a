//! A stand-in for llama-server whose answers are known beforehand: `NAME.0 NAME.1 NAME.2 …`, where NAME is what the caller says.
//!
//! A text that lost, doubled or swapped something shows where, whatever the number of hosts that made it. It takes
//! llama-server's command line as far as a node uses it, wants the key that the node gives it, and refuses to go on behind a
//! text that is not its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// Largest body read.
const BODY_MAX: usize = 4 << 20;
/// Tokens of an answer whose caller does not say how many.
const TOKENS_DEFAULT: usize = 60;
/// Milliseconds between two tokens, where the caller does not say.
const GAP: &str = "STAND_IN_GAP_MS";
/// Tokens that any request counts as, what was said before apart.
pub const PROMPT_TOKENS: u64 = 7;

/// Makes a folder with a `llama-server` that is this stand-in; `program` is `qmt-stand-in`.
///
/// # Errors
/// Those of writing it.
pub fn install(folder: &Path, program: &Path) -> Result<()> {
    install_slow(folder, program, Duration::ZERO)
}

/// The same with so much time between two tokens, where the caller says nothing of it (`gap_ms`).
///
/// # Errors
/// Those of writing it.
pub fn install_slow(folder: &Path, program: &Path, gap: Duration) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let script = folder.join("llama-server");
    let (gap, program) = (gap.as_millis(), program.display());
    std::fs::write(&script, format!("#!/bin/sh\n{GAP}={gap} exec '{program}' \"$@\"\n"))?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// One token of an answer.
pub fn token(name: &str, number: usize) -> String {
    format!("{name}.{number} ")
}

/// The first `tokens` tokens of an answer.
pub fn text(name: &str, tokens: usize) -> String {
    (0..tokens).map(|number| token(name, number)).collect()
}

/// Serves as its arguments say, until it is ended.
///
/// # Errors
/// When it was not started as llama-server is.
pub fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("--version") => {
            println!("version: 1 (stand-in)");
            return Ok(());
        }
        Some("--list-devices") => {
            println!("Available devices:");
            return Ok(());
        }
        _ => {}
    }
    let port = arguments.iter().skip_while(|word| *word != "--port").nth(1).context("no --port")?;
    let key = std::env::var("LLAMA_API_KEY").unwrap_or_default();
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?))?;
    for stream in listener.incoming() {
        let (stream, key) = (stream?, key.clone());
        std::thread::spawn(move || {
            // A caller that leaves is no event here.
            let _ = serve(&stream, &key);
        });
    }
    Ok(())
}

/// One connection, request after request.
fn serve(stream: &TcpStream, key: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let allowed = request.path == "/health" || request.bearer.as_deref() == Some(key);
        match request.path.as_str() {
            _ if !allowed => whole(stream, 401, &json!({ "error": "no key" }))?,
            "/v1/chat/completions" => match Ask::of(&request.body) {
                Ok(ask) => ask.answer(stream)?,
                Err(error) => whole(stream, 400, &json!({ "error": { "message": error.to_string() } }))?,
            },
            _ => whole(stream, 200, &json!({ "status": "ok" }))?,
        }
    }
    Ok(())
}

struct Request {
    path: String,
    bearer: Option<String>,
    body: Vec<u8>,
}

impl Request {
    /// None when the caller has no more.
    fn read(reader: &mut BufReader<&TcpStream>) -> Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let path = line.split(' ').nth(1).context("no path")?.to_owned();
        let (mut bearer, mut length) = (None, 0);
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => bearer = value.trim().strip_prefix("Bearer ").map(str::to_owned),
                "content-length" => length = value.trim().parse()?,
                _ => {}
            }
        }
        ensure!(length <= BODY_MAX, "{length} bytes");
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Some(Self { path, bearer, body }))
    }
}

fn whole(mut stream: &TcpStream, status: u16, body: &Value) -> Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Ok(stream.write_all((head + &body).as_bytes())?)
}

/// What is asked for.
struct Ask {
    name: String,
    streams: bool,
    counts: bool,
    /// Tokens said before.
    said: usize,
    tokens: usize,
    gap: Duration,
}

impl Ask {
    fn of(body: &[u8]) -> Result<Self> {
        let body: Value = serde_json::from_slice(body)?;
        let messages = body["messages"].as_array().context("no messages")?;
        // What is said last by the caller; behind it stands what was answered until now, if it is to be gone on with.
        let is_callers = |message: &Value| message["role"] == "user" || message["role"].is_null();
        let at = messages.iter().rposition(is_callers).unwrap_or(0);
        let name = messages.get(at).and_then(|message| message["content"].as_str()).context("no name")?;
        let said = match messages.get(at + 1) {
            None => 0,
            Some(last) => said(name, last["content"].as_str().unwrap_or_default())?,
        };
        let gap = std::env::var(GAP).ok().and_then(|gap| gap.parse().ok());
        let left = || Ok(TOKENS_DEFAULT.saturating_sub(said));
        let tokens = body["max_tokens"].as_u64().map_or_else(left, usize::try_from)?;
        Ok(Self {
            name: name.to_owned(),
            streams: body["stream"] == true,
            counts: body["stream_options"]["include_usage"] == true,
            said,
            tokens,
            gap: Duration::from_millis(body["gap_ms"].as_u64().or(gap).unwrap_or(0)),
        })
    }

    fn answer(&self, mut stream: &TcpStream) -> Result<()> {
        let prompt = PROMPT_TOKENS + self.said as u64;
        let made = self.tokens as u64;
        let usage =
            json!({ "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made });
        if !self.streams {
            let message = json!({ "role": "assistant", "content": token(&self.name, self.said) });
            let choice = json!({ "index": 0, "message": message, "finish_reason": "length" });
            return whole(stream, 200, &json!({ "choices": [choice], "usage": usage }));
        }
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        let delta =
            |delta: Value, reason: Value| json!([{ "index": 0, "delta": delta, "finish_reason": reason }]);
        self.say(stream, delta(json!({ "role": "assistant", "content": null }), Value::Null), None)?;
        for number in self.said..self.said + self.tokens {
            std::thread::sleep(self.gap);
            self.say(stream, delta(json!({ "content": token(&self.name, number) }), Value::Null), None)?;
        }
        self.say(stream, delta(json!({}), "length".into()), None)?;
        if self.counts {
            self.say(stream, json!([]), Some(&usage))?;
        }
        Ok(stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")?)
    }

    fn say(&self, mut stream: &TcpStream, choices: Value, usage: Option<&Value>) -> Result<()> {
        let mut event = json!({ "id": format!("stand-in-{}", std::process::id()), "created": 1, "model": "m", "choices": choices });
        if let Some(usage) = usage {
            event["usage"] = usage.clone();
        }
        let event = format!("data: {event}\n\n");
        Ok(stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?)
    }
}

/// How many tokens of an answer a text is; one that is not exactly some of them is refused.
fn said(name: &str, text: &str) -> Result<usize> {
    let tokens = text.matches(' ').count();
    if self::text(name, tokens) != text {
        bail!("the text so far is not what was said: {text:?}");
    }
    Ok(tokens)
}
