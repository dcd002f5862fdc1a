//! The core.

mod verdict;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use mesh_identity::NodeId;

use self::verdict::{Verdict, workers_of};
use super::assign::{Assignment, assignments};
use super::demand::Demand;
use super::member::{Claim, Member};
use super::{Config, Input, Output, Standby, StopWhy};
use crate::plan::{Needs, Plan};

/// The decisions of one node in one scope.
///
/// Call [`Election::handle`], then [`Election::poll_output`] until it returns `None`, then sleep until
/// [`Election::next_deadline`] or the next input.
#[derive(Debug)]
pub struct Election {
    config: Config,
    now: Instant,
    me: Member,
    members: BTreeMap<NodeId, Member>,
    models: BTreeMap<String, Model>,
    demand: Demand,
    /// What this node was told to take up and does not serve yet, and until when it is believed to be about to.
    assigned: Option<(String, Instant)>,
    /// When news are acted on.
    due: Option<Instant>,
    outputs: VecDeque<Output>,
}

/// One model on this node's disk.
#[derive(Debug, Default)]
struct Model {
    needs: Option<Arc<Needs>>,
    state: State,
    /// Highest epoch seen of anybody.
    epoch_seen: u64,
    /// Workers that refused or were lost, and until when they are left out.
    left_out: BTreeMap<NodeId, Instant>,
    /// It failed here: not tried before then.
    failed: Option<(Instant, String)>,
    told: Option<Standby>,
    /// Another node is to host it and has not claimed it yet, since then.
    awaited: Option<(NodeId, Instant)>,
    /// Other machines would do it better, since then.
    better_since: Option<Instant>,
}

#[derive(Debug, Default, Clone)]
enum State {
    #[default]
    Idle,
    Alone,
    Hosting {
        epoch: u64,
        plan: Arc<Plan>,
        workers: BTreeSet<NodeId>,
        /// Claimed, but not begun before then: workers that run the model alone make room first.
        waits_until: Option<Instant>,
    },
}

impl Election {
    /// A node that knows nobody and serves nothing yet.
    pub fn new(me: Member, config: Config, now: Instant) -> Self {
        let demand = Demand::new(config.demand_window);
        let (members, models) = (BTreeMap::new(), BTreeMap::new());
        Self { config, now, me, members, models, demand, assigned: None, due: None, outputs: VecDeque::new() }
    }

    /// Takes one input. Drain [`Election::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        self.now = self.now.max(now);
        match input {
            Input::Tick => {}
            Input::Me(me) => self.handle_me(*me),
            Input::Member(member) => self.handle_member(*member),
            Input::Forget(node) => {
                if self.members.remove(&node).is_some() {
                    self.look(self.is_relied_on(&node));
                }
            }
            Input::Needs { model, needs } => {
                self.models.entry(model).or_default().needs = needs;
                self.look(true);
            }
            Input::Share { model, epoch, worker, held_by_epoch } => {
                self.handle_share(&model, epoch, worker, held_by_epoch);
            }
            Input::Failed { model, epoch, why } => self.handle_failed(&model, epoch, why),
            Input::Requested { model, requests } => self.demand.count(model, requests, self.now),
        }
        self.act();
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Election::handle`] with [`Input::Tick`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let returns = self.models.values().flat_map(|model| {
            let failed = model.failed.as_ref().map(|(until, _)| *until);
            let waits = match &model.state {
                State::Hosting { waits_until, .. } => *waits_until,
                _ => None,
            };
            let awaited = model.awaited.map(|(_, since)| since + self.config.patience);
            let better = model.better_since.map(|since| since + self.config.better_after);
            model.left_out.values().copied().chain(failed).chain(waits).chain(awaited).chain(better)
        });
        self.due.into_iter().chain(self.demand.next()).chain(returns).min()
    }

    /// News came: they are acted on soon, or at once.
    fn look(&mut self, at_once: bool) {
        let due = if at_once { self.now } else { self.now + self.config.debounce };
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    fn handle_me(&mut self, mut me: Member) {
        if let Some((model, until)) = &self.assigned {
            let facts = me.models.get_mut(model).filter(|facts| facts.on_disk && !facts.serves);
            match facts.filter(|_| *until > self.now) {
                Some(facts) => (facts.serves, facts.taken_up) = (true, true),
                None => self.assigned = None,
            }
        }
        let served = |member: &Member| -> Vec<String> {
            member.models.keys().filter(|model| member.serves(model)).cloned().collect()
        };
        // What the owner says is done at once.
        let at_once = served(&me) != served(&self.me);
        if me != self.me {
            self.me = me;
            self.look(at_once);
        }
    }

    fn handle_member(&mut self, member: Member) {
        if member.id() == self.me.id() {
            return;
        }
        let id = member.id();
        let before = self.members.get(&id);
        if before == Some(&member) {
            return;
        }
        let was_here = before.is_some_and(Member::is_here);
        let is_lost = was_here && !member.is_here() && self.is_relied_on(&id);
        let mut is_rival = false;
        let waits = |model: &Model| matches!(&model.state, State::Hosting { waits_until: Some(_), .. });
        let is_awaited = self.models.values().any(waits);
        for (name, facts) in &member.models {
            let Some(claim) = facts.claim.as_ref() else { continue };
            if let Some(model) = self.models.get_mut(name) {
                model.epoch_seen = model.epoch_seen.max(claim.epoch);
                is_rival |= matches!(model.state, State::Hosting { .. }) && member.is_here();
            }
        }
        self.members.insert(id, member);
        self.look(is_lost || is_rival || is_awaited);
    }

    /// Whether something here rests on that node: it hosts, or works for this one.
    fn is_relied_on(&self, node: &NodeId) -> bool {
        let hosts = self.members.get(node).is_some_and(|member| {
            member.models.iter().any(|(name, facts)| facts.claim.is_some() && self.models.contains_key(name))
        });
        let works =
            |model: &Model| matches!(&model.state, State::Hosting { workers, .. } if workers.contains(node));
        hosts || self.models.values().any(works)
    }

    fn handle_share(&mut self, name: &str, epoch: u64, worker: NodeId, held_by_epoch: Option<u64>) {
        let until = self.now + self.config.left_out_for;
        let Some(model) = self.models.get_mut(name) else { return };
        model.epoch_seen = model.epoch_seen.max(held_by_epoch.unwrap_or(0));
        // News of an earlier launch say nothing of this one.
        if matches!(&model.state, State::Hosting { epoch: now, workers, .. } if *now == epoch && workers.contains(&worker))
        {
            model.left_out.insert(worker, until);
            self.look(true);
        }
    }

    fn handle_failed(&mut self, name: &str, epoch: u64, why: String) {
        let until = self.now + self.config.left_out_for;
        let Some(model) = self.models.get_mut(name) else { return };
        let is_current = match &model.state {
            State::Idle => false,
            State::Alone => epoch == 0,
            State::Hosting { epoch: now, .. } => *now == epoch,
        };
        if is_current {
            model.failed = Some((until, why));
            self.look(true);
        }
    }

    /// Does what is due.
    fn act(&mut self) {
        if let Some(requests) = self.demand.tick(self.now) {
            self.outputs.push_back(Output::PublishDemand { requests });
            self.look(false);
        }
        let mut is_returned = false;
        let now = self.now;
        for model in self.models.values_mut() {
            let before = model.left_out.len();
            if let Some((node, _)) = model.awaited.take_if(|(_, since)| *since + self.config.patience <= now)
            {
                model.left_out.insert(node, now + self.config.left_out_for);
                is_returned = true;
            }
            if let State::Hosting { waits_until: Some(until), .. } = &model.state {
                is_returned |= *until <= now;
            }
            is_returned |= model.better_since.is_some_and(|since| since + self.config.better_after <= now);
            model.left_out.retain(|_, until| *until > now);
            is_returned |= model.left_out.len() != before;
            is_returned |= model.failed.take_if(|(until, _)| *until <= now).is_some();
        }
        if is_returned {
            self.look(true);
        }
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.assign();
            let names: Vec<String> = self.models.keys().cloned().collect();
            for name in names {
                self.decide(&name);
            }
        }
    }

    fn assign(&mut self) {
        if !self.me.is_auto || self.me.is_passive {
            return;
        }
        let here = self.here().chain([&self.me]);
        let mine = assignments(here, self.config.demand_per_node).remove(&self.me.id());
        if let Some(Assignment { model, instead_of, why }) = mine
            && let Some(facts) = self.me.models.get_mut(&model)
        {
            (facts.serves, facts.taken_up) = (true, true);
            self.assigned = Some((model.clone(), self.now + self.config.patience));
            self.outputs.push_back(Output::Assign { model, instead_of, why });
        }
    }

    /// The other members that count.
    fn here(&self) -> impl Iterator<Item = &Member> + Clone {
        self.members.values().filter(|member| member.is_here())
    }

    fn decide(&mut self, name: &str) {
        let Some(model) = self.models.get(name) else { return };
        let verdict = self.verdict(name, model);
        let now = self.now;
        if let Some(model) = self.models.get_mut(name) {
            let node = match &verdict {
                Verdict::Await(node) => Some(*node),
                _ => None,
            };
            let since =
                model.awaited.filter(|(awaited, _)| Some(*awaited) == node).map_or(now, |(_, since)| since);
            model.awaited = node.map(|node| (node, since));
            let is_better = matches!(verdict, Verdict::Better(_));
            model.better_since = is_better.then(|| model.better_since.unwrap_or(now));
        }
        match verdict {
            Verdict::Keep => self.keep(name),
            Verdict::Better(plan) => {
                let since = self.models.get(name).and_then(|model| model.better_since);
                if since.is_some_and(|since| since + self.config.better_after <= now) {
                    self.host(name, plan, StopWhy::Better);
                } else {
                    self.keep(name);
                }
            }
            Verdict::Await(node) => {
                self.stop(name, StopWhy::Split, true);
                self.tell(name, Some(Standby::HostedBy(node)));
            }
            Verdict::Nothing(why, standby) => {
                self.stop(name, why, true);
                self.tell(name, standby);
            }
            Verdict::Alone(why) => {
                self.stop(name, why, true);
                self.tell(name, None);
                if let Some(model) = self.models.get_mut(name) {
                    model.state = State::Alone;
                }
                self.outputs.push_back(Output::Serve { model: name.to_owned() });
            }
            Verdict::Host(plan, why) => self.host(name, plan, why),
        }
    }

    /// It stays as it is; what waited for room begins when there is.
    fn keep(&mut self, name: &str) {
        let Some(model) = self.models.get_mut(name) else { return };
        let State::Hosting { epoch, plan, workers, waits_until } = &mut model.state else { return };
        let (epoch, plan) = (*epoch, plan.clone());
        let runs_alone = |worker: &NodeId| {
            let facts = self.members.get(worker).and_then(|member| member.facts(name));
            facts.is_some_and(|facts| facts.runs_alone)
        };
        let name = name.to_owned();
        match waits_until {
            None => self.outputs.push_back(Output::Kept { model: name, epoch }),
            Some(until) if *until > self.now && workers.iter().any(runs_alone) => {}
            Some(_) => {
                *waits_until = None;
                self.outputs.push_back(Output::Host { model: name, epoch, plan });
            }
        }
    }

    fn host(&mut self, name: &str, plan: Arc<Plan>, why: StopWhy) {
        self.stop(name, why, false);
        self.tell(name, None);
        if let Some(model) = self.models.get_mut(name) {
            model.better_since = None;
        }
        let workers = workers_of(&plan);
        let claims = self.members.values().filter_map(|member| member.facts(name)?.claim.as_ref());
        let highest = claims.map(|claim| claim.epoch).max().unwrap_or(0);
        let waits_until = Some(self.now + self.config.patience);
        let Some(model) = self.models.get_mut(name) else { return };
        model.epoch_seen = model.epoch_seen.max(highest).saturating_add(1);
        let epoch = model.epoch_seen;
        model.state = State::Hosting { epoch, plan, workers: workers.clone(), waits_until };
        let claim = Claim { epoch, workers: workers.into_iter().collect() };
        self.outputs.push_back(Output::Publish { model: name.to_owned(), claim: Some(claim) });
        self.keep(name);
    }

    fn stop(&mut self, name: &str, why: StopWhy, is_withdrawn: bool) {
        let Some(model) = self.models.get_mut(name) else { return };
        let before = std::mem::take(&mut model.state);
        let model = name.to_owned();
        if !matches!(before, State::Idle) {
            self.outputs.push_back(Output::Stop { model: model.clone(), why });
        }
        if is_withdrawn && matches!(before, State::Hosting { .. }) {
            self.outputs.push_back(Output::Publish { model, claim: None });
        }
    }

    fn tell(&mut self, name: &str, standby: Option<Standby>) {
        let Some(model) = self.models.get_mut(name) else { return };
        if let Some(why) = standby.clone().filter(|why| model.told.as_ref() != Some(why)) {
            self.outputs.push_back(Output::Standby { model: name.to_owned(), why });
        }
        model.told = standby;
    }
}
