//! What is known of this node and of its peers: the only input to a decision besides the gauges.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
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

/// How much a node has to do for one model, as its answer says: exact when it was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that it works on, the answered one included.
    pub running: u32,
    /// Requests that wait for a slot.
    pub waiting: u32,
    /// Requests that it works on at a time; `None` when it does not know.
    pub slots: Option<u32>,
}

impl Load {
    /// The load of this many requests at this many slots.
    pub fn of(requests: u32, slots: Option<u32>) -> Self {
        let running = slots.map_or(requests, |slots| requests.min(slots));
        Self { running, waiting: requests - running, slots }
    }
}

/// `running=2, waiting=1, slots=4`, without slots when they are not known.
impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "running={}, waiting={}", self.running, self.waiting)?;
        self.slots.map_or(Ok(()), |slots| write!(f, ", slots={slots}"))
    }
}

/// The text is no load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a load")]
pub struct InvalidLoad;

/// Words that this version does not know are skipped.
impl FromStr for Load {
    type Err = InvalidLoad;

    fn from_str(text: &str) -> Result<Self, InvalidLoad> {
        let word = |key: &str| {
            let words = text.split(',').filter_map(|word| word.trim().split_once('='));
            let mut values = words.filter(|(name, _)| *name == key).map(|(_, value)| value.parse::<u32>());
            values.next().transpose().map_err(|_| InvalidLoad)
        };
        let running = word("running")?.ok_or(InvalidLoad)?;
        Ok(Self { running, waiting: word("waiting")?.unwrap_or(0), slots: word("slots")? })
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
    /// Requests under way there, roughly, as it says itself: for choosing among equals until an answer says it exactly.
    pub under_way: u32,
    /// The link to it, if there is one: links open on use, so a peer without one is a candidate too, behind the linked.
    pub link: Option<LinkFacts>,
}

impl PeerFacts {
    /// An alive peer of this name that offers nothing and has no link.
    pub fn new(name: NodeName) -> Self {
        Self {
            name,
            liveness: Liveness::Alive,
            offers: Vec::new(),
            labels: Labels::new(),
            under_way: 0,
            link: None,
        }
    }
}
