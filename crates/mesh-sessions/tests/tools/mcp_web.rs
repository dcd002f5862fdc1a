//! The server over HTTP, as bad as its mode says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::mcp_server::answer;

/// Serves until the test program ends. Gives the address, and counts the requests. A mode that is an address is where the
/// server points.
pub(crate) fn serve(mode: &str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let (mode, asked) = (mode.to_owned(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (mode, count) = (mode.clone(), count.clone());
            std::thread::spawn(move || {
                count.fetch_add(1, Ordering::SeqCst);
                // A client that goes is no failure of the server.
                let _ = respond(&mode, stream);
            });
        }
    });
    (url, asked)
}

struct Asked {
    method: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn read(stream: &TcpStream) -> std::io::Result<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let method = line.split(' ').next().unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    Ok(Asked { method, headers, body })
}

fn respond(mode: &str, mut stream: TcpStream) -> std::io::Result<()> {
    let asked = read(&stream)?;
    let mut say = |status: &str, headers: &str, body: &str| {
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        )
    };
    let has = |name: &str, value: &str| asked.headers.iter().any(|(n, v)| n == name && v == value);
    let (json_type, event_type) =
        ("content-type: application/json\r\n", "content-type: text/event-stream\r\n");
    if !has("authorization", "Bearer sk-live-123456") || mode == "refusing" {
        return say("401 Unauthorized", "", "");
    }
    match mode {
        "silent" => {
            std::thread::sleep(Duration::from_secs(100));
            return Ok(());
        }
        "nonsense" => return say("200 OK", json_type, "hello"),
        "endless" | "endless-events" => {
            let media_type = if mode == "endless" { json_type } else { event_type };
            write!(stream, "HTTP/1.1 200 OK\r\n{media_type}\r\n")?;
            loop {
                stream.write_all(&[b'x'; 8192])?;
            }
        }
        url if url.starts_with("http://") => {
            return say("307 Temporary Redirect", &format!("location: {url}\r\n"), "");
        }
        _ => {}
    }
    match asked.method.as_str() {
        "POST" => {}
        "DELETE" => return say("200 OK", "", ""),
        _ => return say("405 Method Not Allowed", "", ""),
    }
    let message: Value = serde_json::from_slice(&asked.body).unwrap();
    let is_first = message["method"] == "initialize";
    if mode == "session" && !is_first && !has("mcp-session-id", "abc") {
        return say("400 Bad Request", "", "");
    }
    if message["id"].is_null() {
        return say("202 Accepted", "", "");
    }
    let result = answer("good", message["method"].as_str().unwrap(), &message["params"]).unwrap();
    let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string();
    let session = if mode == "session" && is_first { "mcp-session-id: abc\r\n" } else { "" };
    match mode {
        "events" => say("200 OK", event_type, &format!(": hello\n\nevent: message\ndata: {answer}\n\n")),
        _ => say("200 OK", &format!("{json_type}{session}"), &answer),
    }
}
