//! Notices that two nodes use one key: then a key file was copied.
//!
//! A node draws an instance when it starts and never comes back to an earlier one. So an instance that comes back after
//! another was seen shows two nodes that are alive. It must come back several times, since hellos that wait while this
//! node stands still may be taken out of order, and both of a restart's runs are then seen in the wrong order once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use mesh_identity::NodeId;
use tokio::time::Instant;

/// Nodes remembered at once; the one heard of longest ago makes room.
const NODES_MAX: usize = 4096;
/// Runs remembered of each.
const RUNS_MAX: usize = 4;
/// So many returns show two nodes: one run that was taken out of order makes two, its own and its successor's.
const RETURNS: usize = 3;
/// Within this time: two nodes with one key dial again and again, and are back within seconds.
const WITHIN: Duration = Duration::from_secs(600);

/// The runs of each peer that were seen lately.
#[derive(Debug, Default)]
pub(super) struct Instances(Mutex<BTreeMap<NodeId, Runs>>);

#[derive(Debug)]
struct Runs {
    /// The one seen last is at the end.
    seen: VecDeque<Run>,
    returns: VecDeque<Instant>,
    heard: Instant,
}

#[derive(Debug)]
struct Run {
    instance: u64,
    place: String,
}

impl Instances {
    /// Notes a run that has proved the key, and where it is. Where two nodes with this key are, if it shows that.
    pub(super) fn note(
        &self,
        node: NodeId,
        instance: u64,
        place: String,
        now: Instant,
    ) -> Option<[String; 2]> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= NODES_MAX && !nodes.contains_key(&node) {
            let oldest = nodes.iter().min_by_key(|(_, runs)| runs.heard).map(|(node, _)| *node);
            oldest.and_then(|oldest| nodes.remove(&oldest));
        }
        let new = || Runs { seen: VecDeque::new(), returns: VecDeque::new(), heard: now };
        nodes.entry(node).or_insert_with(new).note(Run { instance, place }, now)
    }
}

impl Runs {
    fn note(&mut self, run: Run, now: Instant) -> Option<[String; 2]> {
        self.heard = now;
        let at = self.seen.iter().position(|seen| seen.instance == run.instance);
        let is_return = at.is_some_and(|at| at + 1 < self.seen.len());
        at.and_then(|at| self.seen.remove(at));
        let other = self.seen.back().map(|other| other.place.clone());
        let place = run.place.clone();
        self.seen.push_back(run);
        if self.seen.len() > RUNS_MAX {
            self.seen.pop_front();
        }
        if !is_return {
            return None;
        }
        self.returns.push_back(now);
        self.returns.retain(|at| now.duration_since(*at) < WITHIN);
        if self.returns.len() > RETURNS {
            self.returns.pop_front();
        }
        (self.returns.len() == RETURNS).then_some([other?, place])
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;

    use super::*;

    fn node(seed: u8) -> NodeId {
        NodeKey::from_seed([seed; 32]).node_id()
    }

    fn noted(instances: &Instances, run: u64, now: Instant) -> Option<[String; 2]> {
        instances.note(node(1), run, format!("place {run}"), now)
    }

    #[test]
    fn restarts_are_no_second_node() {
        let (instances, now) = (Instances::default(), Instant::now());
        for run in 0..100 {
            for _ in 0..3 {
                assert_eq!(noted(&instances, run, now), None);
            }
        }
    }

    #[test]
    fn a_run_taken_out_of_order_is_no_second_node() {
        let (instances, now) = (Instances::default(), Instant::now());
        for run in [1, 2, 1, 2, 2, 3, 3] {
            assert_eq!(noted(&instances, run, now), None);
        }
    }

    #[test]
    fn two_runs_that_take_turns_are_two_nodes_and_each_is_named() {
        let (instances, now) = (Instances::default(), Instant::now());
        for run in [1, 2, 1, 2] {
            assert_eq!(noted(&instances, run, now), None);
        }
        assert_eq!(noted(&instances, 1, now), Some(["place 2".to_owned(), "place 1".to_owned()]));
        assert_eq!(noted(&instances, 1, now), None, "it did not return, it only came again");
        assert_eq!(noted(&instances, 2, now), Some(["place 1".to_owned(), "place 2".to_owned()]));
        assert_eq!(noted(&instances, 1, now + WITHIN), None, "that was long ago");
    }

    #[test]
    fn memory_is_bounded() {
        let (instances, now) = (Instances::default(), Instant::now());
        for number in 0..2 * u32::try_from(NODES_MAX).expect("a small number") {
            let mut seed = [1; 32];
            seed[..4].copy_from_slice(&number.to_be_bytes());
            let at = now + Duration::from_millis(number.into());
            instances.note(NodeKey::from_seed(seed).node_id(), 1, String::new(), at);
        }
        assert_eq!(instances.0.lock().expect("nobody panicked").len(), NODES_MAX);
    }
}
