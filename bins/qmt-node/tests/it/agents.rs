//! What agents of a node get from elsewhere: tools of MCP servers, models of other nodes.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_control::{Client, InviteRequest, JoinRequest, RouteTarget, RouteView};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::sessions::{begin, prompt, results, to_the_end};
use crate::support::process::Folder;
use crate::support::script::{MODEL, Script};
use crate::support::until;

/// A server of the Model Context Protocol over standard input and output: `say` repeats a word, `key` tells its key, `look` reads a
/// file outside of its workspace.
const SERVER: &str = r#"
while read -r line; do
    id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    answer() { printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
    told() { answer "{\"content\":[{\"type\":\"text\",\"text\":\"$1\"}]}"; }
    case $line in
        *'"method":"initialize"'*)
            answer '{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"words","version":"1"}}' ;;
        *'"method":"tools/list"'*)
            answer '{"tools":[{"name":"say","description":"says","inputSchema":{"type":"object"}},
                {"name":"key","inputSchema":{"type":"object"}},{"name":"look","inputSchema":{"type":"object"}}]}' | tr -d '\n'
            echo ;;
        *'"name":"say"'*) told "said $(printf '%s' "$line" | sed -n 's/.*"word":"\([a-z]*\)".*/\1/p')" ;;
        *'"name":"key"'*) told "it is $WORDS_KEY" ;;
        *'"name":"look"'*) told "$(cat "$LOOK_AT" 2>&1 | tr -d '\n"')" ;;
        *'"method":"ping"'*) answer '{}' ;;
    esac
done
"#;

fn agent(script: &Script, folder: &Folder, server: &str) -> String {
    format!(
        "{}[api]\nport = 0\n[[agents]]\nid = \"coder\"\nmodel = \"{MODEL}\"\nworkspace = \"{}\"\n[[agents.policy]]\n\
         tools = [\"*\"]\nthen = \"allow\"\n[[agents.mcp]]\nname = \"words\"\n{server}",
        script.as_provider(),
        folder.beside("project").display(),
    )
}

/// Has the agent call a tool, in a session of its own; what the tool returned.
async fn called(client: &Client, tool: &str) -> String {
    let session = begin(client, "coder").await;
    prompt(client, &session, &format!("tool {tool}")).await;
    results(&to_the_end(client, &session, 0).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_has_the_tools_of_a_server_that_its_node_runs() {
    let (folder, script) = (Folder::new(), Script::start().await);
    let (program, key) =
        (folder.beside("project").join("server.sh"), folder.home().join("mesh_identity.key"));
    std::fs::write(&program, SERVER).unwrap();
    let env = format!("env = {{ LOOK_AT = \"{}\" }}", key.display());
    let server =
        format!("command = \"sh\"\nargs = [\"{}\"]\n{env}\npass_env = [\"WORDS_KEY\"]\n", program.display());
    folder.configure(&agent(&script, &folder, &server));
    let mut node = folder.start_by(&["env", "WORDS_KEY=hush-hush-hush"], &[]).await;
    until("its tools are there", || async {
        let agents = node.client.agents().await.unwrap();
        agents.first().is_some_and(|agent| agent.tools.iter().any(|tool| tool == "words__say")).then_some(())
    })
    .await;
    assert!(called(&node.client, r#"words__say {"word":"hello"}"#).await.contains("said hello"));
    let told = called(&node.client, "words__key {}").await;
    assert!(told.contains("it is [secret]") && !told.contains("hush"), "{told}");
    let looked = called(&node.client, "words__look {}").await;
    if cfg!(target_os = "linux") && crate::sessions::landlock_is_there() {
        assert!(looked.contains("ermission denied"), "{looked}");
    }
    let log = folder.written();
    assert!(!log.contains("hush"), "{log}");
    assert!(node.terminate().await.success());
}

/// The same server over HTTP, for whoever has the key.
struct Web {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Web {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(async move {
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(serve)).await;
                });
            }
        });
        Self { addr, task }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let has_key = request.headers().get(AUTHORIZATION).is_some_and(|key| key == "Bearer hush-hush-hush");
    let has_team = request.headers().get("x-team").is_some_and(|team| team == "red");
    let status = |status| Ok(Response::builder().status(status).body(Full::default()).unwrap());
    match *request.method() {
        _ if !has_key || !has_team => return status(StatusCode::UNAUTHORIZED),
        Method::POST => {}
        _ => return status(StatusCode::METHOD_NOT_ALLOWED),
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    if asked["id"].is_null() {
        return status(StatusCode::ACCEPTED);
    }
    let result = match asked["method"].as_str().unwrap() {
        "initialize" => json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
            "serverInfo": {"name": "words", "version": "1"}}),
        "tools/list" => json!({"tools": [{"name": "say", "inputSchema": {"type": "object"}}]}),
        "tools/call" => {
            let text = format!("said {} to hush-hush-hush", asked["params"]["arguments"]["word"]);
            json!({"content": [{"type": "text", "text": text}]})
        }
        _ => json!({}),
    };
    let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": result}).to_string();
    Ok(Response::builder().header("content-type", "application/json").body(answer.into()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_has_the_tools_of_a_server_at_an_address() {
    let (folder, script, web) = (Folder::new(), Script::start().await, Web::start().await);
    let url = format!("url = \"http://{}/mcp\"", web.addr);
    let server = format!("{url}\nheaders = {{ X-Team = \"red\" }}\ntoken_env = \"WORDS_KEY\"\n");
    folder.configure(&agent(&script, &folder, &server));
    let mut node = folder.start_by(&["env", "WORDS_KEY=hush-hush-hush"], &[]).await;
    until("its tools are there", || async {
        let agents = node.client.agents().await.unwrap();
        agents.first().is_some_and(|agent| agent.tools == ["words__say"]).then_some(())
    })
    .await;
    let told = called(&node.client, r#"words__say {"word":"hello"}"#).await;
    assert!(told.contains("hello") && told.contains("[secret]") && !told.contains("hush"), "{told}");
    assert!(node.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_asks_others_when_its_node_is_gone_and_it_may() {
    let (there, here, shy) = (Folder::new(), Folder::new(), Folder::new());
    let (far, near) = (Script::start().await, Script::start().await);
    there.configure(&format!("{}[api]\nport = 0\n", far.as_provider()));
    let lead = |mesh: &str| {
        format!(
            "[mesh]\nstream_reconnect_grace_secs = 2\n{mesh}{}share = \"none\"\n[api]\nport = 0\n[[agents]]\nid = \"lead\"\n\
             model = \"{MODEL}\"\npeer = \"gpu\"\n",
            near.as_provider(),
        )
    };
    here.configure(&lead("auto_fallback = true\n"));
    shy.configure(&lead(""));
    let (mut gpu, desk, lap) = tokio::join!(
        there.start(&["--node-name", "gpu"]),
        here.start(&["--node-name", "desk"]),
        shy.start(&["--node-name", "lap"])
    );
    let any = InviteRequest { uses: Some(0), ..InviteRequest::default() };
    let token = gpu.client.invite(&any).await.unwrap().token;
    for node in [&desk, &lap] {
        node.client.join(&JoinRequest { token: token.clone() }).await.unwrap();
    }
    for node in [&desk, &lap] {
        until("the node and its model are known", || async {
            let is_there = |route: &RouteView| matches!(route.target, RouteTarget::Peer { .. });
            let has_model =
                node.client.routes(Some(MODEL)).await.is_ok_and(|routes| routes.iter().any(is_there));
            (has_model && node.client.agent_routes().await.unwrap()[0].node.is_some()).then_some(())
        })
        .await;
    }
    let mut sessions = Vec::new();
    for (node, asked) in [(&desk, 1), (&lap, 2)] {
        let session = begin(&node.client, "lead").await;
        prompt(&node.client, &session, "one").await;
        let events = to_the_end(&node.client, &session, 0).await;
        assert_eq!(events.last().unwrap().fields["outcome"]["type"], "done", "{events:?}");
        assert_eq!((far.asked().len(), near.asked().len()), (asked, 0), "its node is asked");
        sessions.push((session, events.last().unwrap().number));
    }
    gpu.kill();
    for (node, (session, last), outcome) in [(&desk, &sessions[0], "done"), (&lap, &sessions[1], "failed")] {
        prompt(&node.client, session, "again").await;
        let events = to_the_end(&node.client, session, *last).await;
        assert_eq!(events.last().unwrap().fields["outcome"]["type"], outcome, "{events:?}");
    }
    assert_eq!((far.asked().len(), near.asked().len()), (2, 1), "one of them asked elsewhere");
}
