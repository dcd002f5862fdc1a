//! What is still to happen, in the order of its time, and of its scheduling at equal times.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A queue by time in nanoseconds. The heap moves keys only; what happens stays where it was put.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<Key>>,
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    serial: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    at: u64,
    serial: u64,
    slot: u32,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), serial: 0 }
    }

    pub(crate) fn push(&mut self, at: u64, what: T) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(what);
                slot
            }
            None => {
                self.slots.push(Some(what));
                u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 things are under way")
            }
        };
        self.serial += 1;
        self.heap.push(Reverse(Key { at, serial: self.serial, slot }));
    }

    /// The next, when it is due by `end`.
    pub(crate) fn pop_until(&mut self, end: u64) -> Option<(u64, T)> {
        if self.heap.peek()?.0.at > end {
            return None;
        }
        let Reverse(Key { at, slot, .. }) = self.heap.pop()?;
        self.free.push(slot);
        Some((at, self.slots[slot as usize].take().expect("every key has its slot")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_by_time_then_by_order_and_nothing_later() {
        let mut queue = Queue::new();
        for (at, name) in [(5, 'c'), (1, 'a'), (9, 'd'), (1, 'b')] {
            queue.push(at, name);
        }
        let due: Vec<_> = std::iter::from_fn(|| queue.pop_until(5)).collect();
        assert_eq!(due, [(1, 'a'), (1, 'b'), (5, 'c')]);
        queue.push(7, 'e');
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop_until(u64::MAX)).collect();
        assert_eq!((rest, queue.slots.len()), (vec![(7, 'e'), (9, 'd')], 4));
    }
}
