//! What is done to whom and when: chosen by a seed, within what a mesh of this size is to survive.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::{GATEWAYS, HOSTS, LENDERS, SPLIT_HOST};

/// One way of harming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A node that lends memory (`kill -9`).
    WorkerKilled,
    /// The same, halted for some seconds (SIGSTOP).
    WorkerFrozen,
    /// What it lends with.
    RpcServerKilled,
    /// The same, halted.
    RpcServerFrozen,
    /// The node that hosts the split model.
    SplitHostKilled,
    /// Its llama-server.
    SplitServerKilled,
    /// One of the nodes that host the other model.
    HostKilled,
    /// The same, halted.
    HostFrozen,
    /// The llama-server of one.
    ServerKilled,
    /// The same, halted.
    ServerFrozen,
    /// A node that callers ask.
    GatewayKilled,
    /// The same, halted.
    GatewayFrozen,
}

/// Those that harm one part of the mesh, which then has some time to recover: two losses at once are not what is survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Split,
    Hosts,
    Gateways,
}

/// Harm done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    Kill,
    Freeze,
}

/// The process that is harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Node,
    /// A child of the node, by the end of its program's name.
    Child(&'static str),
}

const ALL: [Kind; 12] = [
    Kind::WorkerKilled,
    Kind::WorkerFrozen,
    Kind::RpcServerKilled,
    Kind::RpcServerFrozen,
    Kind::SplitHostKilled,
    Kind::SplitServerKilled,
    Kind::HostKilled,
    Kind::HostFrozen,
    Kind::ServerKilled,
    Kind::ServerFrozen,
    Kind::GatewayKilled,
    Kind::GatewayFrozen,
];

impl Kind {
    /// In words for a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::WorkerKilled => "worker killed",
            Self::WorkerFrozen => "worker halted",
            Self::RpcServerKilled => "rpc-server killed",
            Self::RpcServerFrozen => "rpc-server halted",
            Self::SplitHostKilled => "host of a split killed",
            Self::SplitServerKilled => "llama-server of a split killed",
            Self::HostKilled => "host killed",
            Self::HostFrozen => "host halted",
            Self::ServerKilled => "llama-server killed",
            Self::ServerFrozen => "llama-server halted",
            Self::GatewayKilled => "gateway killed",
            Self::GatewayFrozen => "gateway halted",
        }
    }

    pub(super) fn group(self) -> Group {
        match self {
            Self::WorkerKilled
            | Self::WorkerFrozen
            | Self::RpcServerKilled
            | Self::RpcServerFrozen
            | Self::SplitHostKilled
            | Self::SplitServerKilled => Group::Split,
            Self::HostKilled | Self::HostFrozen | Self::ServerKilled | Self::ServerFrozen => Group::Hosts,
            Self::GatewayKilled | Self::GatewayFrozen => Group::Gateways,
        }
    }

    pub(super) fn blow(self) -> Blow {
        match self {
            Self::WorkerFrozen
            | Self::RpcServerFrozen
            | Self::HostFrozen
            | Self::ServerFrozen
            | Self::GatewayFrozen => Blow::Freeze,
            _ => Blow::Kill,
        }
    }

    pub(super) fn victim(self) -> Victim {
        match self {
            Self::RpcServerKilled | Self::RpcServerFrozen => Victim::Child("rpc-server"),
            Self::SplitServerKilled => Victim::Child("llama-server"),
            Self::ServerKilled | Self::ServerFrozen => Victim::Child("qmt-stand-in"),
            _ => Victim::Node,
        }
    }

    fn nodes(self) -> Vec<usize> {
        match self {
            Self::WorkerKilled | Self::WorkerFrozen | Self::RpcServerKilled | Self::RpcServerFrozen => {
                LENDERS.collect()
            }
            Self::SplitHostKilled | Self::SplitServerKilled => vec![SPLIT_HOST],
            Self::HostKilled | Self::HostFrozen | Self::ServerKilled | Self::ServerFrozen => HOSTS.collect(),
            Self::GatewayKilled | Self::GatewayFrozen => GATEWAYS.collect(),
        }
    }
}

impl Group {
    /// Between two blows.
    fn calm(self) -> Duration {
        Duration::from_millis(match self {
            // Leases are broken, borrowed anew, and a model is loaded over them.
            Self::Split => 6_000,
            // There are several, and the next one may be struck before the last one is back.
            Self::Hosts => 600,
            // A copy that was lost with one gateway has to be made anew before another is lost.
            Self::Gateways => 6_000,
        })
    }
}

/// How long hosts and workers are halted: mostly longer than it takes to be noticed.
const FROZEN_MS: std::ops::Range<u64> = 2_000..7_000;
/// The same for gateways: longer than a caller's patience.
const GATEWAY_FROZEN_MS: std::ops::Range<u64> = 6_000..8_000;
/// How long the dead are dead.
const DEAD_MS: std::ops::Range<u64> = 200..1_500;
/// Between two blows of any group.
const PAUSE_MS: std::ops::Range<u64> = 100..900;
/// llama-servers killed in one life of their node: a node gives a model up whose server ends too often in a minute.
const ENDS_MAX: u32 = 3;

/// Chooses.
pub(super) struct Plan {
    random: StdRng,
    beings: Vec<Being>,
    struck: [Option<Instant>; 3],
    has_split: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Being {
    /// Nothing is done to it meanwhile.
    away: bool,
    ends: u32,
}

/// A blow to be struck.
#[derive(Debug, Clone, Copy)]
pub(super) struct Act {
    pub(super) kind: Kind,
    pub(super) node: usize,
    /// Until it is undone.
    pub(super) lasts: Duration,
}

impl Plan {
    pub(super) fn new(seed: u64, nodes: usize, has_split: bool) -> Self {
        let beings = vec![Being::default(); nodes];
        Self { random: StdRng::seed_from_u64(seed), beings, struck: [None; 3], has_split }
    }

    /// The next blow, if any may be struck now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Act> {
        let may = |plan: &Self, kind: &Kind| {
            let group = kind.group();
            (plan.has_split || group != Group::Split)
                && plan.struck[group as usize].is_none_or(|at| now >= at + group.calm())
        };
        let kinds: Vec<Kind> = ALL.into_iter().filter(|kind| may(self, kind)).collect();
        // What is halted is away for long, so that less of it happens.
        let kind = *kinds
            .choose_weighted(&mut self.random, |kind| 4 - 3 * u8::from(kind.blow() == Blow::Freeze))
            .ok()?;
        let well = |plan: &Self, node: &usize| {
            let being = plan.beings[*node];
            !being.away && (kind.victim() == Victim::Node || being.ends < ENDS_MAX)
        };
        // One host can be away, and the servers of the others come back by themselves.
        if kind.group() == Group::Hosts
            && kind != Kind::ServerKilled
            && HOSTS.clone().any(|host| self.beings[host].away)
        {
            return None;
        }
        let nodes: Vec<usize> = kind.nodes().into_iter().filter(|node| well(self, node)).collect();
        let node = *nodes.choose(&mut self.random)?;
        let range = match kind.blow() {
            Blow::Kill => DEAD_MS,
            Blow::Freeze if kind == Kind::GatewayFrozen => GATEWAY_FROZEN_MS,
            Blow::Freeze => FROZEN_MS,
        };
        let lasts = Duration::from_millis(self.random.random_range(range));
        Some(Act { kind, node, lasts })
    }

    /// It was struck.
    pub(super) fn note(&mut self, act: &Act, now: Instant) {
        self.struck[act.kind.group() as usize] = Some(now);
        let being = &mut self.beings[act.node];
        being.away = act.kind.victim() == Victim::Node || act.kind.blow() == Blow::Freeze;
        being.ends += u32::from(act.kind.victim() != Victim::Node);
        if (act.kind.victim(), act.kind.blow()) == (Victim::Node, Blow::Kill) {
            being.ends = 0;
        }
    }

    pub(super) fn note_healed(&mut self, node: usize) {
        self.beings[node].away = false;
    }

    pub(super) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(PAUSE_MS))
    }
}
