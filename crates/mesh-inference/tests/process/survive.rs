//! An answer of a real llama-server that is killed in the middle of it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use mesh_inference::backend::Backends;
use mesh_inference::gateway::{Gateway, GatewayConfig, Listen, NoPeers};
use mesh_inference::instance::Instance;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::real::tiny;
use crate::restarts::{config, run, started};

/// Enough for a kill in the middle; the tiny model says one letter a token and does not end by itself.
const TOKENS: usize = 150;

/// The events of one streamed answer. `at`: after so many pieces of text `act` is done.
async fn stream(
    gateway: SocketAddr,
    path: &str,
    prompt: &str,
    at: usize,
    act: impl FnOnce(),
) -> (String, u64) {
    let body = format!(
        r#"{{"model":"fake","stream":true,"stream_options":{{"include_usage":true}},"temperature":0,"ignore_eos":true,"max_tokens":{TOKENS},{prompt}}}"#
    );
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut tcp = TcpStream::connect(gateway).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(tcp).lines();
    let (mut text, mut pieces, mut tokens, mut ends) = (String::new(), 0, None, 0);
    let mut act = Some(act);
    while let Some(line) = lines.next_line().await.unwrap() {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        assert_eq!(ends, 0, "behind the end: {data}");
        if data == "[DONE]" {
            ends += 1;
            continue;
        }
        let event: serde_json::Value = serde_json::from_str(data).unwrap();
        assert!(event.get("error").is_none(), "{data}");
        if let Some(count) = event["usage"]["completion_tokens"].as_u64() {
            assert!(tokens.replace(count).is_none(), "counted twice");
        }
        let choice = &event["choices"][0];
        let piece = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
        text.push_str(piece);
        pieces += usize::from(!piece.is_empty());
        if pieces == at
            && let Some(act) = act.take()
        {
            act();
        }
    }
    assert_eq!(ends, 1, "one end");
    (text, tokens.unwrap())
}

pub(crate) fn an_answer_goes_on_after_a_kill() {
    let home = tempfile::tempdir().unwrap();
    run(async {
        let Some(mut launch) = tiny(home.path()).await else { return };
        // Several threads of llama-server wait for each other where other tests take the cores.
        launch.arguments.threads = NonZeroU32::new(1);
        let backends = Backends::new();
        let instance = Instance::start(launch, config(home.path()), backends.clone());
        let mut gateway = GatewayConfig::default();
        gateway.listen = Listen::Exactly(([127, 0, 0, 1], 0).into());
        let gateway = Gateway::start(gateway, backends, Arc::new(NoPeers), None).await.unwrap();
        let chat = r#""messages":[{"role":"user","content":"hello"}]"#;
        let (mut killed, at) = (0, 20);
        for (path, prompt) in [("/v1/chat/completions", chat), ("/v1/completions", r#""prompt":"hello""#)] {
            let (_, child) = started(&instance).await;
            let (whole, tokens) = stream(gateway.local_addr(), path, prompt, at, || ()).await;
            assert_eq!((whole.len(), tokens), (TOKENS, TOKENS as u64), "{whole:?}");
            let kill = || kill_process(Pid::from_raw(child.pid).unwrap(), Signal::KILL).unwrap();
            let (text, tokens) = stream(gateway.local_addr(), path, prompt, at, kill).await;
            killed += 1;
            assert_eq!(gateway.stats().continued_total, killed, "it was killed in the middle");
            assert_eq!(text.get(..at), whole.get(..at), "what was said before stands");
            assert_eq!((text.len(), tokens), (TOKENS, TOKENS as u64), "{text:?}");
        }
        gateway.shutdown().await;
        instance.stop().await;
    });
}
