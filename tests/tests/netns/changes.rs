//! How soon a node is reached again when the machine's network changes, or when the machine was asleep.
//!
//! The gaps are printed, and not judged: that is a benchmark's part.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use qmt_tests::lab::{Host, Lab};
use rustix::process::{Pid, Signal, kill_process};

use crate::mesh::{self, Node, PATIENCE, Programs};

/// Between two pings.
const BETWEEN: Duration = Duration::from_millis(150);

/// What carries the link.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Carrier {
    Lan,
    Internet,
}

const CARRIERS: [Carrier; 2] = [Carrier::Internet, Carrier::Lan];

struct Pair {
    carrier: Carrier,
    lab: Lab,
    hosts: [Host; 2],
    nodes: [Node; 2],
}

impl Pair {
    fn new(carrier: Carrier) -> Option<Self> {
        let (mut lab, programs): (Lab, Programs) = mesh::lab()?;
        let lan = lab.lan();
        let hosts = [lab.host(&lan), lab.host(&lan)];
        let more = match carrier {
            Carrier::Lan => "mesh.enabled = true\nmesh.lan.enabled = true\nmesh.lan.trust = \"invite\"\n",
            Carrier::Internet => "",
        };
        let a = Node::start(&programs, &hosts[0], "a", more);
        let b = Node::start(&programs, &hosts[1], "b", more);
        b.join(&a.invite(1)).unwrap();
        a.sees(&b, "alive");
        b.sees(&a, "alive");
        a.reaches(&b);
        b.reaches(&a);
        Some(Self { carrier, lab, hosts, nodes: [a, b] })
    }

    /// Waits until each reaches the other, and prints how long that took since then.
    fn print_gaps(&self, what: &str, since: Instant) {
        let [a, b] = &self.nodes;
        let (there, back) = std::thread::scope(|scope| {
            let there = scope.spawn(|| reached(a, b, since));
            let back = scope.spawn(|| reached(b, a, since));
            (there.join().unwrap(), back.join().unwrap())
        });
        println!("{what}, {:?}: a reaches b after {there:.2?}, b reaches a after {back:.2?}", self.carrier);
    }
}

/// When the first of many pings was answered. They do not wait for each other: one may hang in what is broken.
fn reached(from: &Node, to: &Node, since: Instant) -> Duration {
    let first = Mutex::new(None);
    let is_over = || first.lock().unwrap().is_some() || since.elapsed() > PATIENCE;
    std::thread::scope(|scope| {
        while !is_over() {
            scope.spawn(|| {
                if from.ping(to, 1).is_ok() {
                    first.lock().unwrap().get_or_insert(since.elapsed());
                }
            });
            std::thread::sleep(BETWEEN);
        }
    });
    let first = first.into_inner().unwrap();
    first.unwrap_or_else(|| panic!("{} does not reach {} within {PATIENCE:?}", from.name(), to.name()))
}

#[test]
fn nodes_reach_each_other_again_when_an_address_changes() {
    for carrier in CARRIERS {
        let Some(mut pair) = Pair::new(carrier) else { return };
        let changed = Instant::now();
        let address = pair.lab.change_address(&mut pair.hosts[1]);
        pair.print_gaps(&format!("the address of b changes to {address}"), changed);
    }
}

#[test]
fn nodes_reach_each_other_again_when_an_interface_was_down() {
    for carrier in CARRIERS {
        for down in [1, 10].map(Duration::from_secs) {
            let Some(pair) = Pair::new(carrier) else { return };
            pair.hosts[1].set_up(false);
            std::thread::sleep(down);
            let up = Instant::now();
            pair.hosts[1].set_up(true);
            pair.print_gaps(&format!("the interface of b was down for {down:?}"), up);
        }
    }
}

#[test]
fn nodes_reach_each_other_again_when_one_stood_still() {
    for carrier in CARRIERS {
        let Some(pair) = Pair::new(carrier) else { return };
        let process = Pid::from_raw(pair.nodes[1].process_id().try_into().unwrap()).unwrap();
        kill_process(process, Signal::STOP).unwrap();
        std::thread::sleep(Duration::from_secs(10));
        let woke = Instant::now();
        kill_process(process, Signal::CONT).unwrap();
        pair.print_gaps("b stood still for 10 s", woke);
    }
}
