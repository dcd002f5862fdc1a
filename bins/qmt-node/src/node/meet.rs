//! Meeting in the scope `lan`: the nodes that the LAN transport finds are dialed there, few at a time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_identity::{NodeAddr, NodeId};
use mesh_transport::DialError;
use tokio::task::JoinSet;

use super::Node;
use super::uninvited::Uninvited;

/// Dials at once; what is found beyond that waits its turn.
const DIALS_MAX: usize = 32;
/// Of these, to one machine: invented nodes at one address hold up nobody who is at another.
const DIALS_PER_MACHINE_MAX: usize = 2;
/// The wait after the first dial that failed; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The longest wait before a node is asked again that did not want us here: perhaps it was only starting, perhaps it has
/// another pre-shared key for ever.
const REFUSED_LONGEST: Duration = Duration::from_secs(600);
/// How often it is looked whether a node that was met is still linked: gossip redials its members by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How a dial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Linked,
    Refused,
    Failed,
}

/// Whom to dial, and when. Reads no clock.
#[derive(Debug, Default)]
struct Meetings {
    found: BTreeMap<NodeId, Meeting>,
}

#[derive(Debug)]
struct Meeting {
    addr: NodeAddr,
    due: Instant,
    tries: u32,
    /// The machine that is being dialed.
    dialing: Option<IpAddr>,
    /// No longer found; forgotten when its dial has ended.
    gone: bool,
}

impl Meetings {
    /// Takes up what is found now: new nodes and moved ones are due at once, those that are gone are forgotten.
    fn take(&mut self, found: &BTreeMap<NodeId, NodeAddr>, now: Instant) {
        self.found.retain(|node, meeting| {
            meeting.gone = !found.contains_key(node);
            !meeting.gone || meeting.dialing.is_some()
        });
        for (node, addr) in found {
            let meeting = self.found.entry(*node).or_insert_with(|| Meeting {
                addr: addr.clone(),
                due: now,
                tries: 0,
                dialing: None,
                gone: false,
            });
            meeting.gone = false;
            if meeting.addr != *addr {
                meeting.addr.clone_from(addr);
                (meeting.due, meeting.tries) = (now, 0);
            }
        }
    }

    /// The next node to dial, if one is due and there is room: who was tried least comes first.
    fn next(&mut self, now: Instant) -> Option<NodeId> {
        let due = self.ready().filter(|(_, meeting, _)| meeting.due <= now);
        let (_, _, node, machine) =
            due.map(|(node, meeting, machine)| (meeting.tries, meeting.due, node, machine)).min()?;
        if let Some(meeting) = self.found.get_mut(&node) {
            meeting.dialing = Some(machine);
        }
        Some(node)
    }

    /// Notes how a dial ended. `chance` in 0..1 spreads the next tries of many nodes.
    fn met(&mut self, node: &NodeId, how: Met, chance: f64, now: Instant) {
        let Some(meeting) = self.found.get_mut(node) else { return };
        if meeting.gone {
            self.found.remove(node);
            return;
        }
        meeting.dialing = None;
        let wait = match how {
            Met::Linked => LOOK_AGAIN,
            Met::Refused => waited(meeting.tries, REFUSED_LONGEST),
            Met::Failed => waited(meeting.tries, RETRY_LONGEST),
        };
        meeting.tries = if how == Met::Linked { 0 } else { meeting.tries.saturating_add(1) };
        meeting.due = now + wait.mul_f64(0.5 + 0.5 * chance);
    }

    /// When somebody is due for whom there is room now; the end of a dial makes room for others.
    fn next_due(&self) -> Option<Instant> {
        self.ready().map(|(_, meeting, _)| meeting.due).min()
    }

    /// The nodes that could be dialed if they were due, each with the machine that it is at.
    fn ready(&self) -> impl Iterator<Item = (NodeId, &Meeting, IpAddr)> {
        let dials = self.dials();
        let is_full = dials.values().sum::<usize>() >= DIALS_MAX;
        let waiting = self.found.iter().filter(move |(_, meeting)| !is_full && meeting.dialing.is_none());
        let at = waiting.filter_map(|(node, meeting)| Some((*node, meeting, meeting.addr.lan.first()?.ip())));
        at.filter(move |(_, _, machine)| {
            dials.get(machine).is_none_or(|dials| *dials < DIALS_PER_MACHINE_MAX)
        })
    }

    /// Dials under way, by machine.
    fn dials(&self) -> BTreeMap<IpAddr, usize> {
        let mut dials = BTreeMap::new();
        for machine in self.found.values().filter_map(|meeting| meeting.dialing) {
            *dials.entry(machine).or_default() += 1;
        }
        dials
    }
}

impl Node {
    /// Dials the nodes that are found, for as long as the node is in the scope. Those that were let in are gossip's.
    pub(super) async fn meet(self, uninvited: Arc<Uninvited>) {
        let scope = uninvited.id();
        let mut found = self.transport().book().found();
        found.mark_changed();
        let (mut meetings, mut dials) = (Meetings::default(), JoinSet::new());
        loop {
            if !self.is_lan(&scope) {
                return;
            }
            if found.has_changed().unwrap_or(false) {
                let mut wanted = found.borrow_and_update().clone();
                wanted.retain(|node, _| uninvited.role_of(node).is_some());
                meetings.take(&wanted, Instant::now());
            }
            while let Some(node) = meetings.next(Instant::now()) {
                let transport = self.transport().clone();
                dials.spawn(async move { (node, met(transport.link(&scope, &node).await)) });
            }
            let pause =
                meetings.next_due().map_or(LOOK_AGAIN, |due| due.saturating_duration_since(Instant::now()));
            tokio::select! {
                Some(Ok((node, how))) = dials.join_next() => {
                    meetings.met(&node, how, rand::random(), Instant::now());
                }
                changed = found.changed() => match changed {
                    Ok(()) => found.mark_changed(),
                    Err(_) => return,
                },
                () = tokio::time::sleep(pause.min(LOOK_AGAIN)) => {}
                () = self.stopping().cancelled_owned() => return,
            }
        }
    }
}

fn waited(tries: u32, longest: Duration) -> Duration {
    RETRY_FIRST.saturating_mul(1 << tries.min(16)).min(longest)
}

fn met<T>(linked: Result<T, DialError>) -> Met {
    match linked {
        Ok(_) => Met::Linked,
        // A refusal for want of room passes.
        Err(DialError::Refused { refusal: mesh_transport::Refusal::Busy, .. }) => Met::Failed,
        Err(DialError::Refused { .. } | DialError::Untrusted { .. } | DialError::Oneself) => Met::Refused,
        Err(_) => Met::Failed,
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;

    use super::*;

    fn node(number: u32) -> NodeId {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        NodeKey::from_seed(seed).node_id()
    }

    fn at(ip: [u8; 4]) -> NodeAddr {
        NodeAddr { lan: vec![(ip, 9).into()], ..NodeAddr::default() }
    }

    #[test]
    fn invented_nodes_at_one_machine_hold_up_nobody_at_another() {
        let now = Instant::now();
        let mut meetings = Meetings::default();
        let mut found: BTreeMap<_, _> = (1..=1000).map(|number| (node(number), at([192, 0, 2, 1]))).collect();
        meetings.take(&found, now);
        let first: Vec<_> = std::iter::from_fn(|| meetings.next(now)).collect();
        assert_eq!(first.len(), DIALS_PER_MACHINE_MAX);
        found.insert(node(0), at([192, 0, 2, 2]));
        meetings.take(&found, now);
        assert_eq!(meetings.next(now), Some(node(0)));
        meetings.met(&node(0), Met::Linked, 0.0, now);
        for node in first {
            meetings.met(&node, Met::Failed, 0.0, now);
        }
        assert!(meetings.dials().is_empty());
    }

    #[test]
    fn invented_nodes_everywhere_are_dialed_in_turn() {
        let now = Instant::now();
        let mut meetings = Meetings::default();
        let found: BTreeMap<_, _> = (0..1000_u16)
            .map(|number| {
                let [high, low] = number.to_be_bytes();
                (node(number.into()), at([10, 0, high, low]))
            })
            .collect();
        meetings.take(&found, now);
        let mut dialed = std::collections::BTreeSet::new();
        while let Some(next) = meetings.next(now) {
            meetings.met(&next, Met::Failed, 0.0, now);
            assert!(dialed.insert(next), "nobody is tried twice while another was not tried at all");
        }
        assert_eq!(dialed.len(), 1000);
        while meetings.next(now).is_some() {}
        assert!(meetings.dials().values().sum::<usize>() <= DIALS_MAX);
    }

    #[test]
    fn a_node_that_was_only_starting_is_asked_again_at_once() {
        let now = Instant::now();
        let mut meetings = Meetings::default();
        meetings.take(&BTreeMap::from([(node(1), at([192, 0, 2, 1]))]), now);
        assert_eq!(meetings.next(now), Some(node(1)));
        meetings.met(&node(1), Met::Refused, 1.0, now);
        assert_eq!(meetings.next_due(), Some(now + RETRY_FIRST));
    }

    #[test]
    fn waits_grow_a_refusal_lasts_and_a_move_is_a_new_start() {
        let mut now = Instant::now();
        let mut meetings = Meetings::default();
        let found = BTreeMap::from([(node(1), at([192, 0, 2, 1]))]);
        meetings.take(&found, now);
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert_eq!(meetings.next(now), Some(node(1)));
            meetings.met(&node(1), Met::Failed, 1.0, now);
            let due = meetings.next_due().expect("one is known");
            waits.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        assert_eq!(meetings.next(now), Some(node(1)));
        meetings.met(&node(1), Met::Refused, 1.0, now);
        assert_eq!(meetings.next_due(), Some(now + Duration::from_secs(512)));
        assert_eq!(meetings.next(now), None);
        meetings.take(&BTreeMap::from([(node(1), at([192, 0, 2, 5]))]), now);
        assert_eq!(meetings.next(now), Some(node(1)));
        meetings.take(&BTreeMap::new(), now);
        meetings.met(&node(1), Met::Failed, 0.0, now);
        assert_eq!(meetings.next_due(), None);
        meetings.take(&BTreeMap::new(), now);
        assert!(meetings.found.is_empty() && meetings.dials().is_empty());
    }
}
