//! Commands whose course depends on what a node says next: a control API that plays its part.

use serde_json::{Value, json};

use crate::stub::{Asked, Stub};
use crate::support::{Ran, cli};

fn model(state: &str, detail: &str) -> Value {
    json!({"name": "gemma", "state": state, "providers": [
        {"node": "12D3desk", "node_name": "desk", "local": true, "state": state, "kind": "local", "detail": detail},
    ]})
}

fn failure(status: u16, code: &str, message: &str) -> (u16, String) {
    (status, json!({"error": {"code": code, "message": message, "mend": "mend it"}}).to_string())
}

/// Plays a node that says these things of its model, one after the other, and then repeats the last.
async fn load(says: &'static [(&'static str, &'static str)], args: &[&str]) -> (Ran, Stub) {
    let home = tempfile::tempdir().expect("a folder");
    let stub = Stub::control(home.path(), move |asked, number| {
        let (state, detail) = says[number.min(says.len() - 1)];
        let model = model(state, detail);
        (200, if asked.what == "GET /api/models" { json!([model]).to_string() } else { model.to_string() })
    });
    (cli(home.path(), args).run().await, stub)
}

const LOADING: (&str, &str) = ("loading", "loading (12 of 253 MB read, 1 s)");

#[tokio::test]
async fn load_waits_until_the_model_answers() {
    let (ran, stub) = load(&[LOADING, LOADING, LOADING, ("ready", "ready")], &["load", "gemma"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "no terminal, no progress: {ran:?}");
    assert!(ran.out.starts_with("gemma is ready, after "), "{ran:?}");
    assert_eq!(stub.bodies("POST /api/models/load"), [json!({"model": "gemma"})]);

    let (ran, _stub) = load(&[LOADING, ("ready", "ready")], &["load", "gemma", "--json"]).await;
    assert_eq!(ran.ok_json()["state"], "ready");
}

/// Plays a node to which the word of another one's model has yet to come.
#[tokio::test]
async fn a_model_that_is_loaded_elsewhere_is_waited_for_before_it_is_listed() {
    let at_lap = |state: &str| {
        json!({"name": "gemma", "state": state, "providers": [
            {"node": "12D3lap", "node_name": "lap", "local": false, "state": state, "kind": "local"},
        ]})
    };
    for args in [&["load", "gemma", "--node", "lap"][..], &["load", "gemma"]] {
        let home = tempfile::tempdir().expect("a folder");
        let says = move |asked: &Asked, number: usize| match (asked.what.as_str(), number) {
            ("POST /api/models/load", _) => json!({"name": "gemma", "state": "cold"}),
            (_, 0..=3) => json!([]),
            (_, 4) => json!([at_lap("loading")]),
            _ => json!([at_lap("ready")]),
        };
        let _stub = Stub::control(home.path(), move |asked, number| (200, says(asked, number).to_string()));
        let ran = cli(home.path(), args).run().await;
        assert!(ran.code == 0 && ran.out.starts_with("gemma is ready at lap, after "), "{ran:?}");
    }
    // One that was there and is gone was dropped.
    let home = tempfile::tempdir().expect("a folder");
    let says = |asked: &Asked| if asked.what == "GET /api/models" { json!([]) } else { model("loading", "") };
    let _stub = Stub::control(home.path(), move |asked, _| (200, says(asked).to_string()));
    let ran = cli(home.path(), &["load", "gemma"]).run().await;
    assert!(ran.code == 1 && ran.err.contains("gemma was dropped meanwhile"), "{ran:?}");
}

#[tokio::test]
async fn load_does_not_wait_when_told_so() {
    let (ran, stub) = load(&[LOADING], &["load", "gemma", "--no-wait"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "gemma is loading\n"));
    assert!(stub.bodies("GET /api/models").is_empty());
}

#[tokio::test]
async fn a_model_that_does_not_load_says_why() {
    let (ran, _stub) = load(&[LOADING, ("failed", "failed: not enough memory")], &["load", "gemma"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.starts_with("error: gemma did not load: not enough memory\nmend: "), "{ran:?}");
    let (ran, _stub) = load(&[("failed", "failed: not enough memory")], &["load", "gemma", "--json"]).await;
    assert_eq!((ran.code, &ran.json()["error"]["code"]), (1, &"not_loaded".into()));
}

#[tokio::test]
async fn a_path_is_taken_from_the_callers_folder() {
    let (ran, stub) = load(&[("ready", "ready")], &["load", "Cargo.toml"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let path = std::path::absolute("Cargo.toml").expect("a folder");
    assert_eq!(stub.bodies("POST /api/models/load"), [json!({"model": path})]);
}

/// Plays a node that drops as far as it can.
async fn drop_at(dropped: &'static str, args: &[&str]) -> (Ran, Stub) {
    let home = tempfile::tempdir().expect("a folder");
    let stub = Stub::control(home.path(), move |asked, _| match asked.what.as_str() {
        "GET /api/status" => (
            200,
            r#"{"version":"0.1.0","node_id":"12D3desk","node_name":"desk","pid":1,"uptime_secs":2}"#
                .to_owned(),
        ),
        "GET /api/nodes" => (
            200,
            r#"[{"id":"12D3lap","name":"lap","scope":"ab","role":"member","state":"alive"}]"#.to_owned(),
        ),
        "GET /api/models" => (200, json!([model("ready", "ready")]).to_string()),
        "POST /api/models/drop" => (200, dropped.to_owned()),
        _ => failure(404, "no_such_endpoint", "no"),
    });
    (cli(home.path(), args).run().await, stub)
}

#[tokio::test]
async fn a_drop_names_the_nodes_and_fails_when_one_could_not_be_told() {
    let all = r#"{"model":"gemma","nodes":["12D3desk","12D3lap"],"unreached":[]}"#;
    let (ran, stub) = drop_at(all, &["drop", "gemma"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "dropped gemma at this node, lap\n"), "{ran:?}");
    assert_eq!(stub.bodies("POST /api/models/drop"), [json!({"model": "gemma"})]);

    let some = r#"{"model":"gemma","nodes":["12D3desk"],"unreached":["12D3lap"]}"#;
    let (ran, _stub) = drop_at(some, &["drop", "gemma"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, "dropped gemma at this node\n"));
    assert!(ran.err.contains("gemma may still be served at lap"), "{ran:?}");
    let (ran, _stub) = drop_at(some, &["drop", "gemma", "--json"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    assert_eq!(ran.json()["unreached"], json!(["12D3lap"]));
}

#[tokio::test]
async fn unload_is_a_drop_at_this_node() {
    let (ran, stub) = drop_at(r#"{"model":"gemma","nodes":["12D3desk"]}"#, &["unload", "gem"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "dropped gemma at this node\n"));
    assert_eq!(stub.bodies("POST /api/models/drop"), [json!({"model": "gemma", "node": "12D3desk"})]);
}

#[tokio::test]
async fn a_refusal_is_told_with_its_mend() {
    let home = tempfile::tempdir().expect("a folder");
    let refuse = |_: &Asked, _| failure(424, "missing", "llama-server was not found");
    let _stub = Stub::control(home.path(), refuse);
    let ran = cli(home.path(), &["load", "gemma"]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(ran.err, "error: llama-server was not found\nmend: mend it\n");
    let ran = cli(home.path(), &["load", "gemma", "--json"]).run().await;
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    let error = json!({"code": "missing", "message": "llama-server was not found", "mend": "mend it"});
    assert_eq!(ran.json(), json!({"error": error}));
}

#[tokio::test]
async fn lost_pings_are_counted_and_none_answered_is_a_failure() {
    let home = tempfile::tempdir().expect("a folder");
    let _stub = Stub::control(home.path(), |_, number| match number {
        1 => (200, r#"[{"rtt_ms":0.5,"path":"relayed"}]"#.to_owned()),
        _ => failure(502, "node_unreachable", "lap does not answer"),
    });
    let ran = cli(home.path(), &["ping", "lap", "--count", "3"]).run().await;
    let expected = "\
lap 1: lap does not answer
lap 2: 0.50 ms, relayed
lap 3: lap does not answer
1 of 3 pings answered; round trip 0.50 ms at least, 0.50 ms median, 0.50 ms at most
";
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, expected, ""));
    let ran = cli(home.path(), &["ping", "lap", "--count", "1"]).run().await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: lap does not answer\nmend: mend it\n"));
}

fn pull(state: &str, bytes: u64) -> Value {
    json!({"model": "org/repo/m.gguf", "state": state, "bytes": bytes, "total_bytes": 1_000_000, "detail": "as it is"})
}

/// Plays a node whose download is in these states, one after the other, and then in the last.
async fn pulled(says: Vec<Value>, args: &[&str]) -> (Ran, Stub) {
    let home = tempfile::tempdir().expect("a folder");
    let stub = Stub::control(home.path(), move |asked, number| {
        let view = says[number.min(says.len() - 1)].clone();
        (
            200,
            if asked.what == "GET /api/models/pulls" { json!([view]).to_string() } else { view.to_string() },
        )
    });
    (cli(home.path(), args).run().await, stub)
}

#[tokio::test]
async fn pull_waits_until_the_model_is_here() {
    let mut done = pull("done", 1_000_000);
    done["files"] = json!(["/models/org/repo/m.gguf"]);
    done["checked"] = json!("sha256");
    let says = vec![pull("asking", 0), pull("downloading", 500_000), done];
    let (ran, stub) = pulled(says.clone(), &["models", "pull", "org/repo/m.gguf"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "no terminal, no progress: {ran:?}");
    assert!(
        ran.out.starts_with("/models/org/repo/m.gguf: 1.0 MB after ") && ran.out.contains("SHA-256 checked"),
        "{ran:?}"
    );
    assert_eq!(stub.bodies("POST /api/models/pull"), [json!({"model": "org/repo/m.gguf"})]);
    let (ran, _stub) = pulled(says, &["models", "pull", "org/repo/m.gguf", "--json"]).await;
    assert_eq!(ran.ok_json()["state"], "done");
}

#[tokio::test]
async fn a_pull_that_fails_says_why_and_what_mends_it() {
    let mut failed = pull("failed", 500_000);
    failed["error"] =
        json!({"code": "storage", "message": "the disk of /models is full", "mend": "free 12 MB"});
    let says = vec![pull("downloading", 1), failed];
    let (ran, _stub) = pulled(says.clone(), &["models", "pull", "org/repo/m.gguf"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(ran.err, "error: the disk of /models is full\nmend: free 12 MB\n");
    let (ran, _stub) = pulled(says, &["models", "pull", "org/repo/m.gguf", "--json"]).await;
    assert_eq!((ran.code, &ran.json()["error"]["code"]), (1, &"storage".into()));
}

#[tokio::test]
async fn downloads_are_listed() {
    let (ran, _stub) = pulled(vec![pull("downloading", 500_000)], &["models", "pulls"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(ran.out, "MODEL            STATE        DETAIL\norg/repo/m.gguf  downloading  as it is\n");
}
