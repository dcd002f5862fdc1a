//! With a real llama.cpp, if this machine has one; a printed skip else.

use std::path::{Path, PathBuf};

use mesh_inference::backend::Backends;
use mesh_inference::gguf::{read_metadata, tiny::TinyModel};
use mesh_inference::instance::{Instance, Launch};
use mesh_inference::llama::{Arguments, LlamaCpp};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kills::comes_back;
use crate::restarts::{config, run, started};

async fn llama_cpp() -> Option<LlamaCpp> {
    let home = std::env::var_os("QMT_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".qmt")))?;
    let found = LlamaCpp::find(None, std::env::var_os("PATH").as_deref(), &home).await;
    found.inspect_err(|error| println!("skipped: {error}")).ok()
}

async fn tiny(home: &Path) -> Option<Launch> {
    let program = llama_cpp().await?.server;
    let model = home.join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let file_bytes = read_metadata(&model).unwrap().file_bytes;
    Some(Launch { program, arguments: Arguments::new(model), file_bytes })
}

pub(crate) fn the_real_server_answers_and_goes() {
    let home = tempfile::tempdir().unwrap();
    run(async {
        let Some(launch) = tiny(home.path()).await else { return };
        let backends = Backends::new();
        let instance = Instance::start(launch, config(home.path()), backends.clone());
        let (running, child) = started(&instance).await;
        let key = backends.list()[0].auth.clone().unwrap();
        let first = complete(running.port, key.expose()).await;
        assert_eq!(first.len(), 12, "{first:?}");
        assert!(first.chars().all(|c| c == ' ' || c.is_ascii_lowercase()), "{first:?}");
        assert_eq!(complete(running.port, key.expose()).await, first, "the same at temperature 0");
        instance.stop().await;
        assert!(!child.is_alive());
    });
}

pub(crate) fn the_real_server_comes_back_after_a_kill() {
    let home = tempfile::tempdir().unwrap();
    run(async {
        let Some(launch) = tiny(home.path()).await else { return };
        let instance = Instance::start(launch, config(home.path()), Backends::new());
        let (_, first) = started(&instance).await;
        kill_process(Pid::from_raw(first.pid).unwrap(), Signal::KILL).unwrap();
        comes_back(&instance, &first).await;
        instance.stop().await;
    });
}

async fn complete(port: u16, key: &str) -> String {
    let body = r#"{"prompt":"hello","n_predict":12,"temperature":0,"cache_prompt":false}"#;
    let request = format!(
        "POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, json) = answer.split_once("\r\n\r\n").unwrap();
    let json: serde_json::Value =
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!(json["model"], "fake", "not the file's path");
    json["content"].as_str().unwrap().to_owned()
}
