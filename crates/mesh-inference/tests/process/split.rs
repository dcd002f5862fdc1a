//! A model over two rpc-servers of a real llama.cpp, with tunnels between and without; a printed skip where there is none.

use std::sync::Arc;
use std::time::Duration;

use mesh_inference::gguf::tiny::TinyModel;
use mesh_inference::weights::WeightIndex;
use mesh_transport::Member;
use mesh_transport::testing::Mesh;
use mesh_tunnel::{Config, LocalListener, Offered, Remote, RpcOffer, RpcUse, ServiceName, Tunnels, Weights};
use tokio_util::sync::CancellationToken;

use crate::llama::{complete, rpc_server, split_server};
use crate::real::llama_cpp;

/// Four loads of 100 MB and some tokens, on a machine that may have other things to do.
const PATIENCE: Duration = Duration::from_secs(300);

struct World {
    mesh: Mesh,
    tunnels: Vec<Tunnels>,
    index: Arc<WeightIndex>,
    _offers: Vec<Offered>,
}

impl World {
    /// Listeners at the host for a service of each worker.
    fn listen(&self, service: &str) -> [Arc<LocalListener>; 2] {
        [1, 2].map(|worker| {
            let (scope, peer) = (self.mesh.scope(), self.mesh[worker].id());
            let remote = Remote { scope, peer, service: ServiceName::new(service).unwrap() };
            let how = RpcUse { weights: Some(self.index.clone()), build: "b11434".into() };
            self.tunnels[0].listen_rpc(remote, how).unwrap()
        })
    }
}

fn link_bytes(listeners: &[Arc<LocalListener>; 2]) -> u64 {
    listeners.iter().map(|listener| listener.stats().to_peers_bytes + listener.stats().from_peers_bytes).sum()
}

pub(crate) fn a_split_answers_the_same_through_tunnels_and_moves_no_weights() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, split()).await.expect("took too long") });
}

async fn split() {
    let Some(llama) = llama_cpp().await else { return };
    if llama.rpc_server.is_none() {
        return println!("skipped: no rpc-server beside {}", llama.server.display());
    }
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("tiny.gguf");
    // Its feed-forward tensors are above the 10 MiB from which llama-server asks by hash first.
    TinyModel { layers: 3, feed_forward: 45_056, ..TinyModel::default() }.write(&model).unwrap();
    let file_bytes = model.metadata().unwrap().len();
    let servers = [rpc_server(&llama).await, rpc_server(&llama).await];
    let plain = split_server(&llama, &model, servers.each_ref().map(|server| server.at)).await;
    let expected = complete(plain.at, 24).await["content"].clone();
    assert_eq!(expected.as_str().unwrap().len(), 24, "{expected}");
    drop(plain);

    let mesh = Mesh::memory(3).await;
    let tunnels: Vec<_> =
        mesh.nodes().iter().map(|node| Tunnels::start(node.transport.clone(), Config::default())).collect();
    let (path, cache) = (model.clone(), home.path().join("cache"));
    let opened =
        tokio::task::spawn_blocking(move || WeightIndex::open(&[path], &cache, &CancellationToken::new()));
    let index = opened.await.unwrap().unwrap();
    let offer = |worker: usize, service: &str, weights: Option<Arc<dyn Weights>>| {
        let offer = RpcOffer {
            allowed: Arc::new(|_: &Member| true),
            weights,
            build: "b11434".into(),
            bytes_max: None,
        };
        tunnels[worker].offer_rpc(ServiceName::new(service).unwrap(), servers[worker - 1].at, offer).unwrap()
    };
    let offers = vec![
        offer(1, "with", Some(index.clone())),
        offer(2, "with", Some(index.clone())),
        offer(1, "without", None),
        offer(2, "without", None),
    ];
    let world = World { mesh, tunnels: tunnels.clone(), index, _offers: offers };

    let with = world.listen("with");
    let server = split_server(&llama, &model, with.each_ref().map(|listener| listener.addr())).await;
    let loaded = link_bytes(&with);
    let stats = with.each_ref().map(|listener| listener.rpc_stats());
    println!("{loaded} bytes for a load of {file_bytes}: {stats:?}");
    assert!(loaded * 100 < file_bytes, "{loaded} of {file_bytes}");
    assert_eq!(stats.map(|stats| stats.weights_sent_bytes), [0, 0]);
    let referenced = stats.map(|stats| stats.weights_by_reference_bytes);
    assert!(referenced.iter().sum::<u64>() * 10 > file_bytes * 9, "{referenced:?}");
    assert_eq!(complete(server.at, 24).await["content"], expected);
    drop(server);

    let without = world.listen("without");
    let server = split_server(&llama, &model, without.each_ref().map(|listener| listener.addr())).await;
    assert!(link_bytes(&without) > referenced.iter().sum());
    assert_eq!(without.each_ref().map(|listener| listener.rpc_stats().weights_sent_bytes), referenced);
    assert_eq!(complete(server.at, 24).await["content"], expected);
    drop(server);

    for tunnels in &world.tunnels {
        tunnels.shutdown().await;
    }
    world.mesh.shutdown().await;
}
