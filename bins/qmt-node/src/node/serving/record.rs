//! What a node says of the models that it serves or wants, and what election makes of it.

use std::collections::{BTreeMap, BTreeSet};

use mesh_gossip::{Member, State};
use mesh_identity::{NodeId, Role};
use mesh_inference::election;
use mesh_inference::plan::Link;
use serde::{Deserialize, Serialize};

use crate::node::machine::{DiskFacts, MACHINE_KEY, MachineFacts, decode_disk};
use crate::node::offers::{decode_list, encode_list};
use crate::node::placing::{Known, machine};

/// Values used at most; about 150 models.
const VALUES_MAX: usize = 4;

/// One model, as a node has to do with it. Readers ignore fields they do not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServingFacts {
    pub(crate) model: String,
    /// Its owner wants the mesh to have it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) wanted: bool,
    /// It runs the model whenever the rules say so.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) serves: bool,
    /// Its owner wants it split.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) split: bool,
    /// It runs it alone now.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) alone: bool,
    /// It was to run it and failed, not long ago.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) failed: bool,
    /// It would run it, and finds no room for it here, nor over others.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) no_room: bool,
    /// It hosts it, or is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) claim: Option<ClaimFacts>,
    /// Requests that came to its gateway lately.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) requests: u64,
    /// It was dropped there, and nobody takes it up by itself until it is loaded again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) dropped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClaimFacts {
    pub(crate) epoch: u64,
    pub(crate) workers: Vec<NodeId>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for references")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl ServingFacts {
    /// Whether there is nothing to tell.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self { model: self.model.clone(), ..Self::default() }
    }
}

fn keys() -> impl Iterator<Item = String> {
    (0..VALUES_MAX).map(|at| format!("serving/{at}"))
}

/// The values to publish, every key included.
pub(crate) fn encode(facts: &[ServingFacts]) -> Vec<(String, Vec<u8>)> {
    encode_list(keys(), facts)
}

/// What a member tells of its models.
pub(crate) fn decode(member: &Member) -> Vec<ServingFacts> {
    decode_list(keys(), |key| member.value(key).map(|bytes| bytes.as_ref()))
}

/// What one node has said, as election takes it.
pub(crate) struct Said {
    pub(crate) machine: MachineFacts,
    pub(crate) disk: Vec<DiskFacts>,
    pub(crate) serving: Vec<ServingFacts>,
}

impl Said {
    /// What a member has said in its record; `None` when it says nothing of its machine.
    pub(crate) fn of(member: &Member) -> Option<Self> {
        let value = |key: &str| member.value(key).map(|bytes| bytes.as_ref());
        let machine = serde_json::from_slice(value(MACHINE_KEY)?).ok()?;
        Some(Self { machine, disk: decode_disk(value), serving: decode(member) })
    }

    /// As a member of an election. `dropped` names models that nobody takes up by itself.
    pub(crate) fn member(
        &self,
        id: NodeId,
        name: String,
        link: Link,
        presence: election::Presence,
        dropped: &BTreeSet<String>,
    ) -> election::Member {
        let mut models: BTreeMap<String, election::ModelFacts> = BTreeMap::new();
        for found in &self.disk {
            models.entry(found.model.clone()).or_default().on_disk = true;
        }
        for facts in &self.serving {
            let is_dropped = dropped.contains(&facts.model);
            let model = models.entry(facts.model.clone()).or_default();
            model.is_wanted = facts.wanted && !is_dropped;
            model.serves = facts.serves;
            model.taken_up = facts.serves && !facts.wanted;
            // It may lie outside of the folders that are scanned.
            model.on_disk |= facts.serves;
            model.wants_split = facts.split;
            model.runs_alone = facts.alone;
            model.has_failed = facts.failed;
            model.finds_no_room = facts.no_room;
            model.requests = if is_dropped { 0 } else { facts.requests };
            let claim =
                |claim: &ClaimFacts| election::Claim { epoch: claim.epoch, workers: claim.workers.clone() };
            model.claim = facts.claim.as_ref().map(claim);
        }
        let mut held = 0u64;
        for (model, bytes) in &self.machine.holds {
            held = held.saturating_add(*bytes);
            let entry = models.entry(model.clone()).or_default();
            entry.held = entry.held.saturating_add(*bytes);
        }
        let memory = self.machine.memory.saturating_sub(held);
        election::Member {
            is_auto: self.machine.auto,
            machine: machine(Known { id, name, link }, &self.machine, memory),
            presence,
            is_passive: false,
            models,
        }
    }
}

/// A member's state as election counts it. Whoever is no member here takes no part.
pub(crate) fn presence(state: State, role: Role) -> Option<election::Presence> {
    match (role, state) {
        (Role::Client, _) => None,
        (Role::Member, State::Alive) => Some(election::Presence::Alive),
        (Role::Member, State::Suspect) => Some(election::Presence::Suspect),
        (Role::Member, State::Down) => Some(election::Presence::Down),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        mesh_identity::NodeKey::from_seed([number; 32]).node_id()
    }

    #[test]
    fn what_is_not_told_takes_no_room() {
        let facts = ServingFacts { model: "m".into(), serves: true, ..ServingFacts::default() };
        assert_eq!(serde_json::to_string(&facts).unwrap(), r#"{"model":"m","serves":true}"#);
        assert!(!facts.is_empty());
        assert!(ServingFacts { serves: false, ..facts.clone() }.is_empty());
        let read: ServingFacts = serde_json::from_str(r#"{"model":"m","serves":true,"later":1}"#).unwrap();
        assert_eq!(read, facts);
    }

    #[test]
    fn memory_held_for_a_model_is_free_for_it_alone() {
        let machine = MachineFacts {
            memory: 100,
            holds: vec![("a".into(), 30), ("b".into(), 20)],
            ..MachineFacts::default()
        };
        let disk = vec![DiskFacts { model: "a".into(), bytes: 7 }];
        let claim = ClaimFacts { epoch: 4, workers: vec![node(2)] };
        let serving = vec![
            ServingFacts { model: "a".into(), serves: true, claim: Some(claim), ..ServingFacts::default() },
            ServingFacts { model: "c".into(), wanted: true, requests: 5, ..ServingFacts::default() },
        ];
        let dropped = BTreeSet::from(["c".to_owned()]);
        let said = Said { machine, disk, serving };
        let member = said.member(node(1), "n".into(), Link::HERE, election::Presence::Alive, &dropped);
        assert_eq!(member.machine.memory, 50);
        assert_eq!((member.models["a"].held, member.models["b"].held), (30, 20));
        assert!(member.models["a"].on_disk && !member.models["b"].on_disk);
        assert_eq!(member.models["a"].claim.as_ref().unwrap().epoch, 4);
        assert_eq!((member.models["c"].is_wanted, member.models["c"].requests), (false, 0), "dropped");
    }

    #[test]
    fn clients_take_no_part() {
        assert_eq!(presence(State::Alive, Role::Client), None);
        assert_eq!(presence(State::Suspect, Role::Member), Some(election::Presence::Suspect));
    }
}
