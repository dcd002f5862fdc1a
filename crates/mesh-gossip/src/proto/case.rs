//! Accusations and verdicts: how a scope agrees that one of its nodes is dead.
//!
//! A witness signs what it saw. The words of the subject's neighbours count, and nobody else's, since nobody chooses whose
//! neighbour it is. When most of them agree, and the subject has had time to contradict, it is down. Where they do not
//! agree, or are missing themselves, as after a partition, each node asks for the subject itself before it believes those
//! who are left. One word alone is never enough, unless it is one's own and nobody else could have one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_identity::NodeId;

use super::rings::NEIGHBOURS;
use super::trust::Signature;
use super::wire::Evidence;
use crate::event::DownWhy;
use crate::member::Incarnation;

/// Testimonies kept for one node: its neighbours', and some of others that set them looking.
pub(crate) const VOICES_MAX: usize = 24;
/// Open cases at most: more are not opened, the nodes concerned are weighed later.
pub(crate) const CASES_MAX: usize = 4096;
/// The same words about a node that has answered are not heard again for so long.
pub(crate) const ACQUITTED: Duration = Duration::from_secs(10);
/// A witness that was wrong so often within [`WRONG_WITHIN`] is not listened to for a while: twice for each of its neighbours,
/// which an honest one reaches when the whole scope falls apart and together again twice in a minute.
const WRONG_MAX: usize = 2 * NEIGHBOURS;
const WRONG_WITHIN: Duration = Duration::from_secs(60);
/// How long, doubled each time.
const MUTED_MIN: Duration = Duration::from_secs(60);
const MUTED_DOUBLINGS: u32 = 5;
/// Witnesses remembered for having been wrong, at most.
const WITNESSES_MAX: usize = 4096;

/// One witness's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Voice {
    pub(crate) evidence: Evidence,
    /// None where this node may not sign for others to hear: its word counts for itself alone.
    pub(crate) signature: Option<Signature>,
}

pub(crate) type Voices = BTreeMap<NodeId, Voice>;

/// A node that is accused.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) incarnation: Incarnation,
    pub(crate) since: Instant,
    pub(crate) agreed: Option<Instant>,
    pub(crate) voices: Voices,
    /// Its neighbours, when that was looked at last.
    pub(crate) jury: Vec<NodeId>,
    /// This node's own questions for the accused: their number, and how many rounds there were.
    pub(crate) inquiry: Option<(u64, u8)>,
    pub(crate) at: Option<Instant>,
}

/// How often a witness was wrong.
#[derive(Debug)]
struct Account {
    since: Instant,
    wrong: usize,
    muted: Option<Instant>,
    times: u32,
}

/// Open cases, closed ones whose testimonies others may lack, and witnesses that were wrong.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    pub(crate) open: BTreeMap<NodeId, Case>,
    pub(crate) closed: BTreeMap<NodeId, (Incarnation, Voices)>,
    /// Nodes that answered although they were accused, and when.
    pub(crate) acquitted: BTreeMap<NodeId, (Instant, Incarnation, Voices)>,
    witnesses: BTreeMap<NodeId, Account>,
    /// Who accuses this node in its present incarnation.
    against: (u64, BTreeSet<NodeId>),
    pub(crate) refuted: Option<Instant>,
    pub(crate) refutes_at: Option<Instant>,
}

/// What follows from a case as it stands.
#[derive(Debug)]
pub(crate) enum Verdict {
    Dead(DownWhy),
    Later(Duration),
    Dropped,
}

impl Cases {
    pub(crate) fn is_open(&self, id: &NodeId) -> bool {
        self.open.contains_key(id)
    }

    pub(crate) fn is_muted(&self, witness: &NodeId, now: Instant) -> bool {
        self.witnesses.get(witness).is_some_and(|account| account.muted.is_some_and(|until| until > now))
    }

    /// Notes that `witness` accuses this node; whether more than half of its neighbours do.
    pub(crate) fn accuse_me(
        &mut self,
        incarnation: u64,
        witness: NodeId,
        neighbours: &BTreeSet<NodeId>,
    ) -> bool {
        if self.against.0 != incarnation {
            self.against = (incarnation, BTreeSet::new());
        }
        if neighbours.contains(&witness) {
            self.against.1.insert(witness);
        }
        self.against.1.len() * 2 > neighbours.len().min(NEIGHBOURS)
    }

    /// Whether the witness was contradicted lately.
    pub(crate) fn has_been_wrong(&self, witness: &NodeId) -> bool {
        self.witnesses.get(witness).is_some_and(|account| account.wrong > 0 || account.times > 0)
    }

    /// The witness was contradicted.
    pub(crate) fn was_wrong(&mut self, witness: NodeId, now: Instant) {
        let is_old = |account: &Account| now.saturating_duration_since(account.since) >= WRONG_WITHIN;
        if self.witnesses.len() >= WITNESSES_MAX {
            self.witnesses.retain(|_, account| !is_old(account));
        }
        if self.witnesses.len() >= WITNESSES_MAX {
            return;
        }
        let new = Account { since: now, wrong: 0, muted: None, times: 0 };
        let account = self.witnesses.entry(witness).or_insert(new);
        if is_old(account) {
            (account.since, account.wrong) = (now, 0);
        }
        account.wrong += 1;
        if account.wrong >= WRONG_MAX {
            account.muted = Some(now + MUTED_MIN * (1 << account.times.min(MUTED_DOUBLINGS)));
            (account.wrong, account.times) = (0, account.times + 1);
        }
    }

    pub(crate) fn forget(&mut self, id: &NodeId) {
        self.closed.remove(id);
        self.witnesses.remove(id);
        self.acquitted.remove(id);
    }
}

impl Case {
    /// What most of these witnesses saw.
    pub(crate) fn why(&self, jury: &[NodeId]) -> DownWhy {
        let saw = |what: Evidence| {
            jury.iter().filter(|one| self.voices.get(one).is_some_and(|voice| voice.evidence == what)).count()
        };
        let (silent, gone, shutdown) = (saw(Evidence::Silent), saw(Evidence::Gone), saw(Evidence::Shutdown));
        if gone > 0 && gone >= silent && gone >= shutdown {
            DownWhy::Gone
        } else if shutdown > 0 && shutdown >= silent {
            DownWhy::Stopped
        } else {
            DownWhy::Silent
        }
    }
}
