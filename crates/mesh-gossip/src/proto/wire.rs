//! The messages of `gossip/2`. One frame holds one message in postcard. docs/protocols/gossip.md describes them.

use bytes::Bytes;
use mesh_identity::Domain;
use serde::{Deserialize, Serialize};

use super::trust::Signature;
use crate::limits;

/// Everything that two nodes say to each other. The order of the variants is the wire format; later versions add at the end,
/// and who does not know a message leaves it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// "Are you there?"
    Ping { seq: u32 },
    /// The answer, with the same number.
    Pong { seq: u32 },
    /// What the sender knows, as one number for the receiver to compare with its own.
    Root { records: Hash, revocations: Hash },
    /// The same in [`BUCKETS`] parts, by the first bits of the ids. The answer is a digest of those that differ.
    Buckets { sums: Vec<Hash> },
    /// What the sender knows of these buckets, node by node. The answer is records, summaries and accusations.
    Digest { buckets: BucketSet, items: Vec<DigestItem> },
    /// What the sender has of some nodes, key by key: "give me what is later".
    Summaries { summaries: Vec<Summary> },
    /// Records or parts of them. Each stands for itself: the card comes with every part.
    Records { records: Vec<NodeRecord> },
    /// "I hold you for dead in this incarnation": only a later one of yours will do.
    Accused { incarnation: u64 },
    /// The revocations that the sender has, by hash, and some whole ones.
    Revocations { have: Vec<Hash>, whole: Vec<Vec<u8>>, answer: bool },
    /// "Do you hear that node?" To the node itself: "say so".
    Ask { subject: RawId, nonce: u64 },
    /// The subject's own answer to `Ask`.
    Heard { subject: RawId, nonce: u64, signature: WireSignature },
    /// Testimonies that nodes are dead.
    Accusations { accusations: Vec<Accusation> },
}

/// How many messages there are.
const MESSAGES: u8 = 12;
/// Accusations in one frame: some 40 kB.
pub(crate) const ACCUSATIONS_PER_FRAME: usize = 256;
/// Into how many parts the members are divided when two nodes differ.
pub(crate) const BUCKETS: usize = 64;

/// The buckets that a digest is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum BucketSet {
    /// A bit for each bucket, the lowest for the first. Who knows a node in one of them that is not named sends it.
    These(u64),
    /// The named nodes and no others.
    Named,
}

/// The bucket of a node.
pub(crate) fn bucket(id: &RawId) -> usize {
    usize::from(id[0] >> 2)
}

/// A public key not yet checked to be one.
pub(crate) type RawId = [u8; 32];
/// The first half of a BLAKE3 hash.
pub(crate) type Hash = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DigestItem {
    pub(crate) id: RawId,
    pub(crate) incarnation: u64,
    /// Whether the sender holds it for dead in this incarnation by the word of witnesses.
    pub(crate) dead: bool,
    pub(crate) print: Hash,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) id: RawId,
    /// 0 when the sender does not know the node at all.
    pub(crate) incarnation: u64,
    pub(crate) card: u64,
    pub(crate) keys: Vec<(String, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    pub(crate) id: RawId,
    /// Whether the sender holds it for alive. The sender's word, not the subject's.
    pub(crate) alive: bool,
    pub(crate) card: Card,
    pub(crate) entries: Vec<Entry>,
}

/// One node's testimony that another one is dead, signed by the witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accusation {
    pub(crate) subject: RawId,
    pub(crate) incarnation: u64,
    pub(crate) witness: RawId,
    pub(crate) evidence: Evidence,
    pub(crate) signature: WireSignature,
}

/// What a witness saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Evidence {
    /// Nothing: no answer, neither directly nor by way of others.
    Silent,
    /// Its machine says that the process has ended.
    Gone,
    /// It closed its link, saying that it shuts down.
    Shutdown,
}

/// Whether a node goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Course {
    Running,
    /// The process has ended; it may be started again.
    Stopped,
    /// It is no member any more.
    Left,
}

/// What a node says of itself as a whole, signed by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Card {
    pub(crate) incarnation: u64,
    pub(crate) version: u64,
    pub(crate) course: Course,
    pub(crate) addr: Vec<u8>,
    pub(crate) grant: Vec<u8>,
    pub(crate) signature: WireSignature,
}

/// One value of a node, signed by it for one of its lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) version: u64,
    /// Whether clients see it.
    pub(crate) everyone: bool,
    /// `None` once it was removed.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) signature: WireSignature,
}

/// serde knows arrays of up to 32 elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireSignature([u8; 32], [u8; 32]);

impl From<Signature> for WireSignature {
    fn from(signature: Signature) -> Self {
        let (mut low, mut high) = ([0; 32], [0; 32]);
        low.copy_from_slice(&signature.0[..32]);
        high.copy_from_slice(&signature.0[32..]);
        Self(low, high)
    }
}

impl From<WireSignature> for Signature {
    fn from(wire: WireSignature) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&wire.0);
        bytes[32..].copy_from_slice(&wire.1);
        Self(bytes)
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Bytes {
        // Vectors, integers and booleans only: postcard has no way to fail on them.
        Bytes::from(postcard::to_stdvec(self).expect("plain data encodes"))
    }

    /// The message in `frame`, `None` for one of a later version, or what is wrong with it. Lists are bounded by the frame's
    /// size.
    pub(crate) fn decode(frame: &[u8]) -> Result<Option<Self>, FrameFault> {
        if frame.len() > limits::FRAME_BYTES_MAX {
            return Err(FrameFault::TooLong);
        }
        if frame.first().is_some_and(|tag| (MESSAGES..0x80).contains(tag)) {
            return Ok(None);
        }
        let (message, rest) = postcard::take_from_bytes(frame).map_err(|_| FrameFault::Malformed)?;
        if rest.is_empty() { Ok(Some(message)) } else { Err(FrameFault::Malformed) }
    }
}

/// Why a frame is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameFault {
    TooLong,
    Malformed,
}

/// The domain of signatures over cards.
pub(crate) const CARD: Domain = Domain::new("qmt-mesh/gossip-card/v2");
/// The domain of signatures over entries.
pub(crate) const ENTRY: Domain = Domain::new("qmt-mesh/gossip-entry/v1");
/// The domain of a witness's signature under an accusation.
pub(crate) const ACCUSATION: Domain = Domain::new("qmt-mesh/gossip-accusation/v1");
/// The domain of a node's signature under the word that it is there.
pub(crate) const HEARD: Domain = Domain::new("qmt-mesh/gossip-heard/v1");

/// The bytes that a witness signs in [`ACCUSATION`].
pub(crate) fn accusation_statement(subject: &RawId, incarnation: u64, evidence: Evidence) -> Vec<u8> {
    statement(&(subject, incarnation, evidence))
}

/// The bytes that a node signs in [`HEARD`].
pub(crate) fn heard_statement(nonce: u64) -> Vec<u8> {
    statement(&nonce)
}

impl Card {
    /// The bytes that the subject signs in [`CARD`].
    pub(crate) fn statement(&self) -> Vec<u8> {
        statement(&(self.incarnation, self.version, self.course, &self.addr, &self.grant))
    }
}

impl Entry {
    /// The bytes that the subject signs in [`ENTRY`] for `life`.
    pub(crate) fn statement(&self, life: u64) -> Vec<u8> {
        statement(&(life, &self.key, self.version, self.everyone, &self.value))
    }
}

fn statement(body: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(body).expect("plain data encodes")
}

impl NodeRecord {
    /// Its bytes on the wire, a few more or less.
    pub(crate) fn size(&self) -> usize {
        let entry = |entry: &Entry| entry.key.len() + entry.value.as_ref().map_or(0, Vec::len) + 80;
        128 + self.card.addr.len() + self.card.grant.len() + self.entries.iter().map(entry).sum::<usize>()
    }
}

impl Summary {
    /// Its bytes on the wire, a few more or less.
    pub(crate) fn size(&self) -> usize {
        56 + self.keys.iter().map(|(key, _)| key.len() + 11).sum::<usize>()
    }
}

/// The hash by which a revocation is compared.
pub(crate) fn revocation_hash(revocation: &[u8]) -> Hash {
    half(&blake3::hash(revocation))
}

pub(crate) fn half(hash: &blake3::Hash) -> Hash {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}
