//! Sessions over nodes that are killed and cut off: what was acknowledged is there, once and in order.

use qmt_tests::fleet::built;
use qmt_tests::sessions::Runs;

/// In CI; `scripts/bench sessions` has a thousand.
const RUNS: u64 = 40;
/// Most of a run is waiting for nodes that find each other again.
const PAIRS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_survive_kills_and_cuts_at_random_moments() {
    let node = match built("qmt-node") {
        Ok(node) => node,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let seed =
        std::env::var("SEED").map_or_else(|_| u64::from(rand::random::<u32>()), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let count = std::env::var("RUNS").map_or(RUNS, |runs| runs.parse().unwrap());
    let tally = Runs { node: &node, seed, count, pairs: PAIRS }.perform().await.unwrap();
    println!("{tally}");
    assert_eq!(tally.runs as u64, count);
    assert!(tally.is_clean(), "SEED={seed}\n{tally}");
}
