//! All other nodes that the core knows, ordered by id, with a running sum of what is passed on, and those among them that
//! stand on the rings.

use mesh_identity::NodeId;

use super::node::Node;
use super::pieces::Pieces;
use super::record::View;
use super::rings::{Places, Rings};
use super::wire::{BUCKETS, RawId, bucket};

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    nodes: Pieces<NodeId, Node>,
    rings: Rings,
    sums: [u128; 2],
}

const VIEWS: [View; 2] = [View::Member, View::Client];

/// What follows from a node's record and phase.
struct Derived {
    prints: [u128; 2],
    on_rings: Option<Places>,
}

impl Derived {
    fn of(node: &Node) -> Self {
        Self {
            prints: VIEWS.map(|view| node.print(view)),
            on_rings: node.is_on_rings().then_some(node.places),
        }
    }
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (id, node))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Node> {
        self.iter().map(|(_, node)| node)
    }

    pub(crate) fn get(&self, id: &NodeId) -> Option<&Node> {
        self.find(id.as_bytes()).map(|(_, node)| node)
    }

    pub(crate) fn contains_key(&self, id: &NodeId) -> bool {
        self.get(id).is_some()
    }

    /// By a key that may be none. Looking it up is much cheaper than checking that it is one.
    pub(crate) fn find(&self, id: &RawId) -> Option<&(NodeId, Node)> {
        self.nodes.find(|held| held.as_bytes().cmp(id))
    }

    /// The members that are up.
    pub(crate) fn rings(&self) -> &Rings {
        &self.rings
    }

    /// Changes a node; what is derived from it follows.
    pub(crate) fn update<R>(&mut self, id: &NodeId, change: impl FnOnce(&mut Node) -> R) -> Option<R> {
        let node = self.nodes.get_mut(id)?;
        let before = Derived::of(node);
        let result = change(node);
        let after = Derived::of(node);
        self.replace(id, &before, &after);
        Some(result)
    }

    /// Adds a node that is not there.
    pub(crate) fn insert(&mut self, id: NodeId, node: Node) {
        let none = Derived { prints: [0; 2], on_rings: None };
        let after = Derived::of(&node);
        self.nodes.insert(id, node);
        self.replace(&id, &none, &after);
    }

    pub(crate) fn remove(&mut self, id: &NodeId) {
        let none = Derived { prints: [0; 2], on_rings: None };
        if let Some(node) = self.nodes.remove(id) {
            self.replace(id, &Derived::of(&node), &none);
        }
    }

    fn replace(&mut self, id: &NodeId, before: &Derived, after: &Derived) {
        for (sum, (before, after)) in self.sums.iter_mut().zip(before.prints.into_iter().zip(after.prints)) {
            *sum = sum.wrapping_sub(before).wrapping_add(after);
        }
        match (before.on_rings, after.on_rings) {
            (None, Some(places)) => self.rings.insert(*id, places),
            (Some(places), None) => self.rings.remove(*id, places),
            _ => {}
        }
    }

    /// The sum of all prints: equal tables, equal sums.
    pub(crate) fn sum(&self, view: View) -> u128 {
        match view {
            View::Member => self.sums[0],
            View::Client => self.sums[1],
        }
    }

    /// The same, bucket by bucket.
    pub(crate) fn bucket_sums(&self, view: View) -> [u128; BUCKETS] {
        let mut sums = [0; BUCKETS];
        for (id, node) in self.iter() {
            let sum: &mut u128 = &mut sums[bucket(id.as_bytes())];
            *sum = sum.wrapping_add(node.print(view));
        }
        sums
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use mesh_identity::{NodeAddr, NodeKey, Role, UnixTime};
    use proptest::prelude::*;

    use super::super::sim::Double;
    use super::super::{Me, Membership, Trust};
    use super::*;
    use crate::config::Config;

    fn node(number: u64, now: Instant) -> (NodeId, Node) {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&number.to_le_bytes());
        let id = NodeKey::from_seed(seed).node_id();
        let me = Me {
            id,
            grant: Double::grant(Role::Member, "node"),
            addr: NodeAddr::default(),
            started: UnixTime(1_800_000_000),
        };
        let core = Membership::new(me, Config::default(), Double::new(id), seed, now).unwrap();
        assert!(core.trust.revocations().is_empty());
        (id, Node::new(core.own.unwrap().record, now))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn behaves_like_a_map_and_sums_what_is_in_it(steps in prop::collection::vec((0..400_u64, 0..4_u8), 1..600)) {
            let now = Instant::now();
            let nodes: Vec<_> = (0..400).map(|number| node(number, now)).collect();
            let mut table = Table::default();
            let mut map: BTreeMap<NodeId, (u128, bool)> = BTreeMap::new();
            for (number, step) in steps {
                let (id, node) = nodes[usize::try_from(number).unwrap()].clone();
                match step {
                    0 => {
                        table.remove(&id);
                        map.remove(&id);
                    }
                    1 => {
                        table.update(&id, |node| node.is_offered = !node.is_offered);
                        if let Some((_, offered)) = map.get_mut(&id) {
                            *offered = !*offered;
                        }
                    }
                    _ if !map.contains_key(&id) => {
                        map.insert(id, (node.print(View::Member), true));
                        table.insert(id, node);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), map.len());
            }
            prop_assert!(table.iter().map(|(id, _)| id).eq(map.keys()));
            let sum = map.values().filter(|(_, offered)| *offered).fold(0_u128, |sum, (print, _)| sum.wrapping_add(*print));
            prop_assert_eq!(table.sum(View::Member), sum);
            let by_bucket = table.bucket_sums(View::Member).into_iter().fold(0_u128, u128::wrapping_add);
            prop_assert_eq!(by_bucket, sum);
            for (id, _) in &nodes {
                prop_assert_eq!(table.get(id).is_some(), map.contains_key(id));
            }
        }
    }
}
