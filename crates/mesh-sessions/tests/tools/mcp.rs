//! Servers of the Model Context Protocol, good and bad.

use std::sync::Arc;
use std::time::Duration;

use mesh_sessions::content::ToolOutcome::{Cancelled, Done, Failed};
use mesh_sessions::tool::{Ran, Tool};
use mesh_sessions::tools::{
    Environment, Mcp, McpAt, McpError, McpLimits, McpProgram, McpServer, McpWeb, Secrets,
};
use serde_json::{Value, json};

use crate::mcp_web;
use crate::room::{Room, block_on, call, guard, is_alive, text, until};

fn server(room: &Room, mode: &str) -> McpServer {
    McpServer {
        name: "fake".to_owned(),
        at: McpAt::Program(McpProgram {
            program: std::env::current_exe().unwrap(),
            arguments: vec!["__mcp".into(), mode.into()],
            folder: room.root.clone(),
            environment: Environment::default(),
            confinement: None,
            guard: guard(),
        }),
        secrets: Secrets::new(["sk-live-123456".to_owned()]),
        trusts_hints: true,
        limits: McpLimits { grace: Duration::from_millis(300), ..McpLimits::default() },
    }
}

async fn tool(mcp: &Mcp, name: &str) -> Arc<dyn Tool> {
    let tools = mcp.tools().await.unwrap();
    tools.into_iter().find(|tool| tool.spec().name == format!("fake__{name}")).unwrap()
}

async fn ran(mcp: &Mcp, name: &str, arguments: Value) -> Ran {
    tool(mcp, name).await.run(call(arguments).run).await
}

async fn pid(mcp: &Mcp) -> i32 {
    text(&ran(mcp, "pid", json!({})).await).parse().unwrap()
}

pub(crate) fn the_tools_of_a_server_are_used() {
    let room = Room::new();
    block_on(async {
        let mcp = Mcp::new(server(&room, "good"));
        let tools = mcp.tools().await.unwrap();
        let names: Vec<String> = tools.iter().map(|tool| tool.spec().name).collect();
        let expected = "fake__echo fake__fail fake__big fake__image fake__secret fake__pid fake__die fake__hang \
            fake__grow fake__bad_name__";
        assert_eq!(names.join(" "), expected, "the one with a schema of 100 kB is left out");
        let echo = tools[0].spec();
        assert_eq!((echo.description.as_str(), &echo.parameters["type"]), ("does echo", &json!("object")));
        assert!(tools[0].only_reads(&json!({})) && !tools[1].only_reads(&json!({})));
        let said = |name: &'static str, arguments: Value| {
            let mcp = mcp.clone();
            async move {
                let ran = ran(&mcp, name, arguments).await;
                (ran.outcome, text(&ran))
            }
        };
        assert_eq!(said("echo", json!({"text": "hello"})).await, (Done, "echo: hello".into()));
        assert_eq!(said("bad_name__", json!({"text": "x"})).await, (Done, "bad name/ü: x".into()));
        assert_eq!(said("fail", json!({})).await, (Failed, "it went wrong".into()));
        assert_eq!(said("secret", json!({})).await, (Done, "the key is [secret]".into()));
        assert_eq!(
            said("image", json!({})).await,
            (Done, "[an image that cannot be read][image/png: 3 bytes]".into())
        );
        let (outcome, big) = said("big", json!({})).await;
        assert!(outcome == Done && big.len() < 49 * 1024 && big.contains("left out"), "{}", big.len());
        assert_eq!(said("echo", json!("text")).await.0, Failed);
        let process = pid(&mcp).await;
        mcp.close().await;
        assert!(!is_alive(process));
        assert_eq!(mcp.tools().await.err(), Some(McpError::Closed { server: "fake".to_owned() }));
        let closed = tools[0].run(call(json!({})).run).await;
        assert!(closed.outcome == Failed && text(&closed).contains("is closed"), "{closed:?}");
    });
    let mut wary = server(&room, "good");
    wary.trusts_hints = false;
    block_on(async {
        let echo = tool(&Mcp::new(wary), "echo").await;
        assert!(!echo.only_reads(&json!({})), "its word alone does not count");
    });
}

pub(crate) fn changed_tools_are_seen() {
    let room = Room::new();
    block_on(async {
        let mcp = Mcp::new(server(&room, "good"));
        let before = mcp.tools().await.unwrap().len();
        assert_eq!(ran(&mcp, "grow", json!({})).await.outcome, Done);
        let mut more = false;
        for _ in 0..1000 {
            more = mcp.tools().await.unwrap().len() == before + 1;
            if more {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(more);
        mcp.close().await;
    });
}

pub(crate) fn a_server_that_dies_is_started_again() {
    let room = Room::new();
    block_on(async {
        let mcp = Mcp::new(server(&room, "good"));
        let first = pid(&mcp).await;
        let died = ran(&mcp, "die", json!({})).await;
        assert!(died.outcome == Failed && text(&died).contains("may have done its work"), "{died:?}");
        let second = pid(&mcp).await;
        assert!(first != second && !is_alive(first));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(second).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        until("it is gone", || (!is_alive(second)).then_some(())).await;
        // The end may reach the client after the call: such a call fails and is not repeated.
        let mut third = ran(&mcp, "pid", json!({})).await;
        if third.outcome == Failed {
            third = ran(&mcp, "pid", json!({})).await;
        }
        assert_eq!(third.outcome, Done, "{third:?}");
        mcp.close().await;
    });
}

pub(crate) fn a_server_that_never_was_one_is_said() {
    let room = Room::new();
    for (mode, why) in [
        ("dead", "its last words: no configuration found, key [secret] unused"),
        ("silent", "not ready within 1 s"),
        ("garbage", "not ready within 1 s"),
        ("nonsense", "not ready within 1 s"),
    ] {
        let mut bad = server(&room, mode);
        bad.limits.start = Duration::from_secs(if mode == "dead" { 60 } else { 1 });
        bad.limits.message_bytes = 64 * 1024;
        block_on(async {
            let mcp = Mcp::new(bad);
            let error = mcp.tools().await.err().unwrap();
            assert!(matches!(error, McpError::NotStarted { .. }), "{mode}: {error}");
            assert!(error.to_string().contains(why), "{mode}: {error}");
            mcp.close().await;
        });
    }
    let mut missing = server(&room, "good");
    let McpAt::Program(at) = &mut missing.at else { unreachable!() };
    at.program = "/nonexistent/server".into();
    block_on(async {
        let mcp = Mcp::new(missing);
        let error = mcp.tools().await.err().unwrap().to_string();
        assert!(error.contains("cannot execute /nonexistent/server"), "{error}");
        let mut resting = None;
        for _ in 0..4 {
            resting = mcp.tools().await.err();
        }
        assert!(matches!(resting, Some(McpError::Resting { .. })), "{resting:?}");
    });
}

pub(crate) fn a_server_that_floods_still_answers() {
    let room = Room::new();
    block_on(async {
        let mcp = Mcp::new(server(&room, "flood"));
        for number in 0..20 {
            let ran = ran(&mcp, "echo", json!({"text": number.to_string()})).await;
            assert_eq!((ran.outcome, text(&ran)), (Done, format!("echo: {number}")));
        }
        mcp.close().await;
    });
}

pub(crate) fn an_endless_list_is_cut() {
    let room = Room::new();
    block_on(async {
        let mcp = Mcp::new(server(&room, "huge"));
        let tools = mcp.tools().await.unwrap();
        assert_eq!(tools.len(), 128);
        assert!(tools.iter().all(|tool| tool.spec().name.len() <= 64));
        mcp.close().await;
    });
}

pub(crate) fn a_call_that_hangs_ends() {
    let room = Room::new();
    let mut slow = server(&room, "good");
    slow.limits.call = Duration::from_millis(500);
    block_on(async {
        let mcp = Mcp::new(slow);
        let process = pid(&mcp).await;
        let hung = ran(&mcp, "hang", json!({})).await;
        assert!(hung.outcome == Failed && text(&hung).contains("did not answer within"), "{hung:?}");
        assert_eq!(pid(&mcp).await, process, "it answers others, so it stays");
        mcp.close().await;
    });
    let mut deaf = server(&room, "deaf");
    deaf.limits.call = Duration::from_millis(500);
    block_on(async {
        let mcp = Mcp::new(deaf);
        let process = pid(&mcp).await;
        assert_eq!(ran(&mcp, "hang", json!({})).await.outcome, Failed);
        assert_ne!(pid(&mcp).await, process, "it answers nothing, so it is started anew");
        assert!(!is_alive(process));
        mcp.close().await;
    });
    block_on(async {
        let mcp = Mcp::new(server(&room, "good"));
        let hang = tool(&mcp, "hang").await;
        let call = call(json!({}));
        let cancel = call.cancel.clone();
        let run = tokio::spawn(hang.run(call.run));
        cancel.cancel();
        assert_eq!(run.await.unwrap().outcome, Cancelled);
        mcp.close().await;
    });
}

pub(crate) fn the_last_handle_takes_its_server_along() {
    let room = Room::new();
    block_on(async {
        let mcp = Mcp::new(server(&room, "stubborn"));
        let process = pid(&mcp).await;
        assert!(is_alive(process));
        drop(mcp);
        until("it is gone", || (!is_alive(process)).then_some(())).await;
    });
}

fn at_address(room: &Room, url: &str) -> McpServer {
    let headers = [("authorization".to_owned(), "Bearer sk-live-123456".to_owned())].into();
    McpServer { at: McpAt::Web(McpWeb { url: url.to_owned(), headers }), ..server(room, "good") }
}

pub(crate) fn a_server_at_an_address_is_used() {
    let room = Room::new();
    for mode in ["json", "events", "session"] {
        let (url, _) = mcp_web::serve(mode);
        block_on(async {
            let mcp = Mcp::new(at_address(&room, &url));
            let said = ran(&mcp, "echo", json!({"text": mode})).await;
            assert_eq!((said.outcome, text(&said)), (Done, format!("echo: {mode}")));
            let said = ran(&mcp, "secret", json!({})).await;
            assert_eq!(text(&said), "the key is [secret]");
            mcp.close().await;
        });
    }
    let shown = format!("{:?}", at_address(&room, "http://127.0.0.1:1/"));
    assert!(!shown.contains("sk-live"), "{shown}");
}

pub(crate) fn a_bad_server_at_an_address_is_said() {
    let room = Room::new();
    let (elsewhere, asked) = mcp_web::serve("json");
    for (mode, why) in [
        ("refusing", "401"),
        ("endless", "larger than 65536 bytes"),
        ("endless-events", ""),
        ("nonsense", ""),
        ("silent", "not ready within 1 s"),
        (elsewhere.as_str(), "307"),
    ] {
        let (url, _) = mcp_web::serve(mode);
        let mut bad = at_address(&room, &url);
        bad.limits.start = Duration::from_secs(if mode == "silent" { 1 } else { 20 });
        bad.limits.message_bytes = 64 * 1024;
        block_on(async {
            let mcp = Mcp::new(bad);
            let error = mcp.tools().await.err().unwrap();
            assert!(matches!(error, McpError::NotStarted { .. }), "{mode}: {error}");
            assert!(error.to_string().contains(why), "{mode}: {error}");
            mcp.close().await;
        });
    }
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 0, "keys do not go where a server points");
    block_on(async {
        let mcp = Mcp::new(at_address(&room, "http://127.0.0.1:1/mcp"));
        assert!(matches!(mcp.tools().await, Err(McpError::NotStarted { .. })));
    });
}
