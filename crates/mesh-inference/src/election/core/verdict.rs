//! What is to become of a model here, by rules that all nodes share.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_identity::NodeId;

use super::{Election, Model, State};
use crate::election::member::{Member, Presence};
use crate::election::{Standby, StopWhy};
use crate::plan::{Machine, Needs, Plan, Unfit, Way, Wishes, plan};

/// What a model should be doing here.
pub(super) enum Verdict {
    Nothing(StopWhy, Option<Standby>),
    Alone(StopWhy),
    Host(Arc<Plan>, StopWhy),
    /// This node hosts it, and other machines would do it better.
    Better(Arc<Plan>),
    /// Another node is to claim it.
    Await(NodeId),
    Keep,
}

impl Election {
    /// The rules, in order.
    pub(super) fn verdict(&self, name: &str, model: &Model) -> Verdict {
        let serves = self.me.serves(name) && !self.me.is_passive;
        let Some(needs) = model.needs.as_deref().filter(|_| serves) else {
            return Verdict::Nothing(StopWhy::NotServed, None);
        };
        if let Some((_, why)) = &model.failed {
            return Verdict::Nothing(StopWhy::Failed(why.clone()), Some(Standby::Failed(why.clone())));
        }
        let view = View { election: self, name, model, needs };
        let servers = || self.here().filter(|member| member.serves(name)).chain([&self.me]);
        let is_forced = servers().any(|member| member.facts(name).is_some_and(|facts| facts.wants_split));
        if is_forced {
            return view.split(true);
        }
        if matches!(model.state, State::Alone) {
            return Verdict::Keep;
        }
        if view.fits_alone(&self.me) {
            return Verdict::Alone(StopWhy::FitsOne);
        }
        let elsewhere = self.here().filter(|member| member.is_able(name) && view.is_new(member));
        match elsewhere.filter(|member| view.fits_alone(member)).map(Member::id).min() {
            Some(node) => Verdict::Nothing(StopWhy::FitsOne, Some(Standby::RunsAt(node))),
            None => view.split(false),
        }
    }
}

pub(super) fn workers_of(plan: &Plan) -> BTreeSet<NodeId> {
    plan.split().into_iter().flat_map(|split| split.workers.iter().copied()).collect()
}

/// One model, seen for a verdict.
struct View<'a> {
    election: &'a Election,
    name: &'a str,
    model: &'a Model,
    needs: &'a Needs,
}

impl View<'_> {
    /// Whether new things may be built on a member.
    fn is_new(&self, member: &Member) -> bool {
        member.presence == Presence::Alive && !self.model.left_out.contains_key(&member.id())
    }

    fn fits_alone(&self, member: &Member) -> bool {
        let wishes = Wishes { split: false, ..self.election.config.wishes.clone() };
        let plan = plan(self.name, self.needs, &member.machine_for(self.name), &[], &wishes);
        plan.chosen().is_some_and(|chosen| chosen.way == Way::Solo)
    }

    /// Who hosts a split, and with whom.
    fn split(&self, is_forced: bool) -> Verdict {
        let me = self.election.me.id();
        match self.holder() {
            Some((host, epoch)) if host != me => {
                Verdict::Nothing(StopWhy::OtherHost { host, epoch }, Some(Standby::HostedBy(host)))
            }
            Some(_) => self.go_on(is_forced),
            None => self.elect(is_forced),
        }
    }

    /// Of all claims the one with the highest epoch, then by the rule.
    fn holder(&self) -> Option<(NodeId, u64)> {
        let mine = match &self.model.state {
            State::Hosting { epoch, .. } => Some((*epoch, &self.election.me)),
            _ => None,
        };
        let theirs = self.election.here().filter_map(|member| {
            let claim = member.facts(self.name)?.claim.as_ref()?;
            Some((claim.epoch, member))
        });
        let best =
            theirs.chain(mine).max_by_key(|(epoch, member)| (*epoch, Reverse(order(self.name, member))));
        best.map(|(epoch, member)| (member.id(), epoch))
    }

    /// Nobody hosts it: the first by the rule that can.
    fn elect(&self, is_forced: bool) -> Verdict {
        let me = &self.election.me;
        let able = |member: &&Member| member.is_able(self.name) && self.is_new(member);
        let mut servers: Vec<&Member> = self.election.here().filter(able).chain([me]).collect();
        servers.sort_by_key(|member| order(self.name, member));
        let mut refusal = String::new();
        for server in servers {
            let plan = self.plan_of(server, is_forced);
            if plan.split().is_none() {
                if server.id() == me.id() {
                    refusal = refusals(&plan);
                }
                continue;
            }
            if server.id() == me.id() {
                return Verdict::Host(Arc::new(plan), StopWhy::Split);
            }
            return Verdict::Await(server.id());
        }
        // A split is wanted and nobody lends yet.
        if matches!(self.model.state, State::Alone) {
            return Verdict::Keep;
        }
        if self.fits_alone(me) {
            return Verdict::Alone(StopWhy::FitsOne);
        }
        Verdict::Nothing(StopWhy::NotServed, Some(Standby::FitsNowhere(refusal)))
    }

    /// This node hosts it: whether that goes on as it is.
    fn go_on(&self, is_forced: bool) -> Verdict {
        let State::Hosting { plan: current, workers, .. } = &self.model.state else { return Verdict::Keep };
        let me = self.election.me.id();
        let is_lost = |worker: &&NodeId| {
            let is_here = self.election.members.get(worker).is_some_and(Member::is_here);
            **worker != me && (!is_here || self.model.left_out.contains_key(worker))
        };
        let lost = workers.iter().find(is_lost).copied();
        let next = self.plan_of(&self.election.me, is_forced);
        let Some(worker) = lost else {
            let is_better = next.split().is_some() && self.is_better(&next, current);
            return if is_better { Verdict::Better(Arc::new(next)) } else { Verdict::Keep };
        };
        let why = StopWhy::WorkerLost { worker };
        if next.split().is_some() {
            return Verdict::Host(Arc::new(next), why);
        }
        if self.fits_alone(&self.election.me) {
            return Verdict::Alone(why);
        }
        Verdict::Nothing(why, Some(Standby::FitsNowhere(refusals(&next))))
    }

    /// The plan with a member at its head, of those on whom something may be built.
    fn plan_of(&self, host: &Member, is_forced: bool) -> Plan {
        let all = self.election.here().chain([&self.election.me]);
        let keeps = |member: &&Member| self.is_new(member) || self.works_now(member);
        let others: Vec<Machine> = all
            .filter(|member| member.id() != host.id())
            .filter(keeps)
            .map(|member| Machine { serves: false, ..member.machine_for(self.name) })
            .collect();
        let wishes = Wishes { split: is_forced, ..self.election.config.wishes.clone() };
        plan(self.name, self.needs, &host.machine_for(self.name), &others, &wishes)
    }

    /// A worker under suspicion stays as long as it works.
    fn works_now(&self, member: &Member) -> bool {
        let is_worker =
            matches!(&self.model.state, State::Hosting { workers, .. } if workers.contains(&member.id()));
        is_worker && !self.model.left_out.contains_key(&member.id())
    }

    fn is_better(&self, next: &Plan, current: &Plan) -> bool {
        let (next_workers, workers) = (workers_of(next), workers_of(current));
        if next_workers == workers {
            return false;
        }
        let rate = |plan: &Plan| {
            plan.chosen()
                .and_then(|chosen| chosen.prediction)
                .map_or(0.0, |prediction| prediction.tokens_per_second)
        };
        let factor = 1.0 + f64::from(self.election.config.better_by_percent) / 100.0;
        let is_fewer = next_workers.len() < workers.len() && rate(next) >= rate(current);
        is_fewer || rate(next) > rate(current) * factor
    }
}

/// The rule: the largest memory first, then the lowest id.
fn order(name: &str, member: &Member) -> (Reverse<u64>, NodeId) {
    (Reverse(member.machine_for(name).device_memory()), member.id())
}

fn refusals(plan: &Plan) -> String {
    let ways = plan.alternatives.iter().filter_map(|way| way.refusal.as_ref()).map(ToString::to_string);
    let others = plan.left_out.iter().filter(|other| matches!(other.why, Unfit::OtherBuild { .. }));
    let others = others.map(|other| format!("{} cannot help: {}", other.machine, other.why));
    ways.chain(others).collect::<Vec<_>>().join("; ")
}
