//! A llama-server and an rpc-server with a tunnel between them.

use std::sync::Arc;

use mesh_transport::Member;
use mesh_transport::testing::until;
use mesh_tunnel::{OpenError, RefusalCode, RpcFault, RpcOffer, RpcUse, Weights as _};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::rpc_world::{
    FREE_BUFFER, GET_ALIGNMENT, GET_MAX_SIZE, GET_TENSOR, GRAPH_COMPUTE, Host, Model, PEER_DATA,
    REGISTER_PEER, SET_TENSOR, SET_TENSOR_HASH, Server, World, frame, hash_of, rpc, tensor,
};

const STOCK: [u8; 3] = [7, 0, 0];
const FORK: [u8; 3] = [3, 7, 0];

#[tokio::test]
async fn weights_at_the_worker_do_not_cross_the_link() {
    let (world, server, model) = (World::new(2).await, Server::start(STOCK).await, Model::new(1));
    let _offered = world.offer(1, &server, Some(Model::new(1)));
    let listener = world.listen(1, Some(model.clone()));
    assert_eq!(listener.weights_in_common(), None, "nothing was asked yet");
    let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
    host.load(&model).await.unwrap();
    assert!(model.is_loaded_at(&server));
    let (stats, rpc) = (listener.stats(), listener.rpc_stats());
    assert!(stats.to_peers_bytes * 100 < model.bytes(), "{} of {}", stats.to_peers_bytes, model.bytes());
    assert_eq!((rpc.weights_by_reference, rpc.weights_by_reference_bytes), (21, model.bytes()));
    assert_eq!((rpc.weights_sent_bytes, listener.weights_in_common()), (0, Some(21)));
    let far = world.tunnels[1].rpc_stats();
    assert_eq!((far.weights_by_reference_bytes, far.requests), (model.bytes(), rpc.requests));
    // The list is not sent again.
    let before = world.tunnels[1].stats();
    drop(host);
    let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
    host.load(&model).await.unwrap();
    let after = world.tunnels[1].stats();
    assert!(after.to_peers_bytes - before.to_peers_bytes < 200, "{before:?} {after:?}");
    drop(host);
    world.end().await;
}

#[tokio::test]
async fn weights_that_the_worker_has_not_are_sent() {
    for other in [None, Some(Model::new(2))] {
        let (world, server, model) = (World::new(2).await, Server::start(STOCK).await, Model::new(1));
        let common = other.is_some().then_some(0);
        let _offered = world.offer(1, &server, other.map(|other| other as Arc<dyn mesh_tunnel::Weights>));
        let listener = world.listen(1, Some(model.clone()));
        let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
        host.load(&model).await.unwrap();
        assert!(model.is_loaded_at(&server));
        let rpc = listener.rpc_stats();
        assert_eq!((rpc.weights_sent_bytes, rpc.weights_by_reference), (model.bytes(), 0));
        // The small ones here are as regular as no weight is, and go packed; the large one goes as it is.
        assert!(listener.stats().to_peers_bytes > 3 << 20);
        assert_eq!(listener.weights_in_common(), common, "another file of the same name has none in common");
        drop(host);
        world.end().await;
    }
}

#[tokio::test]
async fn activations_are_sent_even_under_a_weights_name() {
    let (world, server, model) = (World::new(2).await, Server::start(STOCK).await, Model::new(1));
    let _offered = world.offer(1, &server, Some(Model::new(1)));
    let listener = world.listen(1, Some(model.clone()));
    let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
    let activation = vec![0xAB; 50_000];
    assert!(host.set_weight("blk.3.ffn_up.weight", &activation).await.unwrap());
    let read = [&tensor("blk.3.ffn_up.weight")[..], &[0; 16]].concat();
    assert_eq!(host.call(GET_TENSOR, &read).await.unwrap(), activation);
    assert_eq!(listener.rpc_stats().weights_by_reference, 0);
    drop(host);
    world.end().await;
}

#[tokio::test]
async fn replies_keep_their_order_when_some_are_given_here() {
    let (world, server, model) = (World::new(2).await, Server::start(STOCK).await, Model::new(1));
    let _offered = world.offer(1, &server, Some(Model::new(1)));
    let listener = world.listen(1, Some(model.clone()));
    let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
    let big = model.weights.lock().unwrap()["output.weight"].clone();
    let round = [
        frame(GET_ALIGNMENT, &[0; 4]),
        frame(SET_TENSOR_HASH, &hash_of("output.weight", &big)),
        frame(GET_MAX_SIZE, &[0; 4]),
    ];
    host.0.write_all(&round.concat().repeat(50)).await.unwrap();
    for _ in 0..50 {
        assert_eq!(host.reply().await.unwrap(), 64u64.to_le_bytes());
        assert_eq!(host.reply().await.unwrap(), [1]);
        assert_eq!(host.reply().await.unwrap(), 1000u64.to_le_bytes());
    }
    assert_eq!((listener.rpc_stats().replies, listener.rpc_stats().requests), (151, 151));
    drop(host);
    world.end().await;
}

#[tokio::test]
async fn a_file_that_changed_breaks_the_connection_and_its_weight_is_sent_the_next_time() {
    for truncated in [false, true] {
        let (world, server, model) = (World::new(2).await, Server::start(STOCK).await, Model::new(1));
        let there = Model::new(1);
        let _offered = world.offer(1, &server, Some(there.clone()));
        let listener = world.listen(1, Some(model.clone()));
        let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
        let name = "output.weight";
        match there.weights.lock().unwrap().get_mut(name).unwrap() {
            bytes if truncated => bytes.truncate(2 << 20),
            bytes => bytes[5] ^= 1,
        }
        assert!(host.load(&model).await.is_err(), "the host must not go on without it");
        assert_eq!(server.tensor(name), None, "nothing wrong reached the rpc-server");
        until("the fault is told", || async { listener.last_fault().is_some() }).await;
        let fault = listener.last_fault().unwrap();
        assert!(matches!(*fault, RpcFault::ByPeer(_)), "{fault:?}");
        assert!(fault.to_string().contains("could not be read, and is sent the next time"), "{fault}");
        assert_eq!(there.list().len(), 20);
        let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
        host.load(&model).await.unwrap();
        assert!(model.is_loaded_at(&server));
        assert_eq!(listener.weights_in_common(), Some(20));
        drop(host);
        world.end().await;
    }
}

#[tokio::test]
async fn another_build_is_refused_and_both_are_named() {
    let (world, server) = (World::new(2).await, Server::start(STOCK).await);
    let _offered = world.offer(1, &server, None);
    let how = RpcUse { weights: None, build: "b11434 (sdist)".into() };
    let listener = world.tunnels[0].listen_rpc(world.remote(1), how).unwrap();
    assert!(Host::connect(listener.addr()).await.is_err());
    let refused = listener.last_error().unwrap();
    assert!(matches!(*refused, OpenError::Refused { code: RefusalCode::OtherBuild, .. }), "{refused:?}");
    let text =
        "refused by the peer: the worker runs llama.cpp b1, the host b11434 (sdist): both must run one build";
    assert_eq!(refused.to_string(), text);
    assert_eq!(server.seen.lock().unwrap().connections, 0);
    world.end().await;
}

#[tokio::test]
async fn memory_that_is_lent_to_another_is_refused() {
    let (world, server) = (World::new(3).await, Server::start(STOCK).await);
    let holder = world.mesh[2].id();
    let allowed = Arc::new(move |member: &Member| member.id == holder);
    let offer = RpcOffer { allowed, weights: None, build: "b1".into(), bytes_max: None };
    let _offered = world.tunnels[1].offer_rpc(rpc(), server.at, offer).unwrap();
    let listener = world.listen(1, None);
    assert!(Host::connect(listener.addr()).await.is_err());
    let refused = listener.last_error().unwrap();
    assert!(matches!(*refused, OpenError::Refused { code: RefusalCode::NotAllowed, .. }), "{refused:?}");
    let how = RpcUse { weights: None, build: "b1".into() };
    let holders = world.tunnels[2].listen_rpc(world.remote(1), how).unwrap();
    assert_eq!(server.seen.lock().unwrap().connections, 0, "nobody was connected to it yet");
    drop(Host::connect(holders.addr()).await.unwrap());
    assert_eq!(server.seen.lock().unwrap().connections, 1);
    world.end().await;
}

#[tokio::test]
async fn an_rpc_server_is_reached_by_its_own_protocol_only() {
    let (world, server) = (World::new(2).await, Server::start(STOCK).await);
    let _offered = world.offer(1, &server, None);
    let refused = world.tunnels[0].open(&world.remote(1)).await.unwrap_err();
    assert!(matches!(refused, OpenError::Refused { code: RefusalCode::UnknownService, .. }), "{refused:?}");
    assert_eq!(server.seen.lock().unwrap().connections, 0);
    world.end().await;
}

#[tokio::test]
async fn neither_side_hears_of_another_transport() {
    let (world, server) = (World::new(2).await, Server::start(STOCK).await);
    let _offered = world.offer(1, &server, None);
    let (host, hello) = Host::connect(world.listen(1, None).addr()).await.unwrap();
    assert_eq!(server.seen.lock().unwrap().capabilities, [0; 24], "the host offered 5s");
    assert_eq!(hello, [&STOCK[..], &[0; 25]].concat(), "the server offered 9s");
    drop(host);
    world.end().await;
}

#[tokio::test]
async fn what_a_host_must_not_send_breaks_its_connection_with_a_reason() {
    let (world, server) = (World::new(2).await, Server::start(STOCK).await);
    let _offered = world.offer(1, &server, None);
    let listener = world.listen(1, None);
    for (bad, words) in [
        (frame(0xE0, &[0; 337]), "command 224 is the tunnel's own"),
        (frame(REGISTER_PEER, &[b'1'; 132]), "a peer is registered at a port that is no tunnel"),
        ([&[SET_TENSOR][..], &[0xff; 8]].concat(), "a frame SET_TENSOR (6) of 18446744073709551615 bytes"),
    ] {
        let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
        host.0.write_all(&bad).await.unwrap();
        assert!(host.reply().await.is_err());
        until("the fault is told", || async {
            listener.last_fault().is_some_and(|fault| fault.to_string().starts_with(words))
        })
        .await;
    }
    let mut browser = TcpStream::connect(listener.addr()).await.unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    until("it is refused", || async {
        listener.last_fault().is_some_and(|fault| matches!(*fault, RpcFault::NotHello(b'G')))
    })
    .await;
    let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
    assert_eq!(host.call(GET_ALIGNMENT, &[0; 4]).await.unwrap(), 64u64.to_le_bytes(), "others go on");
    drop(host);
    world.end().await;
}

#[tokio::test]
async fn a_peer_that_is_registered_is_reached_from_the_worker_through_a_tunnel_of_its_own() {
    let world = World::new(3).await;
    let (first, second) = (Server::start(FORK).await, Server::start(FORK).await);
    let _offers = [world.offer(1, &first, None), world.offer(2, &second, None)];
    let listeners = [world.listen(1, None), world.listen(2, None)];
    let (mut host, _) = Host::connect(listeners[0].addr()).await.unwrap();
    let register = |port: u16| {
        let mut payload = [&7u32.to_le_bytes()[..], format!("127.0.0.1:{port}").as_bytes()].concat();
        payload.resize(132, 0);
        payload
    };
    let payload = register(listeners[1].addr().port());
    assert_eq!(host.call(REGISTER_PEER, &payload).await.unwrap(), [1]);
    let endpoint = first.seen.lock().unwrap().endpoint.unwrap();
    assert_ne!(endpoint.port(), listeners[1].addr().port(), "the host's port means nothing at the worker");
    assert_ne!(endpoint.port(), second.at.port());
    // The first worker's server pushes to the second, past the host.
    let through_host = world.tunnels[0].stats();
    let (mut push, _) = Host::connect(endpoint).await.unwrap();
    assert_eq!(push.call(PEER_DATA, &[3; 100_000]).await.unwrap(), [1]);
    assert_eq!(second.seen.lock().unwrap().from_peers, [3; 100_000]);
    assert_eq!(world.tunnels[0].stats(), through_host);
    assert!(world.tunnels[1].stats().to_peers_bytes > 100_000);
    // A worker that is told of itself is told where it is.
    assert_eq!(host.call(REGISTER_PEER, &register(listeners[0].addr().port())).await.unwrap(), [1]);
    assert_eq!(first.seen.lock().unwrap().endpoint, Some(first.at));
    drop((host, push));
    until("the way between the workers goes with the connection", || async {
        world.tunnels[1].listeners().is_empty()
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn a_host_gets_no_more_memory_than_it_was_lent() {
    let (world, server) = (World::new(2).await, Server::start(STOCK).await);
    let _offered = world.lend(1, &server, None, Some(1000));
    let listener = world.listen(1, None);
    let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
    let first = host.allocate(600).await.unwrap();
    assert_ne!(first, 0);
    assert_eq!(host.allocate(401).await.unwrap(), 0, "as an rpc-server that has no memory left says it");
    assert_eq!(host.allocate(u64::MAX).await.unwrap(), 0);
    assert_ne!(host.allocate(400).await.unwrap(), 0);
    assert_eq!(host.allocate(1).await.unwrap(), 0);
    // The refused ones have not reached the rpc-server, and the order of replies is kept.
    assert_eq!(server.seen.lock().unwrap().allocations, 2);
    host.tell(GET_ALIGNMENT, &[0; 4]).await.unwrap();
    host.tell(0, &[&[0; 4][..], &700u64.to_le_bytes()].concat()).await.unwrap();
    assert_eq!(host.reply().await.unwrap(), 64u64.to_le_bytes());
    assert_eq!(host.reply().await.unwrap(), [0; 16]);
    host.tell(FREE_BUFFER, &first.to_le_bytes()).await.unwrap();
    assert_ne!(host.allocate(600).await.unwrap(), 0, "what is given back may be taken again");
    drop(host);
    // A connection that has ended holds nothing, whatever it has not given back.
    until("the first connection's memory is free", || async {
        let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
        host.allocate(1000).await.unwrap() != 0 && host.allocate(1).await.unwrap() == 0
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn what_nobody_waits_for_arrives_before_what_is_computed_with_it_and_graphs_go_packed() {
    let (world, server) = (World::new(2).await, Server::start(STOCK).await);
    let _offered = world.offer(1, &server, None);
    let listener = world.listen(1, None);
    let (mut host, _) = Host::connect(listener.addr()).await.unwrap();
    let before = listener.stats().to_peers_bytes;
    for number in 0..10u8 {
        host.set_weight(&format!("inp{number}"), &[number; 100]).await.unwrap();
    }
    let graph: Vec<u8> = (0..40_000u32).flat_map(|at| (at / 100).to_le_bytes()).collect();
    host.tell(GRAPH_COMPUTE, &graph).await.unwrap();
    let last = host.call(GET_TENSOR, &[&tensor("inp9")[..], &[0; 16]].concat()).await.unwrap();
    assert_eq!(last, [9; 100]);
    assert_eq!(server.seen.lock().unwrap().graphs, std::slice::from_ref(&graph));
    assert_eq!(server.tensor("inp0"), Some(vec![0; 100]));
    let sent = listener.stats().to_peers_bytes - before;
    assert!(sent < 16_000, "{sent} bytes for {} of the graph alone", graph.len());
    // What is written last arrives too, though nobody asks for it.
    host.set_weight("end", &[7; 100]).await.unwrap();
    host.0.shutdown().await.unwrap();
    until("the last tensor has arrived", || async { server.tensor("end").is_some() }).await;
    until("both ends have counted what crossed the link", || async {
        world.tunnels[1].stats().from_peers_bytes == world.tunnels[0].stats().to_peers_bytes
    })
    .await;
    world.end().await;
}
