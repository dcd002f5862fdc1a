//! Who has used which invite: the one record that decides how many an invite admits.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use crate::{InviteId, NodeId, UnixTime};

/// One node's wish to use an invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// The invite.
    pub invite: InviteId,
    /// Who uses it: the node, or the lasting key behind a throw-away one.
    pub holder: NodeId,
    /// How many different holders the invite admits; 0 is no limit.
    pub max_uses: u32,
    /// When.
    pub at: UnixTime,
}

/// What a ledger answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseOutcome {
    /// A new use, recorded: the holder may be admitted.
    First {
        /// How many holders have used the invite now.
        uses: u32,
    },
    /// The holder had used it before: admit it again, nothing was taken.
    Repeated,
    /// Others have taken every use. Nothing was recorded.
    UsedUp,
    /// The invite was revoked here. Nothing was recorded.
    Revoked,
}

/// The ledger could not answer. Whether the use was recorded is not known; nobody is admitted, and asking again is safe.
#[derive(Debug, Error)]
#[error("the ledger of invite uses failed")]
pub struct LedgerError(#[from] pub Box<dyn StdError + Send + Sync>);

/// Records the uses of this node's invites.
pub trait RedemptionLedger: Send + Sync {
    /// Takes a use for a holder, unless it has one or none is left.
    ///
    /// One indivisible step: of concurrent calls no more than `max_uses` different holders of an invite ever get
    /// [`UseOutcome::First`] or [`UseOutcome::Repeated`], across crashes too. Before it returns `First` the use is on disk.
    ///
    /// Cancel safe in this sense: when the future is dropped the use may or may not have been recorded, and the same call
    /// again answers rightly.
    fn record(&self, wish: Use) -> impl Future<Output = Result<UseOutcome, LedgerError>> + Send;
}

impl<L: RedemptionLedger> RedemptionLedger for &L {
    fn record(&self, wish: Use) -> impl Future<Output = Result<UseOutcome, LedgerError>> + Send {
        (**self).record(wish)
    }
}

impl<L: RedemptionLedger> RedemptionLedger for std::sync::Arc<L> {
    fn record(&self, wish: Use) -> impl Future<Output = Result<UseOutcome, LedgerError>> + Send {
        (**self).record(wish)
    }
}

/// A ledger that lasts as long as the process: the reference for the others, for tests and embedders without a disk.
///
/// It grows by one holder for each admitted node, as a ledger on disk does.
#[derive(Debug, Default)]
pub struct MemoryLedger {
    invites: Mutex<BTreeMap<InviteId, Page>>,
}

#[derive(Debug, Default)]
struct Page {
    holders: BTreeSet<NodeId>,
    revoked: bool,
}

impl MemoryLedger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses every later use of an invite, repeated ones too.
    pub fn revoke(&self, invite: InviteId) {
        self.pages().entry(invite).or_default().revoked = true;
    }

    /// Who has used an invite.
    pub fn holders(&self, invite: &InviteId) -> BTreeSet<NodeId> {
        self.pages().get(invite).map(|page| page.holders.clone()).unwrap_or_default()
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, BTreeMap<InviteId, Page>> {
        // A page is changed in one step, so a panic elsewhere cannot have left half of one.
        self.invites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_now(&self, wish: Use) -> UseOutcome {
        let mut pages = self.pages();
        let page = pages.entry(wish.invite).or_default();
        let uses = u32::try_from(page.holders.len()).unwrap_or(u32::MAX);
        if page.revoked {
            UseOutcome::Revoked
        } else if page.holders.contains(&wish.holder) {
            UseOutcome::Repeated
        } else if wish.max_uses != 0 && uses >= wish.max_uses {
            UseOutcome::UsedUp
        } else {
            page.holders.insert(wish.holder);
            UseOutcome::First { uses: uses.saturating_add(1) }
        }
    }
}

impl RedemptionLedger for MemoryLedger {
    async fn record(&self, wish: Use) -> Result<UseOutcome, LedgerError> {
        Ok(self.record_now(wish))
    }
}
