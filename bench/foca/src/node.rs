//! One foca instance as a node of the simulated network.

use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use foca::{
    AccumulatingRuntime, Config, Foca, Identity, Member, NoCustomBroadcast, OwnedNotification,
    PeriodicParams, PostcardCodec, Timer,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::sim::network::{Happening, Node, Wish};

/// As long as a node's key in the mesh, and how often it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Id {
    key: [u8; 32],
    pub(crate) bump: u32,
}

impl Id {
    fn new(node: usize) -> Self {
        let mut key = [0xAB; 32];
        key[..8].copy_from_slice(&(node as u64).to_le_bytes());
        Self { key, bump: 0 }
    }

    pub(crate) fn node(&self) -> usize {
        let mut number = [0; 8];
        number.copy_from_slice(&self.key[..8]);
        usize::try_from(u64::from_le_bytes(number)).unwrap_or(usize::MAX)
    }
}

impl Identity for Id {
    type Addr = [u8; 32];

    fn renew(&self) -> Option<Self> {
        Some(Self { key: self.key, bump: self.bump + 1 })
    }

    fn addr(&self) -> [u8; 32] {
        self.key
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        self.bump > other.bump
    }
}

/// With which parameters it runs.
#[derive(Clone, Copy)]
pub(crate) enum Preset {
    /// foca's own for a LAN.
    Lan,
    /// As brisk as the mesh's: probes every 500 ms, 800 ms to refute.
    Brisk,
}

impl Preset {
    fn config(self, nodes: usize) -> Config {
        let size = u32::try_from(nodes).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
        let lan = Config::new_lan(size);
        match self {
            Self::Lan => lan,
            Self::Brisk => Config {
                probe_period: Duration::from_millis(500),
                probe_rtt: Duration::from_millis(200),
                suspect_to_down_after: Duration::from_millis(800),
                max_transmissions: lan.max_transmissions.max(NonZeroU8::new(8).unwrap_or(NonZeroU8::MIN)),
                periodic_announce_to_down_members: Some(PeriodicParams {
                    frequency: Duration::from_secs(5),
                    num_members: NonZeroUsize::new(2).unwrap_or(NonZeroUsize::MIN),
                }),
                ..lan
            },
        }
    }
}

pub(crate) struct FocaNode {
    foca: Foca<Id, PostcardCodec, StdRng, NoCustomBroadcast>,
    timers: BTreeMap<(Instant, u64), Timer<Id>>,
    serial: u64,
    runtime: AccumulatingRuntime<Id>,
    /// Whom it declared down, and when.
    pub(crate) downs: Vec<(Instant, Id)>,
}

impl FocaNode {
    pub(crate) fn new(index: usize, nodes: usize, preset: Preset, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self {
            foca: Foca::new(Id::new(index), preset.config(nodes), rng, PostcardCodec),
            timers: BTreeMap::new(),
            serial: 0,
            runtime: AccumulatingRuntime::new(),
            downs: Vec::new(),
        }
    }

    /// Makes all nodes known to it, as if it had been there for long.
    pub(crate) fn meet(&mut self, nodes: usize, now: Instant, wishes: &mut Vec<Wish>) {
        let others = (0..nodes).map(|index| Member::alive(Id::new(index)));
        // What it does not take it reports to nobody but its caller, and there is nothing to mend.
        let _ = self.foca.apply_many(others, false, &mut self.runtime);
        self.drain(now, wishes);
    }

    fn drain(&mut self, now: Instant, wishes: &mut Vec<Wish>) {
        while let Some((to, frame)) = self.runtime.to_send() {
            wishes.push(Wish::Send { to: u32::try_from(to.node()).unwrap_or(u32::MAX), frame });
        }
        while let Some((wait, timer)) = self.runtime.to_schedule() {
            self.serial += 1;
            self.timers.insert((now + wait.max(Duration::from_nanos(1)), self.serial), timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            if let OwnedNotification::MemberDown(id) = notification {
                self.downs.push((now, id));
            }
        }
    }
}

impl Node for FocaNode {
    type World = ();
    const DATAGRAMS: bool = true;

    fn handle(&mut self, what: Happening, (): &(), now: Instant, wishes: &mut Vec<Wish>) {
        match what {
            // Its errors are notes on peers that are known as dead or on datagrams that came late.
            Happening::Frame { frame, .. } => drop(self.foca.handle_data(&frame, &mut self.runtime)),
            Happening::Tick => {
                while let Some(first) = self.timers.first_entry().filter(|first| first.key().0 <= now) {
                    drop(self.foca.handle_timer(first.remove(), &mut self.runtime));
                }
            }
            Happening::LinkUp { .. } | Happening::LinkDown { .. } | Happening::DialFailed { .. } => {}
        }
        self.drain(now, wishes);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }
}
