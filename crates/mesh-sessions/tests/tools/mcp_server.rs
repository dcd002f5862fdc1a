//! A server of the Model Context Protocol as bad as its first argument says.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) fn main(mode: &str) -> ExitCode {
    match mode {
        "dead" => {
            eprintln!("no configuration found, key sk-live-123456 unused");
            return ExitCode::from(3);
        }
        "silent" => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        "garbage" => loop {
            if std::io::stdout().write_all(&[0xfe; 8192]).is_err() {
                return ExitCode::SUCCESS;
            }
        },
        "nonsense" => loop {
            if writeln!(std::io::stdout(), "{{\"jsonrpc\":\"2.0\",\"id\":[1],\"result\":7}}\nhello\n[]")
                .is_err()
            {
                return ExitCode::SUCCESS;
            }
        },
        _ => {}
    }
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        // Notices, and answers to what the flood asked, have no answer.
        let Some(method) = message["method"].as_str().filter(|_| !message["id"].is_null()) else { continue };
        match answer(mode, method, &message["params"]) {
            Ok(Some(result)) => send(&json!({"jsonrpc": "2.0", "id": message["id"], "result": result})),
            Ok(None) => {}
            Err(why) => {
                let error = json!({"code": -32602, "message": why});
                send(&json!({"jsonrpc": "2.0", "id": message["id"], "error": error}));
            }
        }
        if mode == "flood" && method == "tools/list" {
            std::thread::spawn(flood);
        }
    }
    // It does not go when it is told to, and not when its input ends.
    if mode == "stubborn" {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    ExitCode::SUCCESS
}

fn flood() {
    for number in 0u64.. {
        send(
            &json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": number}}),
        );
        send(&json!({"jsonrpc": "2.0", "id": number, "method": "ping"}));
        send(&json!({"jsonrpc": "2.0", "id": number, "method": "roots/list"}));
    }
}

fn send(message: &Value) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{message}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

pub(crate) fn answer(mode: &str, method: &str, params: &Value) -> Result<Option<Value>, String> {
    match method {
        "initialize" => Ok(Some(json!({
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {"listChanged": true}},
            "serverInfo": {"name": "fake", "version": "1"},
        }))),
        "ping" if mode == "deaf" => Ok(None),
        "ping" => Ok(Some(json!({}))),
        "tools/list" => Ok(Some(listed(mode, params))),
        "tools/call" => called(params["name"].as_str().unwrap_or_default(), &params["arguments"]),
        _ => Err(format!("no method {method}")),
    }
}

fn tool(name: &str) -> Value {
    json!({
        "name": name,
        "description": format!("does {name}"),
        "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
        "annotations": {"readOnlyHint": name == "echo"},
    })
}

fn listed(mode: &str, params: &Value) -> Value {
    if mode == "huge" {
        let page = params["cursor"].as_str().and_then(|page| page.parse().ok()).unwrap_or(0u64);
        let tools: Vec<Value> =
            (0..20).map(|number| tool(&format!("{page}-{number}-{}", "n".repeat(20)))).collect();
        return json!({"tools": tools, "nextCursor": (page + 1).to_string()});
    }
    let mut names =
        vec!["echo", "fail", "big", "image", "secret", "pid", "die", "hang", "grow", "bad name/ü"];
    if std::env::var_os("GROWN").is_some() || std::path::Path::new("grown").exists() {
        names.push("grown");
    }
    let mut large = tool("large");
    large["inputSchema"]["properties"]["text"]["description"] = "x".repeat(100_000).into();
    let tools: Vec<Value> = names.into_iter().map(tool).chain([large]).collect();
    json!({"tools": tools})
}

fn called(name: &str, arguments: &Value) -> Result<Option<Value>, String> {
    let text = |text: String| Ok(Some(json!({"content": [{"type": "text", "text": text}]})));
    match name {
        "echo" | "bad name/ü" => text(format!("{name}: {}", arguments["text"].as_str().unwrap_or_default())),
        "fail" => Ok(Some(json!({"content": [{"type": "text", "text": "it went wrong"}], "isError": true}))),
        "big" => text("0123456789abcde\n".repeat(100_000)),
        "image" => {
            let image = json!({"type": "image", "data": "AQID", "mimeType": "image/png"});
            let bad = json!({"type": "image", "data": "!", "mimeType": "image/png"});
            Ok(Some(json!({"content": [image, bad]})))
        }
        "secret" => text("the key is sk-live-123456".to_owned()),
        "pid" => text(std::process::id().to_string()),
        "die" => std::process::exit(7),
        "hang" => Ok(None),
        "grow" => {
            std::fs::write("grown", "").unwrap();
            send(&json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}));
            text("grown".to_owned())
        }
        _ => Err(format!("no tool {name}")),
    }
}
