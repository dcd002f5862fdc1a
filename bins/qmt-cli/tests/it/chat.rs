//! Talking to a model: a real node and its gateway before a server that plays the model.

use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::stub::{Asked, NO_END, Reply, Stub};
use crate::support::{CLI, DEADLINE, Running};

/// A stream of events with these texts, and the counts at its end.
fn stream(texts: &[&str]) -> Reply {
    let mut body = String::new();
    for text in texts {
        body += &format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}}]}));
    }
    body +=
        &format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
    let usage = json!({"prompt_tokens": 7, "completion_tokens": texts.len()});
    body += &format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [], "usage": usage}));
    (200, body)
}

/// Answers `rivers`; refuses to chat as `base`, which only continues text; breaks off as `broken`.
fn play(asked: &Asked, _: usize) -> Reply {
    match (asked.what.as_str(), asked.body["model"].as_str()) {
        ("GET /v1/models", _) => {
            let models =
                ["rivers", "base", "babble", "broken"].map(|id| json!({"id": id, "object": "model"}));
            (200, json!({"object": "list", "data": models}).to_string())
        }
        ("POST /v1/chat/completions", Some("rivers")) if asked.body.to_string().contains("a story") => {
            let start = json!({"choices": [{"index": 0, "delta": {"content": "Once"}}]});
            (200, format!("data: {start}\n\n{NO_END}"))
        }
        ("POST /v1/chat/completions", Some("rivers")) => stream(&["Elbe", ", Oder\u{1b}[2J"]),
        ("POST /v1/chat/completions", Some("broken")) => {
            let start = json!({"choices": [{"index": 0, "delta": {"content": "El"}}]});
            let end = json!({"error": {"message": "out of memory", "type": "server_error", "code": "oom"}});
            (200, format!("data: {start}\n\ndata: {end}\n\n"))
        }
        ("POST /v1/chat/completions", Some("babble")) => stream(&["<|im_end|>", "\n<|im_start|>"]),
        ("POST /v1/chat/completions", Some("base")) => {
            let message = "default chat template is no longer allowed, so you must provide a chat template";
            (400, json!({"error": {"message": message, "type": "BadRequestError", "code": 400}}).to_string())
        }
        ("POST /v1/completions", Some("base")) => {
            let piece = json!({"choices": [{"index": 0, "text": " Paris", "finish_reason": "stop"}]});
            (200, format!("data: {piece}\n\ndata: [DONE]\n\n"))
        }
        _ => (404, json!({"error": {"message": "no such thing", "code": "unknown_url"}}).to_string()),
    }
}

struct World {
    node: Running,
    server: Stub,
}

impl World {
    /// A node that passes these of the server's models on.
    async fn with(models: &[&str]) -> Self {
        let (server, addr) = Stub::openai(play).await;
        let node = Running::start("desk", &provider(addr, models)).await;
        let count = models.len();
        node.until(&["models"], |all| {
            let all = all.as_array().expect("a list");
            all.len() == count && all.iter().all(|model| model["state"] == "ready")
        })
        .await;
        Self { node, server }
    }

    /// The conversations that reached the server.
    fn asked(&self) -> Vec<Value> {
        self.server.bodies("POST /v1/chat/completions").iter().map(|body| body["messages"].clone()).collect()
    }
}

fn provider(addr: SocketAddr, models: &[&str]) -> String {
    format!("[[providers]]\nname = \"stub\"\nbase_url = \"http://{addr}/v1\"\nmodels = {models:?}\n")
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_one_answer() {
    let world = World::with(&["rivers"]).await;
    let ran = world.node.cli(&["chat", "Name", "two", "rivers"]).run().await;
    // A pipe gets the model's bytes as they are.
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "Elbe, Oder\u{1b}[2J\n", ""));
    let ran = world.node.cli(&["chat"]).input("Name one\n").run().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let args = ["chat", "--system", "Be brief", "--max-tokens", "9", "--temperature", "0", "Sum up:", "-"];
    let ran = world.node.cli(&args).input("a long text\n").run().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let system = json!({"role": "system", "content": "Be brief"});
    assert_eq!(
        world.asked(),
        [
            json!([user("Name two rivers")]),
            json!([user("Name one")]),
            json!([system, user("Sum up: \na long text")])
        ]
    );
    let last = world.server.bodies("POST /v1/chat/completions").pop().expect("asked");
    assert_eq!(
        (&last["max_tokens"], &last["temperature"], &last["stream"]),
        (&9.into(), &0.0.into(), &true.into())
    );
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_json_an_answer_is_one_object_with_its_times() {
    let world = World::with(&["rivers"]).await;
    let answer = world.node.cli(&["chat", "--json", "Name two"]).run().await.ok_json();
    assert_eq!((&answer["model"], &answer["text"]), (&"rivers".into(), &"Elbe, Oder\u{1b}[2J".into()));
    assert_eq!(
        (&answer["finish_reason"], &answer["prompt_tokens"], &answer["completion_tokens"]),
        (&"stop".into(), &7.into(), &2.into())
    );
    let (first, total) = (answer["first_token_ms"].as_f64(), answer["total_ms"].as_f64());
    assert!(first.is_some_and(|first| first > 0.0) && total >= first, "{answer}");
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_models_must_be_named() {
    let world = World::with(&["rivers", "base", "broken"]).await;
    let ran = world.node.cli(&["chat", "hi"]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(
        ran.err,
        "error: there are several models: base, broken, rivers\nmend: choose one with --model NAME\n"
    );
    let ran = world.node.cli(&["chat", "--json", "hi"]).run().await;
    assert_eq!((ran.code, &ran.json()["error"]["code"]), (1, &"ambiguous".into()));
    let ran = world.node.cli(&["chat", "-m", "riv", "hi"]).run().await;
    assert!(ran.code == 0 && ran.out.starts_with("Elbe"), "{ran:?}");
    let ran = world.node.cli(&["chat", "-m", "qwen", "hi"]).run().await;
    assert!(ran.code == 1 && ran.err.contains("`qmt-cli models` lists"), "{ran:?}");
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_chat_template_continues_the_text() {
    let world = World::with(&["base"]).await;
    let ran = world.node.cli(&["chat", "The capital of France is"]).run().await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, " Paris\n", ""), "{ran:?}");
    let ran = world.node.cli(&["chat", "--complete", "Berlin, London,"]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (0, " Paris\n"), "{ran:?}");
    let asked = world.server.bodies("POST /v1/completions");
    assert_eq!([&asked[0]["prompt"], &asked[1]["prompt"]], ["The capital of France is", "Berlin, London,"]);
    assert_eq!(world.asked().len(), 1, "the second time nobody was asked to chat");
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_model_that_babbles_marks_is_told() {
    let world = World::with(&["babble"]).await;
    let ran = world.node.cli(&["chat", "hi"]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "<|im_end|>\n<|im_start|>\n"));
    assert!(ran.err.contains("--complete continues the prompt"), "{ran:?}");
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_a_failure() {
    let world = World::with(&["broken"]).await;
    let ran = world.node.cli(&["chat", "hi"]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (1, "El\n"));
    assert_eq!(ran.err, "error: the answer broke off: out of memory\n");
    let ran = world.node.cli(&["chat", "--json", "hi"]).run().await;
    assert_eq!((ran.code, &ran.json()["error"]["code"]), (1, &"oom".into()));
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_model_the_mend_is_to_load_one() {
    let node = Running::start("desk", "").await;
    let ran = node.cli(&["chat", "hi"]).run().await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("mend: serve one with `qmt-cli load NAME`"), "{ran:?}");
    node.stop().await;
}

/// Runs its arguments at a terminal: after each prompt types the next line of its input, then ends the input; presses Ctrl-C
/// when the story begins; prints all that the terminal showed.
const AT_A_TERMINAL: &str = r#"
import os, pty, sys
lines = sys.stdin.read().split("\n")
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
shown = b""
while True:
    try:
        read = os.read(terminal, 4096)
    except OSError:
        break
    if not read:
        break
    shown += read
    if shown.endswith(b"Once"):
        os.write(terminal, b"\x03")
    if shown.endswith(b"> "):
        line = lines.pop(0) if lines else ""
        os.write(terminal, line.encode() + b"\n" if line else b"\x04")
_, status = os.waitpid(pid, 0)
sys.stdout.write(shown.decode())
sys.exit(os.waitstatus_to_exitcode(status))
"#;

/// What the terminal showed while these lines were typed into a conversation.
async fn converse(world: &World, lines: &str) -> String {
    let mut child = Command::new("python3")
        .args(["-c", AT_A_TERMINAL, CLI, "chat"])
        .env("QMT_HOME", world.node.home())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3, which this repository needs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(lines.as_bytes()).await.expect("written");
    drop(stdin);
    let ended = timeout(DEADLINE, child.wait_with_output()).await.expect("in time");
    let output = ended.expect("it ends");
    let shown = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{shown}");
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_remembers_what_was_said() {
    let world = World::with(&["rivers"]).await;
    let shown = converse(&world, "Name two\nand more\n/clear\nfrom the start\n/help").await;
    assert!(shown.contains("rivers; /clear forgets the conversation"), "{shown}");
    assert!(shown.contains("Elbe, Oder?[2J"), "what steers a terminal does not reach it: {shown}");
    let said = json!({"role": "assistant", "content": "Elbe, Oder\u{1b}[2J"});
    assert_eq!(
        world.asked(),
        [
            json!([user("Name two")]),
            json!([user("Name two"), said, user("and more")]),
            json!([user("from the start")])
        ]
    );
    world.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_the_answer_and_not_the_conversation() {
    let world = World::with(&["rivers"]).await;
    let shown = converse(&world, "Tell a story\n/clear\nName two\n/exit\nnever asked").await;
    assert!(shown.contains("(stopped)") && shown.contains("Elbe, Oder"), "{shown}");
    assert_eq!(world.asked(), [json!([user("Tell a story")]), json!([user("Name two")])]);
    world.node.stop().await;
}
