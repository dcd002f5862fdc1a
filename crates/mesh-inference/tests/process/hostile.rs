//! A hostile host: what it sends goes through a real tunnel to the real rpc-server that is lent to it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use mesh_inference::lease::{Ask, Lease, LeaseConfig, Lender, LenderConfig};
use mesh_inference::memory::Ledger;
use mesh_transport::testing::Mesh;
use mesh_tunnel::{LocalListener, Remote, RpcUse, Tunnels};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::real::llama_cpp;
use crate::restarts::{guard, run};

/// For an answer to bytes that may have none: whatever is still to come then is waited for by the question after it.
const ANSWER: Duration = Duration::from_millis(300);

fn frame(command: u8, payload: &[u8]) -> Vec<u8> {
    [&[command][..], &(payload.len() as u64).to_le_bytes(), payload].concat()
}

fn announced(command: u8, bytes: u64, sent: usize) -> Vec<u8> {
    [&[command][..], &bytes.to_le_bytes(), &vec![0xff; sent]].concat()
}

fn hello() -> Vec<u8> {
    frame(14, &[0; 24])
}

/// What follows the greeting, each with a name.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let graph = |nodes: u32, rest: &[u8]| [&0u32.to_le_bytes()[..], &nodes.to_le_bytes(), rest].concat();
    let alloc = |bytes: u64| frame(0, &[&0u32.to_le_bytes()[..], &bytes.to_le_bytes()].concat());
    vec![
        ("another greeting", hello()),
        ("an unknown command", frame(200, &[1; 100])),
        ("a command of the tunnel", frame(0xE0, &[1; 100])),
        ("all memory there is", alloc(u64::MAX)),
        ("nothing of memory", alloc(0)),
        ("a device that is not there", frame(1, &u32::MAX.to_le_bytes())),
        ("a buffer that is not there", frame(3, &[0x41; 8])),
        ("a buffer to be freed that is not there", frame(4, &[0x41; 8])),
        ("a buffer to be cleared that is not there", frame(5, &[0x41; 9])),
        ("a tensor into nowhere", frame(6, &[0xff; 4096])),
        ("a tensor without bytes", frame(6, &[0; 304])),
        ("a hash for nowhere", frame(7, &[0xff; 312])),
        ("a tensor out of nowhere", frame(8, &[0xff; 312])),
        (
            "all of memory as a tensor",
            frame(8, &[&[0; 296][..], &0u64.to_le_bytes(), &u64::MAX.to_le_bytes()].concat()),
        ),
        ("a copy of nothing", frame(9, &[0; 592])),
        ("a graph of more than there is", frame(10, &graph(u32::MAX, &[0; 64]))),
        ("a graph of noise", frame(10, &graph(4, &[0xa5; 4 * 8 + 4 + 4 * 296]))),
        (
            "a graph with itself as its source",
            frame(10, &graph(1, &[&[0; 8][..], &1u32.to_le_bytes(), &[0; 296]].concat())),
        ),
        ("a tensor to be set up that is none", frame(12, &[0xff; 296])),
        ("the size of an operation that is none", frame(13, &[0xff; 3260])),
        ("the graph before, where there is none", frame(16, &0u32.to_le_bytes())),
        ("a tensor of one byte in nowhere", frame(17, &[0xff; 313])),
        ("half of a frame", announced(10, 1 << 20, 1 << 19)),
        ("a frame without end", announced(6, u64::MAX, 64)),
        ("a frame of the wrong size", announced(0, 13, 13)),
    ]
}

/// Whether a rpc-server greets there.
async fn greets(at: SocketAddr) -> bool {
    let Ok(mut tcp) = TcpStream::connect(at).await else { return false };
    tcp.write_all(&hello()).await.is_ok() && tcp.read_exact(&mut [0; 11]).await.is_ok()
}

async fn send(at: SocketAddr, bytes: &[u8]) {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    // Each of the three may find the connection closed, which is the best answer.
    let _ = tcp.write_all(bytes).await;
    let mut answer = [0; 4096];
    let answers = async { while tcp.read(&mut answer).await.is_ok_and(|length| length > 0) {} };
    let _ = tokio::time::timeout(ANSWER, answers).await;
}

pub(crate) fn hostile_frames_cost_a_host_its_own_lease_at_most() {
    let home = tempfile::tempdir().unwrap();
    run(async {
        let Some(llama) = llama_cpp().await else { return };
        let Some(program) = llama.rpc_server.clone() else { return println!("skipped: no rpc-server") };
        let mesh = Mesh::memory(3).await;
        let tunnels: Vec<Tunnels> = mesh
            .nodes()
            .iter()
            .map(|node| Tunnels::start(node.transport.clone(), mesh_tunnel::Config::default()))
            .collect();
        let ledger = Ledger::new(Some(1 << 30));
        let config = LenderConfig {
            rpc_server: Some(program),
            build: llama.version.text.clone(),
            home: home.path().to_owned(),
            guard: guard(),
            devices: Vec::new(),
            threads: NonZeroU32::new(1),
            leases_max: 4,
            weights: Arc::new(|_| Box::pin(std::future::ready(None))),
            times: LeaseConfig::default(),
        };
        let lender = Lender::start(&mesh[0].transport, tunnels[0].clone(), ledger.clone(), config);
        let borrow = async |host: usize, model: &str, epoch: u64| -> (Lease, Arc<LocalListener>) {
            let build = llama.version.text.clone();
            let ask =
                Ask { model: model.into(), epoch, bytes: 1 << 20, build: build.clone(), workers: Vec::new() };
            let (scope, worker) = (mesh.scope(), mesh[0].id());
            let times = LeaseConfig::default();
            let lease = Lease::ask(&mesh[host].transport, scope, worker, ask, &times).await.unwrap();
            let remote = Remote { scope, peer: worker, service: lease.service().clone() };
            let listener = tunnels[host].listen_rpc(remote, RpcUse { weights: None, build }).unwrap();
            (lease, listener)
        };
        // The honest one's is never touched by what the other one does with its own.
        let (honest, honest_way) = borrow(2, "honest", 1).await;
        let (mut lease, mut way) = borrow(1, "hostile", 1).await;
        send(way.addr(), b"GET / HTTP/1.1\r\n\r\n").await;
        assert!(greets(way.addr()).await);
        let mut epoch = 1;
        for (name, bytes) in hostile() {
            send(way.addr(), &[hello(), bytes].concat()).await;
            let ended = tokio::select! {
                biased;
                why = lease.lost() => Some(why),
                greets = greets(way.addr()) => (!greets).then_some(String::new()),
            };
            if let Some(mut why) = ended {
                if why.is_empty() {
                    why = lease.lost().await;
                }
                println!("{name}: {why}");
                assert!(why.contains("rpc-server is gone"), "{name}: {why}");
                epoch += 1;
                (lease, way) = borrow(1, "hostile", epoch).await;
                assert!(greets(way.addr()).await, "{name}");
            }
        }
        assert!(honest.is_lost().is_none() && greets(honest_way.addr()).await);
        drop((lease, honest));
        let mut changes = lender.watch();
        while !lender.lent().is_empty() || ledger.held() > 0 {
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        }
        lender.shutdown().await;
        for tunnels in &tunnels {
            tunnels.shutdown().await;
        }
        mesh.shutdown().await;
    });
}
