//! Who runs which model: the decisions of one node in one scope.
//!
//! A pure core. What members say of themselves goes in, what this node is to do comes out; there is no round of votes. Every node
//! applies the same rules to the same facts, so all come to one answer once they know the same, and until then epochs settle it.
//! See `docs/protocols/election.md`.

mod assign;
mod core;
mod demand;
mod member;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use mesh_identity::NodeId;

pub use self::core::Election;
pub use member::{Claim, Member, ModelFacts, Presence};

use crate::plan::{Needs, Plan, Wishes};

/// Times and bounds. The defaults are for people's machines; tests scale them.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// So long news are gathered before they are acted on, from the first on. Default 2 s. Losses are acted on at once.
    pub debounce: Duration,
    /// A worker that refused or was lost is left out for so long. Default 30 s.
    pub left_out_for: Duration,
    /// An elected node has so long to claim a model, and machines that run it alone so long to make room for a split. Default
    /// 10 s.
    pub patience: Duration,
    /// A running split is left for one on other machines when that needs fewer of them, or is predicted to be faster by so many
    /// hundredths. Default 25.
    pub better_by_percent: u32,
    /// And only when that has been so for this long. Default 30 s.
    pub better_after: Duration,
    /// A request counts as demand for so long. Default 10 min.
    pub demand_window: Duration,
    /// Requests within that time for each node that serves a model, above which one more takes it up. Default 100.
    pub demand_per_node: u64,
    /// What the owner wants of plans. `split` is set by the members' facts.
    pub wishes: Wishes,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            debounce: Duration::from_secs(2),
            left_out_for: Duration::from_secs(30),
            patience: Duration::from_secs(10),
            better_by_percent: 25,
            better_after: Duration::from_secs(30),
            demand_window: Duration::from_secs(600),
            demand_per_node: 100,
            wishes: Wishes::default(),
        }
    }
}

/// What happens to a node.
#[derive(Debug, Clone)]
pub enum Input {
    /// [`Election::next_deadline`] has come.
    Tick,
    /// This node's own facts, whole. Claims in them are not read: the core knows its own.
    Me(Box<Member>),
    /// A member's facts, whole.
    Member(Box<Member>),
    /// A member is no member any more.
    Forget(NodeId),
    /// What a model on this node's disk needs; `None` when it cannot be served any more.
    Needs {
        /// The model.
        model: String,
        /// With the context that this node would serve it with.
        needs: Option<Arc<Needs>>,
    },
    /// A share of a split that this node hosts is not to be had, or is lost.
    Share {
        /// The model.
        model: String,
        /// The epoch of the launch that it belongs to.
        epoch: u64,
        /// Whose.
        worker: NodeId,
        /// The epoch of the host that has it instead.
        held_by_epoch: Option<u64>,
    },
    /// What this node was told to run has ended for good: llama-server failed again and again, or its own share is lost.
    Failed {
        /// The model.
        model: String,
        /// Its epoch; 0 for a model run alone.
        epoch: u64,
        /// Why.
        why: String,
    },
    /// Requests for a model came to this node's gateway, whoever serves it.
    Requested {
        /// The model.
        model: String,
        /// How many.
        requests: u64,
    },
}

/// What a node is to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Run the model alone.
    Serve {
        /// The model.
        model: String,
    },
    /// Borrow the shares of the plan's split, and run the model over them. What is not to be had comes back as
    /// [`Input::Share`]. The claim to it was published before.
    Host {
        /// The model.
        model: String,
        /// The epoch for the leases.
        epoch: u64,
        /// With a split as its choice.
        plan: Arc<Plan>,
    },
    /// End what runs for the model here, and give all shares back. Something else may follow at once.
    Stop {
        /// The model.
        model: String,
        /// Why.
        why: StopWhy,
    },
    /// Show this claim in the node's record, or none.
    Publish {
        /// The model.
        model: String,
        /// The claim.
        claim: Option<Claim>,
    },
    /// It was looked at again and stays as it is: "still host, no restart needed".
    Kept {
        /// The model.
        model: String,
        /// Its epoch.
        epoch: u64,
    },
    /// The model does not run here, although it should be served: for those who ask for it.
    Standby {
        /// The model.
        model: String,
        /// Why.
        why: Standby,
    },
    /// Take up a model: the owner named none, and it is on this node's disk. The next [`Input::Me`] shows it as served.
    Assign {
        /// The model.
        model: String,
        /// What was taken up before another node was known to have done so too, and is left for it.
        instead_of: Option<String>,
        /// Why this one.
        why: AssignWhy,
    },
    /// Show the demand in the node's record ([`ModelFacts::requests`]): requests for each model within the window.
    PublishDemand {
        /// By model.
        requests: Vec<(String, u64)>,
    },
}

/// Why something ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopWhy {
    /// The owner or the mesh dropped it, or its file is gone.
    #[error("it is not served here any more")]
    NotServed,
    /// Another node hosts it.
    #[error("{} hosts it by epoch {epoch}", host.short())]
    OtherHost {
        /// Which.
        host: NodeId,
        /// Its epoch.
        epoch: u64,
    },
    /// A machine alone does it from now on.
    #[error("one machine alone holds it")]
    FitsOne,
    /// A split is wanted, and can be made.
    #[error("it is split from now on")]
    Split,
    /// A worker is lost.
    #[error("{} is lost", worker.short())]
    WorkerLost {
        /// Which.
        worker: NodeId,
    },
    /// Other machines do it better.
    #[error("other machines do it better")]
    Better,
    /// It failed.
    #[error("it failed: {0}")]
    Failed(String),
}

/// Why a model that should be served does not run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Standby {
    /// Another node does it alone.
    #[error("{} runs it alone", .0.short())]
    RunsAt(NodeId),
    /// Another node hosts it, or is about to.
    #[error("{} hosts it", .0.short())]
    HostedBy(NodeId),
    /// It fits nowhere.
    #[error("no machine holds it, and no split of those that are here: {0}")]
    FitsNowhere(String),
    /// It failed here and is tried again later.
    #[error("it failed here: {0}")]
    Failed(String),
}

/// Why a node takes up a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AssignWhy {
    /// Nobody serves it.
    #[error("needed by the mesh, already on disk")]
    Unserved,
    /// Those who do have more requests than they should.
    #[error("{requests} requests for {nodes} nodes, already on disk")]
    Demand {
        /// Within the window.
        requests: u64,
        /// That serve it.
        nodes: u64,
    },
}
