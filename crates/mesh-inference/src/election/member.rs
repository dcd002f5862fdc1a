//! What a member says of itself, as far as it decides who runs what.

use std::collections::BTreeMap;

use mesh_identity::NodeId;

use crate::plan::Machine;

/// A member, or this node.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The machine. `memory` is what models could still be promised; `has_file` and `serves` are not read here, since they
    /// depend on the model.
    pub machine: Machine,
    /// Whether it is here.
    pub presence: Presence,
    /// A client, or a node that looks on: it runs nothing and is not counted.
    pub is_passive: bool,
    /// Its owner named no model: it takes up what is needed.
    pub is_auto: bool,
    /// The models that it knows.
    pub models: BTreeMap<String, ModelFacts>,
}

/// Whether a member is here, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It answers.
    Alive,
    /// It may be gone: what it does stays, and nothing new is built on it.
    Suspect,
    /// It is gone, and what it claimed with it.
    Down,
}

/// What a member says of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// It has the file.
    pub on_disk: bool,
    /// Its owner wants the mesh to have it.
    pub is_wanted: bool,
    /// It runs the model whenever the rules say so.
    pub serves: bool,
    /// It took it up by itself: nobody there asked for it.
    pub taken_up: bool,
    /// Its owner wants it split (`--split`).
    pub wants_split: bool,
    /// Memory that it has promised to this model in whatever role: it is free for another plan of the same model.
    pub held: u64,
    /// It runs it alone now.
    pub runs_alone: bool,
    /// It was to run it and failed, not long ago: it is passed over.
    pub has_failed: bool,
    /// It would run it, and finds no room, neither there nor over others.
    pub finds_no_room: bool,
    /// Its claim to host it.
    pub claim: Option<Claim>,
    /// Requests that its gateway had within the window.
    pub requests: u64,
}

/// A node's word that it hosts a split of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Higher than any that it had seen.
    pub epoch: u64,
    /// Whose memory it uses, in order of their ids.
    pub workers: Vec<NodeId>,
}

impl Member {
    pub(super) fn id(&self) -> NodeId {
        self.machine.id
    }

    /// Counted among those that are here.
    pub(super) fn is_here(&self) -> bool {
        self.presence != Presence::Down && !self.is_passive
    }

    pub(super) fn facts(&self, model: &str) -> Option<&ModelFacts> {
        self.models.get(model)
    }

    pub(super) fn serves(&self, model: &str) -> bool {
        self.facts(model).is_some_and(|facts| facts.serves && facts.on_disk)
    }

    /// The models that it serves.
    pub(super) fn served(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str).filter(|model| self.serves(model))
    }

    /// The model that it took up by itself, when it serves no other one.
    pub(super) fn taken_up(&self) -> Option<&str> {
        let mut served = self.served();
        let only = served.next().filter(|model| self.facts(model).is_some_and(|facts| facts.taken_up))?;
        served.next().is_none().then_some(only)
    }

    /// Whether the mesh may count on it for a model: one that has no room for it serves nobody.
    pub(super) fn stands_for(&self, model: &str) -> bool {
        self.is_able(model) && self.facts(model).is_some_and(|facts| !facts.finds_no_room)
    }

    /// Whether it would run the model when the rules say so.
    pub(super) fn is_able(&self, model: &str) -> bool {
        self.serves(model) && self.facts(model).is_some_and(|facts| !facts.has_failed)
    }

    /// The machine as a plan for this model sees it: what the model holds there already is free for it.
    pub(super) fn machine_for(&self, model: &str) -> Machine {
        let facts = self.facts(model).cloned().unwrap_or_default();
        let mut machine =
            Machine { has_file: facts.on_disk, serves: self.serves(model), ..self.machine.clone() };
        let memory = machine.gpus.first_mut().map_or(&mut machine.memory, |gpu| &mut gpu.memory);
        *memory = memory.saturating_add(facts.held);
        machine
    }
}
