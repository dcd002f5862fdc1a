//! What is known of this node and of its peers: the only input to a decision besides the gauges.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use mesh_identity::{NodeName, Role};
use serde::{Deserialize, Serialize};

/// Offers kept of one node; further ones are ignored. A record of 32 KiB holds no more of them in practice, and a peer
/// must not be able to make every decision slow.
pub const OFFERS_MAX: usize = 256;

/// Free words that narrow a choice: `gpu`, `fast-model`.
pub type Labels = BTreeSet<String>;

/// Who may use what a node offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Nobody but the node itself.
    None,
    /// Members of the scope; the default, as in the configuration.
    #[default]
    Members,
    /// Members and clients of the scope.
    Clients,
}

impl Share {
    /// Whether a caller in this role may use it.
    pub fn admits(self, role: Role) -> bool {
        match self {
            Self::None => false,
            Self::Members => role == Role::Member,
            Self::Clients => true,
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Members => "members",
            Self::Clients => "clients",
        })
    }
}

/// How far a model is from answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OfferState {
    /// It answers now.
    Ready,
    /// It is being loaded, and is expected to be ready after this time where that is known.
    Loading {
        /// Expected time until ready.
        eta: Option<Duration>,
    },
    /// It is on disk, and nobody has asked for it to be loaded.
    Cold,
}

/// One model at one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The model's name, compared exactly.
    pub model: String,
    /// How far it is from answering.
    pub state: OfferState,
    /// Who may use it. Ignored when the node's own user asks for a local model.
    pub share: Share,
    /// Labels of this model, added to those of its node.
    pub labels: Labels,
    /// Requests that it serves at once; `None` when it does not say, and then it is never full.
    pub slots: Option<u32>,
    /// Requests that it serves now, as it says itself.
    pub in_flight: u32,
}

impl Offer {
    /// A ready model, shared with members, without labels and with no limit of its own.
    pub fn ready(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            state: OfferState::Ready,
            share: Share::Members,
            labels: Labels::new(),
            slots: None,
            in_flight: 0,
        }
    }
}

/// What gossip says of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It may be dead: used only when nobody alive can serve.
    Suspect,
    /// It is dead or has left: never used.
    Down,
}

/// What carries a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// Between programs of one machine (tests).
    Memory,
    /// The local network.
    Lan,
    /// The internet.
    Internet,
}

/// The link to a peer in a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkFacts {
    /// Whether a relay carries it.
    pub relayed: bool,
    /// What carries it.
    pub network: Network,
    /// Its round trip, where measured.
    pub rtt: Option<Duration>,
    /// Packets lost of a thousand, where measured.
    pub loss: Option<u16>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalFacts {
    /// Its own models.
    pub offers: Vec<Offer>,
    /// Its own labels.
    pub labels: Labels,
}

/// A peer in one scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFacts {
    /// The name that its grant carries.
    pub name: NodeName,
    /// What gossip says of it.
    pub liveness: Liveness,
    /// Its models, as its record in this scope says; the first [`OFFERS_MAX`] count.
    pub offers: Vec<Offer>,
    /// Its labels, as its record in this scope says.
    pub labels: Labels,
    /// The link to it, if there is one: links open on use, so a peer without one is a candidate too, behind the linked.
    pub link: Option<LinkFacts>,
}

impl PeerFacts {
    /// An alive peer of this name that offers nothing and has no link.
    pub fn new(name: NodeName) -> Self {
        Self { name, liveness: Liveness::Alive, offers: Vec::new(), labels: Labels::new(), link: None }
    }
}
