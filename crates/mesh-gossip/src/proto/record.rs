//! One node's record and how two versions of it become one.
//!
//! **Invariant:** merging is a join: the higher card wins, and per key the higher entry of the card's life. So any order
//! and any repetition of the same frames ends in the same record. Nothing here looks at what we think of the node.

use std::collections::BTreeMap;

use bytes::Bytes;
use mesh_identity::{DIRECT_ADDRS_MAX, NodeAddr, NodeId, Role, UnixTime};

use super::trust::{Refusal, Signature, Standing, Trust};
use super::wire::{self, Course, Hash};
use crate::limits;
use crate::member::{Audience, Incarnation};

/// A node's record, all of it checked.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: NodeId,
    pub(crate) card: Card,
    pub(crate) entries: BTreeMap<String, Entry>,
    prints: Prints,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) incarnation: Incarnation,
    pub(crate) version: u64,
    pub(crate) course: Course,
    pub(crate) addr: NodeAddr,
    pub(crate) standing: Standing,
    wire: wire::Card,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) version: u64,
    pub(crate) audience: Audience,
    pub(crate) value: Option<Bytes>,
    signature: Signature,
}

/// What a link's other end may see: the lesser of both ends' roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Member,
    Client,
}

impl View {
    pub(crate) fn between(me: Role, peer: Role) -> Self {
        match (me, peer) {
            (Role::Member, Role::Member) => Self::Member,
            _ => Self::Client,
        }
    }

    fn shows(self, audience: Audience) -> bool {
        self == Self::Member || audience == Audience::Everyone
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Prints {
    member: Hash,
    client: Hash,
}

/// A part of a record that a peer sent, all of it checked.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) id: NodeId,
    pub(crate) card: Card,
    pub(crate) entries: Vec<(String, Entry)>,
}

/// What a merge changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) card: bool,
    pub(crate) addr: bool,
    pub(crate) incarnation: bool,
    pub(crate) life: bool,
    pub(crate) keys: Vec<String>,
    /// The part says something older, or something else under the same version.
    pub(crate) outdated: bool,
}

impl Change {
    pub(crate) fn is_any(&self) -> bool {
        self.card || !self.keys.is_empty()
    }
}

impl Card {
    /// The grant, encoded.
    pub(crate) fn grant(&self) -> &[u8] {
        &self.wire.grant
    }

    /// This node's own card, signed.
    pub(crate) fn signed(of: &OwnCard<'_>, trust: &impl Trust) -> Self {
        let mut wire = wire::Card {
            incarnation: of.incarnation.as_u64(),
            version: of.version,
            course: of.course,
            addr: encode_addr(of.addr),
            grant: of.grant.to_vec(),
            signature: Signature([0; 64]).into(),
        };
        wire.signature = trust.sign(wire::CARD, &wire.statement()).into();
        Self {
            incarnation: of.incarnation,
            version: of.version,
            course: of.course,
            addr: of.addr.clone(),
            standing: of.standing.clone(),
            wire,
        }
    }

    /// Whether it is `sent`, byte for byte.
    pub(crate) fn is(&self, sent: &wire::Card) -> bool {
        self.wire == *sent
    }

    /// Of two cards of one node, the later: by incarnation, then version; the rest only makes the order total.
    fn order(&self) -> (Incarnation, u64, Signature) {
        (self.incarnation, self.version, self.wire.signature.into())
    }
}

/// What goes into an own card.
pub(crate) struct OwnCard<'a> {
    pub(crate) incarnation: Incarnation,
    pub(crate) version: u64,
    pub(crate) course: Course,
    pub(crate) addr: &'a NodeAddr,
    pub(crate) grant: &'a [u8],
    pub(crate) standing: &'a Standing,
}

impl Entry {
    /// One value of this node, signed for `life`.
    pub(crate) fn signed(
        key: &str,
        (version, audience, value): (u64, Audience, Option<Bytes>),
        life: u64,
        trust: &impl Trust,
    ) -> Self {
        let mut entry = Self { version, audience, value, signature: Signature([0; 64]) };
        entry.signature = trust.sign(wire::ENTRY, &entry.to_wire(key).statement(life));
        entry
    }

    fn order(&self) -> (u64, Signature) {
        (self.version, self.signature)
    }

    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }

    fn to_wire(&self, key: &str) -> wire::Entry {
        wire::Entry {
            key: key.to_owned(),
            version: self.version,
            everyone: self.audience == Audience::Everyone,
            value: self.value.as_ref().map(|value| value.to_vec()),
            signature: self.signature.into(),
        }
    }
}

impl Part {
    /// The keys that the part has a value for.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.entries.iter().map(|(key, _)| key.clone()).collect()
    }

    /// Checks what a peer sent of `id`. What `held` has already is not checked again; its grant neither, unless it has
    /// ended or `held` says (by false) that it no longer counts.
    pub(crate) fn check(
        id: NodeId,
        sent: wire::NodeRecord,
        held: Option<(&Record, bool)>,
        (trust, now): (&impl Trust, UnixTime),
    ) -> Result<Self, Refusal> {
        let card = match held {
            Some((held, true)) if held.card.is(&sent.card) && !held.card.standing.expires.is_over(now) => {
                held.card.clone()
            }
            _ => check_card(&id, sent.card, held, (trust, now))?,
        };
        if sent.entries.len() > limits::KEYS_MAX {
            return Err(Refusal::TooLarge);
        }
        let life = card.incarnation.life();
        let held = held.map(|(held, _)| held).filter(|held| held.card.incarnation.life() == life);
        let mut entries = Vec::with_capacity(sent.entries.len());
        for entry in sent.entries {
            let known = held.and_then(|held| held.entries.get(&entry.key));
            entries.push(check_entry(&id, entry, known, (trust, life))?);
        }
        Ok(Self { id, card, entries })
    }
}

fn check_card(
    id: &NodeId,
    sent: wire::Card,
    held: Option<(&Record, bool)>,
    (trust, now): (&impl Trust, UnixTime),
) -> Result<Card, Refusal> {
    if sent.grant.len() > limits::GRANT_BYTES_MAX || sent.addr.len() > limits::ADDR_BYTES_MAX {
        return Err(Refusal::TooLarge);
    }
    if !trust.is_signed(id, wire::CARD, &sent.statement(), &sent.signature.into()) {
        return Err(Refusal::BadSignature);
    }
    // A chain of grants costs several signature checks, and most new cards carry the grant that the last one had.
    let is_same = |card: &Card| card.wire.grant == sent.grant && !card.standing.expires.is_over(now);
    let standing = match held {
        Some((held, true)) if is_same(&held.card) => held.card.standing.clone(),
        _ => trust.standing(id, &sent.grant, now)?,
    };
    Ok(Card {
        incarnation: Incarnation::from_u64(sent.incarnation),
        version: sent.version,
        course: sent.course,
        addr: decode_addr(&sent.addr).ok_or(Refusal::TooLarge)?,
        standing,
        wire: sent,
    })
}

fn check_entry(
    id: &NodeId,
    sent: wire::Entry,
    known: Option<&Entry>,
    (trust, life): (&impl Trust, u64),
) -> Result<(String, Entry), Refusal> {
    if sent.key.len() > limits::KEY_BYTES_MAX {
        return Err(Refusal::TooLarge);
    }
    if sent.value.as_ref().is_some_and(|value| value.len() > limits::VALUE_BYTES_MAX) {
        return Err(Refusal::TooLarge);
    }
    if let Some(known) = known.filter(|known| known.to_wire(&sent.key) == sent) {
        return Ok((sent.key, known.clone()));
    }
    if !trust.is_signed(id, wire::ENTRY, &sent.statement(life), &sent.signature.into()) {
        return Err(Refusal::BadSignature);
    }
    let entry = Entry {
        version: sent.version,
        audience: if sent.everyone { Audience::Everyone } else { Audience::Members },
        value: sent.value.map(Bytes::from),
        signature: sent.signature.into(),
    };
    Ok((sent.key, entry))
}

impl Record {
    /// A record of `part` alone.
    pub(crate) fn new(part: Part) -> Result<Self, Refusal> {
        let mut record = Self::own(part.id, part.card.clone());
        record.merge(part)?;
        Ok(record)
    }

    /// A record without entries.
    pub(crate) fn own(id: NodeId, card: Card) -> Self {
        let mut record = Self { id, card, entries: BTreeMap::new(), prints: Prints::default() };
        record.prints = record.print();
        record
    }

    /// Joins `part` into this record. On an error nothing changed.
    pub(crate) fn merge(&mut self, part: Part) -> Result<Change, Refusal> {
        let (old, new) = (self.card.incarnation, part.card.incarnation);
        if new.life() < old.life() {
            return Ok(Change { outdated: true, ..Change::default() });
        }
        let mut change = Change { life: new.life() > old.life(), ..Change::default() };
        let mut entries = if change.life { BTreeMap::new() } else { self.entries.clone() };
        for (key, entry) in part.entries {
            match entries.get(&key).map(|held| held.order().cmp(&entry.order())) {
                Some(std::cmp::Ordering::Greater) => change.outdated = true,
                Some(std::cmp::Ordering::Equal) => {}
                Some(std::cmp::Ordering::Less) | None => {
                    entries.insert(key.clone(), entry);
                    change.keys.push(key);
                }
            }
        }
        if entries.len() > limits::KEYS_MAX || bytes_of(&entries) > limits::NODE_BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        if change.life {
            let gone = self.entries.keys().filter(|key| !entries.contains_key(*key));
            change.keys.extend(gone.cloned().collect::<Vec<_>>());
        }
        match self.card.order().cmp(&part.card.order()) {
            std::cmp::Ordering::Greater => change.outdated = true,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Less => {
                change.card = true;
                change.addr = self.card.addr != part.card.addr;
                change.incarnation = new > old;
                self.card = part.card;
            }
        }
        if change.is_any() {
            self.entries = entries;
            self.prints = self.print();
        }
        Ok(change)
    }

    /// The signed grant that the card carries.
    pub(crate) fn grant(&self) -> &[u8] {
        &self.card.wire.grant
    }

    /// Replaces the own card.
    pub(crate) fn set_card(&mut self, card: Card) {
        self.card = card;
        self.prints = self.print();
    }

    /// Replaces one own entry.
    pub(crate) fn set_entry(&mut self, key: &str, entry: Entry) {
        self.entries.insert(key.to_owned(), entry);
        self.prints = self.print();
    }

    /// Whether all of `sent` is here already, byte for byte.
    pub(crate) fn is_all_of(&self, sent: &wire::NodeRecord) -> bool {
        let is_held = |entry: &wire::Entry| {
            self.entries.get(&entry.key).is_some_and(|held| held.to_wire(&entry.key) == *entry)
        };
        self.card.is(&sent.card) && sent.entries.iter().all(is_held)
    }

    /// Whether `sent` is what this record has under its key, or older.
    pub(crate) fn has_at_least(&self, sent: &wire::Entry) -> bool {
        self.entries.get(&sent.key).is_some_and(|held| {
            held.version > sent.version || (held.version == sent.version && held.to_wire(&sent.key) == *sent)
        })
    }

    /// Bytes of all values.
    pub(crate) fn bytes(&self) -> usize {
        bytes_of(&self.entries)
    }

    /// The hash of what `view` shows: equal records, equal hashes.
    pub(crate) fn print_of(&self, view: View) -> Hash {
        match view {
            View::Member => self.prints.member,
            View::Client => self.prints.client,
        }
    }

    fn print(&self) -> Prints {
        Prints { member: self.print_view(View::Member), client: self.print_view(View::Client) }
    }

    fn print_view(&self, view: View) -> Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.id.as_bytes());
        hasher.update(&self.card.incarnation.as_u64().to_le_bytes());
        hasher.update(&self.card.version.to_le_bytes());
        for (key, entry) in self.entries.iter().filter(|(_, entry)| view.shows(entry.audience)) {
            hasher.update(&[u8::try_from(key.len()).unwrap_or(u8::MAX)]);
            hasher.update(key.as_bytes());
            hasher.update(&entry.version.to_le_bytes());
        }
        wire::half(&hasher.finalize())
    }

    /// What `view` shows of this record, key by key.
    pub(crate) fn summary(&self, view: View) -> wire::Summary {
        let shown = self.entries.iter().filter(|(_, entry)| view.shows(entry.audience));
        wire::Summary {
            id: *self.id.as_bytes(),
            incarnation: self.card.incarnation.as_u64(),
            card: self.card.version,
            keys: shown.map(|(key, entry)| (key.clone(), entry.version)).collect(),
        }
    }

    /// The whole record as `view` shows it.
    pub(crate) fn whole(&self, view: View, alive: bool) -> wire::NodeRecord {
        self.part(view, alive, |_, _| true)
    }

    /// The card and the entries among `keys`.
    pub(crate) fn only(
        &self,
        view: View,
        alive: bool,
        keys: &std::collections::BTreeSet<String>,
    ) -> wire::NodeRecord {
        self.part(view, alive, |key, _| keys.contains(key))
    }

    fn part(&self, view: View, alive: bool, take: impl Fn(&str, &Entry) -> bool) -> wire::NodeRecord {
        let shown = self.entries.iter().filter(|(key, entry)| view.shows(entry.audience) && take(key, entry));
        wire::NodeRecord {
            id: *self.id.as_bytes(),
            alive,
            card: self.card.wire.clone(),
            entries: shown.map(|(key, entry)| entry.to_wire(key)).collect(),
        }
    }

    /// What this record has that `summary` lacks, and whether `summary` has something that this record lacks.
    pub(crate) fn compare(
        &self,
        summary: &wire::Summary,
        (view, alive): (View, bool),
    ) -> (Option<wire::NodeRecord>, bool) {
        let mine = self.card.incarnation;
        let theirs = Incarnation::from_u64(summary.incarnation);
        if mine.life() != theirs.life() {
            return if mine > theirs { (Some(self.whole(view, alive)), false) } else { (None, true) };
        }
        let known: BTreeMap<&str, u64> =
            summary.keys.iter().map(|(key, version)| (key.as_str(), *version)).collect();
        let part = self
            .part(view, alive, |key, entry| known.get(key).is_none_or(|version| *version < entry.version));
        let (my_card, their_card) = ((mine, self.card.version), (theirs, summary.card));
        let lacks = my_card < their_card
            || known
                .iter()
                .any(|(key, version)| self.entries.get(*key).is_none_or(|held| held.version < *version));
        let later = my_card > their_card || !part.entries.is_empty();
        (later.then_some(part), lacks)
    }
}

fn bytes_of(entries: &BTreeMap<String, Entry>) -> usize {
    entries.values().map(Entry::bytes).sum()
}

/// What breaks a bound of mesh-identity is left out: first the surplus addresses, then a relay that is no URL.
pub(crate) fn bounded(mut addr: NodeAddr) -> NodeAddr {
    addr.direct.truncate(DIRECT_ADDRS_MAX);
    addr.lan.truncate(DIRECT_ADDRS_MAX);
    if addr.check().is_err() {
        addr.relay = None;
    }
    addr
}

fn encode_addr(addr: &NodeAddr) -> Vec<u8> {
    addr.encode().expect("own addresses went through `bounded`")
}

pub(crate) fn decode_addr(bytes: &[u8]) -> Option<NodeAddr> {
    NodeAddr::decode(bytes).ok()
}
