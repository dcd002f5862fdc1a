//! Where a model runs: alone, split over machines, or elsewhere; with the arithmetic that says why.
//!
//! Pure: the same facts give the same [`Plan`] on every node. [`Needs`] says what a model takes, read from its file;
//! [`plan`] compares what is possible on given [`Machine`]s. Floating point occurs in predictions of speed alone, never in
//! what fits. See `docs/protocols/placement.md`.

mod choose;
mod draft;
mod explain;
mod kv;
mod machine;
mod needs;
mod predict;
mod solo;
mod split;
#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;

use mesh_identity::NodeId;
use serde::Serialize;

pub use draft::{DraftError, check_vocabulary};
pub use machine::{Gpu, Link, Machine, Speed};
pub use needs::{Context, DraftNeeds, KvType, KvTypes, Needs, NeedsError, Unit};
pub use predict::Prediction;
pub use split::{Part, Split, assign, parse_shares};

/// Machines elsewhere that a plan names; the best ones first.
const REMOTES_SHOWN: usize = 8;
/// Machines that a plan names as left out.
const LEFT_OUT_SHOWN: usize = 16;

/// What the owner wants.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Wishes {
    /// A split even where one machine would do (`--split`).
    pub split: bool,
    /// So many machines beside the host in a split, instead of the fewest that suffice.
    pub workers: Option<NonZeroUsize>,
    /// Shares of the devices in llama-server's order, instead of shares by memory (`--tensor-split`).
    pub tensor_split: Option<Vec<f32>>,
    /// By how much everything is counted larger, in hundredths.
    pub headroom_percent: u64,
}

impl Default for Wishes {
    /// No split where one machine does, and 15 % of headroom.
    fn default() -> Self {
        Self { split: false, workers: None, tensor_split: None, headroom_percent: 15 }
    }
}

/// What was compared, and what is best. Print it, and it explains itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The model's name.
    pub model: String,
    /// The machine that plans, and would host.
    pub host: NodeId,
    /// What the model needs.
    pub needs: Needs,
    /// Everything that was compared; what is best comes first.
    pub alternatives: Vec<Alternative>,
    /// Machines that take no part in a split here, and why; the first few.
    pub left_out: Vec<LeftOut>,
}

/// One way to run the model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alternative {
    /// Which.
    pub way: Way,
    /// The machine that runs llama-server.
    pub at: String,
    /// The memory that it takes, by device.
    pub shares: Vec<Share>,
    /// How fast it would be; `None` when it cannot be.
    pub prediction: Option<Prediction>,
    /// Why it is not done; `None` for what could be done.
    pub refusal: Option<Refusal>,
}

/// How a model runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// On the planning machine alone.
    Solo,
    /// Hosted by the planning machine, with others.
    Split(Split),
    /// A split that was not found possible.
    NoSplit,
    /// On another machine alone; requests are routed there.
    Remote {
        /// Which.
        node: NodeId,
    },
}

/// What one device takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Whose device.
    pub node: NodeId,
    /// The machine's name.
    pub machine: String,
    /// The device, for example `CPU` or `CUDA0`.
    pub device: String,
    /// Layers that lie there; `None` for the host's own part of a split.
    pub layers: Option<usize>,
    /// Weights.
    pub weights: u64,
    /// Keys, values and states.
    pub kv: u64,
    /// Compute buffers, the process, and what comes and goes while it loads.
    pub buffers: u64,
    /// The draft model.
    pub draft: u64,
    /// All of it with headroom.
    pub needed: u64,
    /// What models may take there.
    pub memory: u64,
}

/// Why a way is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// It does not fit.
    #[error("{needed} are needed and {memory} there", needed = explain::size(*.needed), memory = explain::size(*.memory))]
    Memory {
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are there.
        memory: u64,
    },
    /// The machine has not got the file.
    #[error("it does not have the model's file")]
    NoFile,
    /// Its owner does not let it serve this model.
    #[error("it does not serve this model")]
    DoesNotServe,
    /// There is no llama.cpp.
    #[error("it has no llama.cpp")]
    NoRuntime,
    /// Nobody lends memory.
    #[error("no other machine lends memory to it")]
    NoWorkers,
    /// All together are too small, or the layers do not go into their memories one by one.
    #[error("{workers} machines with it do not hold it")]
    TooSmall {
        /// How many were there.
        workers: usize,
    },
    /// The number of shares is not that of devices, or they are no shares.
    #[error(
        "the {given} shares given for --tensor-split fit no choice of machines: one is needed for each device, those of others first"
    )]
    Shares {
        /// How many were given.
        given: usize,
    },
    /// One machine does, and a split was not asked for.
    #[error(
        "one machine holds the model, and a split is made for what none holds (--split makes one all the same)"
    )]
    NotNeeded,
    /// A split was asked for.
    #[error("a split was asked for")]
    SplitWanted,
    /// Another way is predicted to be faster.
    #[error("another way is faster")]
    Slower,
}

/// A machine that takes no part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Which.
    pub node: NodeId,
    /// Its name.
    pub machine: String,
    /// Why.
    pub why: Unfit,
}

/// Why a machine cannot be a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unfit {
    /// Its owner lends nothing.
    #[error("it lends no memory")]
    LendsNothing,
    /// Two builds of llama.cpp do not understand each other.
    #[error("its llama.cpp is {theirs:?}, the host's is {ours:?}; install one build on both")]
    OtherBuild {
        /// The host's.
        ours: String,
        /// The machine's.
        theirs: String,
    },
    /// Not even one layer.
    #[error("its memory holds not one layer")]
    TooSmall,
}

impl Plan {
    /// What is to be done; `None` when nothing can be.
    pub fn chosen(&self) -> Option<&Alternative> {
        self.alternatives.first().filter(|best| best.refusal.is_none())
    }

    /// What a node lends to the split chosen, in bytes with headroom: the sum over its devices. The host's own part is not
    /// among it.
    pub fn lent_by(&self, node: &NodeId) -> u64 {
        let shares = self.split().and(self.chosen()).map_or(&[][..], |chosen| &chosen.shares);
        let lent = shares.iter().filter(|share| share.node == *node && share.layers.is_some());
        needs::sum(lent.map(|share| share.needed))
    }

    /// What the host takes when it runs the model alone, in bytes with headroom, whether it fits there now or not.
    pub fn needed_alone(&self) -> u64 {
        let alone = self.alternatives.iter().find(|alternative| alternative.way == Way::Solo);
        needs::sum(alone.into_iter().flat_map(|alone| &alone.shares).map(|share| share.needed))
    }

    /// What the host takes beside what it lends itself, in bytes with headroom: all of it when it runs the model alone, nothing
    /// when another machine does.
    pub fn taken_by_host(&self) -> u64 {
        let shares = self.chosen().map_or(&[][..], |chosen| &chosen.shares);
        let is_split = self.split().is_some();
        let taken =
            shares.iter().filter(|share| share.node == self.host && (!is_split || share.layers.is_none()));
        needs::sum(taken.map(|share| share.needed))
    }

    /// The split to be made, when that is what is to be done.
    pub fn split(&self) -> Option<&Split> {
        match &self.chosen()?.way {
            Way::Split(split) => Some(split),
            _ => None,
        }
    }
}

/// Compares running the model on `host` alone, split with `host` at its head, and on each of the others alone.
///
/// One machine that does is always preferred to a split, unless that was wished for; among machines that do, the faster one, and
/// the host before others that are as fast. A split takes the fewest machines whose memory suffices, and among those the
/// fastest choice found. Deterministic, and polynomial in machines and layers.
pub fn plan(model: &str, needs: &Needs, host: &Machine, others: &[Machine], wishes: &Wishes) -> Plan {
    let others: Vec<Machine> = others.iter().map(|other| other.as_fast_as_known(host)).collect();
    let mut others: Vec<&Machine> = others.iter().filter(|other| other.id != host.id).collect();
    others.sort_by_key(|other| other.id);
    others.dedup_by_key(|other| other.id);
    let mut solo = solo::solo(needs, host, Way::Solo, wishes);
    let mut remotes: Vec<Alternative> = others
        .iter()
        .filter(|other| other.serves && other.has_file)
        .map(|other| solo::solo(needs, other, Way::Remote { node: other.id }, wishes))
        .collect();
    let (mut split, left_out) = choose::split(needs, host, &others, wishes);
    let is_wanted = wishes.split && split.refusal.is_none();
    if is_wanted {
        for alternative in remotes.iter_mut().chain([&mut solo]) {
            alternative.refusal.get_or_insert(Refusal::SplitWanted);
        }
    } else if remotes.iter().chain([&solo]).any(|alternative| alternative.refusal.is_none()) {
        split.refusal.get_or_insert(Refusal::NotNeeded);
    }
    predict::fastest_first(&mut remotes);
    let whole = remotes.len();
    remotes.truncate(REMOTES_SHOWN);
    if whole > remotes.len() {
        tracing::debug!(machines = whole, shown = REMOTES_SHOWN, "a plan names some of the machines");
    }
    let mut alternatives = vec![solo, split];
    alternatives.extend(remotes);
    predict::best_first(&mut alternatives);
    Plan { model: model.to_owned(), host: host.id, needs: needs.clone(), alternatives, left_out }
}
