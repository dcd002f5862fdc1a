//! What is revoked in one scope: a bounded set that only grows, and whose meaning does not depend on the order of arrival.

use std::collections::BTreeMap;

use crate::chain::Chain;
use crate::revocation::{Power, Revocation, Revoked};
use crate::{CLOCK_SKEW, Invite, NodeId, ScopeId, SignedGrant, SignedRevocation, UnixTime};

/// The most revocations held for a scope: at about 200 bytes each less than 1 MiB, and several a day for years.
pub const REVOCATIONS_MAX: usize = 4096;
/// Kept free for the founder and the recovery key, so that nobody else can fill the set against them.
const ROOT_RESERVE: usize = 1024;
/// The most that one admin, or one inviter with all who revoke themselves below it, can add.
const PER_SIGNER_MAX: usize = 256;

/// What became of a revocation offered to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    /// It is in the set now, and was not before: pass it on.
    Added,
    /// The set holds it already.
    Known,
    /// It is of another scope.
    WrongScope,
    /// The set, or the signer's share of it, is full. The set did not change.
    Full,
}

/// The revocations of one scope.
///
/// Two sets that hold the same revocations answer alike. A revocation counts unless its signer's authority was itself
/// revoked before: so a thief's revocations after the theft was announced do nothing.
#[derive(Debug, Clone)]
pub struct RevocationSet {
    scope: ScopeId,
    entries: BTreeMap<Revoked, BTreeMap<Digest, Entry>>,
    len: usize,
}

/// What tells one statement from another: a hash of all its bytes.
type Digest = [u8; 32];

#[derive(Debug, Clone)]
struct Entry {
    revocation: Revocation,
    counts: bool,
}

impl RevocationSet {
    /// An empty set for this scope.
    pub fn new(scope: ScopeId) -> Self {
        Self { scope, entries: BTreeMap::new(), len: 0 }
    }

    /// The scope that it is about.
    pub fn scope(&self) -> ScopeId {
        self.scope
    }

    /// How many it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All that it holds, in a fixed order: what a node passes on to another.
    pub fn iter(&self) -> impl Iterator<Item = &SignedRevocation> {
        self.all().map(|entry| entry.revocation.signed())
    }

    /// Adds a verified revocation.
    ///
    /// Nothing replaces anything: if a later statement took the place of an earlier one of its signer, a thief could undo the
    /// signer's honest revocations by repeating them after the theft was announced.
    pub fn insert(&mut self, revocation: Revocation) -> Insertion {
        if revocation.signed.scope() != self.scope {
            return Insertion::WrongScope;
        }
        let what = revocation.what();
        let digest: Digest = *blake3::hash(&revocation.signed.encode()).as_bytes();
        if self.entries.get(&what).is_some_and(|held| held.contains_key(&digest)) {
            return Insertion::Known;
        }
        if !self.has_room(&revocation) {
            return Insertion::Full;
        }
        let counts = self.counts(&revocation);
        self.entries.entry(what).or_default().insert(digest, Entry { revocation, counts });
        self.len += 1;
        if self.all().any(|entry| rests_on(&entry.revocation, &what)) {
            self.recount();
        }
        Insertion::Added
    }

    /// As of when this node is revoked by the founder, the recovery key, an admin or itself; `None` when it is not.
    ///
    /// Revocations by an inviter reach only what hangs below that inviter, and show when a grant is verified.
    pub fn node(&self, node: &NodeId) -> Option<UnixTime> {
        self.about(Revoked::Node(*node)).filter(|one| one.reaches(node, &[])).map(Revocation::at).max()
    }

    /// As of when this node is revoked by anybody with a say over what hangs below this chain.
    pub(crate) fn node_below(&self, node: &NodeId, chain: &Chain) -> Option<UnixTime> {
        let above: Vec<NodeId> = chain.nodes().collect();
        self.about(Revoked::Node(*node)).filter(|one| one.reaches(node, &above)).map(Revocation::at).max()
    }

    /// Whether this invite is revoked, or anybody who signed it.
    pub fn ends_invite(&self, invite: &Invite) -> bool {
        let authors: Vec<NodeId> = invite.chain().nodes().collect();
        self.ends_chain(invite.chain())
            || self.about(Revoked::Invite(invite.grant().invite_id)).any(|one| one.reaches_invite(&authors))
    }

    /// Whether a grant is ended: somebody in its chain, its subject or the key behind it at or after its issue, or its invite.
    pub fn ends_grant(&self, grant: &SignedGrant) -> bool {
        let authors: Vec<NodeId> = grant.chain.nodes().collect();
        let is_ended = |node: &NodeId| {
            self.about(Revoked::Node(*node))
                .any(|one| one.reaches(node, &authors) && grant.says.issued_at <= one.at())
        };
        self.ends_chain(&grant.chain)
            || is_ended(&grant.says.subject)
            || grant.says.holder.as_ref().is_some_and(is_ended)
            || grant.says.invite.is_some_and(|invite| {
                self.about(Revoked::Invite(invite)).any(|one| one.reaches_invite(&authors))
            })
    }

    /// The time at which to issue what no revocation known here shall reach: `now`, or the second after the latest of them where
    /// that is later. Times are whole seconds, and what was issued in the second of a revocation falls with it.
    ///
    /// Revocations dated further ahead than [`CLOCK_SKEW`] are passed over: nobody would take what was issued after them.
    pub fn after(&self, now: UnixTime) -> UnixTime {
        let bound = now.plus(CLOCK_SKEW);
        let past = self.all().map(|entry| UnixTime(entry.revocation.at().0.saturating_add(1)));
        past.filter(|at| *at <= bound).fold(now, UnixTime::max)
    }

    /// Whether anybody in a chain of authority is revoked: that ends the chain for ever.
    pub fn ends_chain(&self, chain: &Chain) -> bool {
        self.ended_before(chain, None)
    }

    /// Whether anybody in the chain was revoked, before `before` if that is given.
    fn ended_before(&self, chain: &Chain, before: Option<UnixTime>) -> bool {
        let nodes: Vec<NodeId> = chain.nodes().collect();
        // The recovery key is nobody's to revoke: a chain that begins with it has no revocable top.
        let first = usize::from(chain.recovery.is_some());
        (first..nodes.len()).any(|at| {
            self.about(Revoked::Node(nodes[at])).any(|one| {
                one.reaches(&nodes[at], &nodes[..at]) && before.is_none_or(|before| one.at() < before)
            })
        })
    }

    /// Whether a revocation counts: its signer, and all above it, were not revoked before it was signed.
    ///
    /// A node's revocation of itself always counts.
    fn counts(&self, revocation: &Revocation) -> bool {
        revocation.power == Power::Subject
            || revocation.what() == Revoked::Node(revocation.signer())
            || !self.ended_before(revocation.signed.chain(), Some(revocation.at()))
    }

    /// Decides anew which entries count, the oldest first, since only older ones can undo one.
    fn recount(&mut self) {
        let mut order: Vec<(UnixTime, Revoked, Digest)> = Vec::with_capacity(self.len);
        for (what, held) in &mut self.entries {
            for (digest, entry) in held {
                entry.counts = false;
                order.push((entry.revocation.at(), *what, *digest));
            }
        }
        order.sort_unstable();
        for (_, what, digest) in order {
            let held = self.entries.get(&what).and_then(|held| held.get(&digest));
            let counts = held.is_some_and(|entry| self.counts(&entry.revocation));
            if let Some(entry) = self.entries.get_mut(&what).and_then(|held| held.get_mut(&digest)) {
                entry.counts = counts;
            }
        }
    }

    fn has_room(&self, revocation: &Revocation) -> bool {
        if revocation.power == Power::Root {
            return self.len < REVOCATIONS_MAX;
        }
        let account = account(revocation);
        let others = self.all().map(|entry| &entry.revocation).filter(|one| one.power != Power::Root);
        let share = others.filter(|one| self::account(one) == account).count();
        self.len < REVOCATIONS_MAX - ROOT_RESERVE && share < PER_SIGNER_MAX
    }

    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().flat_map(BTreeMap::values)
    }

    fn about(&self, what: Revoked) -> impl Iterator<Item = &Revocation> {
        self.entries
            .get(&what)
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|one| one.counts)
            .map(|one| &one.revocation)
    }
}

/// Whose share of the set a revocation takes: the signer's, or for a node that revokes itself, of whoever let it in.
fn account(revocation: &Revocation) -> NodeId {
    match revocation.power {
        Power::Subject => revocation.signed.chain().issuer(),
        _ => revocation.signer(),
    }
}

/// Whether `what` is in the chain on which this revocation's say rests.
fn rests_on(revocation: &Revocation, what: &Revoked) -> bool {
    revocation.power != Power::Subject
        && revocation.signed.chain().nodes().any(|node| *what == Revoked::Node(node))
}
