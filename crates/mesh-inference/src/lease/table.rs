//! Who has what of this worker: one lease a model, and of two hosts the one with the higher epoch.

use std::collections::BTreeMap;

use mesh_identity::NodeId;

use super::wire::{Ask, RefusalCode};

/// The leases of a worker. It reads no clock and starts nothing.
#[derive(Debug)]
pub(crate) struct Table {
    next: u64,
    leases: BTreeMap<LeaseNumber, Held>,
    leases_max: usize,
}

/// Names one lease of this worker; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LeaseNumber(u64);

#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) host: NodeId,
    pub(crate) model: String,
    pub(crate) epoch: u64,
}

/// What is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Lend, once these leases are over.
    Lend { ends: Vec<LeaseNumber> },
    /// Another host keeps it.
    Held { host: NodeId, epoch: u64 },
    /// Something else is in the way.
    No(RefusalCode, String),
}

impl Table {
    pub(crate) fn new(leases_max: usize) -> Self {
        Self { next: 0, leases: BTreeMap::new(), leases_max }
    }

    /// Judges a question. Nothing changes until [`Table::insert`].
    pub(crate) fn judge(&self, host: &NodeId, ask: &Ask) -> Verdict {
        let of_model = || self.leases.iter().filter(|(_, held)| held.model == ask.model);
        let in_the_way = of_model().find(|(_, held)| held.host != *host && held.epoch >= ask.epoch);
        if let Some((_, held)) = in_the_way {
            return Verdict::Held { host: held.host, epoch: held.epoch };
        }
        // A host that asks again has lost what it had, or starts anew; a late question of its own past is none.
        if let Some((_, held)) = of_model().find(|(_, held)| held.host == *host && held.epoch > ask.epoch) {
            return Verdict::Held { host: held.host, epoch: held.epoch };
        }
        let ends: Vec<LeaseNumber> = of_model().map(|(number, _)| *number).collect();
        if self.leases.len() - ends.len() >= self.leases_max {
            let text = format!("it lends to {} models already", self.leases_max);
            return Verdict::No(RefusalCode::NotLending, text);
        }
        Verdict::Lend { ends }
    }

    /// Enters a lease that was judged to be lent.
    pub(crate) fn insert(&mut self, host: NodeId, ask: &Ask) -> LeaseNumber {
        let number = LeaseNumber(self.next);
        self.next += 1;
        self.leases.insert(number, Held { host, model: ask.model.clone(), epoch: ask.epoch });
        number
    }

    pub(crate) fn remove(&mut self, number: LeaseNumber) {
        self.leases.remove(&number);
    }

    pub(crate) fn list(&self) -> impl Iterator<Item = &Held> {
        self.leases.values()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        mesh_identity::NodeKey::from_seed([number; 32]).node_id()
    }

    fn ask(model: &str, epoch: u64) -> Ask {
        Ask { model: model.into(), epoch, bytes: 1, build: "b".into(), workers: Vec::new() }
    }

    fn lend(table: &mut Table, host: NodeId, ask: &Ask) -> bool {
        let Verdict::Lend { ends } = table.judge(&host, ask) else { return false };
        ends.into_iter().for_each(|number| table.remove(number));
        table.insert(host, ask);
        true
    }

    #[test]
    fn the_higher_epoch_has_it_and_equal_ones_stay() {
        let mut table = Table::new(4);
        assert!(lend(&mut table, node(1), &ask("m", 3)));
        let held = Verdict::Held { host: node(1), epoch: 3 };
        assert_eq!(table.judge(&node(2), &ask("m", 2)), held);
        assert_eq!(table.judge(&node(2), &ask("m", 3)), held);
        assert!(lend(&mut table, node(2), &ask("m", 4)));
        assert_eq!(table.list().count(), 1);
        assert!(lend(&mut table, node(2), &ask("m", 4)), "the host has lost its own and asks again");
        assert!(!lend(&mut table, node(2), &ask("m", 3)), "a question of its past");
        assert!(lend(&mut table, node(1), &ask("n", 1)), "another model");
        assert_eq!(table.list().count(), 2);
    }

    #[test]
    fn hosts_are_bounded() {
        let mut table = Table::new(1);
        assert!(lend(&mut table, node(1), &ask("m", 1)));
        assert!(matches!(table.judge(&node(2), &ask("n", 1)), Verdict::No(RefusalCode::NotLending, _)));
        assert!(lend(&mut table, node(2), &ask("m", 2)), "it takes the place of the other");
    }

    proptest! {
        #[test]
        fn a_model_has_one_host_whatever_is_asked(asks in proptest::collection::vec((0u8..4, 0u8..3, 0u64..6), 0..60)) {
            let mut table = Table::new(8);
            let mut highest = BTreeMap::<String, u64>::new();
            for (host, model, epoch) in asks {
                let ask = ask(&model.to_string(), epoch);
                let before = highest.get(&ask.model).copied();
                let lent = lend(&mut table, node(host), &ask);
                prop_assert!(!lent || before.is_none_or(|before| epoch >= before));
                prop_assert!(lent || before.is_some());
                if lent {
                    highest.insert(ask.model.clone(), epoch);
                }
                let mut models: Vec<_> = table.list().map(|held| held.model.clone()).collect();
                models.sort();
                models.dedup();
                prop_assert_eq!(models.len(), table.list().count());
            }
        }
    }
}
