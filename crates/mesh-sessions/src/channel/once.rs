//! Delegations under way and just over: how many there may be, and which one a key means.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_identity::NodeName;
use tokio::time::Instant;

use super::fault::{Code, Fault};
use super::limits::Limits;
use super::work::Work;

/// The delegations of a server.
pub(crate) struct Once {
    limits: Limits,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    under_way: usize,
    by_name: HashMap<NodeName, usize>,
    keyed: HashMap<Key, Keyed>,
    /// Keys whose delegations are over, the oldest first.
    over: VecDeque<(Instant, Key, usize)>,
    over_bytes: usize,
}

type Key = (NodeName, String);

struct Keyed {
    work: Arc<Work>,
    /// Of the request.
    hash: blake3::Hash,
}

/// What a request is told to do.
pub(crate) enum Turn {
    /// Carry it out.
    First(UnderWay),
    /// Wait for the one that is there.
    Again(Arc<Work>),
}

/// A delegation's place among those under way; dropped when it is over.
pub(crate) struct UnderWay {
    once: Arc<Once>,
    name: NodeName,
    key: Option<Key>,
    pub(crate) work: Arc<Work>,
}

impl Once {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, table: Mutex::default() })
    }

    /// A place for a request of this name, or the delegation that its key means.
    pub(crate) fn enter(
        self: &Arc<Self>,
        name: &NodeName,
        key: Option<&str>,
        request: &[u8],
    ) -> Result<Turn, Fault> {
        let key = key.map(|key| ((name.clone(), key.to_owned()), blake3::hash(request)));
        let mut table = self.lock();
        table.forget(&self.limits);
        if let Some((key, hash)) = &key
            && let Some(known) = table.keyed.get(key)
        {
            if known.hash != *hash {
                let why = "this Idempotency-Key came with another request before";
                return Err(Fault::new(Code::Conflict, why).with_mend("use a new key for a new request"));
            }
            return Ok(Turn::Again(known.work.clone()));
        }
        let of_one = table.by_name.get(name).copied().unwrap_or_default();
        if table.under_way >= self.limits.delegations_max || of_one >= self.limits.delegations_of_one_max {
            let why = format!("{} delegations are under way, {of_one} of them of {name}", table.under_way);
            return Err(Fault::new(Code::Busy, why).with_mend("try again later, or another node"));
        }
        let work = Work::new();
        table.under_way += 1;
        *table.by_name.entry(name.clone()).or_default() += 1;
        let key = key.map(|(key, hash)| {
            table.keyed.insert(key.clone(), Keyed { work: work.clone(), hash });
            key
        });
        Ok(Turn::First(UnderWay { once: self.clone(), name: name.clone(), key, work }))
    }

    /// The delegation that a name has under this key.
    pub(crate) fn find(&self, name: &NodeName, key: &str) -> Option<Arc<Work>> {
        let table = self.lock();
        table.keyed.get(&(name.clone(), key.to_owned())).map(|keyed| keyed.work.clone())
    }

    pub(crate) fn under_way(&self) -> usize {
        self.lock().under_way
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Forgets what was over long ago, and the oldest of what is too much.
    fn forget(&mut self, limits: &Limits) {
        while let Some((since, ..)) = self.over.front() {
            let is_too_much =
                self.over.len() > limits.remembered_max || self.over_bytes > limits.remembered_bytes_max;
            if !is_too_much && since.elapsed() < limits.remembered {
                return;
            }
            if let Some((_, key, bytes)) = self.over.pop_front() {
                self.over_bytes -= bytes;
                self.keyed.remove(&key);
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut table = self.once.lock();
        table.under_way -= 1;
        if let Some(count) = table.by_name.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                table.by_name.remove(&self.name);
            }
        }
        if let Some(key) = self.key.take() {
            // One whose task ended in the middle has no answer to give.
            if self.work.is_over() {
                let bytes = self.work.bytes();
                table.over_bytes += bytes;
                table.over.push_back((Instant::now(), key, bytes));
                table.forget(&self.once.limits);
            } else {
                table.keyed.remove(&key);
            }
        }
    }
}
