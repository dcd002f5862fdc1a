//! Which models this node runs, and how: election decides, runners do it, the record tells it.
//!
//! One task owns the election and hears of everything that bears on it. It takes part with the members of one scope, the first
//! that this node entered: a claim names the workers, and nobody learns of those of another scope.

mod demand;
pub(super) mod record;
mod runner;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_identity::{NodeId, ScopeId};
use mesh_inference::election::{
    Config as ElectionConfig, Election, Input, Member, Output, Presence, Standby,
};
use mesh_inference::plan::Link;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::demand::CountedRoutes;
use self::record::{ClaimFacts, Said, ServingFacts, presence};
use self::runner::{Desired, Report, Runner, What};
use super::Node;
use super::machine::DiskFacts;
use super::placing::{Prepared, UNKNOWN_ROUND_TRIP};
use super::scopes::Scope;
use super::views::role_here;

/// Commands wait for the one before them; each is answered.
const COMMANDS_MAX: usize = 64;
/// One report for each of what runs; more would wait with it.
const REPORTS_MAX: usize = 16;
/// Round trips are told apart in these steps: what drifts within one is no news for an election.
const ROUND_TRIP_STEPS_MS: [u64; 10] = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500];
/// Facts are looked at this often even when nothing told of a change.
const LOOK: Duration = Duration::from_secs(2);

/// The models that this node serves, or was told of.
pub(crate) struct Serving {
    commands: mpsc::Sender<Command>,
    taken: Mutex<Option<mpsc::Receiver<Command>>>,
    sizes: Mutex<BTreeMap<String, ModelSize>>,
    /// What the record tells.
    told: ArcSwap<Vec<ServingFacts>>,
    /// Models that were dropped and that nobody serves, nor would serve once back.
    ended: ArcSwap<BTreeSet<String>>,
    /// Requests for each model that came to the gateway and were not counted yet.
    requests: Mutex<BTreeMap<String, u64>>,
    changed: Notify,
    /// Whether a stopping node waits for its answers.
    held: Arc<AtomicBool>,
    stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// How large a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModelSize {
    pub(crate) file_bytes: u64,
    /// Of one request.
    pub(crate) context_tokens: u64,
}

enum Command {
    /// Serve it, whenever the rules say so.
    Serve { prepared: Box<Prepared>, is_wanted: bool, done: oneshot::Sender<()> },
    /// The owner wants the mesh to have it; it is not on this disk.
    Want { model: String },
    /// Serve it no more. Answers, once nothing of it runs, whether something did.
    Drop { model: String, done: oneshot::Sender<bool> },
}

/// Names whose requests are counted at most: callers may invent names.
const COUNTED_MAX: usize = 256;

impl Serving {
    pub(crate) fn new() -> Self {
        let (commands, taken) = mpsc::channel(COMMANDS_MAX);
        Self {
            commands,
            taken: Mutex::new(Some(taken)),
            sizes: Mutex::default(),
            told: ArcSwap::default(),
            ended: ArcSwap::default(),
            requests: Mutex::default(),
            changed: Notify::new(),
            held: Arc::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Serves a model from now on. Returns once it has its place among the backends, or another node is known to have it.
    pub(crate) async fn serve(&self, prepared: Prepared, is_wanted: bool) {
        let size = ModelSize {
            file_bytes: prepared.model.file_bytes,
            context_tokens: prepared.needs.context.tokens.get().into(),
        };
        lock(&self.sizes).insert(prepared.model.name.clone(), size);
        let (done, entered) = oneshot::channel();
        let command = Command::Serve { prepared: Box::new(prepared), is_wanted, done };
        if self.commands.send(command).await.is_ok() {
            let _ = entered.await;
        }
    }

    /// Tells the mesh that a model is wanted which is not on this disk.
    pub(crate) async fn want(&self, model: String) {
        let _ = self.commands.send(Command::Want { model }).await;
    }

    /// Serves a model no more, and waits until its processes are gone; false when it was not served here.
    pub(crate) async fn drop_model(&self, model: &str) -> bool {
        let (done, ended) = oneshot::channel();
        let command = Command::Drop { model: model.to_owned(), done };
        self.commands.send(command).await.is_ok() && ended.await.unwrap_or(false)
    }

    /// How large a model is that runs here.
    pub(crate) fn size(&self, name: &str) -> Option<ModelSize> {
        lock(&self.sizes).get(name).copied()
    }

    /// What the record tells.
    pub(crate) fn told(&self) -> Arc<Vec<ServingFacts>> {
        self.told.load_full()
    }

    /// Whether a model was dropped, and there is nobody to wait for who serves it.
    pub(crate) fn is_dropped(&self, model: &str) -> bool {
        self.ended.load().contains(model)
    }

    /// Somebody asks for a model here.
    pub(crate) fn note_request(&self, model: &str) {
        let mut requests = lock(&self.requests);
        if let Some(count) = requests.get_mut(model) {
            *count += 1;
        } else if requests.len() < COUNTED_MAX {
            requests.insert(model.to_owned(), 1);
        }
    }

    /// Facts of members or of this machine have changed.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }

    /// The node stops and answers are under way: models go on until [`Serving::shutdown`].
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// Resolves when models are to end: when told so, or when the node's last handle was dropped, which tells nobody.
    fn until_stopped(&self, node: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let (stop, held) = (self.stop.clone(), self.held.clone());
        async move {
            tokio::select! {
                () = stop.cancelled() => return,
                () = node.cancelled() => {}
            }
            if held.load(Ordering::Relaxed) {
                stop.cancelled().await;
            }
        }
    }

    /// Ends all models. Idempotent.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Starts the task that decides what runs here.
    pub(crate) fn start_serving(&self) {
        let serving = &self.inner.serving;
        let Some(commands) = lock(&serving.taken).take() else { return };
        serving.tasks.spawn(Actor::new(self.clone()).run(commands));
    }
}

/// A model that this node has to do with.
#[derive(Default)]
struct Entry {
    facts: ServingFacts,
    prepared: Option<Arc<Prepared>>,
    runner: Option<Runner>,
    /// Epoch and living members of the last time when nothing had to be done.
    kept: Option<(u64, usize)>,
}

struct Actor {
    node: Node,
    election: Election,
    entries: BTreeMap<String, Entry>,
    /// The scope whose members take part, and what election knows of them.
    scope: Option<ScopeId>,
    known: BTreeMap<NodeId, Member>,
    me: Member,
    reports: mpsc::Sender<Report>,
    reported: mpsc::Receiver<Report>,
}

impl Actor {
    fn new(node: Node) -> Self {
        let (reports, reported) = mpsc::channel(REPORTS_MAX);
        let me = own_member(&node, Vec::new(), &BTreeSet::new());
        let election = Election::new(me.clone(), election_config(&node), Instant::now());
        let (entries, known) = (BTreeMap::new(), BTreeMap::new());
        Self { node, election, entries, scope: None, known, me, reports, reported }
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let stop = self.node.inner.serving.until_stopped(self.node.stopping());
        tokio::pin!(stop);
        loop {
            self.look();
            self.perform();
            let due = self.election.next_deadline();
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(report) = self.reported.recv() => self.take_report(report),
                Some(command) = commands.recv() => self.take_command(command),
                () = sleep_until(due) => self.election.handle(Input::Tick, Instant::now()),
                () = self.node.inner.serving.changed.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        // Each runner ends what it runs when nobody asks for anything any more.
        self.entries.clear();
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Serve { prepared, is_wanted, done } => {
                let name = prepared.model.name.clone();
                let needs = Some(Arc::new(prepared.needs.clone()));
                let entry = self.entry(&name);
                entry.facts.serves = true;
                entry.facts.dropped = false;
                entry.facts.wanted |= is_wanted;
                entry.facts.split = prepared.split;
                entry.prepared = Some(Arc::new(*prepared));
                // What the owner says is acted on at once, by the facts that it changes.
                self.look();
                self.election.handle(Input::Needs { model: name, needs }, Instant::now());
                self.perform();
                let _ = done.send(());
            }
            Command::Want { model } => {
                let entry = self.entry(&model);
                entry.facts.wanted = true;
                entry.facts.dropped = false;
            }
            Command::Drop { model, done } => {
                let entry = self.entry(&model);
                let served = entry.facts.serves || entry.facts.wanted;
                entry.facts = ServingFacts {
                    model: model.clone(),
                    dropped: true,
                    claim: entry.facts.claim.take(),
                    ..ServingFacts::default()
                };
                entry.prepared = None;
                self.look();
                self.election.handle(Input::Needs { model: model.clone(), needs: None }, Instant::now());
                self.perform();
                self.drop_runner(&model, served, done);
            }
        }
    }

    /// Ends what runs for a model, and answers when it is gone.
    fn drop_runner(&mut self, model: &str, served: bool, done: oneshot::Sender<bool>) {
        let runner = self.entries.get_mut(model).and_then(|entry| entry.runner.take());
        let Some(runner) = runner else {
            let _ = done.send(served);
            return;
        };
        runner.set(Desired::Nothing);
        let ran = served || runner.is_busy();
        self.node.inner.serving.tasks.spawn(async move {
            let mut idle = runner.idle();
            let _ = idle.wait_for(|idle| *idle).await;
            drop(runner);
            let _ = done.send(ran);
        });
    }

    fn take_report(&mut self, report: Report) {
        let Report { model, epoch, what } = report;
        let input = match what {
            What::Share { worker, held_by_epoch, .. } if worker != self.node.id() => {
                Input::Share { model, epoch, worker, held_by_epoch }
            }
            What::Share { why, .. } | What::Failed(why) => Input::Failed { model, epoch, why },
        };
        self.election.handle(input, Instant::now());
    }

    fn entry(&mut self, model: &str) -> &mut Entry {
        self.entries.entry(model.to_owned()).or_insert_with(|| Entry {
            facts: ServingFacts { model: model.to_owned(), ..ServingFacts::default() },
            ..Entry::default()
        })
    }

    /// What the record tells.
    fn told(&self) -> Vec<ServingFacts> {
        self.entries.values().map(|entry| entry.facts.clone()).filter(|facts| !facts.is_empty()).collect()
    }

    /// Tells election what has changed since it was told last.
    fn look(&mut self) {
        let now = Instant::now();
        for (model, requests) in std::mem::take(&mut *lock(&self.node.inner.serving.requests)) {
            self.election.handle(Input::Requested { model, requests }, now);
        }
        let scope = self.node.placing_scope();
        let scope = scope.as_ref();
        let id = scope.map(Scope::id);
        if id != self.scope {
            self.scope = id;
            for node in std::mem::take(&mut self.known).into_keys() {
                self.election.handle(Input::Forget(node), now);
            }
        }
        let (members, mut dropped) = scope.map(|scope| self.members(scope)).unwrap_or_default();
        dropped.extend(
            self.entries.values().filter(|entry| entry.facts.dropped).map(|entry| entry.facts.model.clone()),
        );
        let me = own_member(&self.node, self.told(), &dropped);
        if me != self.me {
            self.me = me.clone();
            self.election.handle(Input::Me(Box::new(me)), now);
        }
        let is_served = |model: &String| {
            let serves = |member: &Member| member.models.get(model).is_some_and(|facts| facts.serves);
            self.entries.get(model).is_some_and(|entry| entry.facts.serves) || members.values().any(serves)
        };
        let ended: BTreeSet<String> = dropped.into_iter().filter(|model| !is_served(model)).collect();
        if **self.node.inner.serving.ended.load() != ended {
            self.node.inner.serving.ended.store(Arc::new(ended));
        }
        let gone: Vec<NodeId> =
            self.known.keys().filter(|node| !members.contains_key(node)).copied().collect();
        for node in gone {
            self.known.remove(&node);
            self.election.handle(Input::Forget(node), now);
        }
        for (node, member) in members {
            if self.known.get(&node) != Some(&member) {
                self.known.insert(node, member.clone());
                self.election.handle(Input::Member(Box::new(member)), now);
            }
        }
    }

    /// The members that take part, and the models that one of them holds dropped.
    fn members(&self, scope: &Scope) -> (BTreeMap<NodeId, Member>, BTreeSet<String>) {
        let Some(gossip) = self.node.gossip(&scope.id()) else { return Default::default() };
        let links = self.node.transport().links();
        let members = gossip.members();
        let said: Vec<_> = members
            .iter()
            .filter_map(|member| {
                let presence = presence(member.state, role_here(scope, member))?;
                Some((member, presence, Said::of(member)?))
            })
            .collect();
        let mut dropped = BTreeSet::new();
        for (_, presence, said) in &said {
            if *presence == Presence::Alive {
                dropped.extend(
                    said.serving.iter().filter(|facts| facts.dropped).map(|facts| facts.model.clone()),
                );
            }
        }
        let taking_part = said.into_iter().map(|(member, presence, said)| {
            let link = links.iter().find(|link| link.peer.scope == scope.id() && link.peer.id == member.id);
            let round_trip = link.and_then(|link| link.path.rtt).unwrap_or(UNKNOWN_ROUND_TRIP);
            let link = Link::new(stepped(round_trip));
            (member.id, said.member(member.id, member.name.to_string(), link, presence, &dropped))
        });
        (taking_part.collect(), dropped)
    }

    fn perform(&mut self) {
        let mut is_told = false;
        while let Some(output) = self.election.poll_output() {
            is_told = true;
            self.perform_one(output);
        }
        let told = self.told();
        if is_told || **self.node.inner.serving.told.load() != told {
            self.node.inner.serving.told.store(Arc::new(told));
            self.node.refresh();
        }
    }

    fn perform_one(&mut self, output: Output) {
        match output {
            Output::Serve { model } => {
                let desired = self.entry(&model).prepared.clone().map(Desired::Alone);
                self.entry(&model).facts.alone = true;
                self.entry(&model).facts.failed = false;
                self.set(&model, desired);
            }
            Output::Host { model, epoch, plan } => {
                tracing::info!(
                    model,
                    epoch,
                    workers = plan.split().map_or(0, |split| split.workers.len()),
                    "this node hosts a split"
                );
                let scope = self.scope;
                let prepared = self.entry(&model).prepared.clone();
                let desired = prepared.zip(scope).map(|(prepared, scope)| Desired::Split {
                    prepared,
                    scope,
                    epoch,
                    plan,
                });
                self.entry(&model).facts.failed = false;
                self.set(&model, desired);
            }
            Output::Stop { model, why } => {
                tracing::info!(model, %why, "what ran for a model ends");
                self.entry(&model).facts.alone = false;
                self.set(&model, Some(Desired::Nothing));
            }
            Output::Publish { model, claim } => {
                let claim = claim.map(|claim| ClaimFacts { epoch: claim.epoch, workers: claim.workers });
                self.entry(&model).facts.claim = claim;
            }
            Output::Kept { model, epoch } => {
                let members = self.known.values().filter(|member| member.presence == Presence::Alive).count();
                let kept = Some((epoch, members));
                let entry = self.entry(&model);
                // Facts drift all the time; people want to read of it when somebody came or went.
                if entry.kept != kept {
                    entry.kept = kept;
                    tracing::info!(model, epoch, members, "still host, no restart needed");
                }
            }
            Output::Standby { model, why } => {
                tracing::info!(model, %why, "a model does not run here");
                self.entry(&model).facts.failed = matches!(why, Standby::Failed(_));
                let desired = match &why {
                    Standby::FitsNowhere(_) | Standby::Failed(_) => Desired::Told(why.to_string()),
                    _ => Desired::Nothing,
                };
                self.set(&model, Some(desired));
            }
            Output::Assign { model, why } => {
                tracing::info!("Assigned to serve {model} ({why})");
                let node = self.node.clone();
                self.node.inner.serving.tasks.spawn(async move { node.take_up(model).await });
            }
            Output::PublishDemand { requests } => {
                self.entries.values_mut().for_each(|entry| entry.facts.requests = 0);
                for (model, count) in requests {
                    // Callers may invent names; only what is on somebody's disk can be taken up.
                    if self.known.values().chain([&self.me]).any(|member| member.models.contains_key(&model))
                    {
                        self.entry(&model).facts.requests = count;
                    }
                }
            }
        }
    }

    fn set(&mut self, model: &str, desired: Option<Desired>) {
        let Some(desired) = desired else { return };
        let (node, reports) = (self.node.clone(), self.reports.clone());
        let entry = self.entry(model);
        if matches!(desired, Desired::Nothing) && entry.runner.is_none() {
            return;
        }
        match &entry.runner {
            Some(runner) => runner.set(desired),
            None => entry.runner = Some(Runner::start(&node, model.to_owned(), reports, desired)),
        }
    }
}

/// This node as election counts it: by what its record tells, so that all decide by the same facts.
fn own_member(node: &Node, serving: Vec<ServingFacts>, dropped: &BTreeSet<String>) -> Member {
    let disk = node.on_disk();
    let disk = disk.iter().filter(|model| model.missing.is_empty());
    let said = Said {
        machine: node.told_machine(),
        disk: disk.map(|model| DiskFacts { model: model.name.clone(), bytes: model.file_bytes }).collect(),
        serving,
    };
    let me = said.member(node.id(), node.name().to_string(), Link::HERE, Presence::Alive, dropped);
    Member { is_passive: node.config().client, ..me }
}

fn election_config(node: &Node) -> ElectionConfig {
    let times = &node.config().inference.election;
    ElectionConfig {
        debounce: times.debounce,
        left_out_for: times.left_out_for,
        patience: times.patience,
        wishes: node.standing_wishes(),
        ..ElectionConfig::default()
    }
}

fn stepped(round_trip: Duration) -> Duration {
    let millis = round_trip.as_secs_f64() * 1e3;
    let step = ROUND_TRIP_STEPS_MS.iter().find(|step| millis <= **step as f64);
    Duration::from_millis(*step.unwrap_or(&1000))
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
