//! Streams of answers over nodes that are killed and halted: nothing is lost, doubled or swapped, and each ends once.

use std::path::PathBuf;

use mesh_inference::llama::LlamaCpp;
use qmt_tests::answers::Run;
use qmt_tests::fleet::built;

/// In CI; `scripts/bench inference` has a thousand.
const KILLS: usize = 40;

/// The programs `qmt-node` and `qmt-stand-in`; none, with a printed reason, where they are not built.
fn programs() -> Option<(PathBuf, PathBuf)> {
    match built("qmt-node").and_then(|node| Ok((node, built("qmt-stand-in")?))) {
        Ok(programs) => Some(programs),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_outlives_its_gateway_and_ends_when_its_model_is_dropped() {
    let Some((node, stand_in)) = programs() else { return };
    let run = Run { node: &node, stand_in: &stand_in, llama: None, seed: 0, kills: 0 };
    let (tally, error) = run.perform_one_by_one().await.unwrap();
    assert!(tally.is_clean(), "{tally}");
    assert_eq!((tally.resumed, tally.ended), (1, 1), "{tally}");
    assert!(error.contains("was dropped"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_survive_forty_kills() {
    let Some((node, stand_in)) = programs() else { return };
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".qmt");
    let llama = LlamaCpp::find(None, std::env::var_os("PATH").as_deref(), &home).await;
    let llama = llama.map_err(|error| println!("nothing is split: {error}"));
    let llama = llama.as_ref().ok().and_then(|llama| llama.server.parent());
    let kills = std::env::var("KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let run = Run { node: &node, stand_in: &stand_in, llama, seed, kills };
    let tally = run.perform().await.unwrap();
    println!("{tally}");
    assert_eq!(tally.kills(), kills);
    assert!(tally.is_clean(), "SEED={seed}\n{tally}");
}
