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

    /// The nearest `depth` on either side of each ring of a node that stands there or might, itself left out.
    pub(crate) fn nearest(&self, id: NodeId, places: &Places, depth: usize) -> Nearest {
        let is_other = |key: &(u64, NodeId)| key.1 != id;
        let side = |number: usize, ring: &Pieces<(u64, NodeId), ()>, is_up: bool| -> Vec<NodeId> {
            let key = (places[number], id);
            let keys: Vec<_> = if is_up {
                ring.upwards(&key).map(|(key, ())| *key).filter(is_other).take(depth).collect()
            } else {
                ring.downwards(&key).map(|(key, ())| *key).filter(is_other).take(depth).collect()
            };
            keys.into_iter().map(|(_, id)| id).collect()
        };
        let rings = self.0.iter().enumerate();
        Nearest(
            rings.flat_map(|(number, ring)| [side(number, ring, true), side(number, ring, false)]).collect(),
        )
    }

    /// The same among those on the rings and one more node, which is not on them here: this one.
    pub(crate) fn neighbours_with(
        &self,
        id: NodeId,
        places: &Places,
        me: Option<(NodeId, Places)>,
    ) -> Vec<NodeId> {
        let nearest = self.nearest(id, places, 1);
        let Some((me, mine)) = me else { return distinct(nearest.neighbours()) };
        let sides = nearest.0.iter().enumerate().map(|(number, side)| {
            let (ring, is_up) = (number / 2, number % 2 == 0);
            let distance = |other: u64| {
                if is_up { other.wrapping_sub(places[ring]) } else { places[ring].wrapping_sub(other) }
            };
            match side.first() {
                Some(held) if (distance(self::places(held)[ring]), *held) < (distance(mine[ring]), me) => {
                    *held
                }
                _ => me,
            }
        });
        distinct(sides)
    }
}

/// The nearest members on both sides of each ring, nearest first.
#[derive(Debug)]
pub(crate) struct Nearest(Vec<Vec<NodeId>>);

impl Nearest {
    /// The neighbours: the nearest of each side.
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().filter_map(|side| side.first()).copied()
    }

    /// The neighbours, and for each one that is out of reach the next ones of its side, up to one within reach.
    pub(crate) fn reachable(&self, is_out_of_reach: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        let mut all = Vec::new();
        for side in &self.0 {
            for id in side {
                all.push(*id);
                if !is_out_of_reach(id) {
                    break;
                }
            }
        }
        distinct(all.into_iter())
    }
}

fn distinct(ids: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
    let mut seen = BTreeSet::new();
    ids.filter(|id| seen.insert(*id)).collect()
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
        rings(all).nearest(of.0, &of.1, 1).neighbours().collect()
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
        let nearest = rings(&all).nearest(all[0].0, &all[0].1, 4);
        let out = nearest.neighbours().next().unwrap();
        let with = nearest.reachable(|id| *id == out);
        let strict: BTreeSet<NodeId> = nearest.neighbours().collect();
        let with: BTreeSet<NodeId> = with.into_iter().collect();
        assert!(with.is_superset(&strict) && with.contains(&out));
        assert!(nearest.reachable(|_| true).len() > NEIGHBOURS);
    }

    #[test]
    fn this_node_counts_as_if_it_stood_on_the_rings() {
        let all = members(30);
        for me in &all {
            let others: Vec<_> = all.iter().filter(|one| one.0 != me.0).copied().collect();
            for of in &others {
                let with: BTreeSet<_> =
                    rings(&others).neighbours_with(of.0, &of.1, Some(*me)).into_iter().collect();
                assert_eq!(with, neighbours(of, &all));
            }
        }
    }
}
