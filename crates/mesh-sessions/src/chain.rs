//! Who delegated to whom, signed by everyone on the way.
//!
//! A prompt that an agent gives to another one carries a [`SignedChain`]: one hop for each delegation since a person spoke.
//! Whoever receives it knows, by signatures and not by what it is told, how deep it is ([`DEPTH_MAX`]), which agents wait
//! for its answer (a chain never comes back to one of them) and what it may spend ([`Budget`]).
//!
//! It is pure: the clock is an argument. A chain stays within its scope, since it names nodes; into another scope a new one
//! begins that keeps only the depth.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_identity::{Domain, Expiry, NodeId, NodeKey, ScopeId, Signature, UnixTime};
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, SessionId};

const DOMAIN: Domain = Domain::new("qmt-mesh/agent-chain/v1");

/// The first byte of the encoding.
const VERSION: u8 = 1;

/// The most delegations from the person who spoke to the agent that works (the specification's chain depth).
pub const DEPTH_MAX: usize = 3;

/// Node, session, node, signature with its length; two agents with theirs; two amounts; an end.
const HOP_BYTES_MAX: usize = 32 + 17 + 32 + 65 + 2 * (2 + AgentId::MAX_BYTES) + 2 * 11 + 10;

/// The longest encoding, in bytes; a longer one is not read.
pub const CHAIN_BYTES_MAX: usize = 3 + DEPTH_MAX * HOP_BYTES_MAX;

/// What a delegated turn may spend. It only ever gets less along a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Tokens of all model calls; none for no bound.
    pub tokens: Option<u64>,
    /// Money in millionths of the currency; none for no bound.
    pub cost_micros: Option<u64>,
    /// When it must be done.
    pub until: Expiry,
}

impl Budget {
    /// No bound.
    pub const UNBOUNDED: Self = Self { tokens: None, cost_micros: None, until: Expiry::NEVER };

    /// The smaller of the two in each respect.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            tokens: smaller(self.tokens, other.tokens),
            cost_micros: smaller(self.cost_micros, other.cost_micros),
            until: self.until.min(other.until),
        }
    }

    /// Whether it allows nothing that `other` does not.
    pub fn is_within(&self, other: &Self) -> bool {
        self.min(*other) == *self
    }
}

fn smaller(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// An agent where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AgentAt {
    /// The node.
    pub node: NodeId,
    /// The agent.
    pub agent: AgentId,
}

/// One delegation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Who delegates; its node signs the hop.
    pub from: AgentAt,
    /// The session whose turn waits for the answer.
    pub session: SessionId,
    /// To whom.
    pub to: AgentAt,
    /// What it may spend.
    pub budget: Budget,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SignedHop {
    hop: Hop,
    signature: Signature,
}

/// A chain as it travels. What it says counts once it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedChain {
    /// Delegations in other scopes before the first hop, as its node says.
    before: u8,
    hops: Vec<SignedHop>,
}

/// A verified chain: its last hop is the delegation to the agent at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    scope: ScopeId,
    signed: SignedChain,
}

/// Bytes or text are no chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a delegation chain of version {VERSION}")]
pub struct InvalidChain;

/// A chain is not believed. Nothing was changed; the same chain never will be, [`ChainError::Expired`] by a wrong clock apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A hop is not signed by its node for this scope.
    #[error("hop {hop} of the delegation chain is not signed by its node")]
    BadSignature {
        /// Which, the first is 1.
        hop: usize,
    },
    /// It has no hop, or a hop does not begin where the one before ends.
    #[error("the delegation chain is broken")]
    Broken,
    /// Its last hop is not from the peer that sent it, or not to this node.
    #[error("the delegation chain was made for another link")]
    Misdirected,
    /// More than [`DEPTH_MAX`] delegations.
    #[error("delegated {depth} deep; at most {DEPTH_MAX} is allowed")]
    TooDeep {
        /// How deep.
        depth: usize,
    },
    /// An agent that waits for an answer is asked again.
    #[error("{agent} already waits for this delegation's answer")]
    Loop {
        /// Which.
        agent: AgentId,
    },
    /// A hop may spend more than the one before.
    #[error("the delegation's budget is larger than that of who delegates")]
    Widened,
    /// The time of its budget is up.
    #[error("the delegation's time ended at {at}")]
    Expired {
        /// When.
        at: UnixTime,
    },
}

impl SignedChain {
    /// The first delegation since a person spoke.
    ///
    /// # Errors
    /// [`ChainError::Loop`] when an agent delegates to itself; [`ChainError::Broken`] when the hop is not from the key's node.
    pub fn begin(key: &NodeKey, scope: &ScopeId, hop: Hop) -> Result<Self, ChainError> {
        Self { before: 0, hops: Vec::new() }.with(key, scope, hop)
    }

    /// A delegation that came from where nothing is signed, as the node that received it writes it down: `before` delegations
    /// led to the one who asks. Its hop is from and to that node.
    ///
    /// # Errors
    /// [`ChainError::TooDeep`]; [`ChainError::Loop`] and [`ChainError::Broken`] as of [`SignedChain::begin`].
    pub fn received(key: &NodeKey, scope: &ScopeId, before: u8, hop: Hop) -> Result<Self, ChainError> {
        Self { before, hops: Vec::new() }.with(key, scope, hop)
    }

    fn with(mut self, key: &NodeKey, scope: &ScopeId, hop: Hop) -> Result<Self, ChainError> {
        if hop.from.node != key.node_id() {
            return Err(ChainError::Broken);
        }
        let signature = key.sign(DOMAIN, scope, &statement(self.before, &self.hops, &hop));
        self.hops.push(SignedHop { hop, signature });
        self.check()?;
        Ok(self)
    }

    /// Believes the chain when all its hops are signed for this scope, join, never widen the budget and end in a
    /// delegation of `from`, the peer that the link has proved, to an agent of `me`.
    ///
    /// # Errors
    /// [`ChainError`] otherwise.
    pub fn verify(
        self,
        scope: &ScopeId,
        from: &NodeId,
        me: &NodeId,
        now: UnixTime,
    ) -> Result<Chain, ChainError> {
        self.check()?;
        let last = &self.hops.last().ok_or(ChainError::Broken)?.hop;
        if last.from.node != *from || last.to.node != *me {
            return Err(ChainError::Misdirected);
        }
        if let (true, Some(at)) = (last.budget.until.is_over(now), last.budget.until.time()) {
            return Err(ChainError::Expired { at });
        }
        for (index, signed) in self.hops.iter().enumerate() {
            let statement = statement(self.before, &self.hops[..index], &signed.hop);
            if !signed.hop.from.node.verify(DOMAIN, scope, &statement, &signed.signature) {
                return Err(ChainError::BadSignature { hop: index + 1 });
            }
        }
        Ok(Chain { scope: *scope, signed: self })
    }

    /// All that needs no key and no clock.
    fn check(&self) -> Result<(), ChainError> {
        let depth = self.depth();
        if depth > DEPTH_MAX {
            return Err(ChainError::TooDeep { depth });
        }
        if self.hops.is_empty() {
            return Err(ChainError::Broken);
        }
        for pair in self.hops.windows(2) {
            let (one, next) = (&pair[0].hop, &pair[1].hop);
            if one.to != next.from {
                return Err(ChainError::Broken);
            }
            if !next.budget.is_within(&one.budget) {
                return Err(ChainError::Widened);
            }
        }
        for (index, signed) in self.hops.iter().enumerate() {
            let to = &signed.hop.to;
            if self.hops[..=index].iter().any(|earlier| earlier.hop.from == *to) {
                return Err(ChainError::Loop { agent: to.agent.clone() });
            }
        }
        Ok(())
    }

    /// Whether all hops are signed for this scope and join; by whom it came and when is not asked.
    pub(crate) fn is_signed(&self, scope: &ScopeId) -> bool {
        let is_signed = |(index, signed): (usize, &SignedHop)| {
            let statement = statement(self.before, &self.hops[..index], &signed.hop);
            signed.hop.from.node.verify(DOMAIN, scope, &statement, &signed.signature)
        };
        self.check().is_ok() && self.hops.iter().enumerate().all(is_signed)
    }

    /// Of a chain that was verified before it was written down.
    pub(crate) fn believed(self, scope: ScopeId) -> Option<Chain> {
        (!self.hops.is_empty()).then_some(Chain { scope, signed: self })
    }

    fn depth(&self) -> usize {
        usize::from(self.before) + self.hops.len()
    }

    /// The encoding, at most [`CHAIN_BYTES_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        encoding(&(VERSION, self.before, &self.hops))
    }

    /// Reads what [`SignedChain::encode`] wrote; nothing of it is believed yet.
    ///
    /// # Errors
    /// [`InvalidChain`] for anything else, another encoding of the same chain included.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidChain> {
        if bytes.len() > CHAIN_BYTES_MAX {
            return Err(InvalidChain);
        }
        let (version, before, hops): (u8, u8, Vec<SignedHop>) =
            postcard::from_bytes(bytes).map_err(|_| InvalidChain)?;
        let chain = Self { before, hops };
        let is_sound = version == VERSION && chain.hops.len() <= DEPTH_MAX && chain.encode() == bytes;
        is_sound.then_some(chain).ok_or(InvalidChain)
    }
}

/// What the node of a hop signs: all before it, signatures included, and the hop.
fn statement(before: u8, hops: &[SignedHop], hop: &Hop) -> Vec<u8> {
    encoding(&(VERSION, before, hops, hop))
}

fn encoding(of: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(of).expect("postcard writes every type of a chain into memory")
}

/// base64url, for headers.
impl fmt::Display for SignedChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&URL_SAFE_NO_PAD.encode(self.encode()))
    }
}

impl FromStr for SignedChain {
    type Err = InvalidChain;

    fn from_str(text: &str) -> Result<Self, InvalidChain> {
        // Base64 is a third longer than its bytes.
        if text.len() > CHAIN_BYTES_MAX * 2 {
            return Err(InvalidChain);
        }
        Self::decode(&URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidChain)?)
    }
}

/// In JSON as in headers.
impl Serialize for SignedChain {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SignedChain {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Chain {
    /// As it travels, and the scope that it is signed for.
    pub fn signed(&self) -> (&ScopeId, &SignedChain) {
        (&self.scope, &self.signed)
    }

    /// The next delegation, signed by the node that this chain leads to. Into another scope, and from another node after the
    /// session was handed over, a chain of one hop begins that keeps the depth.
    ///
    /// # Errors
    /// [`ChainError::TooDeep`], [`ChainError::Loop`] and [`ChainError::Widened`], as the receiver would find; and
    /// [`ChainError::Broken`] when the hop is not from the agent that this chain leads to.
    pub fn extend(&self, key: &NodeKey, scope: &ScopeId, hop: Hop) -> Result<SignedChain, ChainError> {
        if hop.from.agent != self.at().agent {
            return Err(ChainError::Broken);
        }
        // A session that was handed over since is at another node, for which no hop of this chain can stand.
        if *scope == self.scope && hop.from == *self.at() {
            return self.signed.clone().with(key, scope, hop);
        }
        if !hop.budget.is_within(self.budget()) {
            return Err(ChainError::Widened);
        }
        if self.waits(&hop.to) {
            return Err(ChainError::Loop { agent: hop.to.agent });
        }
        let before = u8::try_from(self.depth()).unwrap_or(u8::MAX);
        SignedChain { before, hops: Vec::new() }.with(key, scope, hop)
    }

    /// How many delegations lead here; at least 1.
    pub fn depth(&self) -> usize {
        self.signed.depth()
    }

    /// Whether one more delegation would be too deep.
    pub fn is_at_end(&self) -> bool {
        self.depth() >= DEPTH_MAX
    }

    /// Whether this agent delegated, and waits.
    pub fn waits(&self, agent: &AgentAt) -> bool {
        self.hops().any(|hop| hop.from == *agent)
    }

    /// What the turn may spend.
    pub fn budget(&self) -> &Budget {
        &self.last().budget
    }

    /// The agent that it leads to.
    pub fn at(&self) -> &AgentAt {
        &self.last().to
    }

    /// The delegations in this scope, oldest first.
    pub fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.signed.hops.iter().map(|signed| &signed.hop)
    }

    fn last(&self) -> &Hop {
        &self.signed.hops.last().expect("a verified chain has a hop").hop
    }
}

#[cfg(test)]
mod tests;
