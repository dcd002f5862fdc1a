//! Sessions that are handed from node to node.

use mesh_control::{
    Client, EventsQuery, InviteRequest, JoinRequest, MoveSession, RightView, Role, SearchQuery, SessionEvent,
    SessionEvents, SessionItem, SessionQuery, SessionState, ShareSession, ShareView,
};
use uuid::Uuid;

use crate::sessions::{begin, configure, count, is_gapless, prompt, to_the_end};
use crate::support::process::{Folder, Process};
use crate::support::script::Script;
use crate::support::{PATIENCE, until};

/// Two members of a mesh with the same agent.
struct Pair {
    script: Script,
    folders: [Folder; 2],
    desk: Process,
    gpu: Process,
}

const NAMES: [&str; 2] = ["desk", "gpu"];

impl Pair {
    async fn start() -> Self {
        let (folders, script) = ([Folder::new(), Folder::new()], Script::start().await);
        folders.iter().for_each(|folder| configure(folder, &script, ""));
        let (desk, gpu) = tokio::join!(
            folders[0].start(&["--node-name", NAMES[0]]),
            folders[1].start(&["--node-name", NAMES[1]])
        );
        let pair = Self { script, desk, gpu, folders };
        let invite = pair.gpu.client.invite(&InviteRequest::default()).await.unwrap();
        pair.desk.client.join(&JoinRequest { token: invite.token }).await.unwrap();
        pair.see_each_other().await;
        pair
    }

    async fn see_each_other(&self) {
        for client in [&self.desk.client, &self.gpu.client] {
            until("the other's agent is known", || async {
                let agents = client.agents().await.unwrap();
                agents.iter().any(|agent| agent.name == "coder" && !agent.local).then_some(())
            })
            .await;
        }
    }

    /// A session at the desk that the other node may watch, with a turn whose answer does not end.
    async fn busy_session(&self) -> String {
        let session = begin(&self.desk.client, "coder").await;
        let node = Some(self.gpu.client.status().await.unwrap().node_id);
        let shares = vec![ShareView { node, scope: None, role: None, right: RightView::Watch }];
        self.desk.client.share_session(&ShareSession { session: session.clone(), shares }).await.unwrap();
        self.script.hold_from(1);
        prompt(&self.desk.client, &session, "hello there").await;
        read_to(&mut watch(&self.desk.client, &session).await, "model_called").await;
        session
    }
}

fn moving(session: &str, to: &str) -> MoveSession {
    MoveSession { session: session.to_owned(), to: to.to_owned() }
}

async fn watch(client: &Client, session: &str) -> SessionEvents {
    let query = EventsQuery { session: session.to_owned(), ..EventsQuery::default() };
    client.session_events(&query).await.unwrap()
}

async fn read_to(events: &mut SessionEvents, kind: &str) -> Vec<SessionEvent> {
    let mut read: Vec<SessionEvent> = Vec::new();
    while read.last().is_none_or(|event| event.kind() != kind) {
        match tokio::time::timeout(PATIENCE, events.next()).await {
            Ok(Ok(Some(SessionItem::Event(event)))) => read.push(event),
            other => panic!("{other:?} after {read:?}"),
        }
    }
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_goes_on_at_the_node_that_its_session_moves_to_and_all_who_watch_see_it() {
    let pair = Pair::start().await;
    let (desk, gpu) = (&pair.desk.client, &pair.gpu.client);
    let session = pair.busy_session().await;
    let (mut here, mut there) = (watch(desk, &session).await, watch(gpu, &session).await);
    let stray = desk.move_session(&moving(&session, "nobody")).await.unwrap_err();
    assert_eq!(stray.code(), "unknown_node", "{stray:?}");
    let moved = desk.move_session(&moving(&session, "gpu")).await.unwrap();
    assert_eq!(moved.node_name, "gpu", "{moved:?}");
    pair.script.release();
    let (seen, seen_there) =
        tokio::join!(read_to(&mut here, "turn_ended"), read_to(&mut there, "turn_ended"));
    assert!(is_gapless(&seen, 0) && seen == seen_there, "{seen:?} {seen_there:?}");
    for kind in ["prompted", "turn_started", "handed_over", "taken_over", "answered", "turn_ended"] {
        assert_eq!(count(&seen, kind), 1, "{kind} in {seen:?}");
    }

    // The address that names the old host leads on.
    let shown = desk.session(&session).await.unwrap();
    assert_eq!((shown.node_name.as_str(), shown.id), ("gpu", moved.id.clone()));
    prompt(desk, &session, "and once more").await;
    let more = to_the_end(desk, &session, seen.last().unwrap().number).await;
    assert_eq!(count(&more, "answered"), 1, "{more:?}");
    let all = desk.sessions(&SessionQuery { all: true, ..SessionQuery::default() }).await.unwrap();
    let listed: Vec<_> = all.sessions.iter().map(|view| (&view.id, view.node_name.as_str())).collect();
    assert_eq!(listed, [(&moved.id, "gpu")]);

    // The old host fetches it back.
    let back = desk.move_session(&moving(&session, "desk")).await.unwrap();
    assert_eq!((back.node_name.as_str(), back.epoch), ("desk", 3), "{back:?}");
    prompt(desk, &session, "and here again").await;
    let rest = to_the_end(desk, &session, more.last().unwrap().number).await;
    let both = tokio::join!(read_to(&mut here, "taken_over"), read_to(&mut there, "taken_over"));
    assert_eq!(both.0, both.1);
    assert_eq!(count(&rest, "answered"), 1, "{rest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_where_it_is_when_the_other_node_has_no_such_agent() {
    let mut pair = Pair::start().await;
    assert!(pair.gpu.terminate().await.success());
    let other = pair.folders[1].home().join("config.toml");
    let config = std::fs::read_to_string(&other).unwrap();
    std::fs::write(other, config.replace("\"coder\"", "\"painter\"")).unwrap();
    pair.gpu = pair.folders[1].start(&["--node-name", "gpu"]).await;
    let desk = &pair.desk.client;
    until("the other agent is known", || async {
        desk.agents().await.unwrap().iter().any(|agent| agent.name == "painter").then_some(())
    })
    .await;
    let session = begin(desk, "coder").await;
    let refused = desk.move_session(&moving(&session, "gpu")).await.unwrap_err();
    assert_eq!(refused.code(), "unknown_agent", "{refused:?}");
    prompt(desk, &session, "hello").await;
    let log = to_the_end(desk, &session, 0).await;
    assert_eq!((count(&log, "handed_over"), count(&log, "answered")), (0, 1), "{log:?}");
}

/// Whoever dies while a session is on its way: one node has it in the end, and its turn ends once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_has_one_host_though_either_node_is_killed_while_it_moves() {
    let mut pair = Pair::start().await;
    for killed in [0, 1] {
        let session = pair.busy_session().await;
        let mut here = watch(&pair.desk.client, &session).await;
        let client = pair.desk.client.clone();
        let to_gpu = moving(&session, "gpu");
        let asked = tokio::spawn(async move { client.move_session(&to_gpu).await });
        read_to(&mut here, "handed_over").await;
        let process = if killed == 0 { &mut pair.desk } else { &mut pair.gpu };
        process.kill();
        *process = pair.folders[killed].start(&["--node-name", NAMES[killed]]).await;
        // The answer to it may be lost with the node.
        let _ = asked.await.unwrap();
        pair.script.release();
        pair.see_each_other().await;
        for client in [&pair.desk.client, &pair.gpu.client] {
            until("it is at the other node", || async {
                let shown = client.session(&session).await.ok()?;
                (shown.node_name == "gpu" && shown.turn.is_none()).then_some(())
            })
            .await;
        }
        let log = to_the_end(&pair.desk.client, &session, 0).await;
        assert!(is_gapless(&log, 0), "{log:?}");
        for kind in ["prompted", "turn_started", "handed_over", "taken_over", "turn_ended"] {
            assert_eq!(count(&log, kind), 1, "{kind} with {} killed: {log:?}", NAMES[killed]);
        }
        prompt(&pair.desk.client, &session, "and now").await;
        let more = to_the_end(&pair.desk.client, &session, log.last().unwrap().number).await;
        assert_eq!(count(&more, "answered"), 1, "{more:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_of_another_node_is_shared_exported_and_searched_from_here() {
    let pair = Pair::start().await;
    let (desk, gpu) = (&pair.desk.client, &pair.gpu.client);
    let session = begin(desk, "coder@gpu").await;
    prompt(desk, &session, "the blue whale").await;
    to_the_end(desk, &session, 0).await;
    let me = desk.status().await.unwrap().node_id;
    let shown = desk.session(&session).await.unwrap();
    assert_eq!((shown.owner.node.as_str(), shown.right, shown.epoch), (me.as_str(), Some(RightView::Own), 1));
    assert_eq!((shown.state, shown.shares), (SessionState::Waiting, Some(Vec::new())));
    let query = SessionQuery { node: Some("gpu".into()), ..SessionQuery::default() };
    let listed = desk.sessions(&query).await.unwrap().sessions;
    assert_eq!((listed.len(), listed[0].state, &listed[0].owner), (1, SessionState::Waiting, &shown.owner));
    for (state, unfinished, found) in
        [(Some(SessionState::Active), false, 1), (Some(SessionState::Archived), false, 0), (None, true, 0)]
    {
        let query = SessionQuery { state, unfinished, ..query.clone() };
        assert_eq!(desk.sessions(&query).await.unwrap().sessions.len(), found, "{query:?}");
    }
    let scope = desk.status().await.unwrap().scopes[0].id.clone();
    let with =
        ShareView { node: None, scope: Some(scope), role: Some(Role::Member), right: RightView::Prompt };
    for shares in [vec![with], Vec::new()] {
        let share = ShareSession { session: session.clone(), shares: shares.clone() };
        desk.share_session(&share).await.unwrap();
        assert_eq!(desk.session(&session).await.unwrap().shares, Some(shares));
    }
    let read = async |client: &Client, session: &str| {
        let mut export = client.export_session(session).await.unwrap();
        let mut text = Vec::new();
        while let Some(bytes) = export.next().await.unwrap() {
            text.extend_from_slice(&bytes);
        }
        text
    };
    let (brought, stored) = (read(desk, &session).await, read(gpu, &session).await);
    assert!(brought == stored && !brought.is_empty());
    let unknown = format!("{}@gpu", Uuid::now_v7());
    assert_eq!(desk.export_session(&unknown).await.unwrap_err().code(), "unknown_session");
    let query = SearchQuery { words: "blue whale".into(), node: Some("gpu".into()), limit: None };
    let hits = desk.search_sessions(&query).await.unwrap();
    assert!(hits.len() == 2 && hits.iter().all(|hit| session.starts_with(&hit.session)), "{hits:?}");
    // A copy of it here is another thing than the session there.
    desk.import_session(std::io::Cursor::new(brought)).await.unwrap();
    prompt(desk, &session, "and the grey one").await;
    assert_eq!(desk.session(&session).await.unwrap().node_name, "gpu");
}
