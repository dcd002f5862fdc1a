//! foca in the network that mesh-gossip is simulated in: how soon a silent death is noticed, how often a living node is
//! taken for dead, what that costs. Prints one line of JSON.
//!
//! `qmt-bench-foca deaths|quiet lan|brisk NODES LOSS COUNT SEED`; COUNT is of deaths or of simulated seconds.

mod node;
#[expect(dead_code, reason = "mesh-gossip's core draws more from it than its network does")]
#[path = "../../../crates/mesh-gossip/src/proto/rng.rs"]
mod rng;
mod sim;

use std::collections::BTreeSet;
use std::time::Duration;

use node::{FocaNode, Preset};
use sim::network::{Network, Weather};

/// Longest wait for all to notice a death.
const NOTICED_WITHIN: Duration = Duration::from_secs(120);
/// Until probing has found its step.
const SETTLE: Duration = Duration::from_secs(10);

struct Order {
    scenario: String,
    preset: Preset,
    nodes: usize,
    loss: f64,
    count: u64,
    seed: u64,
}

fn order() -> Option<Order> {
    let mut words = std::env::args().skip(1);
    Some(Order {
        scenario: words.next()?,
        preset: match words.next()?.as_str() {
            "lan" => Preset::Lan,
            "brisk" => Preset::Brisk,
            _ => return None,
        },
        nodes: words.next()?.parse().ok()?,
        loss: words.next()?.parse().ok()?,
        count: words.next()?.parse().ok()?,
        seed: words.next()?.parse().ok()?,
    })
}

fn main() -> std::process::ExitCode {
    let Some(order) = order() else {
        eprintln!("usage: qmt-bench-foca deaths|quiet lan|brisk NODES LOSS COUNT SEED");
        return std::process::ExitCode::from(2);
    };
    let weather = Weather { loss: order.loss, ..Weather::default() };
    let mut network = Network::new(order.seed, weather, ());
    for index in 0..order.nodes {
        network.add();
        let seed = network.draw();
        network.start(index, FocaNode::new(index, order.nodes, order.preset, seed));
        network.call(index, |node, (), now, wishes| node.meet(order.nodes, now, wishes));
    }
    network.run(SETTLE);
    match order.scenario.as_str() {
        "deaths" => deaths(&mut network, &order),
        _ => quiet(&mut network, &order),
    }
    std::process::ExitCode::SUCCESS
}

/// Nodes fall silent one after the other; from then to the moment at which each other node declares it down.
fn deaths(network: &mut Network<FocaNode>, order: &Order) {
    let mut taken = Vec::new();
    let mut unnoticed = 0;
    for dead in (0..order.nodes).rev().take(usize::try_from(order.count).unwrap_or(usize::MAX)) {
        let phase = Duration::from_millis(network.draw() % 2000);
        network.run(phase);
        let died = network.now();
        network.end(dead, Duration::from_secs(1), sim::network::Loss::Lost);
        let mut waiting: BTreeSet<usize> = (0..dead).collect();
        while !waiting.is_empty() && network.now() - died < NOTICED_WITHIN {
            network.run(Duration::from_millis(100));
            waiting.retain(|observer| {
                let downs = network.node(*observer).map(|node| node.downs.as_slice()).unwrap_or_default();
                let Some((at, _)) = downs.iter().find(|(at, id)| id.node() == dead && *at >= died) else {
                    return true;
                };
                taken.push((*at - died).as_secs_f64());
                false
            });
        }
        unnoticed += waiting.len();
    }
    taken.sort_by(f64::total_cmp);
    let at =
        |part: usize| taken.get((taken.len().saturating_sub(1)) * part / 100).copied().unwrap_or(f64::NAN);
    println!(
        "{{\"pairs\":{},\"unnoticed\":{unnoticed},\"p50\":{:.4},\"p99\":{:.4},\"max\":{:.4}}}",
        taken.len(),
        at(50),
        at(99),
        at(100)
    );
}

/// Nobody dies. Counts identities that were declared down all the same, and what was sent.
fn quiet(network: &mut Network<FocaNode>, order: &Order) {
    let sent = |network: &Network<FocaNode>| {
        (0..order.nodes)
            .map(|host| network.sent(host))
            .fold((0, 0), |sum, one| (sum.0 + one.frames, sum.1 + one.bytes))
    };
    let before = sent(network);
    let mut convicted = BTreeSet::new();
    for _ in 0..order.count.div_ceil(10) {
        network.run(Duration::from_secs(10));
        for host in 0..order.nodes {
            let Some(node) = network.node_mut(host) else { continue };
            convicted.extend(node.downs.drain(..).map(|(_, id)| (id.node(), id.bump)));
        }
    }
    let after = sent(network);
    let seconds = order.count.div_ceil(10) * 10;
    println!(
        "{{\"seconds\":{seconds},\"convicted\":{},\"frames\":{},\"bytes\":{}}}",
        convicted.len(),
        after.0 - before.0,
        after.1 - before.1
    );
}
