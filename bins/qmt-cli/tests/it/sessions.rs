//! Sessions with agents: the commands before a node that plays its part.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::host::{ADDRESS, Host, ID, Memory, answers, asks, refused};
use crate::support::{CLI, DEADLINE, Ran, cli};

async fn run(host: &Host, args: &[&str]) -> Ran {
    cli(host.home.path(), args).run().await
}

fn answering() -> Host {
    Host::start(Memory { script: answers(&["Elbe", ", Oder"]), ..Memory::default() })
}

#[tokio::test]
async fn a_task_is_delegated_and_its_answer_alone_goes_to_standard_output() {
    let host = answering();
    let ran = run(&host, &["delegate", "coder@gpu", "Name two", "rivers", "--archive"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Elbe, Oder\n"), "{ran:?}");
    assert_eq!(ran.err, format!("session {ID} with coder at gpu\n"));
    let created = &host.stub.bodies("POST /api/sessions")[0];
    assert_eq!(created["agent"], "coder@gpu");
    let prompt = &host.stub.bodies("POST /api/sessions/prompt")[0];
    assert_eq!(
        (&prompt["session"], &prompt["parts"]),
        (&ADDRESS.into(), &json!([{"type": "text", "text": "Name two rivers"}]))
    );
    for id in [&created["id"], &prompt["prompt"]] {
        assert_eq!(id.as_str().map(str::len), Some(36), "a UUID: {id}");
    }
    assert_eq!(host.stub.bodies("POST /api/sessions/archive"), [json!({"session": ADDRESS})]);

    let seen = run(&host, &["delegate", "coder", "again", "--json"]).await.ok_json();
    assert_eq!(
        (&seen["text"], &seen["outcome"], &seen["input_tokens"], &seen["session"]),
        (&"Elbe, Oder".into(), &"done".into(), &7.into(), &ID.into())
    );
}

#[tokio::test]
async fn the_exit_code_says_how_a_turn_ended() {
    for (outcome, code, said) in [
        (json!({"type": "failed", "why": "no model answers"}), 1, "(the turn failed: no model answers)"),
        (
            json!({"type": "limit_reached", "limit": "model_calls"}),
            4,
            "(the turn reached its limit of model calls)",
        ),
        (json!({"type": "cancelled", "by": {"node": "12D3lap"}}), 5, "(the turn was cancelled)"),
        (json!({"type": "eclipsed"}), 1, "(the turn was eclipsed)"),
    ] {
        let mut script = answers(&["Elb"]);
        script.last_mut().expect("an end")["outcome"] = outcome;
        let host = Host::start(Memory { script, ..Memory::default() });
        let ran = run(&host, &["delegate", "coder", "x"]).await;
        assert_eq!((ran.code, ran.out.as_str()), (code, "Elb\n"), "{ran:?}");
        assert!(ran.err.ends_with(&format!("{said}\n")), "{ran:?}");
    }
}

#[tokio::test]
async fn a_turn_is_seen_once_though_the_connection_breaks_and_the_node_restarts() {
    let breaks = vec![2, 0, 1];
    let mut host =
        Host::start(Memory { script: answers(&["El", "be", ", O", "der"]), breaks, ..Memory::default() });
    let home = host.home.path().to_owned();
    let ran = tokio::spawn(async move { cli(&home, &["delegate", "coder", "x", "--json"]).run().await });
    let reads = |host: &Host| host.stub.bodies("GET /api/sessions/events").len();
    timeout(DEADLINE, async {
        while reads(&host) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it reads");
    host.restart(sleep(Duration::from_millis(300))).await;
    let seen = ran.await.expect("no panic").ok_json();
    assert_eq!((&seen["text"], &seen["outcome"]), (&"Elbe, Oder".into(), &"done".into()));
    let prompted =
        host.memory.lock().expect("no panic").log.iter().filter(|event| event["kind"] == "prompted").count();
    assert_eq!(prompted, 1);
}

#[tokio::test]
async fn an_answer_that_its_node_begins_again_is_told_as_such() {
    let mut script = answers(&["El"]);
    script.truncate(3);
    script.extend(answers(&["Elbe"]).split_off(1));
    let host = Host::start(Memory { script, ..Memory::default() });
    let ran = run(&host, &["delegate", "coder", "x"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "El\nElbe\n"), "{ran:?}");
    assert!(ran.err.ends_with("(the answer broke off and begins again)\n"), "{ran:?}");
    assert_eq!(run(&host, &["delegate", "coder", "x", "--json"]).await.ok_json()["text"], "Elbe");
}

#[tokio::test]
async fn a_prompt_that_a_busy_node_did_not_take_is_sent_again_under_its_id() {
    let refusals = vec![refused(503, "unavailable", "the session is busy; try again")];
    let host = Host::start(Memory { script: answers(&["Elbe"]), refusals, ..Memory::default() });
    let ran = run(&host, &["session", "prompt", "work", "--id", "p1", "Name one"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Elbe\n"), "{ran:?}");
    assert!(ran.err.contains("the session is busy; try again; trying again"), "{ran:?}");
    let sent = host.stub.bodies("POST /api/sessions/prompt");
    assert_eq!((sent.len(), &sent[0]["prompt"], &sent[1]["prompt"]), (2, &"p1".into(), &"p1".into()));

    // The whole command again is the same prompt.
    let ran = run(&host, &["session", "prompt", "work", "--id", "p1", "Name one"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Elbe\n"), "{ran:?}");
    assert_eq!(host.memory.lock().expect("no panic").log.len(), 1 + answers(&["Elbe"]).len());

    let refusals = vec![refused(409, "archived", "the session is archived; fork it to go on")];
    let host = Host::start(Memory { refusals, ..Memory::default() });
    let ran = run(&host, &["session", "prompt", "work", "x", "--json"]).await;
    assert_eq!((ran.code, &ran.json()["error"]["code"]), (1, &"archived".into()));
}

#[tokio::test]
async fn a_tool_waits_until_somebody_decides() {
    for (flag, allowed) in [("allow", true), ("deny", false)] {
        let (script, after_decision) = asks();
        let host = Host::start(Memory { script, after_decision, ..Memory::default() });
        let ran = run(&host, &["delegate", "coder", "Build it", "--tools", flag]).await;
        assert_eq!((ran.code, ran.out.as_str()), (0, "I build it.\nIt has no rule.\n"), "{ran:?}");
        assert_eq!(
            host.stub.bodies("POST /api/sessions/decide"),
            [json!({"session": ADDRESS, "turn": 1, "call": "c1", "allowed": allowed})]
        );
        assert!(
            ran.err.contains("shell {\"command\":\"make\"} waits to be allowed: it can change something\n")
        );
        assert!(ran.err.contains("[shell {\"command\":\"make\"}]\n[shell] failed: no?[2J rule\n"), "{ran:?}");
    }
    // Without a terminal nobody is asked, and somebody decides elsewhere.
    let (script, after_decision) = asks();
    let host = Host::start(Memory { script, after_decision, ..Memory::default() });
    let home = host.home.path().to_owned();
    let delegated = tokio::spawn(async move { cli(&home, &["delegate", "coder", "Build it"]).run().await });
    timeout(DEADLINE, async {
        while run(&host, &["session", "show", "work", "--json"]).await.ok_json()["asked"] == json!([]) {}
    })
    .await
    .expect("it asks");
    let ran = run(&host, &["session", "deny", "work", "c9"]).await;
    assert!(ran.code == 1 && ran.err.contains("no call \"c9\" waits for a decision"), "{ran:?}");
    let ran = run(&host, &["session", "allow", "work"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, "allowed shell {\"command\":\"make\"}\n"), "{ran:?}");
    let ran = delegated.await.expect("no panic");
    assert!(ran.code == 0 && ran.err.contains(&format!("`qmt-cli session allow {ADDRESS}`")), "{ran:?}");
    let ran = run(&host, &["session", "allow", "work"]).await;
    assert!(ran.code == 1 && ran.err.contains("no tool of this session waits"), "{ran:?}");
}

#[tokio::test]
async fn agents_and_sessions_are_listed_and_shown() {
    let host = answering();
    let ran = run(&host, &["agents"]).await;
    assert_eq!(
        ran.out,
        "AGENT  NODE  STATE  MODEL  TOOLS       FOR\ncoder  gpu   ready  gemma  shell,edit  writes code?[2J\n"
    );
    let ran = run(
        &host,
        &["session", "list", "--agent", "coder", "--state", "active", "--unfinished", "--node", "gpu"],
    )
    .await;
    assert!(
        ran.out.starts_with("SESSION ") && ran.out.contains("  work?[2J  coder  gpu   waiting  0       "),
        "{ran:?}"
    );
    assert_eq!(ran.err, "", "the page is not full");
    assert_eq!(
        host.stub.queries("GET /api/sessions"),
        ["agent=coder&state=active&unfinished=true&node=gpu&limit=100"]
    );
    let ran = run(&host, &["session", "list", "--limit", "1"]).await;
    assert_eq!(ran.err, format!("there may be more: --before {ID}\n"));
    let ran = run(&host, &["session", "show", "work@gpu"]).await;
    assert!(
        ran.out.contains("label       team=red\n") && ran.out.contains("shared      watch: 12D3lap\n"),
        "{ran:?}"
    );
    let ran = run(&host, &["session", "search", "two", "rivers"]).await;
    assert!(ran.out.contains("two ?rivers"), "{ran:?}");
    let ran = run(&host, &["session", "show", "nothing"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "error: there is no such session here\n"));
}

#[tokio::test]
async fn what_changes_a_session_says_all_that_the_node_needs() {
    let host = answering();
    for (args, what, body) in [
        (&["name", "work", "new"][..], "name", json!({"session": "work", "name": "new"})),
        (&["name", "work"], "name", json!({"session": "work", "name": null})),
        (&["label", "work", "a=b=c", "team-"], "label", json!({"session": ADDRESS, "labels": {"a": "b=c"}})),
        (
            &["steer", "work", "be", "brief"],
            "steer",
            json!({"session": "work", "parts": [{"type": "text", "text": "be brief"}]}),
        ),
        (&["cancel", "work", "--turn", "3"], "cancel", json!({"session": "work", "turn": 3})),
        (&["suspend", "work", "for", "lunch"], "suspend", json!({"session": "work", "why": "for lunch"})),
        (&["resume", "work"], "resume", json!({"session": "work"})),
        (&["archive", "work"], "archive", json!({"session": "work"})),
        (&["move", "work", "lap"], "move", json!({"session": "work", "to": "lap"})),
        (
            &["share", "work", "--with", "gpu", "--right", "prompt"],
            "share",
            json!({"session": ADDRESS, "shares": [{"node": "12D3lap", "right": "watch"}, {"node": "12D3gpu", "right": "prompt"}]}),
        ),
        (
            &["share", "work", "--with", "lap", "--right", "none"],
            "share",
            json!({"session": ADDRESS, "shares": []}),
        ),
        (
            &["share", "work", "--mesh", "home", "--role", "client"],
            "share",
            json!({"session": ADDRESS, "shares": [{"node": "12D3lap", "right": "watch"}, {"scope": "ab12", "role": "client", "right": "watch"}]}),
        ),
    ] {
        let ran = run(&host, &[&["session"], args].concat()).await;
        assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{args:?}: {ran:?}");
        let sent = host.stub.bodies(&format!("POST /api/sessions/{what}"));
        assert_eq!(sent.last(), Some(&body), "{args:?}");
    }
    let ran = run(&host, &["session", "fork", "work", "--at", "7", "--name", "try"]).await;
    assert_eq!((ran.code, ran.out), (0, format!("{ID}\n")));
    let fork = &host.stub.bodies("POST /api/sessions/fork")[0];
    assert_eq!((&fork["session"], &fork["at"], &fork["name"]), (&"work".into(), &7.into(), &"try".into()));
    let ran = run(&host, &["session", "create", "coder", "--label", "nonsense"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (2, "error: \"nonsense\" is no label: KEY=VALUE is expected\n"));
    let ran =
        run(&host, &["session", "create", "coder", "--id", ID, "--label", "a=b", "--capability", "gpu"])
            .await;
    assert_eq!((ran.code, ran.out), (0, format!("{ID}\n")));
    let created = json!({"id": ID, "agent": "coder", "capabilities": ["gpu"], "labels": {"a": "b"}});
    assert_eq!(host.stub.bodies("POST /api/sessions"), [created]);
}

#[tokio::test]
async fn an_attached_reader_sees_everything_past_and_live_until_the_end() {
    let mut log = vec![json!({"kind": "created", "agent": "coder", "owner": {"node": "12D3desk"}})];
    let long = json!({"blob": "ab", "bytes": 12});
    log.push(json!({"kind": "prompted", "prompt": "p", "by": {"node": "12D3lap"}, "parts": [{"type": "text", "text": long}]}));
    log.extend(answers(&["Elbe"]));
    log.push(json!({"kind": "dreamt", "of": {"sheep": 3}}));
    log.push(json!({"kind": "archived", "by": {"node": "12D3desk"}}));
    let host = Host::start(Memory { log: log.clone(), breaks: vec![3, 2], ..Memory::default() });
    let ran = run(&host, &["session", "attach", "work"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Elbe\n"), "{ran:?}");
    assert!(
        ran.err.contains("> a long text\n")
            && ran.err.contains("\n(event 2)\n")
            && ran.err.ends_with("(archived)\n"),
        "{ran:?}"
    );

    let ran = run(&host, &["session", "attach", "work", "--json", "--past", "--after", "2"]).await;
    let events: Vec<Value> =
        ran.out.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    assert_eq!((ran.code, ran.err.as_str(), events.len()), (0, "", log.len() - 2), "{ran:?}");
    assert_eq!((&events[0]["number"], &events[5]["of"]), (&3.into(), &json!({"sheep": 3})));
}

#[tokio::test]
async fn what_a_tool_prints_is_shown_while_it_runs_by_lines_and_within_bounds() {
    let call = json!({"id": "c1", "name": "shell", "arguments": {"command": "make"}});
    let printed = |text: &str| json!({"kind": "tool_printed", "turn": 1, "call": "c1", "text": text});
    let mut log = vec![
        json!({"kind": "turn_started", "turn": 1, "prompt": "p"}),
        json!({"kind": "answered", "turn": 1, "text": "", "tool_calls": [call], "usage": {}}),
        json!({"kind": "tool_started", "turn": 1, "call": "c1"}),
        printed("cc a.c\ncc "),
        printed("b\u{1b}[2J.c\r\nld"),
    ];
    let end =
        json!({"kind": "tool_ended", "turn": 1, "call": "c1", "result": {"outcome": "done", "parts": []}});
    log.push(end.clone());
    let host = Host::start(Memory { log: log.clone(), ..Memory::default() });
    let ran = run(&host, &["session", "attach", "work", "--past"]).await;
    let shown = "[shell {\"command\":\"make\"}]\n  | cc a.c\n  | cc b?[2J.c\n  | ld\n";
    assert!((ran.code, ran.out.as_str()) == (0, "") && ran.err.ends_with(shown), "{ran:?}");

    log.truncate(3);
    log.push(printed(&format!("{}\n", "x".repeat(10_000))));
    log.push(printed(&"y\n".repeat(10_000)));
    log.push(end);
    let host = Host::start(Memory { log, ..Memory::default() });
    let ran = run(&host, &["session", "attach", "work", "--past"]).await;
    assert!(
        ran.err.lines().count() == 202 && ran.err.len() < 2_000 && ran.err.ends_with("  | …\n"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_session_is_written_to_a_file_and_taken_in_from_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.jsonl");
    let file = path.to_str().expect("text");
    let lines = "{\"qmt_session\":1}\n{\"end\":1,\"blake3\":\"ab\"}\n";
    let export = |body: &'static str| {
        let home = tempfile::tempdir().expect("a folder");
        let stub = crate::stub::Stub::control(home.path(), move |_, _| (200, body.to_owned()));
        (home, stub)
    };
    let (home, _stub) = export(lines);
    let ran = cli(home.path(), &["session", "export", "work", "-o", file]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("written"), lines);
    assert_eq!(mode(&path), 0o600);
    let ran = cli(home.path(), &["session", "export", "work", "-o", file]).run().await;
    assert!(ran.code == 1 && ran.err.contains("cannot be made: File exists"), "{ran:?}");
    let ran = cli(home.path(), &["session", "export", "work"]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (0, lines));
    let (home, _stub) = export("{\"qmt_session\":1}\n{\"num");
    let ran = cli(home.path(), &["session", "export", "work"]).run().await;
    assert!(ran.code == 1 && ran.err.contains("the export broke off before its end"), "{ran:?}");

    let host = answering();
    let ran = run(&host, &["session", "import", file]).await;
    assert_eq!((ran.code, ran.out), (0, format!("{ID}\n")));
    assert_eq!(ran.err, "5 events came in; the last is number 5\n");
    let ran = cli(host.home.path(), &["session", "import", "-"]).input("{\"qmt_session\":1}").run().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(host.stub.bodies("POST /api/sessions/import")[1], json!({"qmt_session": 1}));
    let ran = run(&host, &["session", "import", "/does/not/exist"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[tokio::test]
async fn an_image_is_sent_as_what_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let (png, text) = (folder.path().join("a.jpg"), folder.path().join("a.png"));
    std::fs::write(&png, b"\x89PNG\r\n").expect("written");
    std::fs::write(&text, b"no image").expect("written");
    let host = answering();
    let png = png.to_str().expect("text");
    let ran = run(&host, &["session", "prompt", "work", "--image", png, "--no-wait", "--json"]).await;
    assert_eq!(ran.ok_json()["number"], 1);
    let parts = &host.stub.bodies("POST /api/sessions/prompt")[0]["parts"];
    assert_eq!(parts, &json!([{"type": "image", "media_type": "image/png", "data": "iVBORw0K"}]));
    let ran =
        run(&host, &["session", "prompt", "work", "look", "--image", text.to_str().expect("text")]).await;
    assert!(ran.code == 2 && ran.err.contains("is none that is known"), "{ran:?}");
}

#[tokio::test]
async fn chat_with_an_agent_takes_one_prompt_or_goes_on_with_a_session() {
    let host = answering();
    let ran = run(&host, &["chat", "--agent", "coder@gpu", "Name two"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "Elbe, Oder\n"), "{ran:?}");
    let ran = run(&host, &["chat", "--session", "work", "--json", "again"]).await;
    assert_eq!(ran.ok_json()["text"], "Elbe, Oder");
    assert_eq!(host.stub.bodies("POST /api/sessions").len(), 1);
    let ran = run(&host, &["chat", "--session", "work", "--agent", "painter", "x"]).await;
    assert!(ran.code == 1 && ran.err.contains("is one with coder, not with painter"), "{ran:?}");
    let ran = run(&host, &["chat", "--agent", "coder", "--model", "gemma", "x"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
}

/// Runs its arguments at a terminal. Each line of its input is `WHEN|TEXT`: when WHEN was shown, TEXT is typed.
const AT_A_TERMINAL: &str = r#"
import os, pty, sys
lines = [line.split("|", 1) for line in sys.stdin.read().split("\n") if line]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
shown, at = b"", 0
while True:
    try:
        read = os.read(terminal, 4096)
    except OSError:
        break
    if not read:
        break
    shown += read
    while lines and (found := shown.find(lines[0][0].encode(), at)) >= 0:
        at = found + len(lines[0][0].encode())
        text = lines.pop(0)[1]
        os.write(terminal, b"\x03" if text == "^C" else text.encode() + b"\n")
_, status = os.waitpid(pid, 0)
sys.stdout.write(shown.decode())
sys.exit(os.waitstatus_to_exitcode(status))
"#;

/// What the terminal showed while these lines were typed.
async fn at_a_terminal(home: &Path, args: &[&str], lines: &str) -> String {
    let mut child = Command::new("python3")
        .args(["-c", AT_A_TERMINAL, CLI])
        .args(args)
        .env("QMT_HOME", home)
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
async fn a_conversation_with_an_agent_asks_before_tools_and_goes_on_later() {
    let (script, after_decision) = asks();
    let host = Host::start(Memory { script, after_decision, breaks: vec![0, 3], ..Memory::default() });
    let lines = "> |Build it\nwaits to be allowed|perhaps\ny or n|y\nno rule.|\n> |/exit";
    let shown = at_a_terminal(host.home.path(), &["chat", "--agent", "coder"], lines).await;
    assert!(shown.contains("I build it.") && shown.contains("It has no rule."), "{shown}");
    assert_eq!(shown.matches("I build it.").count(), 1, "{shown}");
    assert_eq!(host.stub.bodies("POST /api/sessions/prompt").len(), 1);
    assert_eq!(host.stub.bodies("POST /api/sessions/decide")[0]["allowed"], true);

    // Later, or after the program was killed: what was said is there.
    host.memory.lock().expect("no panic").script = answers(&["Elbe"]);
    let lines = "It has no rule.|\n> |Name one\nElbe|/exit";
    let shown = at_a_terminal(host.home.path(), &["chat", "--session", "work"], lines).await;
    assert!(shown.contains("> Build it") && shown.contains("Elbe"), "{shown}");
    assert_eq!(host.stub.bodies("POST /api/sessions/prompt").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_cancels_the_turn_and_not_the_conversation() {
    let (script, _) = asks();
    let host = Host::start(Memory { script, ..Memory::default() });
    let lines = "> |Build it\nwaits to be allowed|^C\nnever shown|x";
    let ended = tokio::spawn({
        let home = host.home.path().to_owned();
        async move { at_a_terminal(&home, &["chat", "--agent", "coder"], &format!("{lines}\n")).await }
    });
    timeout(DEADLINE, async {
        while host.stub.bodies("POST /api/sessions/cancel").is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it cancels");
    assert_eq!(host.stub.bodies("POST /api/sessions/cancel"), [json!({"session": ADDRESS, "turn": 1})]);
    let ended_by = json!({"kind": "turn_ended", "turn": 1, "outcome": {"type": "cancelled"}, "usage": {}});
    host.memory.lock().expect("no panic").log.extend([ended_by, json!({"kind": "archived"})]);
    let shown = ended.await.expect("no panic");
    assert!(shown.contains("(the turn was cancelled)") && shown.contains("(archived)"), "{shown}");
}
