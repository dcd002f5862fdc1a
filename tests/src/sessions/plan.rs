//! What is said and what is done to whom, and when: all of it follows from a seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Longer than a link is silent before both ends give it up.
const CUT_LONG_MS: std::ops::Range<u64> = 5_500..7_000;
/// Shorter: what was lost is sent again, or the link moves to another path.
const CUT_SHORT_MS: std::ops::Range<u64> = 50..1_500;
/// How long the dead are dead.
const DEAD_MS: std::ops::Range<u64> = 0..600;
/// Before each blow; a prompt takes some hundred milliseconds when nobody is harmed.
const PAUSE_MS: std::ops::Range<u64> = 0..800;

/// One way of harming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The node that hosts the session (`kill -9`).
    Host,
    /// The node at which it is prompted and read.
    Client,
    /// Both at once.
    Both,
    /// The cable between them is pulled.
    Unplugged,
    /// Nothing arrives any more, and nobody is told.
    Silent,
}

impl Kind {
    /// In words for a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host killed",
            Self::Client => "client killed",
            Self::Both => "both killed",
            Self::Unplugged => "link unplugged",
            Self::Silent => "link cut silently",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blow {
    pub(super) after: Duration,
    pub(super) kind: Kind,
    pub(super) lasts: Duration,
}

/// Something that the agent is asked: to say so many tokens, and before it to run a tool that leaves a line in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) after: Duration,
    pub(super) name: String,
    pub(super) has_tool: bool,
    pub(super) tokens: usize,
    gap_ms: u64,
    /// It is sent again after it was acknowledged.
    pub(super) is_repeated: bool,
}

impl Wish {
    /// As the provider understands it.
    pub(super) fn text(&self) -> String {
        let Self { name, tokens, gap_ms, .. } = self;
        let verb = if self.has_tool { "do" } else { "say" };
        format!("{verb} {name} {tokens} {gap_ms}")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) wishes: Vec<Wish>,
    pub(super) blows: Vec<Blow>,
}

impl Plan {
    pub(super) fn new(seed: u64, can_cut: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let wish = |number: usize, random: &mut StdRng| Wish {
            after: Duration::from_millis(random.random_range(0..400)),
            name: format!("r{seed}p{number}"),
            has_tool: random.random_bool(0.5),
            tokens: random.random_range(5..25),
            gap_ms: random.random_range(1..25),
            is_repeated: random.random_bool(0.5),
        };
        let wishes = (0..random.random_range(2..4)).map(|number| wish(number, &mut random)).collect();
        let blows = (0..random.random_range(1..4)).map(|_| blow(&mut random, can_cut)).collect();
        Self { wishes, blows }
    }
}

fn blow(random: &mut StdRng, can_cut: bool) -> Blow {
    let kind = match random.random_range(0..if can_cut { 8 } else { 5 }) {
        0 | 1 => Kind::Host,
        2 | 3 => Kind::Client,
        4 => Kind::Both,
        5 => Kind::Unplugged,
        _ => Kind::Silent,
    };
    let lasts = match kind {
        Kind::Host | Kind::Client | Kind::Both => DEAD_MS,
        Kind::Unplugged | Kind::Silent if random.random_bool(0.3) => CUT_LONG_MS,
        Kind::Unplugged | Kind::Silent => CUT_SHORT_MS,
    };
    let milliseconds = |range, random: &mut StdRng| Duration::from_millis(random.random_range(range));
    Blow { after: milliseconds(PAUSE_MS, random), kind, lasts: milliseconds(lasts, random) }
}

#[test]
fn a_seed_repeats_the_plan_and_seeds_differ() {
    let all: Vec<Plan> = (0..200).map(|seed| Plan::new(seed, true)).collect();
    assert_eq!(all, (0..200).map(|seed| Plan::new(seed, true)).collect::<Vec<_>>());
    assert_ne!(all[0], all[1]);
    let blows: Vec<Kind> = all.iter().flat_map(|plan| plan.blows.iter().map(|blow| blow.kind)).collect();
    for kind in [Kind::Host, Kind::Client, Kind::Both, Kind::Unplugged, Kind::Silent] {
        assert!(blows.iter().filter(|blow| **blow == kind).count() > 20, "{kind:?}");
    }
    let cuts = |plan: &Plan| plan.blows.iter().any(|blow| blow.kind >= Kind::Unplugged);
    assert!(!(0..200).any(|seed| cuts(&Plan::new(seed, false))));
}
