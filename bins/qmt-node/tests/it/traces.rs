//! One trace from a caller through two nodes to a backend: in headers, in log lines and at a collector.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_control::{InviteRequest, JoinRequest, LogLevel, LogQuery, ModelState};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::process::{Folder, Process};
use crate::support::until;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A request as it came.
#[derive(Debug, Clone)]
struct Seen {
    path: String,
    traceparent: Option<String>,
    body: Value,
}

/// A server of one model, and a collector of traces.
struct Server {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Seen>>>::default());
        let (mut tasks, kept) = (JoinSet::new(), seen.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let kept = kept.clone();
                connections.spawn(async move {
                    let service = service_fn(|request| answer(kept.clone(), request));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        Self { addr, seen, _tasks: tasks }
    }

    fn seen(&self, path: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.path == path).cloned().collect()
    }

    /// All spans that were sent to it, each with the node that sent it.
    fn spans(&self) -> Vec<(String, Value)> {
        let mut spans = Vec::new();
        for export in self.seen("/v1/traces") {
            let resource = &export.body["resourceSpans"][0];
            let attributes = resource["resource"]["attributes"].as_array().unwrap();
            let node = attributes.iter().find(|one| one["key"] == "service.instance.id").unwrap();
            let node = node["value"]["stringValue"].as_str().unwrap();
            let sent = resource["scopeSpans"][0]["spans"].as_array().unwrap();
            spans.extend(sent.iter().map(|span| (node.to_owned(), span.clone())));
        }
        spans
    }
}

async fn answer(
    seen: Arc<Mutex<Vec<Seen>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let traceparent = request.headers().get("traceparent").map(|value| value.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    seen.lock().unwrap().push(Seen {
        path: path.clone(),
        traceparent,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    });
    let body = match path.as_str() {
        "/v1/models" => json!({ "object": "list", "data": [{ "id": "m", "object": "model" }] }),
        _ => json!({ "choices": [{ "index": 0, "message": { "role": "assistant", "content": "hello" } }] }),
    };
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(Full::new(Bytes::from(body.to_string()))).unwrap())
}

/// Asks a node's gateway for a chat answer, with this trace.
async fn asked(node: &Process, traceparent: Option<&str>) {
    let url = node.client.status().await.unwrap().gateway_url.unwrap();
    let authority = url.trim_start_matches("http://").to_owned();
    let stream = TcpStream::connect(&authority).await.unwrap();
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::post("/v1/chat/completions").header("host", &authority);
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "a secret" }] }).to_string();
    let request = request.header("content-type", "application/json").body(Full::new(Bytes::from(body)));
    let answer = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap();
    connection.abort();
}

/// Two nodes of one mesh; the second has the model, the first is asked.
async fn pair(folders: &[Folder; 2], server: &Server, telemetry: &str) -> [Process; 2] {
    let plain = "[inference]\nmodel_dirs = []\nlend = false\n[mesh.internet]\nrelay_mode = \"disabled\"\n";
    folders[0].configure(&format!("{plain}{telemetry}"));
    folders[1].configure(&format!(
        "{plain}{telemetry}[[providers]]\nname = \"stub\"\nbase_url = \"http://{}/v1\"\nmodels = [\"m\"]\n",
        server.addr
    ));
    let level = ["env", "RUST_LOG=info,mesh_inference=debug"];
    let first = folders[0].start_by(&level, &["--port", "0"]).await;
    let second = folders[1].start_by(&level, &["--port", "0"]).await;
    let invite = first.client.invite(&InviteRequest::default()).await.unwrap();
    second.client.join(&JoinRequest { token: invite.token }).await.unwrap();
    until("the first node knows the second's model", || async {
        let models = first.client.models().await.unwrap();
        models.iter().any(|model| model.name == "m" && model.state == ModelState::Ready).then_some(())
    })
    .await;
    [first, second]
}

/// Whether a node's kept lines name a trace.
async fn logs_name(node: &Process, trace: &str) -> bool {
    let query =
        LogQuery { level: Some(LogLevel::Debug), text: Some(trace.to_owned()), ..LogQuery::default() };
    let page = node.client.logs(&query).await.unwrap();
    page.lines.iter().any(|line| line.fields.contains(&("trace".to_owned(), trace.to_owned())))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_reaches_the_backend_and_the_log_of_both_nodes() {
    let (server, folders) = (Server::start().await, [Folder::new(), Folder::new()]);
    let nodes = pair(&folders, &server, "").await;
    asked(&nodes[0], Some(&format!("00-{TRACE}-{CALLER}-01"))).await;
    let told = |at: usize| server.seen("/v1/chat/completions")[at].traceparent.clone().unwrap();
    assert!(told(0).starts_with(&format!("00-{TRACE}-")) && told(0).ends_with("-01"), "{}", told(0));
    assert!(!told(0).contains(CALLER), "each node has a span of its own: {}", told(0));
    for node in &nodes {
        assert!(logs_name(node, TRACE).await, "no line of the trace");
    }
    // Without a trace, and with one that is none, the first node begins one.
    for traceparent in [None, Some("00-nonsense-01")] {
        asked(&nodes[0], traceparent).await;
    }
    let made: Vec<String> = (1..3).map(|at| told(at)[3..35].to_owned()).collect();
    assert!(made[0] != made[1] && !made.contains(&TRACE.to_owned()), "{made:?}");
    for node in &nodes {
        assert!(logs_name(node, &made[0]).await, "no line of the trace");
    }
    assert_eq!(server.seen("/v1/traces").len(), 0, "nothing is sent unasked");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_spans_meet_at_the_collector() {
    let (server, folders) = (Server::start().await, [Folder::new(), Folder::new()]);
    let collector = Server::start().await;
    let telemetry = format!("[telemetry]\notlp_endpoint = \"http://{}\"\n", collector.addr);
    let nodes = pair(&folders, &server, &telemetry).await;
    // One that its caller does not record, and one that is.
    let silent = "00-11111111111111111111111111111111-2222222222222222-00";
    asked(&nodes[0], Some(silent)).await;
    asked(&nodes[0], Some(&format!("00-{TRACE}-{CALLER}-01"))).await;
    let spans = until("four spans of the trace are there", || async {
        let spans: Vec<_> =
            collector.spans().into_iter().filter(|(_, span)| span["traceId"] == TRACE).collect();
        (spans.len() == 4).then_some(spans)
    })
    .await;
    // From the caller down: each is the child of the one before.
    let mut parent = CALLER.to_owned();
    let mut path = Vec::new();
    for _ in 0..4 {
        let (node, span) = spans.iter().find(|(_, span)| span["parentSpanId"] == parent.as_str()).unwrap();
        parent = span["spanId"].as_str().unwrap().to_owned();
        path.push((node.clone(), span["name"].as_str().unwrap().to_owned()));
        let [begun, ended] = ["startTimeUnixNano", "endTimeUnixNano"].map(|at| span[at].as_str().unwrap());
        assert!(begun.parse::<u128>().unwrap() <= ended.parse::<u128>().unwrap(), "{span}");
    }
    let names: Vec<&str> = path.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["inference.request", "inference.attempt", "inference.request", "inference.attempt"]);
    assert!(path[0].0 == path[1].0 && path[2].0 == path[3].0 && path[0].0 != path[2].0, "{path:?}");
    let told = server.seen("/v1/chat/completions").pop().unwrap().traceparent.unwrap();
    assert_eq!(told, format!("00-{TRACE}-{parent}-01"), "the backend's parent is the last span");
    let all = serde_json::to_string(&collector.spans()).unwrap();
    assert!(!all.contains("secret") && !all.contains(&silent[3..35]), "{all}");
}
