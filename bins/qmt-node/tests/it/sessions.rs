//! Sessions of a node: over its control socket, over the death of the node, and from another node.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use mesh_control::{
    Client, CreateSession, EndReason, EventsQuery, Happened, InviteRequest, JoinRequest, PromptPart,
    PromptSession, SessionEvent, SessionItem, SessionQuery, SessionState, SetAgentRoute,
};
use uuid::Uuid;

use crate::support::process::Folder;
use crate::support::script::{MODEL, Script};
use crate::support::{PATIENCE, until};

/// A node with one agent that may use the tools.
pub(crate) fn configure(folder: &Folder, script: &Script, tools: &str) {
    configure_agent(folder, script, "coder", tools);
}

pub(crate) fn configure_agent(folder: &Folder, script: &Script, agent: &str, tools: &str) {
    let project = folder.beside("project");
    let text = format!(
        "{}[api]\nport = 0\n[[agents]]\nid = \"{agent}\"\ndescription = \"writes code\"\nmodel = \"{MODEL}\"\n\
         workspace = \"{}\"\ntools = [{tools}]\n[[agents.policy]]\ntools = [\"*\"]\nthen = \"allow\"\n",
        script.as_provider(),
        project.display(),
    );
    folder.configure(&text);
}

pub(crate) async fn begin(client: &Client, agent: &str) -> String {
    let new =
        CreateSession { id: Uuid::now_v7().to_string(), agent: agent.to_owned(), ..CreateSession::default() };
    let view = client.create_session(&new).await.unwrap();
    assert_eq!((view.id, view.state), (new.id.clone(), SessionState::Created));
    assert_eq!(client.create_session(&new).await.unwrap().id, new.id, "the same again is the same session");
    format!("{}@{}", new.id, view.node)
}

pub(crate) async fn prompt(client: &Client, session: &str, text: &str) {
    let parts = vec![PromptPart::Text { text: text.to_owned() }];
    let prompt = PromptSession { session: session.to_owned(), prompt: text.len().to_string(), parts };
    client.prompt(&prompt).await.unwrap();
}

/// The events after a number, up to the end of a turn.
pub(crate) async fn to_the_end(client: &Client, session: &str, after: u64) -> Vec<SessionEvent> {
    let query = EventsQuery { session: session.to_owned(), after, past: false };
    let mut events = client.session_events(&query).await.unwrap();
    let mut read = Vec::new();
    loop {
        let item = tokio::time::timeout(PATIENCE, events.next()).await.expect("no event came").unwrap();
        match item.expect("the stream has an end") {
            SessionItem::Event(event) => read.push(event),
            SessionItem::End(end) => panic!("{end:?} after {read:?}"),
        }
        if matches!(read.last().map(SessionEvent::happened), Some(Happened::TurnEnded { .. })) {
            return read;
        }
    }
}

pub(crate) fn count(events: &[SessionEvent], kind: &str) -> usize {
    events.iter().filter(|event| event.kind() == kind).count()
}

pub(crate) fn is_gapless(events: &[SessionEvent], after: u64) -> bool {
    events.iter().zip(after + 1..).all(|(event, number)| event.number == number)
}

/// The text of what the tools returned.
pub(crate) fn results(events: &[SessionEvent]) -> String {
    let ended = events.iter().filter(|event| event.kind() == "tool_ended");
    ended.map(|event| event.fields["result"].to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_goes_on_where_it_was_when_its_node_is_killed_in_the_middle() {
    let (folder, script) = (Folder::new(), Script::start().await);
    configure(&folder, &script, "\"edit\"");
    let file = folder.beside("project").join("hello.txt");
    std::fs::write(&file, "hello wrold\n").unwrap();
    let mut node = folder.start(&[]).await;
    let agents = node.client.agents().await.unwrap();
    assert_eq!(
        (agents[0].name.as_str(), agents[0].tools.as_slice()),
        ("coder", ["edit".to_owned()].as_slice())
    );
    let session = begin(&node.client, "coder").await;
    let query = EventsQuery { session: session.clone(), ..EventsQuery::default() };
    let mut live = node.client.session_events(&query).await.unwrap();
    // The answer after the tool is not to end before the node does.
    script.hold_from(2);
    prompt(
        &node.client,
        &session,
        r#"tool edit {"path":"hello.txt","old_string":"wrold","new_string":"world"}"#,
    )
    .await;
    let mut first = Vec::new();
    while count(&first, "tool_ended") == 0 {
        match tokio::time::timeout(PATIENCE, live.next()).await.unwrap().unwrap() {
            Some(SessionItem::Event(event)) => first.push(event),
            other => panic!("{other:?} after {first:?}"),
        }
    }
    script.wait_begun(2).await;
    node.kill();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "hello world\n");
    script.release();
    let mut node = folder.start(&[]).await;
    let at = first.last().unwrap().number;
    let rest = to_the_end(&node.client, &session, at).await;
    assert!(is_gapless(&first, 0) && is_gapless(&rest, at), "{first:?} {rest:?}");
    let all: Vec<SessionEvent> = first.into_iter().chain(rest).collect();
    for kind in ["prompted", "turn_started", "tool_started", "tool_ended", "turn_ended"] {
        assert_eq!(count(&all, kind), 1, "{kind} in {all:?}");
    }
    assert!(
        all.iter()
            .any(|event| event.fields.get("text").is_some_and(|text| text.to_string().contains("heard: ")))
    );
    let past = EventsQuery { session: session.clone(), after: all.last().unwrap().number, past: true };
    let end = node.client.session_events(&past).await.unwrap().next().await.unwrap();
    assert!(matches!(end, Some(SessionItem::End(end)) if end.end == EndReason::Past));
    assert!(node.terminate().await.success());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "hello world\n");
}

/// Run by a shell that a tool started, and by nobody else: asks a control socket, and prints what it says.
#[test]
#[ignore = "it is a program of another test"]
fn asks_the_control_socket() {
    let Some(socket) = std::env::var_os("ASKED_SOCKET") else { return };
    let mut stream = UnixStream::connect(&socket).unwrap();
    // Who is turned away may not even get this far.
    let _ = stream.write_all(b"GET /api/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    println!(
        "answered {:?}: {}",
        read.map_err(|error| error.kind()),
        answer.lines().next().unwrap_or("nothing")
    );
}

fn asking(socket: &Path) -> String {
    let program = std::env::current_exe().unwrap();
    format!(
        "ASKED_SOCKET={} {} --ignored --exact --nocapture sessions::asks_the_control_socket",
        socket.display(),
        program.display()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tool_starts_reaches_neither_the_nodes_files_nor_its_control_socket() {
    let (folder, script) = (Folder::new(), Script::start().await);
    configure(&folder, &script, "\"shell\", \"read_file\"");
    let program = std::env::current_exe().unwrap();
    let config = std::fs::read_to_string(folder.home().join("config.toml")).unwrap();
    let readable = format!("tools = [\"shell\", \"read_file\"]\nread = [\"{}\"]", program.display());
    folder.configure(&config.replace("tools = [\"shell\", \"read_file\"]", &readable));
    let node = folder.start(&[]).await;
    let (key, socket) = (folder.home().join("mesh_identity.key"), folder.home().join("node.sock"));
    // As the node's user, both are there.
    assert!(std::fs::read(&key).is_ok());
    let own = std::process::Command::new("sh").args(["-c", &asking(&socket)]).output().unwrap();
    assert!(String::from_utf8_lossy(&own.stdout).contains("HTTP/1.1 200"), "{own:?}");

    let session = begin(&node.client, "coder").await;
    let command =
        format!("cat {} && echo OPEN; ls {}; {}", key.display(), folder.home().display(), asking(&socket));
    let arguments = serde_json::json!({ "command": command });
    prompt(&node.client, &session, &format!("tool shell {arguments}")).await;
    let said = results(&to_the_end(&node.client, &session, 0).await);
    assert!(said.contains("answered") && !said.contains("HTTP/1.1"), "{said}");
    if landlock_is_there() {
        assert!(said.contains("ermission denied") && !said.contains("OPEN"), "{said}");
        assert!(!said.contains("node.db"), "{said}");
    }
}

/// Elsewhere nothing is confined.
#[cfg(target_os = "linux")]
pub(crate) fn landlock_is_there() -> bool {
    use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    strict.handle_access(AccessFs::from_all(ABI::V1)).and_then(|ruleset| ruleset.create()).is_ok()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn landlock_is_there() -> bool {
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_another_node_is_held_like_an_own_one_and_outlives_its_host() {
    let (there, here, script) = (Folder::new(), Folder::new(), Script::start().await);
    configure(&there, &script, "\"edit\"");
    here.configure("[api]\nport = 0\n");
    let (mut host, node) =
        tokio::join!(there.start(&["--node-name", "gpu"]), here.start(&["--node-name", "desk"]));
    let invite = host.client.invite(&InviteRequest::default()).await.unwrap();
    node.client.join(&JoinRequest { token: invite.token }).await.unwrap();
    until("the agent is known", || async {
        let agents = node.client.agents().await.unwrap();
        agents
            .iter()
            .any(|agent| agent.name == "coder" && agent.node_name == "gpu" && !agent.local)
            .then_some(())
    })
    .await;
    let session = begin(&node.client, "coder@gpu").await;
    script.hold_from(1);
    prompt(&node.client, &session, "hello there").await;
    let query = EventsQuery { session: session.clone(), ..EventsQuery::default() };
    let mut live = node.client.session_events(&query).await.unwrap();
    script.wait_begun(1).await;
    host.kill();
    script.release();
    let _host = there.start(&["--node-name", "gpu"]).await;
    // The same stream goes on over the death of the host.
    let mut read = Vec::new();
    while count(&read, "turn_ended") == 0 {
        match tokio::time::timeout(PATIENCE * 2, live.next()).await.expect("no event came").unwrap() {
            Some(SessionItem::Event(event)) => read.push(event),
            other => panic!("{other:?} after {read:?}"),
        }
    }
    assert!(is_gapless(&read, 0) && count(&read, "prompted") == 1, "{read:?}");
    let answers: Vec<_> = read.iter().filter(|event| event.kind() == "answered").collect();
    assert!(answers.len() == 1 && answers[0].fields["text"] == "heard: hello there", "{read:?}");
    let listed = node.client.sessions(&SessionQuery { all: true, ..SessionQuery::default() }).await.unwrap();
    assert!(listed.sessions.iter().any(|view| session.starts_with(&view.id)), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_just_started_asks_for_patience_with_sessions_of_others() {
    let (there, here, script) = (Folder::new(), Folder::new(), Script::start().await);
    configure(&there, &script, "\"edit\"");
    here.configure("[api]\nport = 0\n");
    let (mut host, mut node) =
        tokio::join!(there.start(&["--node-name", "gpu"]), here.start(&["--node-name", "desk"]));
    let invite = host.client.invite(&InviteRequest::default()).await.unwrap();
    node.client.join(&JoinRequest { token: invite.token }).await.unwrap();
    until("the agent is known", || async {
        let agents = node.client.agents().await.unwrap();
        agents.iter().any(|agent| agent.name == "coder" && !agent.local).then_some(())
    })
    .await;
    let session = begin(&node.client, "coder@gpu").await;
    host.kill();
    node.kill();
    let node = here.start(&["--node-name", "desk"]).await;
    let (id, _) = session.split_once('@').unwrap();
    let parts = vec![PromptPart::Text { text: "hello".to_owned() }];
    let prompt = PromptSession { session: session.clone(), prompt: "p".to_owned(), parts };
    // It waits, or is told to ask again; nobody says that there is no such node.
    let asked = async {
        loop {
            match node.client.prompt(&prompt).await {
                Err(error) if error.may_pass() => {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await
                }
                done => return done,
            }
        }
    };
    let (written, _host) = tokio::join!(asked, there.start(&["--node-name", "gpu"]));
    assert_eq!(written.unwrap().session, id);
    let read = to_the_end(&node.client, &session, 0).await;
    assert!(count(&read, "prompted") == 1 && count(&read, "answered") == 1, "{read:?}");
    let typo = node.client.session(&format!("{id}@nowhere")).await.unwrap_err();
    assert!(!typo.may_pass(), "{typo}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_goes_to_an_agent_of_another_node_and_does_not_come_back() {
    let (there, here, script) = (Folder::new(), Folder::new(), Script::start().await);
    configure_agent(&there, &script, "worker", "\"delegate\"");
    configure_agent(&here, &script, "lead", "\"delegate\"");
    let (gpu, desk) =
        tokio::join!(there.start(&["--node-name", "gpu"]), here.start(&["--node-name", "desk"]));
    let invite = gpu.client.invite(&InviteRequest::default()).await.unwrap();
    desk.client.join(&JoinRequest { token: invite.token }).await.unwrap();
    for (node, agent) in [(&desk, "worker"), (&gpu, "lead")] {
        until(&format!("{agent} is known"), || async {
            let agents = node.client.agents().await.unwrap();
            agents.iter().any(|known| known.name == agent && !known.local).then_some(())
        })
        .await;
    }
    let session = begin(&desk.client, "lead").await;
    prompt(&desk.client, &session, r#"tool delegate {"agent":"worker@gpu","task":"hello"}"#).await;
    let first = to_the_end(&desk.client, &session, 0).await;
    assert!(results(&first).contains("heard: hello"), "{first:?}");
    // The model was told who can be asked.
    let asked = serde_json::to_string(&script.asked()).unwrap();
    assert!(asked.contains("worker@gpu"), "{asked}");
    let begun = gpu.client.sessions(&SessionQuery::default()).await.unwrap().sessions;
    assert!(begun.len() == 1 && begun[0].labels.contains_key("delegated-by"), "{begun:?}");
    let log = to_the_end(&gpu.client, &begun[0].id, 0).await;
    assert_eq!(log[1].kind(), "delegated");

    // Who waits for the answer is not asked in turn.
    let back = r#"tool delegate {"agent":"lead@desk","task":"hello"}"#;
    let task = serde_json::json!({ "agent": "worker", "task": back });
    prompt(&desk.client, &session, &format!("tool delegate {task}")).await;
    let second = to_the_end(&desk.client, &session, first.last().unwrap().number).await;
    assert!(results(&second).contains("waits for the answer to this very task"), "{second:?}");

    let route = SetAgentRoute { agent: "lead".into(), to: Some("gpu".into()) };
    let set = desk.client.set_agent_route(&route).await.unwrap();
    let node = gpu.client.status().await.unwrap().node_id;
    assert_eq!((set.to.as_str(), set.node.as_ref(), set.set), ("gpu", Some(&node), true));
    prompt(&desk.client, &session, "over there").await;
    let third = to_the_end(&desk.client, &session, second.last().unwrap().number).await;
    assert!(count(&third, "answered") == 1, "{third:?}");
    let reset = desk.client.set_agent_route(&SetAgentRoute { to: None, ..route }).await.unwrap();
    assert_eq!((reset.to.as_str(), reset.set), ("any", false));
}
