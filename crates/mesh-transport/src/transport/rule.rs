//! Which of several connections of one pair is used: the same one at both ends.

use crate::connection::{PathFacts, PathKind, TransportKind};

/// How good a connection is, best first. Both ends say the same of it, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Straight over the local network, or inside this process.
    Local,
    /// By the internet driver, whatever its path is at the moment: it looks for a better one by itself.
    Internet,
    /// Over the local network through another node.
    Circuit,
}

impl Class {
    pub(crate) fn of(path: PathFacts) -> Self {
        match (path.transport, path.kind) {
            (TransportKind::Internet, _) => Self::Internet,
            (TransportKind::Lan, PathKind::Relayed) => Self::Circuit,
            (TransportKind::Lan | TransportKind::Memory, _) => Self::Local,
        }
    }

    /// The best that a driver of this kind can give.
    pub(crate) fn best_of(transport: TransportKind) -> Self {
        Self::of(PathFacts { kind: PathKind::Direct, rtt: None, transport })
    }
}

/// What the rule looks at in a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) class: Class,
    pub(crate) dialed_by_us: bool,
    /// The run of the peer that is at the other end.
    pub(crate) instance: u64,
    /// It did not answer in time when it was asked whether it lives.
    pub(crate) is_silent: bool,
}

impl Standing {
    /// Whether a newer connection takes this one's place at once: the peer has started anew, or its dialer has dialed
    /// again by the same means, which nobody does who still has the older one.
    pub(crate) fn is_replaced_by(&self, newer: &Self) -> bool {
        let is_same = self.dialed_by_us == newer.dialed_by_us && self.class == newer.class;
        self.instance != newer.instance || is_same
    }
}

/// The connection for new streams, by its place among them: one that answers, of the best class, and of two such the one
/// dialed by the smaller id.
pub(crate) fn chosen(standings: &[Standing], we_are_smaller: bool) -> Option<usize> {
    let rank =
        |standing: &Standing| (standing.is_silent, standing.class, standing.dialed_by_us != we_are_smaller);
    (0..standings.len()).min_by_key(|at| rank(&standings[*at]))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn standing(class: Class, dialed_by_us: bool) -> Standing {
        Standing { class, dialed_by_us, instance: 1, is_silent: false }
    }

    #[test]
    fn class_comes_before_who_dialed() {
        let all = [
            standing(Class::Circuit, true),
            standing(Class::Internet, true),
            standing(Class::Local, false),
            standing(Class::Internet, false),
        ];
        assert_eq!(chosen(&all, true), Some(2));
        assert_eq!(chosen(&all[..2], true), Some(1));
        assert_eq!(chosen(&[all[1], all[3]], false), Some(1), "the smaller one dialed it");
        assert_eq!(chosen(&[], true), None);
    }

    #[test]
    fn what_does_not_answer_comes_last_but_is_better_than_nothing() {
        let silent = Standing { is_silent: true, ..standing(Class::Local, true) };
        assert_eq!(chosen(&[silent, standing(Class::Circuit, false)], true), Some(1));
        assert_eq!(chosen(&[silent], true), Some(0));
    }

    #[test]
    fn a_restart_replaces_everything_and_a_class_only_itself() {
        let old = standing(Class::Internet, true);
        assert!(old.is_replaced_by(&Standing { instance: 2, ..standing(Class::Circuit, false) }));
        assert!(old.is_replaced_by(&standing(Class::Internet, true)));
        assert!(!old.is_replaced_by(&standing(Class::Local, true)));
        assert!(!old.is_replaced_by(&standing(Class::Internet, false)));
    }

    #[test]
    fn classes_follow_from_what_carries_the_connection() {
        let of = |transport, kind| Class::of(PathFacts { kind, rtt: None, transport });
        assert_eq!(of(TransportKind::Lan, PathKind::Direct), Class::Local);
        assert_eq!(of(TransportKind::Memory, PathKind::Memory), Class::Local);
        assert_eq!(of(TransportKind::Internet, PathKind::Direct), Class::Internet);
        assert_eq!(of(TransportKind::Internet, PathKind::Relayed), Class::Internet);
        assert_eq!(of(TransportKind::Lan, PathKind::Relayed), Class::Circuit);
    }

    /// A connection, by its number; the ends are 0 and 1, and 0 has the smaller id.
    #[derive(Clone, Copy, Debug)]
    struct Conn {
        number: usize,
        class: Class,
        dialer: usize,
    }

    /// One end: what it has, and what it is still to hear of. Connections come up in the order in which they were dialed;
    /// losses come when they like, but not before the connection.
    #[derive(Default)]
    struct End {
        held: Vec<Conn>,
        coming: VecDeque<Conn>,
        losses: Vec<usize>,
    }

    #[derive(Default)]
    struct Pair {
        ends: [End; 2],
        dialed: usize,
        lost_at_dialer: Vec<usize>,
    }

    impl Pair {
        fn standing(conn: &Conn, end: usize) -> Standing {
            standing(conn.class, conn.dialer == end)
        }

        fn used(&self, end: usize) -> Option<usize> {
            let held = &self.ends[end].held;
            let standings: Vec<_> = held.iter().map(|conn| Self::standing(conn, end)).collect();
            chosen(&standings, end == 0).map(|at| held[at].number)
        }

        /// Nobody dials by means by which it is linked already.
        fn dial(&mut self, dialer: usize, class: Class) {
            if self.ends[dialer].held.iter().any(|conn| conn.dialer == dialer && conn.class == class) {
                return;
            }
            self.dialed += 1;
            let conn = Conn { number: self.dialed, class, dialer };
            self.register(dialer, conn);
            self.ends[1 - dialer].coming.push_back(conn);
        }

        fn register(&mut self, end: usize, conn: Conn) {
            let newer = Self::standing(&conn, end);
            let is_replaced = |old: &Conn| Self::standing(old, end).is_replaced_by(&newer);
            let (replaced, kept): (Vec<_>, Vec<_>) = self.ends[end].held.drain(..).partition(is_replaced);
            self.ends[end].held = kept;
            self.ends[end].held.push(conn);
            for old in replaced {
                assert!(
                    self.lost_at_dialer.contains(&old.number),
                    "{old:?} was in use, and cut for {conn:?}"
                );
                self.ends[1 - end].losses.push(old.number);
            }
        }

        fn hear_of_conn(&mut self, end: usize) {
            if let Some(conn) = self.ends[end].coming.pop_front() {
                self.register(end, conn);
            }
        }

        fn hear_of_loss(&mut self, end: usize) {
            let End { coming, losses, .. } = &self.ends[end];
            let is_coming = |number: &usize| coming.iter().any(|conn| conn.number == *number);
            if let Some(at) = losses.iter().position(|number| !is_coming(number)) {
                let number = self.ends[end].losses.remove(at);
                self.drop_conn(end, number);
            }
        }

        fn lose(&mut self, at: usize) {
            let held: Vec<_> = self.ends.iter().flat_map(|end| &end.held).copied().collect();
            let Some(conn) = held.get(at % held.len().max(1)) else { return };
            self.drop_conn(conn.dialer, conn.number);
            self.ends[1 - conn.dialer].losses.push(conn.number);
        }

        fn drop_conn(&mut self, end: usize, number: usize) {
            let held = &mut self.ends[end].held;
            if held.iter().any(|conn| conn.number == number && conn.dialer == end) {
                self.lost_at_dialer.push(number);
            }
            held.retain(|conn| conn.number != number);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Dial(usize, Class),
        HearOfConn(usize),
        HearOfLoss(usize),
        Lose(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let class = prop_oneof![Just(Class::Local), Just(Class::Internet), Just(Class::Circuit)];
        prop_oneof![
            (0..2usize, class).prop_map(|(end, class)| Step::Dial(end, class)),
            (0..2usize).prop_map(Step::HearOfConn),
            (0..2usize).prop_map(Step::HearOfLoss),
            (0..6usize).prop_map(Step::Lose),
        ]
    }

    proptest! {
        #[test]
        fn both_ends_use_the_same_connection_in_the_end(steps in prop::collection::vec(step(), 0..60)) {
            let mut pair = Pair::default();
            for step in steps {
                match step {
                    Step::Dial(end, class) => pair.dial(end, class),
                    Step::HearOfConn(end) => pair.hear_of_conn(end),
                    Step::HearOfLoss(end) => pair.hear_of_loss(end),
                    Step::Lose(at) => pair.lose(at),
                }
            }
            while pair.ends.iter().any(|end| !end.coming.is_empty() || !end.losses.is_empty()) {
                for end in [0, 1] {
                    pair.hear_of_conn(end);
                    pair.hear_of_loss(end);
                }
            }
            prop_assert_eq!(pair.used(0), pair.used(1));
            let best = pair.ends[0].held.iter().map(|conn| conn.class).min();
            let used = pair.ends[0].held.iter().find(|conn| Some(conn.number) == pair.used(0));
            prop_assert_eq!(used.map(|conn| conn.class), best, "the best class is used");
        }
    }
}
