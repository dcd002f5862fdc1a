//! The membership half of the scenarios that mesh-llm is tested by, under their numbers there.

use std::path::Path;
use std::sync::{Arc, Mutex};

use mesh_control::{
    Client, ClientError, DropRequest, ErrorCode, EventKind, InviteRequest, JoinRequest, LeaveRequest,
    LoadRequest, ModelState, NodeState, NodeView, RouteTarget,
};
use tokio::task::JoinHandle;

use crate::support::process::{Folder, Process, llama_bin_dir};
use crate::support::stub::{PIECES, Stub};
use crate::support::{PATIENCE, gateway, http, until};

/// Between two looks at what was told.
const LOOK: std::time::Duration = std::time::Duration::from_millis(20);
/// How long nothing may happen in a mesh in which nothing happens: several times what any of its timers takes.
const QUIET: std::time::Duration = std::time::Duration::from_secs(8);

/// A node that is found by addresses alone, with the models of a server behind it.
fn configure(folder: &Folder, name: &str, stub: Option<&Stub>) {
    let mut text = format!(
        "mesh.enabled = true\nmesh.transport = \"iroh\"\nmesh.internet.relay_mode = \"disabled\"\nmesh.node_name = \"{name}\"\n"
    );
    if let Some(stub) = stub {
        let provider = stub.provider();
        let (url, models) = (provider.base_url, provider.models);
        text.push_str(&format!(
            "[[providers]]\nname = \"stub\"\nbase_url = \"{url}\"\nmodels = {models:?}\n"
        ));
    }
    std::fs::create_dir_all(folder.home()).unwrap();
    std::fs::write(folder.home().join("config.toml"), text).unwrap();
}

/// A node as a process that can be killed and started again.
struct Place {
    folder: Folder,
    process: Process,
    id: String,
}

impl Place {
    async fn new(name: &str, stub: Option<&Stub>) -> Self {
        let folder = Folder::new();
        configure(&folder, name, stub);
        let process = folder.start(&["--port", "0"]).await;
        Self::of(folder, process).await
    }

    async fn of(folder: Folder, process: Process) -> Self {
        let id = process.client.status().await.unwrap().node_id;
        Self { folder, process, id }
    }

    fn client(&self) -> &Client {
        &self.process.client
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        self.process.kill();
    }

    async fn start_again(&mut self) {
        self.process = self.folder.start(&["--port", "0"]).await;
        assert_eq!(self.client().status().await.unwrap().node_id, self.id);
    }

    async fn join(&self, inviter: &Place) {
        let invite = inviter.client().invite(&InviteRequest::default()).await.unwrap();
        self.client().join(&JoinRequest { token: invite.token }).await.unwrap();
    }

    async fn view_of(&self, other: &Place) -> Option<NodeView> {
        self.client().nodes().await.unwrap().into_iter().find(|node| node.id == other.id)
    }

    async fn sees(&self, other: &Place, state: NodeState) {
        until(&format!("a node is seen as {state}"), || async {
            self.view_of(other).await.filter(|node| node.state == state)
        })
        .await;
    }

    /// The status of a request to its gateway, and whether the answer is the stub's.
    async fn ask(&self, model: &str) -> (u16, bool) {
        let answer =
            http::post(gateway(self.client()).await, "/v1/chat/completions", http::chat(model)).await;
        (answer.status.as_u16(), answer.body == PIECES.concat())
    }

    /// Whether somebody can be asked for the model, by the list and by the routes.
    async fn is_warm(&self, model: &str) -> bool {
        let models = self.client().models().await.unwrap();
        models.iter().any(|view| view.name == model && view.state == ModelState::Ready)
    }

    async fn warm(&self, model: &str, is_warm: bool) {
        let what = format!("{model} is {}", if is_warm { "warm" } else { "cold" });
        until(&what, || async { (self.is_warm(model).await == is_warm).then_some(()) }).await;
    }

    /// Where a request for the model could go.
    async fn targets(&self, model: &str) -> Vec<RouteTarget> {
        match self.client().routes(Some(model)).await {
            Ok(routes) => routes.into_iter().map(|route| route.target).collect(),
            Err(ClientError::Api(error)) if error.code == ErrorCode::Unavailable => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a node tells its followers, from now on.
struct Log {
    events: Arc<Mutex<Vec<EventKind>>>,
    task: JoinHandle<()>,
}

impl Log {
    async fn of(client: &Client) -> Self {
        let mut stream = client.events().await.unwrap();
        stream.next().await.unwrap().expect("a snapshot is first");
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = events.clone();
        let task = tokio::spawn(async move {
            while let Ok(Some(event)) = stream.next().await {
                log.lock().unwrap().push(event.kind);
            }
        });
        Self { events, task }
    }

    fn read(&self) -> Vec<EventKind> {
        self.events.lock().unwrap().clone()
    }

    /// The states in which another node was seen, one after the other.
    fn states_of(&self, id: &str) -> Vec<NodeState> {
        let of_node = |kind: &EventKind| match kind {
            EventKind::Node { node } if node.id == id => Some(node.state),
            _ => None,
        };
        let mut states: Vec<_> = self.read().iter().filter_map(of_node).collect();
        states.dedup();
        states
    }

    /// Waits until something was told.
    async fn has(&self, what: &str, is: impl Fn(&EventKind) -> bool) {
        let told = async {
            while !self.read().iter().any(&is) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let told = tokio::time::timeout(PATIENCE, told).await;
        told.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}; told was {:?}", self.read()));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_11_dead_peer_cleanup() {
    let stub = Stub::start(&["talks"]).await;
    let (first, mut dead, third) =
        tokio::join!(Place::new("first", None), Place::new("dead", Some(&stub)), Place::new("third", None));
    dead.join(&first).await;
    third.join(&first).await;
    for place in [&first, &third] {
        place.sees(&dead, NodeState::Alive).await;
        place.warm("talks", true).await;
        assert_eq!(place.ask("talks").await, (200, true));
    }
    let log = Log::of(first.client()).await;

    dead.kill();
    for place in [&first, &third] {
        place.sees(&dead, NodeState::Down).await;
        place.warm("talks", false).await;
        assert_eq!(place.targets("talks").await, [], "routing leaves it");
        assert_eq!(place.ask("talks").await, (503, false));
    }

    // A new member is told everything by everybody, and tells it again.
    let fourth = Place::new("fourth", None).await;
    fourth.join(&first).await;
    for place in [&first, &third] {
        place.sees(&fourth, NodeState::Alive).await;
        fourth.sees(place, NodeState::Alive).await;
    }
    // And a record changes, so that all exchange anew.
    third.client().leave(&LeaveRequest { scope: "home".to_owned() }).await.unwrap();
    until("the leaver is gone", || async { first.view_of(&third).await.is_none().then_some(()) }).await;
    tokio::time::sleep(QUIET).await;
    for place in [&first, &fourth] {
        let seen = place.view_of(&dead).await.map(|node| node.state);
        assert!(matches!(seen, None | Some(NodeState::Down)), "{seen:?}");
        assert!(!place.is_warm("talks").await);
    }
    let states = log.states_of(&dead.id);
    let mut after_death = states.iter().skip_while(|state| **state != NodeState::Down);
    assert!(after_death.all(|state| *state == NodeState::Down), "{states:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_12_node_rejoin() {
    let (talks, sings) = (Stub::start(&["talks"]).await, Stub::start(&["sings"]).await);
    let (mut first, mut second) =
        tokio::join!(Place::new("first", Some(&sings)), Place::new("second", Some(&talks)));
    second.join(&first).await;
    assert_together(&first, &second).await;

    second.kill();
    first.sees(&second, NodeState::Down).await;
    first.warm("talks", false).await;
    second.start_again().await;
    assert_together(&first, &second).await;

    // The same with the one that invited: nobody has to be asked for a token.
    first.kill();
    second.sees(&first, NodeState::Down).await;
    second.warm("sings", false).await;
    first.start_again().await;
    assert_together(&first, &second).await;
    assert_eq!(first.client().invites().await.unwrap()[0].uses, 1);
}

/// Both see each other, and each gets answers from the other's model.
async fn assert_together(first: &Place, second: &Place) {
    tokio::join!(first.sees(second, NodeState::Alive), second.sees(first, NodeState::Alive));
    for (place, model) in [(first, "talks"), (second, "sings")] {
        place.warm(model, true).await;
        until("the other one's model answers", || async {
            (place.ask(model).await == (200, true)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_13_gossip_stability() {
    let stub = Stub::start(&["talks"]).await;
    let llama = llama_bin_dir().await;
    let first = host_of_a_model(&stub, llama.as_deref()).await;
    let (second, third) = tokio::join!(Place::new("second", None), Place::new("third", None));
    second.join(&first).await;
    third.join(&first).await;
    let places = [&first, &second, &third];
    for place in places {
        for other in places.into_iter().filter(|other| other.id != place.id) {
            place.sees(other, NodeState::Alive).await;
        }
        place.warm("talks", true).await;
    }
    let server = llama.as_ref().map(|_| first.process.served_model(TINY).server);
    let logs = [Log::of(first.client()).await, Log::of(second.client()).await, Log::of(third.client()).await];

    // Nothing happens.
    tokio::time::sleep(QUIET).await;
    // Records change, and somebody comes and goes.
    if llama.is_some() {
        first.folder.add_model("tiny-late", 7);
        first
            .client()
            .load(&LoadRequest { model: "tiny-late".to_owned(), ..LoadRequest::default() })
            .await
            .unwrap();
        third.warm("tiny-late", true).await;
        let late = DropRequest { model: "tiny-late".to_owned(), node: None };
        second.client().drop_model(&late).await.unwrap();
        third.warm("tiny-late", false).await;
    }
    let guest = Place::new("guest", None).await;
    guest.join(&first).await;
    for place in places {
        place.sees(&guest, NodeState::Alive).await;
    }
    guest.client().leave(&LeaveRequest { scope: "home".to_owned() }).await.unwrap();
    for log in &logs {
        log.has(
            "the guest is gone",
            |kind| matches!(kind, EventKind::NodeGone { id, .. } if *id == guest.id),
        )
        .await;
    }
    tokio::time::sleep(QUIET).await;

    for (place, log) in places.iter().zip(&logs) {
        for other in places.iter().filter(|other| other.id != place.id) {
            let states = log.states_of(&other.id);
            assert!(states.iter().all(|state| *state == NodeState::Alive), "{states:?}");
        }
        let flaps = |kind: &EventKind| matches!(kind, EventKind::ModelGone { name } if name == "talks" || name == TINY);
        assert!(!log.read().iter().any(flaps));
        assert_eq!(place.ask("talks").await, (200, true));
    }
    if let Some(server) = server {
        assert_eq!(first.process.served_model(TINY).server.pid, server.pid);
        let written = first.folder.written();
        let is_start = |line: &&str| line.contains("a model is ready") && line.contains(TINY);
        assert_eq!(written.lines().filter(is_start).count(), 1, "{written}");
    }
}

const TINY: &str = "tiny-once";

/// A node with the stub's model, and one of its own where llama.cpp is at hand.
async fn host_of_a_model(stub: &Stub, llama: Option<&Path>) -> Place {
    let Some(bin_dir) = llama else { return Place::new("first", Some(stub)).await };
    let folder = Folder::new();
    configure(&folder, "first", Some(stub));
    let process = folder.start_serving(bin_dir, &[TINY]).await;
    Place::of(folder, process).await
}
