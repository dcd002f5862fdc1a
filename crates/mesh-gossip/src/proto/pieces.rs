//! An ordered map cut into pieces that are copied when they change.
//!
//! Clones share what neither of them changed. Cores of one simulation so begin with one table between them: ten thousand
//! cores of ten thousand peers each fit into memory.

use std::cmp::Ordering;
use std::sync::Arc;

/// A piece is divided at this length: copying it costs some microseconds.
const PIECE_MAX: usize = 128;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Pieces<K, V> {
    pieces: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

impl<K, V> Default for Pieces<K, V> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> Pieces<K, V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &(K, V)> {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The entry at which `order`, given a key, says `Equal`.
    pub(crate) fn find(&self, order: impl Fn(&K) -> Ordering) -> Option<&(K, V)> {
        let piece = self.pieces.get(self.piece_of(&order))?;
        let at = piece.binary_search_by(|(key, _)| order(key)).ok()?;
        piece.get(at)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.piece_of(|held| held.cmp(key));
        let piece = self.pieces.get_mut(at)?;
        let index = piece.binary_search_by(|(held, _)| held.cmp(key)).ok()?;
        Some(&mut Arc::make_mut(piece)[index].1)
    }

    /// Adds an entry, or replaces the value of the key.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.pieces.is_empty() {
            self.pieces.push(Arc::default());
        }
        let at = self.piece_of(|held| held.cmp(&key));
        let piece = Arc::make_mut(&mut self.pieces[at]);
        match piece.binary_search_by(|(held, _)| held.cmp(&key)) {
            Ok(index) => piece[index].1 = value,
            Err(index) => {
                piece.insert(index, (key, value));
                self.len += 1;
            }
        }
        if piece.len() > PIECE_MAX {
            let rest = piece.split_off(PIECE_MAX / 2);
            self.pieces.insert(at + 1, Arc::new(rest));
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.piece_of(|held| held.cmp(key));
        let piece = self.pieces.get_mut(at)?;
        let index = piece.binary_search_by(|(held, _)| held.cmp(key)).ok()?;
        let (_, value) = Arc::make_mut(piece).remove(index);
        self.len -= 1;
        if piece.is_empty() {
            self.pieces.remove(at);
        }
        Some(value)
    }

    /// All entries once around, upwards from the first behind `key`.
    pub(crate) fn upwards<'a>(&'a self, key: &'a K) -> impl Iterator<Item = &'a (K, V)> {
        let (piece, index) = self.behind(key);
        let after = self
            .pieces
            .iter()
            .skip(piece)
            .enumerate()
            .flat_map(move |(number, piece)| piece.iter().skip(if number == 0 { index } else { 0 }));
        let before = self.iter().take_while(move |(held, _)| held <= key);
        after.chain(before)
    }

    /// All entries once around, downwards from the last before `key`.
    pub(crate) fn downwards<'a>(&'a self, key: &'a K) -> impl Iterator<Item = &'a (K, V)> {
        let (piece, index) = self.behind(key);
        let last = self.pieces.get(piece).map_or(&[][..], |piece| &piece[..index]);
        let rest = self.pieces.iter().take(piece).rev().flat_map(|piece| piece.iter().rev());
        let before = last.iter().rev().chain(rest).skip_while(move |(held, _)| held >= key);
        let after = self.iter().rev().take_while(move |(held, _)| held >= key);
        before.chain(after)
    }

    /// The piece, and the place in it, of the first entry behind `key`.
    fn behind(&self, key: &K) -> (usize, usize) {
        let at = self.piece_of(|held| held.cmp(key));
        let index = self.pieces.get(at).map_or(0, |piece| piece.partition_point(|(held, _)| held <= key));
        (at, index)
    }

    /// The last piece that does not begin behind the key.
    fn piece_of(&self, order: impl Fn(&K) -> Ordering) -> usize {
        let begins_before = |piece: &Arc<Vec<(K, V)>>| {
            piece.first().is_none_or(|(first, _)| order(first) != Ordering::Greater)
        };
        self.pieces.partition_point(begins_before).saturating_sub(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map_and_leaves_its_clones_alone(
            steps in prop::collection::vec((0..500_u16, any::<bool>()), 0..1500),
            from in 0..500_u16,
        ) {
            let (mut pieces, mut map) = (Pieces::default(), BTreeMap::new());
            let mut earlier = None;
            for (number, (key, is_added)) in steps.into_iter().enumerate() {
                if number == 700 {
                    earlier = Some((pieces.clone(), map.clone()));
                }
                if is_added {
                    pieces.insert(key, number);
                    map.insert(key, number);
                } else {
                    prop_assert_eq!(pieces.remove(&key), map.remove(&key));
                }
                prop_assert_eq!(pieces.len(), map.len());
            }
            for (pieces, map) in earlier.into_iter().chain([(pieces, map)]) {
                let entries = |found: &mut dyn Iterator<Item = &(u16, usize)>| found.copied().collect::<Vec<_>>();
                let expected: Vec<_> = map.iter().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(entries(&mut pieces.iter()), expected.clone());
                let (low, high): (Vec<_>, Vec<_>) = expected.into_iter().partition(|(key, _)| *key <= from);
                let up: Vec<_> = high.iter().chain(&low).copied().collect();
                prop_assert_eq!(entries(&mut pieces.upwards(&from)), up);
                let is_from = low.last().is_some_and(|(key, _)| *key == from);
                let below = &low[..low.len() - usize::from(is_from)];
                let down: Vec<_> = below.iter().rev().chain(high.iter().rev()).chain(low.last().filter(|_| is_from)).copied().collect();
                prop_assert_eq!(entries(&mut pieces.downwards(&from)), down);
                prop_assert_eq!(pieces.find(|key| key.cmp(&from)).map(|(_, value)| value), map.get(&from));
            }
        }
    }
}
