//! Half of a model's layers at each of two rpc-servers: tokens a second through tunnels over links on loopback, beside
//! those of llama-server's own `--rpc` on the same machine, and the bytes and seconds of a load.
//!
//! `cargo run --release -p mesh-inference --example split MODEL.gguf [pairs] [tcp|quic|internet|memory]`
#![expect(clippy::unwrap_used, reason = "a measurement: whatever goes wrong ends it")]

#[path = "../tests/process/llama.rs"]
mod llama;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use mesh_identity::NodeKey;
use mesh_inference::llama::LlamaCpp;
use mesh_inference::weights::WeightIndex;
use mesh_transport::testing::{Mesh, Site};
use mesh_transport::{Config as Limits, Driver, Member, internet, lan};
use mesh_tunnel::{Config, Remote, RpcOffer, RpcUse, ServiceName, Tunnels, Weights};
use tokio_util::sync::CancellationToken;

use crate::llama::{complete, rpc_server, split_server};

const TOKENS: u32 = 64;

struct Loopback(String);

impl Site for Loopback {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> futures_util::future::BoxFuture<'a, Arc<dyn Driver>> {
        Box::pin(async move {
            let listen = match self.0.as_str() {
                "internet" => {
                    let driver = internet::Internet::bind(key, internet::Config::loopback()).await;
                    return driver.unwrap() as Arc<dyn Driver>;
                }
                "tcp" => "/ip4/127.0.0.1/tcp/0",
                _ => "/ip4/127.0.0.1/udp/0/quic-v1",
            };
            let config = lan::Config { listen: vec![listen.parse().unwrap()], ..lan::Config::default() };
            lan::Lan::bind(key, config).await.unwrap() as Arc<dyn Driver>
        })
    }
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let model = PathBuf::from(arguments.next().expect("a model's path"));
    let pairs: usize = arguments.next().map_or(10, |pairs| pairs.parse().unwrap());
    let way = arguments.next().unwrap_or_else(|| "quic".into());
    let home = std::env::var_os("QMT_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".qmt"));
    let llama = LlamaCpp::find(None, std::env::var_os("PATH").as_deref(), &home).await.unwrap();

    let begun = Instant::now();
    let (path, cache) = (model.clone(), std::env::temp_dir());
    let opened =
        tokio::task::spawn_blocking(move || WeightIndex::open(&[path], &cache, &CancellationToken::new()));
    let index = opened.await.unwrap().unwrap();
    println!("index of {} weights in {:?}", index.list().len(), begun.elapsed());

    let mesh = match way.as_str() {
        "memory" => Mesh::memory(3).await,
        _ => Mesh::start(Arc::new(Loopback(way)), 3, Limits::default()).await,
    };
    let tunnels: Vec<_> =
        mesh.nodes().iter().map(|node| Tunnels::start(node.transport.clone(), Config::default())).collect();
    let mut servers = Vec::new();
    for _ in 0..6 {
        servers.push(rpc_server(&llama).await);
    }
    let mut offers = Vec::new();
    let mut arm = async |name: &str, first: usize, weights: Option<Arc<dyn Weights>>| {
        let listeners = [1, 2].map(|worker: usize| {
            let service = ServiceName::new(name).unwrap();
            let offer = RpcOffer {
                allowed: Arc::new(|_: &Member| true),
                weights: weights.clone(),
                build: String::new(),
                bytes_max: None,
            };
            offers.push(
                tunnels[worker].offer_rpc(service.clone(), servers[first + worker - 1].at, offer).unwrap(),
            );
            let remote = Remote { scope: mesh.scope(), peer: mesh[worker].id(), service };
            let how = RpcUse { weights: Some(index.clone()), build: String::new() };
            tunnels[0].listen_rpc(remote, how).unwrap()
        });
        let begun = Instant::now();
        let server = split_server(&llama, &model, listeners.each_ref().map(|listener| listener.addr())).await;
        println!("{name}: loaded in {:?}", begun.elapsed());
        listeners.iter().for_each(|it| {
            let stats = it.stats();
            println!("  {} bytes to it, {} from it", stats.to_peers_bytes, stats.from_peers_bytes);
        });
        listeners.iter().for_each(|listener| println!("  {:?}", listener.rpc_stats()));
        (server, listeners)
    };
    let (without, _held) = arm("without", 2, None).await;
    drop((without, _held));
    let (ours, listeners) = arm("with", 2, Some(index.clone() as Arc<dyn Weights>)).await;
    let begun = Instant::now();
    let plain = split_server(&llama, &model, [servers[0].at, servers[1].at]).await;
    println!("plain --rpc: loaded in {:?}", begun.elapsed());

    let rate = async |at| {
        let answer = complete(at, TOKENS).await;
        (answer["timings"]["predicted_per_second"].as_f64().unwrap(), answer["content"].clone())
    };
    rate(plain.at).await;
    rate(ours.at).await;
    let mut ratios = Vec::new();
    for pair in 0..pairs {
        // Each goes first every other time, so that what changes over time touches both.
        let (theirs, own) = if pair % 2 == 0 {
            let theirs = rate(plain.at).await;
            (theirs, rate(ours.at).await)
        } else {
            let own = rate(ours.at).await;
            (rate(plain.at).await, own)
        };
        assert_eq!(theirs.1, own.1, "one answer");
        println!("plain {:.2} tokens/s, ours {:.2}, ratio {:.3}", theirs.0, own.0, own.0 / theirs.0);
        ratios.push(own.0 / theirs.0);
    }
    ratios.sort_by(f64::total_cmp);
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    println!("ratio: mean {mean:.3}, median {:.3}", ratios[ratios.len() / 2]);
    drop((ours, plain, listeners));
    for tunnels in &tunnels {
        tunnels.shutdown().await;
    }
    mesh.shutdown().await;
}
