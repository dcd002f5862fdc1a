//! With a real llama.cpp, if this machine has one; a printed skip else.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_inference::backend::Backends;
use mesh_inference::gguf::{read_metadata, tiny::TinyModel};
use mesh_inference::hosting::{HostError, HostLaunch, HostParts, Hosted, Share};
use mesh_inference::instance::{Instance, Launch, RpcLaunch};
use mesh_inference::lease::{LeaseConfig, Lender, LenderConfig};
use mesh_inference::llama::{Arguments, LlamaCpp};
use mesh_inference::memory::Ledger;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::kills::comes_back;
use crate::restarts::{config, guard, is_ready, reach, run, started};

pub(crate) async fn llama_cpp() -> Option<LlamaCpp> {
    let home = std::env::var_os("QMT_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".qmt")))?;
    let found = LlamaCpp::find(None, std::env::var_os("PATH").as_deref(), &home).await;
    found.inspect_err(|error| println!("skipped: {error}")).ok()
}

pub(crate) async fn tiny(home: &Path) -> Option<Launch> {
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

pub(crate) fn a_split_over_two_nodes_answers_until_a_share_is_lost() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    run(async {
        let Some(llama) = llama_cpp().await else { return };
        let Some(program) = llama.rpc_server.clone() else { return println!("skipped: no rpc-server") };
        let Some(mut launch) = tiny(homes[0].path()).await else { return };
        launch.arguments.threads = NonZeroU32::new(1);
        let mesh = mesh_transport::testing::Mesh::memory(2).await;
        let tunnels = [0, 1].map(|node: usize| {
            mesh_tunnel::Tunnels::start(mesh[node].transport.clone(), mesh_tunnel::Config::default())
        });
        let ledgers = [Ledger::default(), Ledger::default()];
        let lent = LenderConfig {
            rpc_server: Some(program.clone()),
            build: llama.version.text.clone(),
            home: homes[1].path().to_owned(),
            guard: guard(),
            devices: Vec::new(),
            threads: NonZeroU32::new(1),
            leases_max: 1,
            weights: Arc::new(|_| Box::pin(std::future::ready(None))),
            times: LeaseConfig::default(),
        };
        let lender = Lender::start(&mesh[1].transport, tunnels[1].clone(), ledgers[1].clone(), lent);
        let backends = Backends::new();
        let parts = HostParts {
            transport: mesh[0].transport.clone(),
            tunnels: tunnels[0].clone(),
            ledger: ledgers[0].clone(),
            backends: backends.clone(),
            rpc: Some(RpcLaunch::new(program, "own", homes[0].path().to_owned(), guard())),
            times: LeaseConfig::default(),
        };
        let share = |node: usize| Share { node: mesh[node].id(), bytes: 64 << 20 };
        let host = HostLaunch {
            scope: mesh.scope(),
            epoch: 1,
            build: llama.version.text.clone(),
            shares: vec![share(1), share(0)],
            tensor_split: vec![1.0, 1.0],
            gpu_layers: 99,
            weights: None,
            own_bytes: 64 << 20,
            launch,
            instance: config(homes[0].path()),
        };
        let other = HostLaunch { build: "b1".into(), ..host.clone() };
        let refused = Hosted::start(&parts, other).await.unwrap_err();
        assert!(matches!(refused, HostError::Lease { .. }), "{refused}");
        assert_eq!(ledgers[0].held(), 0, "nothing is held after a refusal");
        let hosted = Hosted::start(&parts, host).await.unwrap();
        reach(&mut hosted.state(), is_ready).await;
        let running = hosted.running().borrow().clone().unwrap();
        let key = backends.list()[0].auth.clone().unwrap();
        let answer = complete(running.port, key.expose()).await;
        assert_eq!(answer.len(), 12, "{answer:?}");
        let carried = tunnels[0].stats();
        assert!(carried.to_peers_bytes > 1000, "the worker computed something: {carried:?}");
        mesh[1].transport.shutdown().await;
        let (node, why) = hosted.lost().await;
        assert_eq!(node, mesh[1].id(), "{why}");
        hosted.stop().await;
        assert_eq!((ledgers[0].held(), backends.list().len()), (0, 0));
        lender.shutdown().await;
        assert_eq!(ledgers[1].held(), 0);
        mesh.shutdown().await;
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
