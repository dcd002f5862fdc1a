//! The same comparison over a wire with delay.

use std::time::Duration;

use anyhow::{Context, Result};
use qmt_tests::lab::{Host, Lab, Wire};

use super::Options;
use super::nodes::{LOADED_WITHIN, Setting, tokens_per_second};
use super::split::{SHARES, TOKENS, in_pairs};
use crate::processes::{LlamaServer, Node, RpcServer};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, ratio};

/// Each way.
const DELAYS: &[Duration] = &[Duration::from_millis(5), Duration::from_millis(20)];
const DELAYS_QUICK: &[Duration] = &[Duration::from_millis(5)];
const PAIRS: usize = 10;
const PAIRS_QUICK: usize = 1;
const GOAL: Goal = Goal::AtLeast(0.97);

/// Measures all delays.
pub(super) fn measure(report: &mut Report, options: &Options) -> Result<()> {
    let (delays, pairs) = if options.quick { (DELAYS_QUICK, PAIRS_QUICK) } else { (DELAYS, PAIRS) };
    for delay in delays {
        let (ours, plain) = at(options, *delay, pairs).with_context(|| ratio_name(*delay))?;
        let name = |what: &str| format!("{what}, {} ms each way", delay.as_millis());
        report.row(name("plain --rpc"), "tokens/s", Goal::None, estimate(&plain));
        report.row(name("through our tunnel"), "tokens/s", Goal::None, estimate(&ours));
        report.row(ratio_name(*delay), "x", GOAL, ratio(&ours, &plain));
    }
    report.note(format!(
        "with delay: host and worker in network namespaces of their own, between them one wire for both arms (TUN devices, packets \
         held back in user space), split, tokens and order as without; {pairs} pairs. Plain: the worker's rpc-server listens on the wire."
    ));
    Ok(())
}

/// What a run without this part lacks.
pub(super) fn lacking() -> Lacking {
    DELAYS.iter().map(|delay| (ratio_name(*delay), "x", GOAL)).collect()
}

fn ratio_name(delay: Duration) -> String {
    format!("through our tunnel over plain --rpc, {} ms each way", delay.as_millis())
}

/// Tokens a second of both arms, pair by pair.
fn at(options: &Options, delay: Duration, pairs: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let folder = tempfile::tempdir()?;
    let mut lab = Lab::new()?;
    lab.check_wire()?;
    let (here, there) = (lab.lan(), lab.lan());
    let [near, far] = [lab.host(&here), lab.host(&there)];
    let wired = lab.wire(&near, &far, Wire { delay, ..Wire::default() });
    let setting = Setting::of(options);
    let (model, shares) = (setting.name()?, format!("tensor_split = \"{SHARES}\"\n"));
    // A process stays in the network of the thread that starts it.
    let node = |host: &Host, name: &str| {
        host.inside(|| setting.node(folder.path(), name, setting.models()?, &shares))
    };
    let (ours, workers): (Node, _) = (node(&near, "host")?, vec![node(&far, "worker")?]);
    setting.meet(&ours, &workers, 2)?;
    setting.load(&ours, 2)?;
    let llama = &options.llama;
    let far_server = far.inside(|| RpcServer::start_at(llama, wired.addresses()[1]))?;
    let servers = vec![far_server, near.inside(|| RpcServer::start(llama))?];
    let plain = near.inside(|| LlamaServer::start(llama, &options.model, &servers, SHARES, LOADED_WITHIN))?;
    let ask = |authority: &str| near.inside(|| tokens_per_second(authority, &model, TOKENS));
    in_pairs(pairs, || ask(&ours.gateway), || ask(&plain.authority))
}
