//! Two and three gateways over the mesh in memory, with real grants and mesh-routing between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_identity::{NodeName, Permissions, Role, ScopeId};
use mesh_inference::backend::{Backend, Backends, Share};
use mesh_inference::gateway::{Gateway, GatewayConfig, RouterRoutes};
use mesh_routing::{Config, LocalFacts, Offer, PeerFacts, Router};
use mesh_transport::memory::Network;
use mesh_transport::testing::{Mesh, TestNode, until};

use crate::gateway_support::*;

const CHAT: &str = "{\"model\":\"m\",\"stream\":true}";

/// One node: transport, router, gateway.
pub(crate) struct Node {
    pub(crate) gateway: Gateway,
    router: Router,
}

impl Node {
    pub(crate) async fn start(
        node: &TestNode,
        scope: ScopeId,
        config: GatewayConfig,
        list: Vec<Backend>,
    ) -> Self {
        let backends = Backends::new();
        let offers = list.iter().map(|backend| Offer::ready(&backend.model)).collect();
        for backend in list {
            backends.insert(backend);
        }
        let router = Router::new(Config::default(), Instant::now());
        router.update(|table| {
            table.set_local(LocalFacts { offers, ..LocalFacts::default() });
            table.set_scope(scope, Role::Member);
        });
        let routes = Arc::new(RouterRoutes::new(router.clone(), move || vec![scope]));
        let gateway = Gateway::start(config, backends, routes, Some(node.transport.clone())).await.unwrap();
        node.transport.serve(Gateway::PROTOCOL, gateway.peer_handler());
        node.transport.serve(Gateway::REPLICA_PROTOCOL, gateway.replica_handler());
        Self { gateway, router }
    }

    /// What gossip would tell: this peer serves the model.
    pub(crate) fn hears_of(&self, mesh: &Mesh, peer: usize, model: &str) {
        let mut facts = PeerFacts::new(NodeName::new(format!("node-{peer}")).unwrap());
        facts.offers = vec![Offer { share: Share::Clients.into_routing(), ..Offer::ready(model) }];
        self.router.update(|table| table.set_peer(mesh.scope(), mesh[peer].id(), facts));
    }

    pub(crate) async fn chat(&self, body: &str) -> Answer {
        let mut caller = Caller::to(self.gateway.local_addr()).await;
        caller.send(&post("/v1/chat/completions", body)).await;
        caller.answer().await
    }
}

trait IntoRouting {
    fn into_routing(self) -> mesh_routing::Share;
}

impl IntoRouting for Share {
    fn into_routing(self) -> mesh_routing::Share {
        match self {
            Share::None => mesh_routing::Share::None,
            Share::Members => mesh_routing::Share::Members,
            Share::Clients => mesh_routing::Share::Clients,
        }
    }
}

#[tokio::test]
async fn a_model_of_another_node_answers_as_if_it_were_here() {
    let stub = Stub::start(|_| {
        Act::Pieces(vec![
            sse_head(),
            chunk(b"data: 1\n"),
            chunk(b"\ndata: [DO"),
            chunk(b"NE]\n\n"),
            LAST_CHUNK.to_vec(),
        ])
    })
    .await;
    let (_state, backend) = backend("m", stub.addr);
    let mesh = Mesh::memory(2).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let far = Node::start(&mesh[1], mesh.scope(), config(), vec![backend]).await;
    near.hears_of(&mesh, 1, "m");
    let mut caller = Caller::to(near.gateway.local_addr()).await;
    let headers = [
        ("authorization", "Bearer callers-key"),
        ("x-request-id", "r-1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    for _ in 0..3 {
        caller.send(&with_headers("POST", "/v1/chat/completions", &headers, CHAT)).await;
        let answer = caller.answer().await;
        assert_eq!(
            (answer.status, answer.text().as_str(), answer.complete),
            (200, "data: 1\n\ndata: [DONE]\n\n", true)
        );
        assert_eq!(answer.header("x-request-id"), Some("r-1"));
        assert_eq!(answer.header("x-mesh-load"), None, "between gateways only");
    }
    let seen = stub.last();
    assert_eq!(seen.body, CHAT.as_bytes());
    assert_eq!((seen.header("authorization"), seen.header("x-request-id")), (None, Some("r-1")));
    let trace = seen.header("traceparent").unwrap();
    assert!(
        trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && !trace.contains("b7ad6b7169203331"),
        "{trace}"
    );
    assert_eq!((near.gateway.stats().peer_requests_total, far.gateway.stats().peer_requests_total), (0, 3));
    caller.send(&get("/v1/models")).await;
    assert_eq!(caller.answer().await.json()["data"][0]["id"], "m");
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}

/// What a peer's gateway hears of this node's load, in the head of its answer.
async fn heard_load(mesh: &Mesh, body: &'static str) -> Option<String> {
    let stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), Gateway::PROTOCOL).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post("/v1/chat/completions").header("host", "mesh");
    let request = request.body(http_body_util::Full::new(bytes::Bytes::from_static(body.as_bytes())));
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    let load = answer.headers().get("x-mesh-load").map(|load| load.to_str().unwrap().to_owned());
    connection.abort();
    load
}

#[tokio::test]
async fn an_answer_to_a_peer_says_how_much_there_is_to_do() {
    let stub = Stub::start(|_| Act::RawThenHang([sse_head(), chunk(b"data: 1\n\n")].concat())).await;
    let (_state, backend) = backend("m", stub.addr);
    let backend = Backend { slots: Some(2), ..backend };
    let mesh = Mesh::memory(2).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let far = Node::start(&mesh[1], mesh.scope(), config(), vec![backend]).await;
    near.hears_of(&mesh, 1, "m");
    let mut caller = Caller::to(near.gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    until("the first request is under way", || async { far.gateway.load().running == 1 }).await;
    assert_eq!(heard_load(&mesh, CHAT).await.as_deref(), Some("running=2, waiting=0, slots=2"));
    drop(caller);
    until("nothing is under way", || async { far.gateway.load().running == 0 }).await;
    assert_eq!(heard_load(&mesh, "{\"model\":\"x\"}").await, None, "not a model of this node");
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_leaves_frees_the_backend_of_another_node() {
    let mut stub = Stub::start(|seen| {
        let early = seen.line.contains("/v1/completions");
        Act::RawThenHang(if early { Vec::new() } else { [sse_head(), chunk(b"data: 1\n\n")].concat() })
    })
    .await;
    let (_state, backend) = backend("m", stub.addr);
    let mesh = Mesh::memory(2).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let far = Node::start(&mesh[1], mesh.scope(), config(), vec![backend]).await;
    near.hears_of(&mesh, 1, "m");
    for (count, path) in ["/v1/chat/completions", "/v1/completions"].iter().enumerate() {
        let mut caller = Caller::to(near.gateway.local_addr()).await;
        caller.send(&post(path, CHAT)).await;
        until("the backend has it", || async { stub.count() == count + 1 }).await;
        if count == 0 {
            caller.until("data: 1").await;
        }
        drop(caller);
        stub.wait_left(count + 1).await;
    }
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_node_that_is_lost_in_the_middle_ends_the_stream_in_one_declared_error() {
    let network = Network::new(7);
    let stub = Stub::start(|_| Act::RawThenHang([sse_head(), chunk(b"data: 1\n\n")].concat())).await;
    let (_state, backend) = backend("m", stub.addr);
    let mesh = Mesh::on(network.clone(), 2).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let far = Node::start(&mesh[1], mesh.scope(), config(), vec![backend]).await;
    near.hears_of(&mesh, 1, "m");
    let mut caller = Caller::to(near.gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until("data: 1").await;
    network.break_connections(mesh[0].id(), mesh[1].id());
    let answer = caller.answer().await;
    let error = answer
        .text()
        .strip_prefix("data: 1\n\ndata: ")
        .map(str::to_owned)
        .unwrap_or_else(|| panic!("{answer:?}"));
    let error: serde_json::Value = serde_json::from_str(&error).unwrap();
    assert_eq!(error["error"]["code"], "upstream_lost");
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test]
async fn another_node_takes_over_from_one_that_cannot_be_reached() {
    let network = Network::new(7);
    let stub = Stub::start(|_| json("\"well\"")).await;
    let (_state, backend) = backend("m", stub.addr);
    let mesh = Mesh::on(network.clone(), 3).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let far = Node::start(&mesh[2], mesh.scope(), config(), vec![backend]).await;
    // Node 1 is known to serve the model and does not even run a gateway; then it is gone altogether.
    near.hears_of(&mesh, 1, "m");
    near.hears_of(&mesh, 2, "m");
    for _ in 0..8 {
        assert_eq!(near.chat(CHAT).await.text(), "\"well\"");
    }
    network.break_connections(mesh[0].id(), mesh[1].id());
    network.isolate(mesh[1].id());
    assert_eq!(near.chat(CHAT).await.text(), "\"well\"");
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_peer_gets_what_is_shared_with_its_role_and_no_second_hop() {
    let stub = Stub::start(|_| json("1")).await;
    let mut mesh = Mesh::memory(2).await;
    mesh.add(Permissions::CLIENT).await;
    let share = |model: &str, share| {
        let (state, mut backend) = backend(model, stub.addr);
        backend.share = share;
        std::mem::forget(state);
        backend
    };
    let list =
        vec![share("none", Share::None), share("members", Share::Members), share("clients", Share::Clients)];
    let host = Node::start(&mesh[0], mesh.scope(), config(), list).await;
    let member = Node::start(&mesh[1], mesh.scope(), config(), Vec::new()).await;
    let client = Node::start(&mesh[2], mesh.scope(), config(), Vec::new()).await;
    // The host itself knows of a model at the member, which it must not fetch for others.
    host.hears_of(&mesh, 1, "second-hop");
    for (node, model, status) in [
        (&member, "none", 503),
        (&member, "members", 200),
        (&member, "clients", 200),
        (&client, "none", 503),
        (&client, "members", 503),
        (&client, "clients", 200),
        (&client, "second-hop", 503),
    ] {
        node.router.update(|table| table.remove_peer(&mesh.scope(), &mesh[0].id()));
        node.hears_of(&mesh, 0, model);
        let answer = node.chat(&format!("{{\"model\":\"{model}\"}}")).await;
        assert_eq!(answer.status, status, "{model}: {}", answer.text());
        if status == 503 {
            assert!(answer.text().contains("it answers model_not_found"), "{}", answer.text());
        }
    }
    assert_eq!(stub.count(), 3);
    for node in [&host, &member, &client] {
        node.gateway.shutdown().await;
    }
    mesh.shutdown().await;
}

#[tokio::test]
async fn one_peer_cannot_take_every_place() {
    let mut stub = Stub::start(|_| Act::RawThenHang([sse_head(), chunk(b"data: 1\n\n")].concat())).await;
    let (_state, backend) = backend("m", stub.addr);
    let mesh = Mesh::memory(2).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let mut narrow = config();
    narrow.peer_requests_max = 1;
    let far = Node::start(&mesh[1], mesh.scope(), narrow, vec![backend]).await;
    near.hears_of(&mesh, 1, "m");
    let mut caller = Caller::to(near.gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until("data: 1").await;
    let answer = near.chat(CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "full"));
    drop(caller);
    stub.wait_left(1).await;
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_gateway_that_stops_cuts_its_peers_requests_after_the_drain() {
    let stub = Stub::start(|_| Act::RawThenHang([sse_head(), chunk(b"data: 1\n\n")].concat())).await;
    let (_state, backend) = backend("m", stub.addr);
    let mesh = Mesh::memory(2).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let mut hasty = config();
    hasty.drain = Duration::from_millis(20);
    let far = Node::start(&mesh[1], mesh.scope(), hasty, vec![backend]).await;
    near.hears_of(&mesh, 1, "m");
    let mut caller = Caller::to(near.gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until("data: 1").await;
    far.gateway.shutdown().await;
    assert!(caller.answer().await.text().contains("upstream_lost"));
    near.gateway.shutdown().await;
    mesh.shutdown().await;
}
