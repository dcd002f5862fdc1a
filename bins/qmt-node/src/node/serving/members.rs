//! The members that take part in an election, as their records tell of them. What did not change is not read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_gossip::Member as Record;
use mesh_identity::{NodeId, ScopeId};
use mesh_inference::election::{Input, Member, Presence};
use mesh_inference::plan::Link;
use mesh_transport::LinkFacts;

use super::record::{Said, presence};
use crate::node::Node;
use crate::node::placing::UNKNOWN_ROUND_TRIP;
use crate::node::scopes::Scope;
use crate::node::views::role_here;

/// Round trips are told apart in these steps: what drifts within one is no news for an election.
const ROUND_TRIP_STEPS_MS: [u64; 10] = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500];

/// What election knows of the members of one scope.
#[derive(Default)]
pub(super) struct Members {
    scope: Option<ScopeId>,
    known: BTreeMap<NodeId, Known>,
    /// The models that somebody holds dropped: nobody takes them up by itself.
    dropped: BTreeSet<String>,
}

struct Known {
    /// Shared with gossip, which makes a new one for whatever changes.
    record: Arc<Record>,
    said: Said,
    presence: Presence,
    link: Link,
    /// As election was told of it.
    member: Option<Member>,
    /// It says something else than election was told.
    is_news: bool,
}

impl Members {
    pub(super) fn scope(&self) -> Option<ScopeId> {
        self.scope
    }

    /// All that take part beside this node.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.known.values().filter_map(|known| known.member.as_ref())
    }

    pub(super) fn dropped(&self) -> &BTreeSet<String> {
        &self.dropped
    }

    /// Looks at a scope. `own_dropped` are the models that this node holds dropped. Returns what election has not heard of.
    pub(super) fn look(
        &mut self,
        node: &Node,
        scope: Option<&Scope>,
        own_dropped: Vec<String>,
    ) -> Vec<Input> {
        let mut news = Vec::new();
        let id = scope.map(Scope::id);
        if id != self.scope {
            self.scope = id;
            news.extend(std::mem::take(&mut self.known).into_keys().map(Input::Forget));
        }
        let mut before = std::mem::take(&mut self.known);
        if let Some((scope, gossip)) = scope.and_then(|scope| Some((scope, node.gossip(&scope.id())?))) {
            let links = node.transport().links();
            for record in gossip.members().iter() {
                let is_its = |link: &&LinkFacts| link.peer.scope == scope.id() && link.peer.id == record.id;
                let round_trip = links.iter().find(is_its).and_then(|link| link.path.rtt);
                let link = Link::new(stepped(round_trip.unwrap_or(UNKNOWN_ROUND_TRIP)));
                if let Some(known) = Known::of(scope, record, link, &mut before) {
                    self.known.insert(record.id, known);
                }
            }
        }
        news.extend(before.into_keys().map(Input::Forget));
        let alive = self.known.values().filter(|known| known.presence == Presence::Alive);
        let theirs = alive.flat_map(|known| &known.said.serving).filter(|facts| facts.dropped);
        let dropped = theirs.map(|facts| facts.model.clone()).chain(own_dropped).collect();
        let is_other = self.dropped != dropped;
        self.dropped = dropped;
        let told = self.known.values_mut().filter(|known| known.is_news || is_other);
        news.extend(told.filter_map(|known| known.tell(&self.dropped)));
        news
    }
}

impl Known {
    /// A member that takes part: as it is known, or read anew, and taken out of `before` in both cases.
    fn of(
        scope: &Scope,
        record: &Arc<Record>,
        link: Link,
        before: &mut BTreeMap<NodeId, Self>,
    ) -> Option<Self> {
        if let Some(known) = before.get(&record.id)
            && Arc::ptr_eq(&known.record, record)
            && known.link == link
        {
            return before.remove(&record.id);
        }
        let presence = presence(record.state, role_here(scope, record))?;
        let said = Said::of(record)?;
        let member = before.remove(&record.id).and_then(|known| known.member);
        Some(Self { record: record.clone(), said, presence, link, member, is_news: true })
    }

    fn tell(&mut self, dropped: &BTreeSet<String>) -> Option<Input> {
        self.is_news = false;
        let name = self.record.name.to_string();
        let member = self.said.member(self.record.id, name, self.link, self.presence, dropped);
        if self.member.as_ref() == Some(&member) {
            return None;
        }
        self.member = Some(member.clone());
        Some(Input::Member(Box::new(member)))
    }
}

fn stepped(round_trip: Duration) -> Duration {
    let millis = round_trip.as_secs_f64() * 1e3;
    let step = ROUND_TRIP_STEPS_MS.iter().find(|step| millis <= **step as f64);
    Duration::from_millis(*step.unwrap_or(&1000))
}
