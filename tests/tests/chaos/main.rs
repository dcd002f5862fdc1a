//! Thirty real nodes that are killed, frozen, cut off and started again, until all is quiet and all agree.
//!
//! Skips with a printed reason where the programs are not built. `SEED=..` repeats the order of what happens.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod answers;
mod schedule;
mod sessions;

use std::sync::Arc;
use std::time::Duration;

use qmt_tests::fleet::{Fleet, Setup, built};
use qmt_tests::lab::{Cut, Host, Lab};

use schedule::{Act, Schedule};

const NODES: usize = 30;
/// How long things happen.
const TIME: Duration = Duration::from_secs(35);
/// While they do not agree yet, it is told what is missing.
const TELL: Duration = Duration::from_secs(2);
/// After they agree nobody may see anything change for so long: several rounds of gossip.
const QUIET: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn thirty_nodes_agree_after_kills_freezes_and_cuts() {
    let program = match built("qmt-node") {
        Ok(program) => program,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let (lab, hosts) = hosts();
    let schedule = Schedule::new(seed, NODES, TIME, !hosts.is_empty());
    let mut fleet = Fleet::start(Setup { hosts, ..Setup::on_loopback(&program, NODES) }).await.unwrap();

    let begun = tokio::time::Instant::now();
    for (at, act) in schedule.acts() {
        tokio::time::sleep_until(begun + *at).await;
        println!("{:5.1} s: {act:?}", begun.elapsed().as_secs_f64());
        perform(&mut fleet, act).await;
    }
    let agreed = async {
        let mut told = tokio::time::interval(TELL);
        loop {
            told.tick().await;
            let missing = fleet.read(|book| fleet.disagreements(book));
            let (time, count) = (begun.elapsed().as_secs_f64(), missing.len());
            println!(
                "{time:5.1} s: {count} are not as they should be: {:?}",
                missing.iter().take(6).collect::<Vec<_>>()
            );
        }
    };
    tokio::select! {
        () = agreed => {}
        agreed = fleet.all_see_the_living() => agreed.unwrap(),
    }
    println!("{:5.1} s: all agree", begun.elapsed().as_secs_f64());
    fleet.is_quiet_for(QUIET).await.unwrap();
    assert_eq!(fleet.read(|book| fleet.disagreements(book)), Vec::<String>::new());
    assert_eq!(fleet.living().len(), NODES - schedule.dead_at_the_end());
    drop((fleet, lab));
}

/// A host for each node, where this machine can have them; nothing can be cut on one machine's loopback.
fn hosts() -> (Option<Lab>, Vec<Arc<Host>>) {
    match Lab::new() {
        Ok(mut lab) => {
            let lan = lab.lan();
            let hosts = (0..NODES).map(|_| Arc::new(lab.host(&lan))).collect();
            (Some(lab), hosts)
        }
        Err(reason) => {
            println!("nothing is cut: {reason}");
            (None, Vec::new())
        }
    }
}

async fn perform(fleet: &mut Fleet, act: &Act) {
    match *act {
        Act::Kill(node) => drop(fleet.kill(node)),
        // What it says of itself is new in each life, so that an old record of it shows.
        Act::Restart { node, life } => {
            fleet.restart(node, &format!("mesh.capabilities = [\"life-{life}\"]\n")).await.unwrap();
        }
        Act::Freeze(node) => fleet.set_frozen(node, true).unwrap(),
        Act::Thaw(node) => fleet.set_frozen(node, false).unwrap(),
        Act::Cut { node, is_silent } => {
            let cut = if is_silent { Cut::Silent } else { Cut::Unplugged };
            fleet.node(node).host().unwrap().plug().cut(cut);
        }
        Act::Mend(node) => fleet.node(node).host().unwrap().plug().mend(),
    }
}
