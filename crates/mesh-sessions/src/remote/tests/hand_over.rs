use std::sync::Arc;

use mesh_identity::{NodeId, Role, ScopeId};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::event::Party;
use crate::host::CommandError;
use crate::ids::SessionId;
use crate::proto::Refusal;
use crate::store::{ReadLimit, Store};

/// All nodes of the mesh, by their ids.
struct Everybody(ScopeId);

impl Nodes for Everybody {
    fn nodes(&self) -> Vec<NodeInfo> {
        Vec::new()
    }

    fn find(&self, node: &str) -> Option<(ScopeId, NodeId)> {
        Some((self.0, node.parse().ok()?))
    }
}

/// Two hosts (nodes 0 and 1), and a caller (node 2).
struct Two {
    network: Network,
    mesh: Mesh,
    hosts: [Host; 2],
    running: [Option<(Sessions, AbortOnDropHandle<()>)>; 2],
    config: super::Config,
}

impl Two {
    async fn new(script: &Script) -> Self {
        let network = Network::new(9);
        let mesh = Mesh::on(network.clone(), 3).await;
        let mut hosts = [Host::new(script.clone()), Host::new(script.clone())];
        hosts[0].me = mesh[0].id();
        hosts[1].me = mesh[1].id();
        let config = super::Config { grace: Duration::from_secs(30), ..super::Config::default() };
        let mut two = Self { network, mesh, hosts, running: [None, None], config };
        two.start(0).await;
        two.start(1).await;
        two
    }

    async fn start(&mut self, at: usize) {
        let sessions = self.hosts[at].start().await;
        let transport = &self.mesh[at].transport;
        serve(transport, &sessions, self.config.clone());
        let everybody = Arc::new(Everybody(self.mesh.scope()));
        let agents = RemoteAgents::new(transport.clone(), everybody, self.config.clone());
        let delivering =
            AbortOnDropHandle::new(tokio::spawn(deliver(&sessions, agents, self.mesh[at].key.clone())));
        self.running[at] = Some((sessions, delivering));
    }

    async fn crash(&mut self, at: usize) {
        if let Some((sessions, delivering)) = self.running[at].take() {
            drop(delivering);
            self.hosts[at].crash(sessions).await;
        }
    }

    fn at(&self, at: usize) -> &Sessions {
        &self.running[at].as_ref().unwrap().0
    }

    fn remote(&self, caller: usize, host: usize) -> RemoteHost {
        let (transport, scope) = (self.mesh[caller].transport.clone(), self.mesh.scope());
        RemoteHost::new(transport, scope, self.mesh[host].id(), self.config.clone())
    }

    fn hand_over(&self, to: usize) -> Deed {
        Deed::HandOver { to: self.mesh[to].id() }
    }

    async fn end(mut self) {
        for (sessions, delivering) in self.running.iter_mut().filter_map(Option::take) {
            drop(delivering);
            sessions.shutdown().await;
        }
        self.mesh.shutdown().await;
    }
}

async fn log(store: &Store, session: SessionId) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map_or(EventNumber::START, |event| event.number);
        let page = store.read(session, after, ReadLimit::default()).await.unwrap();
        if page.is_empty() {
            return events;
        }
        events.extend(page);
    }
}

fn count(events: &[Event], is: impl Fn(&Body) -> bool) -> usize {
    events.iter().filter(|event| is(&event.body)).count()
}

async fn until_kind(following: &mut RemoteFollowing, is: impl Fn(&Body) -> bool) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while !events.last().is_some_and(|event| is(&event.body)) {
        let next = tokio::time::timeout(Duration::from_secs(40), following.next()).await;
        events.push(next.expect("an event").unwrap());
    }
    events
}

fn slow() -> Script {
    let mut script = Script::new(|_| said(&"word ".repeat(60)));
    script.pause = Duration::from_millis(4);
    script
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_goes_on_at_the_new_host_and_who_reads_or_prompts_finds_it_there() {
    let two = Two::new(&slow()).await;
    let session = two.remote(2, 0).create("coder".parse().unwrap(), None, BTreeMap::new()).await.unwrap();
    let (old, id) = (two.remote(2, 0).session(session.id()), session.id());
    let mut following = session.follow(EventNumber::START);
    prompt(&session, "one").await;
    let mut events = until_kind(&mut following, |body| matches!(body, Body::TextAdded { .. })).await;
    session.act(two.hand_over(1)).await.unwrap();
    events.extend(read_on(&mut following, 1).await);
    let place = |is: fn(&Body) -> bool| events.iter().position(|event| is(&event.body)).unwrap();
    let (handed, taken) = (
        place(|body| matches!(body, Body::HandedOver { .. })),
        place(|body| matches!(body, Body::TakenOver { .. })),
    );
    assert_eq!(handed + 1, taken, "nobody writes in between");
    assert_eq!(ended(&events), 1);
    prompt(&session, "two").await;
    assert_eq!(session.host().node(), two.mesh[1].id());
    assert_eq!(ended(&until_turns(&old, 2).await), 2, "who comes to the old host is led on");
    assert_eq!(old.chat("three").await.unwrap(), "word ".repeat(60));

    let (first, second) = (two.at(0), two.at(1));
    assert_eq!(first.host_of(id).await.unwrap(), Some(two.mesh[1].id()));
    assert_eq!(second.host_of(id).await.unwrap(), None);
    let (kept, goes_on) = (log(first.store(), id).await, log(second.store(), id).await);
    assert_eq!(kept[..], goes_on[..kept.len()], "one history");
    let here = Party::local(two.mesh[0].id());
    let refused = first.prompt(id, &here, "late".parse().unwrap(), text("late")).await;
    assert!(matches!(refused, Err(CommandError::Refused(Refusal::Moved { .. }))), "{refused:?}");
    // And back again.
    session.act(two.hand_over(0)).await.unwrap();
    assert_eq!(session.chat("four").await.unwrap(), "word ".repeat(60));
    assert_eq!(session.host().node(), two.mesh[0].id());
    // To one that has an old log of it, and says so until it has the new one.
    session.act(two.hand_over(1)).await.unwrap();
    assert_eq!(session.chat("five").await.unwrap(), "word ".repeat(60));
    read_on(&mut following, 4).await;
    two.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_user_of_the_old_host_is_one_of_its_scope_at_the_new_one() {
    let two = Two::new(&slow()).await;
    let (first, second) = (two.at(0), two.at(1));
    let here = Party::local(two.mesh[0].id());
    let id = SessionId::from_uuid(uuid::Uuid::now_v7());
    let new = crate::host::NewSession {
        agent: "coder".parse().unwrap(),
        name: None,
        labels: BTreeMap::new(),
        chain: None,
    };
    first.create(id, &here, new).await.unwrap();
    first.prompt(id, &here, "one".parse().unwrap(), text("one")).await.unwrap();
    first.hand_over(id, &here, two.mesh[1].id()).await.unwrap();
    let peer = Party::peer(two.mesh[0].id(), two.mesh.scope(), Role::Member);
    let from_first = two.remote(0, 1).session(id);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while second.right(id, &peer).await.unwrap() != Some(Right::Own) {
        assert!(tokio::time::Instant::now() < deadline, "it never comes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until_turns(&from_first, 1).await;
    let asked = two.hosts[1].script.calls.lock().unwrap().last().unwrap().on_behalf_of.clone();
    assert_eq!(asked, peer, "the turn runs for a peer there, and for no local user");
    from_first.act(Deed::Name { name: Some("mine".parse().unwrap()) }).await.unwrap();
    let other = Party::peer(two.mesh[2].id(), two.mesh.scope(), Role::Member);
    assert_eq!(second.right(id, &other).await.unwrap(), None);
    two.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_refused_goes_on_where_it_was() {
    let two = Two::new(&slow()).await;
    two.at(1).set_agents(Vec::new());
    let session = two.remote(2, 0).create("coder".parse().unwrap(), None, BTreeMap::new()).await.unwrap();
    let mut following = session.follow(EventNumber::START);
    prompt(&session, "one").await;
    session.act(two.hand_over(1)).await.unwrap();
    let events = read_on(&mut following, 1).await;
    assert_eq!(count(&events, |body| matches!(body, Body::HandedOver { .. })), 2, "there and back");
    assert_eq!(session.chat("two").await.unwrap(), "word ".repeat(60));
    assert_eq!(two.at(0).host_of(session.id()).await.unwrap(), None);
    let nothing = two.at(1).host_of(session.id()).await;
    assert!(matches!(nothing, Err(CommandError::Refused(Refusal::NoSuchSession))), "{nothing:?}");
    two.end().await;
}

/// Nobody brings a session that is not his to bring, or that was not handed to the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_handed_over_is_not_taken() {
    let two = Two::new(&slow()).await;
    let session = two.remote(2, 0).create("coder".parse().unwrap(), None, BTreeMap::new()).await.unwrap();
    let id = session.id();
    let mut text = Vec::new();
    two.at(0).store().export(id, &mut text).await.unwrap();
    let member = |node: usize| Party::peer(two.mesh[node].id(), two.mesh.scope(), Role::Member);
    let taken = two.at(1).take(id, &member(0), text.as_slice()).await;
    assert!(matches!(taken, Err(CommandError::NotTaken { .. })), "never handed over: {taken:?}");
    session.act(two.hand_over(1)).await.unwrap();
    assert_eq!(session.chat("x").await.unwrap(), "word ".repeat(60));
    // The log up to the hand-over, out of somebody else's hands, over the log of the host.
    let mut text = Vec::new();
    two.at(0).store().export(id, &mut text).await.unwrap();
    let forged = String::from_utf8(text.clone()).unwrap();
    let before = log(two.at(1).store(), id).await;
    let taken = two.at(1).take(id, &member(2), text.as_slice()).await;
    assert!(matches!(taken, Err(CommandError::NotTaken { .. })), "not signed: {taken:?}");
    assert_eq!(log(two.at(1).store(), id).await.len(), before.len(), "an old log changes nothing");
    let signed = |event: &Event| matches!(&event.body, Body::TakenOver { signature: Some(_), .. });
    assert_eq!(before.iter().filter(|event| signed(event)).count(), 1, "what was signed stays with the log");
    // What the host before says of its log holds for that log, for that node and for that epoch.
    let summary = crate::store::Summary { session: id, last: EventNumber(9), epoch: 2, to: two.mesh[1].id() };
    let (key, scope, hash) = (&two.mesh[0].key, two.mesh.scope(), blake3::hash(b"a log"));
    let signature = summary.sign(key, &scope, &hash);
    let holds = |summary: crate::store::Summary, hash| {
        summary.is_signed_by(&two.mesh[0].id(), &scope, &hash, &signature)
    };
    assert!(holds(summary, hash) && !holds(summary, blake3::hash(b"another")));
    assert!(!holds(crate::store::Summary { epoch: 3, ..summary }, hash));
    assert!(!holds(crate::store::Summary { to: two.mesh[2].id(), ..summary }, hash));
    assert!(!holds(crate::store::Summary { last: EventNumber(8), ..summary }, hash));
    let cut = two.at(1).take(id, &member(0), &forged.as_bytes()[..forged.len() / 2]).await;
    assert!(matches!(cut, Err(CommandError::NotTaken { .. })), "{cut:?}");
    assert!(two.at(1).has_taken(id, 2).await.unwrap() && !two.at(1).has_taken(id, 3).await.unwrap());
    assert!(!two.at(1).may_bring(&Party::peer(two.mesh[2].id(), two.mesh.scope(), Role::Client)));
    two.end().await;
}

/// Whatever dies, and when: in the end the new host alone has it, with every event and every prompt once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_survives_the_crash_of_either_host_at_any_moment() {
    let mut script = slow();
    script.pause = Duration::from_millis(1);
    for seed in 0..12_u64 {
        let mut two = Two::new(&script).await;
        let session = two.remote(2, 0).create("coder".parse().unwrap(), None, BTreeMap::new()).await.unwrap();
        let id = session.id();
        let mut following = session.follow(EventNumber::START);
        prompt(&session, "p0").await;
        let prompting = tokio::spawn({
            let session = session.clone();
            async move {
                for number in 1..4 {
                    prompt(&session, &format!("p{number}")).await;
                }
            }
        });
        let (handing, deed) = (session.clone(), two.hand_over(1));
        let handing = tokio::spawn(async move { handing.act(deed).await.unwrap() });
        for crash in 0..2_u64 {
            tokio::time::sleep(Duration::from_micros((seed * 7_919 + crash * 5_003) % 25_000)).await;
            let (one, other) = (two.mesh[0].id(), two.mesh[1].id());
            match (seed + crash) % 3 {
                0 => two.crash(0).await,
                1 => two.crash(1).await,
                _ => two.network.break_connections(one, other),
            }
            tokio::time::sleep(Duration::from_millis(seed % 5)).await;
            for at in 0..2 {
                if two.running[at].is_none() {
                    two.start(at).await;
                }
            }
        }
        prompting.await.unwrap();
        handing.await.unwrap();
        let events = read_on(&mut following, 4).await;
        let taken = |body: &Body| matches!(body, Body::TakenOver { .. });
        assert_eq!(count(&events, taken), 1, "seed {seed}");
        let prompted = |body: &Body| matches!(body, Body::Prompted { .. });
        let started = |body: &Body| matches!(body, Body::TurnStarted { .. });
        assert_eq!((count(&events, prompted), count(&events, started)), (4, 4), "seed {seed}");
        let (first, second) = (two.at(0), two.at(1));
        assert_eq!(first.host_of(id).await.unwrap(), Some(two.mesh[1].id()), "seed {seed}");
        assert_eq!(second.host_of(id).await.unwrap(), None, "seed {seed}");
        let (kept, goes_on) = (log(first.store(), id).await, log(second.store(), id).await);
        assert_eq!(kept[..], goes_on[..kept.len()], "seed {seed}: one history");
        assert_eq!(events[..], goes_on[..events.len()], "seed {seed}: what was read is what stands there");
        two.end().await;
    }
}
