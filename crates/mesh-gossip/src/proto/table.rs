//! All other nodes that the core knows, ordered by id, with a running sum of what is passed on.
//!
//! The table is cut into pieces that are copied when they change. Cores of one simulation can so begin with one table
//! between them: ten thousand of ten thousand peers each fit into memory.

use std::sync::Arc;

use mesh_identity::NodeId;

use super::node::Node;
use super::record::View;
use super::wire::{BUCKETS, RawId, bucket};

/// A piece is divided at this length: copying it costs some microseconds.
const PIECE_MAX: usize = 128;

type Piece = Arc<Vec<(NodeId, Node)>>;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pieces: Vec<Piece>,
    len: usize,
    sums: [u128; 2],
}

fn views() -> [View; 2] {
    [View::Member, View::Client]
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.pieces.iter().flat_map(|piece| piece.iter().map(|(id, node)| (id, node)))
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
        let piece = self.pieces.get(self.piece_of(id))?;
        let at = piece.binary_search_by(|(held, _)| held.as_bytes().cmp(id)).ok()?;
        piece.get(at)
    }

    /// Changes a node; the sums follow.
    pub(crate) fn update<R>(&mut self, id: &NodeId, change: impl FnOnce(&mut Node) -> R) -> Option<R> {
        let at = self.piece_of(id.as_bytes());
        let piece = self.pieces.get_mut(at)?;
        let index = piece.binary_search_by(|(held, _)| held.cmp(id)).ok()?;
        let node = &mut Arc::make_mut(piece)[index].1;
        let before = views().map(|view| node.print(view));
        let result = change(node);
        let after = views().map(|view| node.print(view));
        for (sum, (before, after)) in self.sums.iter_mut().zip(before.into_iter().zip(after)) {
            *sum = sum.wrapping_sub(before).wrapping_add(after);
        }
        Some(result)
    }

    /// Adds a node that is not there.
    pub(crate) fn insert(&mut self, id: NodeId, node: Node) {
        for (sum, view) in self.sums.iter_mut().zip(views()) {
            *sum = sum.wrapping_add(node.print(view));
        }
        if self.pieces.is_empty() {
            self.pieces.push(Arc::default());
        }
        let at = self.piece_of(id.as_bytes());
        let piece = Arc::make_mut(&mut self.pieces[at]);
        let index = piece.partition_point(|(held, _)| *held < id);
        piece.insert(index, (id, node));
        self.len += 1;
        if piece.len() > PIECE_MAX {
            let rest = piece.split_off(PIECE_MAX / 2);
            self.pieces.insert(at + 1, Arc::new(rest));
        }
    }

    pub(crate) fn remove(&mut self, id: &NodeId) {
        let at = self.piece_of(id.as_bytes());
        let Some(piece) = self.pieces.get_mut(at) else { return };
        let Ok(index) = piece.binary_search_by(|(held, _)| held.cmp(id)) else { return };
        let (_, node) = Arc::make_mut(piece).remove(index);
        for (sum, view) in self.sums.iter_mut().zip(views()) {
            *sum = sum.wrapping_sub(node.print(view));
        }
        self.len -= 1;
        if piece.is_empty() {
            self.pieces.remove(at);
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

    /// The last piece that does not begin behind the id.
    fn piece_of(&self, id: &RawId) -> usize {
        let after = self
            .pieces
            .partition_point(|piece| piece.first().is_none_or(|(first, _)| first.as_bytes() <= id));
        after.saturating_sub(1)
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
