//! foca in the same network, by a program of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::quiet::LINK_BYTES;
use crate::report::{Goal, Lacking, Report};

/// IPv4, UDP: what a datagram adds.
const DATAGRAM_BYTES: u64 = 28;
const NODES: usize = 100;

#[derive(Debug, Deserialize)]
struct Deaths {
    pairs: usize,
    unnoticed: usize,
    p50: f64,
    p99: f64,
}

#[derive(Debug, Deserialize)]
struct Quiet {
    seconds: u64,
    convicted: usize,
    frames: u64,
    bytes: u64,
}

/// Its own parameters for a LAN, and some that are as brisk as ours.
const PRESETS: [(&str, &str); 2] = [("lan", "its LAN preset"), ("brisk", "made as brisk as ours")];
const LOSSES: [u32; 2] = [0, 20];

fn place(preset: &str, loss: u32) -> String {
    let loss = if loss == 0 { String::new() } else { format!(", {loss} % loss") };
    format!("foca, {preset}, {NODES} nodes{loss}")
}

pub(super) fn lacking() -> Lacking {
    vec![(format!("foca in the same network, {NODES} nodes"), "s", Goal::None)]
}

pub(super) fn measure(report: &mut Report, program: &Path, deaths: u64, seconds: u64) -> Result<()> {
    for (preset, name) in PRESETS {
        for loss in LOSSES {
            let place = place(name, loss);
            let share = f64::from(loss) / 100.0;
            let noticed: Deaths = run(program, &["deaths", preset], (share, deaths))?;
            report.exact(format!("{place}: silent death declared, p50"), "s", Goal::None, noticed.p50);
            report.exact(format!("{place}: silent death declared, p99"), "s", Goal::None, noticed.p99);
            if noticed.unnoticed > 0 {
                let all = noticed.pairs + noticed.unnoticed;
                report.note(format!("{place}: {} of {all} pairs never noticed.", noticed.unnoticed));
            }
            let quiet: Quiet = run(program, &["quiet", preset], (share, seconds))?;
            let node_seconds = quiet.seconds as f64 * NODES as f64;
            let wrong = quiet.convicted as f64 / (node_seconds / 3600.0);
            report.exact(
                format!("{place}: wrongly declared down, per node-hour"),
                "nodes",
                Goal::None,
                wrong,
            );
            let bytes = (quiet.bytes + quiet.frames * DATAGRAM_BYTES) as f64 / node_seconds;
            report.exact(
                format!("{place}: traffic of a node, with headers"),
                "kB/s",
                Goal::None,
                bytes / 1000.0,
            );
        }
    }
    report.note(format!(
        "foca 2.0.0 runs in the same simulated network, by datagrams, with nothing signed; its ids are as long as ours. \"Brisk\": probes \
         every 500 ms, 200 ms for the direct answer, 800 ms to refute. A datagram is counted with {DATAGRAM_BYTES} bytes of IPv4 and UDP, \
         a frame of ours with {LINK_BYTES}."
    ));
    Ok(())
}

fn run<T: for<'a> Deserialize<'a>>(program: &Path, words: &[&str], (loss, count): (f64, u64)) -> Result<T> {
    let numbers = [NODES.to_string(), loss.to_string(), count.to_string(), "1".to_owned()];
    let output = Command::new(program)
        .args(words)
        .args(numbers)
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}
