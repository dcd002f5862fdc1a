//! The overlay: who watches whom, and along which links news travels.
//!
//! Every member stands on four rings, on each at another place that follows from its id alone. Its neighbours are the
//! next member on either side of it on each ring: at most eight, symmetric, and the same in the eyes of all who know the
//! same members. Random rings make an expander, so news reaches everybody in a logarithmic number of hops, and nobody
//! chooses whom it watches (Suresh et al., "Stable and Consistent Membership at Scale with Rapid", USENIX ATC 2018, section 4.1).

use mesh_identity::NodeId;

/// How many rings there are.
pub(crate) const RINGS: usize = 4;
/// The most neighbours that a node can have on the rings.
pub(crate) const NEIGHBOURS: usize = 2 * RINGS;

/// Where a node stands on each ring.
pub(crate) type Places = [u64; RINGS];

/// The places of a node. They follow from its id, which is a key that nobody grinds for long: an invite admits it once.
pub(crate) fn places(id: &NodeId) -> Places {
    let hash = blake3::hash(id.as_bytes());
    let mut places = Places::default();
    for (place, bytes) in places.iter_mut().zip(hash.as_bytes().as_chunks::<8>().0) {
        *place = u64::from_le_bytes(*bytes);
    }
    places
}

/// The nearest members on both sides of each ring, nearest first.
#[derive(Debug)]
pub(crate) struct Nearest {
    sides: [[Vec<(u64, NodeId)>; 2]; RINGS],
    depth: usize,
}

impl Nearest {
    /// The `depth` nearest of `members` to `id` on either side of each ring.
    pub(crate) fn of(
        id: &NodeId,
        places: &Places,
        members: impl Iterator<Item = (NodeId, Places)>,
        depth: usize,
    ) -> Self {
        let mut nearest = Self { sides: Default::default(), depth: depth.max(1) };
        for (other, theirs) in members.filter(|(other, _)| other != id) {
            for (ring, (mine, theirs)) in places.iter().zip(theirs).enumerate() {
                nearest.offer(ring, 0, (theirs.wrapping_sub(*mine), other));
                nearest.offer(ring, 1, (mine.wrapping_sub(theirs), other));
            }
        }
        nearest
    }

    fn offer(&mut self, ring: usize, side: usize, candidate: (u64, NodeId)) {
        let held = &mut self.sides[ring][side];
        if held.len() == self.depth && held.last().is_some_and(|last| *last < candidate) {
            return;
        }
        let at = held.partition_point(|one| *one < candidate);
        held.insert(at, candidate);
        held.truncate(self.depth);
    }

    /// The neighbours: the nearest of each side.
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.sides.iter().flatten().filter_map(|side| side.first()).map(|(_, id)| *id)
    }

    /// The neighbours, and for each one that is out of reach the next ones of its side, up to one within reach.
    pub(crate) fn reachable(&self, is_out_of_reach: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        let mut all = Vec::new();
        for side in self.sides.iter().flatten() {
            for (_, id) in side {
                all.push(*id);
                if !is_out_of_reach(id) {
                    break;
                }
            }
        }
        all
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn members(count: u64) -> Vec<(NodeId, Places)> {
        let key = |number: u64| {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&number.to_le_bytes());
            mesh_identity::NodeKey::from_seed(seed).node_id()
        };
        (0..count).map(key).map(|id| (id, places(&id))).collect()
    }

    fn neighbours(of: &(NodeId, Places), all: &[(NodeId, Places)]) -> BTreeSet<NodeId> {
        Nearest::of(&of.0, &of.1, all.iter().copied(), 1).neighbours().collect()
    }

    #[test]
    fn neighbours_are_mutual_and_few() {
        for count in [2, 3, 9, 40] {
            let all = members(count);
            for one in &all {
                let mine = neighbours(one, &all);
                assert!(!mine.contains(&one.0) && (1..=NEIGHBOURS).contains(&mine.len()));
                for other in all.iter().filter(|other| mine.contains(&other.0)) {
                    assert!(neighbours(other, &all).contains(&one.0));
                }
            }
        }
    }

    #[test]
    fn everybody_is_reached_within_few_hops() {
        let all = members(1000);
        let (mut reached, mut edge) = (BTreeSet::from([all[0].0]), vec![all[0]]);
        for _ in 0..5 {
            let next: BTreeSet<NodeId> = edge.iter().flat_map(|one| neighbours(one, &all)).collect();
            edge = all.iter().filter(|one| next.contains(&one.0) && reached.insert(one.0)).copied().collect();
        }
        assert!(reached.len() > 990, "{}", reached.len());
    }

    #[test]
    fn who_is_out_of_reach_is_kept_and_stood_in_for() {
        let all = members(40);
        let nearest = Nearest::of(&all[0].0, &all[0].1, all.iter().copied(), 4);
        let out = nearest.neighbours().next().unwrap();
        let with = nearest.reachable(|id| *id == out);
        let strict: BTreeSet<NodeId> = nearest.neighbours().collect();
        let with: BTreeSet<NodeId> = with.into_iter().collect();
        assert!(with.is_superset(&strict) && with.contains(&out));
        assert_eq!(nearest.reachable(|_| true).len(), NEIGHBOURS * 4);
    }
}
