//! The choice itself, over an immutable snapshot of the facts.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::{NodeId, Role, ScopeId};

use crate::decision::{local_share_admits, resting};
use crate::gauge::Gauge;
use crate::path::order_routes;
use crate::policy::Policies;
use crate::{
    Config, DecidedBy, Excluded, Health, Labels, LinkFacts, Liveness, Names, NoRoute, OfferState, PassedOver,
    PathRank, PeerRoute, Provider, Query, Reason, Route, RoutingPolicy, Share, Target,
};

/// Facts of one moment. Never changes but for the gauges, which all snapshots share.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) config: Arc<Config>,
    pub(crate) models: BTreeMap<String, Vec<Candidate>>,
    pub(crate) names: Names,
    pub(crate) policies: Policies,
    pub(crate) links: BTreeMap<NodeId, Vec<PeerRoute>>,
}

/// One model at one node in one scope.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) target: Target,
    pub(crate) state: OfferState,
    pub(crate) share: Share,
    pub(crate) labels: Labels,
    pub(crate) slots: Option<u32>,
    pub(crate) told_in_flight: u32,
    pub(crate) told_under_way: u32,
    /// This node's role in the candidate's scope.
    pub(crate) role: Role,
    pub(crate) liveness: Option<Liveness>,
    pub(crate) link: Option<LinkFacts>,
    pub(crate) gauge: Arc<Gauge>,
}

/// A model as a caller may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its name.
    pub model: String,
    /// How many targets could serve it now.
    pub ready: usize,
    /// How many targets have it.
    pub known: usize,
}

impl Candidate {
    /// Whether the query may know of this candidate at all.
    fn is_visible(&self, query: &Query) -> bool {
        let asked = match query.provider {
            Provider::Any => true,
            Provider::Local => self.target == Target::Local,
            Provider::Node(node) => self.target.node() == Some(node),
        };
        asked
            && match self.target {
                Target::Local => local_share_admits(query.caller, self.share),
                Target::Peer { scope, .. } => {
                    query.caller == crate::Caller::Owner
                        && query.scopes.contains(&scope)
                        && self.share.admits(self.role)
                }
            }
    }

    /// Requests under way: what we count and what the node says overlap, so the larger of the two.
    fn in_flight(&self) -> u32 {
        self.told_in_flight.max(self.gauge.in_flight())
    }

    /// Requests under way for choosing among equals: ours, and those of others by its last answer to us, or else by what it
    /// said of itself. Old words, so nobody is refused by them.
    fn load(&self, at: Duration, config: &Config) -> f64 {
        let others = self.gauge.others(at, config).unwrap_or(self.told_under_way);
        f64::from(self.in_flight().max(self.gauge.in_flight().saturating_add(others)))
    }

    /// Why it cannot be used now; a label is checked first, since waiting does not mend it.
    fn excluded(&self, query: &Query, at: Duration) -> Option<Excluded> {
        if !query.labels.is_subset(&self.labels) {
            return Some(Excluded::Unlabelled);
        }
        if self.liveness == Some(Liveness::Down) {
            return Some(Excluded::Down);
        }
        match self.state {
            OfferState::Ready => {}
            OfferState::Loading { eta } => return Some(Excluded::Loading { eta }),
            OfferState::Cold => return Some(Excluded::Cold),
        }
        resting(self.gauge.health(at))
            .or_else(|| self.slots.is_some_and(|slots| self.in_flight() >= slots).then_some(Excluded::Full))
    }

    /// The class within which candidates are equals: this node, then the alive, then by path.
    fn tier(&self) -> (bool, bool, PathRank) {
        (
            self.target != Target::Local,
            self.liveness == Some(Liveness::Suspect),
            PathRank::of(self.link.as_ref()),
        )
    }

    /// Compares by load: latency times what would then be under way. A node never measured is compared by what is under
    /// way alone, so that it gets its first request and not a burst.
    fn compare_load(&self, other: &Self, at: Duration, config: &Config) -> Ordering {
        let (mine, others) = (self.load(at, config) + 1.0, other.load(at, config) + 1.0);
        match (self.gauge.latency_us(at, config), other.gauge.latency_us(at, config)) {
            (Some(latency), Some(other_latency)) => (latency * mine).total_cmp(&(other_latency * others)),
            _ => mine.total_cmp(&others),
        }
    }
}

impl Snapshot {
    /// Decides, for the time `at` since the router's start. Always the same for the same snapshot, gauges and draw.
    pub(crate) fn route(&self, query: &Query, draw: u64, at: Duration) -> Result<Route, NoRoute> {
        let known: Vec<_> =
            self.models.get(&query.model).into_iter().flatten().filter(|one| one.is_visible(query)).collect();
        if known.is_empty() {
            return Err(NoRoute::UnknownModel {
                model: query.model.clone(),
                known: self.visible_models(query),
            });
        }
        let mut usable = Vec::new();
        let mut passed_over = Vec::new();
        for candidate in known {
            match candidate.excluded(query, at) {
                None => usable.push(candidate),
                Some(because) => passed_over.push(PassedOver { target: candidate.target, because }),
            }
        }
        let Some((order, decided_by)) = self.order(usable, query, draw, at) else {
            return Err(self.refusal(query, passed_over));
        };
        let mut targets = order.into_iter().map(|candidate| candidate.target);
        let target = targets.next().expect("an order is never empty");
        Ok(Route { target, fallbacks: targets.collect(), why: Reason { decided_by, passed_over } })
    }

    /// The usable candidates, the chosen one first, each node once; `None` when there are none.
    fn order<'a>(
        &self,
        mut usable: Vec<&'a Candidate>,
        query: &Query,
        draw: u64,
        at: Duration,
    ) -> Option<(Vec<&'a Candidate>, DecidedBy)> {
        let preferred = |one: &Candidate| match one.target {
            Target::Peer { scope, .. } => query.preferred_scope == Some(scope),
            Target::Local => true,
        };
        let probing = |one: &Candidate| one.gauge.health(at) == Health::Probing;
        // Ties beyond these are broken by the target itself, so that the order follows from the facts alone.
        usable.sort_by(|a, b| {
            (a.tier(), !probing(a))
                .cmp(&(b.tier(), !probing(b)))
                .then_with(|| a.compare_load_stable(b, at, &self.config))
                .then_with(|| (!preferred(a), a.target).cmp(&(!preferred(b), b.target)))
        });
        // A node in several scopes is one machine: its best way stands for it.
        let mut seen = BTreeSet::new();
        usable.retain(|one| seen.insert(one.target.node()));
        let first = *usable.first()?;
        let equals = usable.iter().take_while(|one| one.tier() == first.tier()).count();
        let decided_by = if first.target == Target::Local {
            DecidedBy::LocalReady
        } else if usable.len() == 1 {
            DecidedBy::OnlyCandidate
        } else if probing(first) {
            DecidedBy::Probe
        } else if equals == 1 {
            DecidedBy::BestPath
        } else {
            let (one, other) = draw_two(draw, equals);
            // `one` stands before `other` in the order by load, so it wins unless the comparison says otherwise.
            let (winner, loser) = match usable[one].compare_load(usable[other], at, &self.config) {
                Ordering::Greater => (other, one),
                Ordering::Equal if !preferred(usable[one]) && preferred(usable[other]) => (other, one),
                Ordering::Equal if preferred(usable[one]) == preferred(usable[other]) && draw >> 63 == 1 => {
                    (other, one)
                }
                _ => (one, other),
            };
            let decided_by = DecidedBy::LessLoaded { over: usable[loser].target };
            let winner = usable.remove(winner);
            usable.insert(0, winner);
            decided_by
        };
        Some((usable, decided_by))
    }

    fn refusal(&self, query: &Query, reasons: Vec<PassedOver>) -> NoRoute {
        let model = query.model.clone();
        let labelled =
            || reasons.iter().map(|one| one.because).filter(|because| *because != Excluded::Unlabelled);
        if labelled().next().is_none() {
            return NoRoute::Unlabelled { model, labels: query.labels.iter().cloned().collect() };
        }
        if labelled().any(|because| because == Excluded::Full) {
            return NoRoute::Full { model, reasons, retry_after: self.config.retry_after_full };
        }
        let retry_after = labelled()
            .filter_map(|because| match because {
                Excluded::Loading { eta } => eta,
                Excluded::Resting { retry_in } => Some(retry_in),
                _ => None,
            })
            .min()
            .unwrap_or(self.config.retry_after_loading);
        NoRoute::NotReady { model, reasons, retry_after }
    }

    fn visible_models(&self, query: &Query) -> Vec<String> {
        let visible = |candidates: &&Vec<Candidate>| candidates.iter().any(|one| one.is_visible(query));
        self.models.iter().filter(|(_, all)| visible(all)).map(|(model, _)| model.clone()).collect()
    }

    /// The models that the query's caller may ask for in the query's scopes (its `model` is not looked at), sorted.
    pub(crate) fn models(&self, query: &Query, at: Duration) -> Vec<Model> {
        let facts = |(model, candidates): (&String, &Vec<Candidate>)| {
            let visible = || candidates.iter().filter(|one| one.is_visible(query));
            let ready = visible().filter(|one| one.excluded(query, at).is_none()).count();
            Model { model: model.clone(), ready, known: visible().count() }
        };
        self.models.iter().map(facts).filter(|facts| facts.known > 0).collect()
    }

    /// The ways to a peer in these scopes, best first; see [`order_routes`].
    pub fn routes_for_peer(
        &self,
        node: &NodeId,
        scopes: &[ScopeId],
        preferred: Option<&ScopeId>,
    ) -> Vec<PeerRoute> {
        order_routes(self.links.get(node).into_iter().flatten().copied(), scopes, preferred)
    }

    /// The names by which peers can be called.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Where this agent's model is to be found; an agent without a rule takes any node.
    pub fn policy(&self, agent_id: &str) -> RoutingPolicy {
        self.policies.of(agent_id)
    }

    pub(crate) fn gauge(&self, target: &Target, model: &str) -> Option<&Arc<Gauge>> {
        self.models.get(model)?.iter().find(|one| one.target.node() == target.node()).map(|one| &one.gauge)
    }
}

impl Candidate {
    /// A total order by load for the list of fallbacks: measured by cost, the unmeasured after them by what is under way.
    fn compare_load_stable(&self, other: &Self, at: Duration, config: &Config) -> Ordering {
        let cost = |one: &Self| {
            let under_way = one.load(at, config) + 1.0;
            one.gauge.latency_us(at, config).map_or((true, under_way), |latency| (false, latency * under_way))
        };
        let ((unmeasured, mine), (other_unmeasured, others)) = (cost(self), cost(other));
        unmeasured.cmp(&other_unmeasured).then(mine.total_cmp(&others))
    }
}

/// Two different numbers below `count` (at least 2), the smaller first.
fn draw_two(draw: u64, count: usize) -> (usize, usize) {
    let below = |word: u64, count: usize| {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        usize::try_from(word % count).unwrap_or(0)
    };
    let one = below(draw & u64::from(u32::MAX), count);
    let mut other = below(draw >> 32, count - 1);
    if other >= one {
        other += 1;
    }
    (one.min(other), one.max(other))
}
