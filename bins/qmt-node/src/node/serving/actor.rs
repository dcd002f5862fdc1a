//! The task that owns the election: what it hears, and what it does of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_inference::election::{
    Config as ElectionConfig, Election, Input, Member, Output, Presence, Standby,
};
use mesh_inference::plan::{Link, Unfit};
use tokio::sync::{mpsc, oneshot};

use super::members::Members;
use super::record::{ClaimFacts, Said, ServingFacts};
use super::runner::{Desired, Report, Runner, What};
use super::{Command, lock};
use crate::node::Node;
use crate::node::machine::DiskFacts;
use crate::node::placing::Prepared;

/// One report for each of what runs; more would wait with it.
const REPORTS_MAX: usize = 16;
/// Facts are looked at this often even when nothing told of a change.
const LOOK: Duration = Duration::from_secs(2);

/// A model that this node has to do with.
#[derive(Default)]
struct Entry {
    facts: ServingFacts,
    prepared: Option<Arc<Prepared>>,
    runner: Option<Runner>,
    /// Epoch and living members of the last time when nothing had to be done.
    kept: Option<(u64, usize)>,
}

pub(super) struct Actor {
    node: Node,
    election: Election,
    entries: BTreeMap<String, Entry>,
    members: Members,
    me: Member,
    reports: mpsc::Sender<Report>,
    reported: mpsc::Receiver<Report>,
}

impl Actor {
    pub(super) fn new(node: Node) -> Self {
        let (reports, reported) = mpsc::channel(REPORTS_MAX);
        let me = own_member(&node, Vec::new(), &BTreeSet::new());
        let election = Election::new(me.clone(), election_config(&node), Instant::now());
        let (entries, members) = (BTreeMap::new(), Members::default());
        Self { node, election, entries, members, me, reports, reported }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
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
            Command::HoldNoMore { model } => {
                if let Some(entry) = self.entries.get_mut(&model) {
                    entry.facts.dropped = false;
                }
            }
            Command::Drop { model, done } => {
                // Names that this node never heard of take no place in its record.
                let is_on_disk = self.node.on_disk().iter().any(|found| found.name == model);
                if !is_on_disk && !self.entries.contains_key(&model) {
                    let _ = done.send(false);
                    return;
                }
                let facts = &self.entry(&model).facts;
                let served = facts.serves || facts.wanted;
                self.unserve(&model, true);
                self.drop_runner(&model, served, done);
            }
            Command::Leave { model, done } => {
                // Somebody may have asked for it since.
                if self.entry(&model).facts.wanted {
                    let _ = done.send(false);
                    return;
                }
                self.unserve(&model, false);
                self.drop_runner(&model, true, done);
            }
        }
    }

    /// Serves a model no more. One that is held dropped is taken up by nobody.
    fn unserve(&mut self, model: &str, is_dropped: bool) {
        let entry = self.entry(model);
        entry.facts = ServingFacts {
            model: model.to_owned(),
            dropped: is_dropped,
            claim: entry.facts.claim.take(),
            ..ServingFacts::default()
        };
        entry.prepared = None;
        self.look();
        self.election.handle(Input::Needs { model: model.to_owned(), needs: None }, Instant::now());
        self.perform();
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
        let dropped = self.entries.values().filter(|entry| entry.facts.dropped);
        let dropped = dropped.map(|entry| entry.facts.model.clone()).collect();
        let scope = self.node.placing_scope();
        let news = self.members.look(&self.node, scope.as_ref(), dropped);
        let is_served = |model: &&String| {
            let serves = |member: &Member| member.models.get(*model).is_some_and(|facts| facts.serves);
            self.entries.get(*model).is_some_and(|entry| entry.facts.serves)
                || self.members.iter().any(serves)
        };
        let ended: BTreeSet<String> =
            self.members.dropped().iter().filter(|model| !is_served(model)).cloned().collect();
        if **self.node.inner.serving.ended.load() != ended {
            self.node.inner.serving.ended.store(Arc::new(ended));
        }
        let me = own_member(&self.node, self.told(), self.members.dropped());
        if me != self.me {
            self.me = me.clone();
            self.election.handle(Input::Me(Box::new(me)), now);
        }
        for input in news {
            self.election.handle(input, now);
        }
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
                let facts = &mut self.entry(&model).facts;
                (facts.alone, facts.failed, facts.no_room) = (true, false, false);
                self.set(&model, desired);
            }
            Output::Host { model, epoch, plan } => {
                tracing::info!(
                    model,
                    epoch,
                    workers = plan.split().map_or(0, |split| split.workers.len()),
                    "this node hosts a split"
                );
                for left in plan.left_out.iter().filter(|left| matches!(left.why, Unfit::OtherBuild { .. })) {
                    tracing::warn!(model, machine = left.machine, why = %left.why, "a member takes no part in the split");
                }
                let scope = self.members.scope();
                let prepared = self.entry(&model).prepared.clone();
                let desired = prepared.zip(scope).map(|(prepared, scope)| Desired::Split {
                    prepared,
                    scope,
                    epoch,
                    plan,
                });
                let facts = &mut self.entry(&model).facts;
                (facts.failed, facts.no_room) = (false, false);
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
                let members = self.members.iter().filter(|member| member.presence == Presence::Alive).count();
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
                let facts = &mut self.entry(&model).facts;
                facts.failed = matches!(why, Standby::Failed(_));
                facts.no_room = matches!(why, Standby::FitsNowhere(_));
                let desired = match &why {
                    Standby::FitsNowhere(_) | Standby::Failed(_) => Desired::Told(why.to_string()),
                    _ => Desired::Nothing,
                };
                self.set(&model, Some(desired));
            }
            Output::Assign { model, instead_of, why } => {
                let instead =
                    instead_of.as_ref().map(|left| format!(", instead of {left}, which others serve"));
                tracing::info!("Assigned to serve {model} ({why}){}", instead.unwrap_or_default());
                let node = self.node.clone();
                self.node.inner.serving.tasks.spawn(async move { node.take_up(model, instead_of).await });
            }
            Output::PublishDemand { requests } => {
                self.entries.values_mut().for_each(|entry| entry.facts.requests = 0);
                for (model, count) in requests {
                    // Callers may invent names; only what is on somebody's disk can be taken up.
                    let is_known = |member: &Member| member.models.contains_key(&model);
                    if self.members.iter().chain([&self.me]).any(is_known) {
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
    let disk = node.usable_on_disk();
    let said = Said {
        machine: node.told_machine(),
        disk: disk
            .iter()
            .map(|model| DiskFacts { model: model.name.clone(), bytes: model.file_bytes })
            .collect(),
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

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
