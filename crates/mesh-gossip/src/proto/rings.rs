//! The overlay: who watches whom, and along which links news travels.
//!
//! Every member stands on four rings, on each at another place that follows from its id alone. Its neighbours are the
//! next member on either side of it on each ring: at most eight, symmetric, and the same in the eyes of all who know the
//! same members. Random rings make an expander, so news reaches everybody in a logarithmic number of hops, and nobody
//! chooses whom it watches (Suresh et al., "Stable and Consistent Membership at Scale with Rapid", USENIX ATC 2018, section 4.1).

use std::collections::BTreeSet;

use mesh_identity::NodeId;

use super::pieces::Pieces;

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

/// Who stands on the rings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rings([Pieces<(u64, NodeId), ()>; RINGS]);

impl Rings {
    pub(crate) fn insert(&mut self, id: NodeId, places: Places) {
        for (ring, place) in self.0.iter_mut().zip(places) {
            ring.insert((place, id), ());
        }
    }

    pub(crate) fn remove(&mut self, id: NodeId, places: Places) {
        for (ring, place) in self.0.iter_mut().zip(places) {
            ring.remove(&(place, id));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0[0].len()
    }

    /// Both sides of each ring of a node that stands there or might, nearest first: on each as far as `goes_on` says, given
    /// the side's number and who stands there, and `depth` at most. `me` counts as if it stood on the rings.
    pub(crate) fn walk(
        &self,
        (id, places): (NodeId, &Places),
        me: Option<(NodeId, &Places)>,
        depth: usize,
        mut goes_on: impl FnMut(usize, &NodeId) -> bool,
    ) -> Vec<Vec<NodeId>> {
        let mut sides = Vec::with_capacity(NEIGHBOURS);
        for (number, ring) in self.0.iter().enumerate() {
            let key = (places[number], id);
            let ways: [Box<dyn Iterator<Item = (u64, NodeId)>>; 2] = [
                Box::new(ring.upwards(&key).map(|(key, ())| *key)),
                Box::new(ring.downwards(&key).map(|(key, ())| *key)),
            ];
            for (way, mut others) in ways.into_iter().enumerate() {
                let distance = |(place, other): (u64, NodeId)| {
                    let there = place.wrapping_sub(places[number]);
                    (if way == 0 { there } else { there.wrapping_neg() }, other)
                };
                let mut me = me.map(|(me, mine)| (mine[number], me));
                let mut next = others.by_ref().find(|key| key.1 != id);
                let mut side = Vec::new();
                while side.len() < depth {
                    let is_mine = match (me, next) {
                        (Some(me), Some(next)) => distance(me) < distance(next),
                        (me, _) => me.is_some(),
                    };
                    let one = if is_mine {
                        me.take()
                    } else {
                        std::mem::replace(&mut next, others.by_ref().find(|key| key.1 != id))
                    };
                    let Some((_, one)) = one else { break };
                    side.push(one);
                    if !goes_on(sides.len(), &one) {
                        break;
                    }
                }
                sides.push(side);
            }
        }
        sides
    }
}

/// Everybody once, the nearest of all sides first.
pub(crate) fn nearest_first(sides: &[Vec<NodeId>]) -> Vec<NodeId> {
    let depth = sides.iter().map(Vec::len).max().unwrap_or_default();
    let mut seen = BTreeSet::new();
    let by_rank = (0..depth).flat_map(|rank| sides.iter().filter_map(move |side| side.get(rank)));
    by_rank.copied().filter(|id| seen.insert(*id)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn members(count: u64) -> Vec<(NodeId, Places)> {
        let key = |number: u64| {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&number.to_le_bytes());
            mesh_identity::NodeKey::from_seed(seed).node_id()
        };
        (0..count).map(key).map(|id| (id, places(&id))).collect()
    }

    fn rings(all: &[(NodeId, Places)]) -> Rings {
        let mut rings = Rings::default();
        for (id, places) in all {
            rings.insert(*id, *places);
        }
        rings
    }

    fn neighbours(of: &(NodeId, Places), all: &[(NodeId, Places)]) -> BTreeSet<NodeId> {
        rings(all).walk((of.0, &of.1), None, 1, |_, _| true).into_iter().flatten().collect()
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
    fn a_side_is_walked_as_far_as_it_is_told_to() {
        let all = members(40);
        let (rings, from) = (rings(&all), &all[0]);
        let sides = rings.walk((from.0, &from.1), None, 4, |_, _| true);
        assert!(sides.len() == NEIGHBOURS && sides.iter().all(|side| side.len() == 4));
        let out = sides[3][0];
        let walked = rings.walk((from.0, &from.1), None, 4, |_, id| *id == out);
        for (side, whole) in walked.iter().zip(&sides) {
            let length = 1 + whole.iter().take_while(|id| **id == out).count();
            assert_eq!(side, &whole[..length]);
        }
        let ordered = nearest_first(&walked);
        assert_eq!(ordered.iter().collect::<BTreeSet<_>>(), walked.iter().flatten().collect());
        assert_eq!(ordered.last(), Some(&walked[3][1]));
    }

    #[test]
    fn this_node_counts_as_if_it_stood_on_the_rings() {
        let all = members(30);
        let whole = rings(&all);
        for me in &all {
            let others: Vec<_> = all.iter().filter(|one| one.0 != me.0).copied().collect();
            let without = rings(&others);
            for of in &others {
                let with = without.walk((of.0, &of.1), Some((me.0, &me.1)), 3, |_, _| true);
                assert_eq!(with, whole.walk((of.0, &of.1), None, 3, |_, _| true));
            }
        }
    }
}
