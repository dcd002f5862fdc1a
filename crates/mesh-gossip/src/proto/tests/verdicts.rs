//! How long a core waits before it believes those who say that another one is dead.

use super::alone::{Lone, key};
use super::*;
use crate::proto::{LinkLoss, Trust, wire};

const MS: Duration = Duration::from_millis(1);

const JURY: usize = 8;
const MAJORITY: usize = JURY / 2 + 1;

/// A core that is linked with thirty others, one of which it is a neighbour of.
struct Court {
    node: Lone,
    subject: NodeId,
    incarnation: Incarnation,
    /// The neighbours of the subject, this core left out.
    jurors: Vec<NodeId>,
}

impl Court {
    fn new() -> Self {
        let mut node = Lone::new(1);
        for number in 2..32 {
            let peer = key(number).node_id();
            node.input(Input::LinkUp { peer, role: Role::Member });
            node.frame(peer, &Message::Records { records: vec![Lone::new(number).own()] });
        }
        let me = node.core.me;
        let juries = (2..32).map(|number| {
            let id = key(number).node_id();
            (id, node.core.jury(&id))
        });
        let mut tried = juries.filter(|(_, jury)| jury.len() == JURY && jury.contains(&me));
        let (subject, jury) = tried.next().unwrap();
        let incarnation = node.core.incarnation_of(&subject).unwrap();
        Self { node, subject, incarnation, jurors: jury.into_iter().filter(|juror| *juror != me).collect() }
    }

    /// The first jurors say so.
    fn accuse(&mut self, count: usize, evidence: Evidence) {
        for witness in self.jurors.clone().into_iter().take(count) {
            let subject = *self.subject.as_bytes();
            let incarnation = self.incarnation.as_u64();
            let statement = wire::accusation_statement(&subject, incarnation, evidence);
            let signature = Double::new(witness).sign(wire::ACCUSATION, &statement).into();
            let witness_raw = *witness.as_bytes();
            let accusation = Accusation { subject, incarnation, witness: witness_raw, evidence, signature };
            self.node.frame(witness, &Message::Accusations { accusations: vec![accusation] });
        }
    }

    /// How long it takes until the subject is down, at most so long.
    fn convicts_within(&mut self, limit: Duration) -> Option<Duration> {
        let begin = self.node.now;
        while self.node.core.state_of(&self.subject) != Some(State::Down) {
            let next = self.node.core.next_deadline().unwrap();
            if next > begin + limit {
                return None;
            }
            self.node.now = next;
            self.node.input(Input::Tick);
        }
        Some(self.node.now - begin)
    }
}

#[test]
fn the_more_machines_say_that_the_process_ended_the_sooner_they_are_believed() {
    let mut took = Vec::new();
    for count in MAJORITY..JURY {
        let mut court = Court::new();
        court.accuse(count, Evidence::Gone);
        took.push(court.convicts_within(SECOND).unwrap());
    }
    assert!(took.len() == 3 && took.is_sorted_by(|some, more| some > more), "{took:?}");
    // All but this core, which has heard the node a moment ago.
    // It waits twice as long as it will when it has found that nothing gets lost.
    assert!(*took.last().unwrap() <= 80 * MS, "{took:?}");
}

#[test]
fn what_a_node_says_after_it_was_accused_counts_more_than_the_word_of_many() {
    let mut court = Court::new();
    court.accuse(JURY - 1, Evidence::Gone);
    court.node.now += 5 * MS;
    court.node.frame(court.subject, &Message::Ping { seq: 1 });
    assert_eq!(court.convicts_within(90 * MS), None);
    assert_eq!(court.node.core.state_of(&court.subject), Some(State::Alive));
}

#[test]
fn less_than_a_majority_that_saw_the_end_waits_as_for_silence() {
    let (mut silent, mut mixed) = (Court::new(), Court::new());
    silent.accuse(MAJORITY, Evidence::Silent);
    mixed.accuse(MAJORITY, Evidence::Silent);
    mixed.accuse(MAJORITY - 1, Evidence::Gone);
    let silent = silent.convicts_within(5 * SECOND).unwrap();
    assert!(silent >= 150 * MS, "{silent:?}");
    assert_eq!(mixed.convicts_within(5 * SECOND), Some(silent));
}

#[test]
fn the_next_on_a_ring_takes_the_place_of_a_neighbour_that_is_missing() {
    let mut node = Court::new().node;
    let subjects: Vec<NodeId> = (2..32).map(|number| key(number).node_id()).collect();
    // Whom this core watches it doubts as soon as the link is lost.
    let missing = node.core.watches.ids().next().unwrap();
    let juries = |node: &Lone| {
        let all = subjects.iter().filter(|subject| **subject != missing);
        all.map(|subject| node.core.jury(subject)).collect::<Vec<_>>()
    };
    let before = juries(&node);
    node.input(Input::LinkDown { peer: missing, why: LinkLoss::Lost });
    assert_eq!(node.core.state_of(&missing), Some(State::Suspect));
    assert_eq!(juries(&node), before, "it may still contradict");
    node.now += 10 * SECOND;
    node.input(Input::WallClock(UnixTime(1_800_000_010)));
    let after = juries(&node);
    let has_it = |jury: &&Vec<NodeId>| jury.contains(&missing);
    assert!(before.iter().any(|jury| has_it(&jury)) && !after.iter().any(|jury| has_it(&jury)));
    let gains = |(before, after): (&Vec<NodeId>, &Vec<NodeId>)| after.iter().any(|one| !before.contains(one));
    assert!(before.iter().zip(&after).any(gains), "{after:?}");
}
