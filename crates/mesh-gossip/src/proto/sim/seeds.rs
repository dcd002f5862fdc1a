//! Which seeds a test runs with.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs `run` for every seed of `seeds` and one fresh one, or only for the one that the environment variable `SEED` names.
/// The fresh one is that of `FRESH_SEED`, or else the clock's.
///
/// # Panics
/// When `run` does, after it has printed the seed.
pub fn for_seeds(seeds: Range<u64>, run: impl Fn(u64)) {
    let chosen = from_environment("SEED");
    let fresh = from_environment("FRESH_SEED").unwrap_or_else(from_clock);
    let all: Vec<u64> = chosen.map_or_else(|| seeds.chain([fresh]).collect(), |seed| vec![seed]);
    for seed in all {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
        if let Err(panic) = outcome {
            eprintln!("the run of seed {seed} failed; replay it alone with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|seed| seed.parse().ok())
}

fn from_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}
