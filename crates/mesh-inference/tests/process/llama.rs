//! A real llama-server over real rpc-servers, and what it answers.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use mesh_inference::llama::LlamaCpp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// A child that ends with its handle.
pub(crate) struct Process {
    _child: Child,
    pub(crate) at: SocketAddr,
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

pub(crate) async fn rpc_server(llama: &LlamaCpp) -> Process {
    let at = free_port();
    let mut command = Command::new(llama.rpc_server.as_ref().unwrap());
    command.args(["-H", "127.0.0.1", "-t", "1", "-p", &at.port().to_string()]);
    let child = spawn(&mut command);
    while TcpStream::connect(at).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Process { _child: child, at }
}

/// A llama-server with half of the layers at each of the two.
pub(crate) async fn split_server(llama: &LlamaCpp, model: &Path, rpc: [SocketAddr; 2]) -> Process {
    let at = free_port();
    let mut command = Command::new(&llama.server);
    command.arg("-m").arg(model).arg("--rpc").arg(format!("{},{}", rpc[0], rpc[1]));
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        &at.port().to_string(),
        "-c",
        "512",
        "-np",
        "1",
        "-t",
        "1",
    ]);
    command.args(["-ngl", "99", "--tensor-split", "0.5,0.5", "-fit", "off", "--no-webui"]);
    let mut child = spawn(&mut command);
    while get(at, "/health").await.is_none_or(|answer| !answer.starts_with("HTTP/1.1 200")) {
        assert_eq!(child.try_wait().unwrap(), None, "llama-server has ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Process { _child: child, at }
}

async fn get(at: SocketAddr, path: &str) -> Option<String> {
    ask(at, &format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")).await.ok()
}

async fn ask(at: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What a completion says, with its `timings`.
pub(crate) async fn complete(at: SocketAddr, tokens: u32) -> serde_json::Value {
    let body = format!(
        r#"{{"prompt":"The old house by the sea","n_predict":{tokens},"temperature":0,"cache_prompt":false,"ignore_eos":true}}"#
    );
    let request = format!(
        "POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = ask(at, &request).await.unwrap();
    let (_, json) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {answer}"))
}
