//! `agent-channel`: delegations over HTTPS with certificates at both ends, beside a bare echo of axum over rustls.

mod asking;
mod revoking;
mod rig;
mod serving;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use self::rig::Rig;
use crate::machine;
use crate::report::{Goal, Report};
use crate::stats::{estimate, percentile, ratio, sort};

pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) report: Option<PathBuf>,
}

/// How much is measured.
struct Effort {
    rounds: usize,
    time: Duration,
    handshakes: usize,
    revocations: usize,
}

/// Kept connections, each asking as soon as it is answered.
const CONNECTIONS: usize = 8;
/// Connections that are open when a certificate is revoked.
const OPEN: usize = 100;

/// Runs the benchmark; says whether all goals are met.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let effort = if options.quick {
        Effort { rounds: 4, time: Duration::from_millis(300), handshakes: 50, revocations: 5 }
    } else {
        Effort { rounds: 20, time: Duration::from_secs(1), handshakes: 500, revocations: 40 }
    };
    let facts = machine::facts(None)?;
    let mut report = Report::new("agent-channel");
    let rig = Rig::new()?;
    delegations(&mut report, &rig, &effort)?;
    handshakes(&mut report, &rig, &effort)?;
    revoking::measure(&mut report, &rig, effort.revocations, OPEN)?;
    report.note(format!(
        "delegations: {} rounds of {} s each way, by turns; {CONNECTIONS} kept connections, each asking as soon as it is answered. The agent answers at once with \
         what it was asked. The echo is axum over tokio-rustls with the same certificates and the same clients, and returns the body.",
        effort.rounds,
        effort.time.as_secs_f64()
    ));
    report.note(format!(
        "handshakes: {} one after the other, each with a ping; both ends verify. Revocation: from the new list in the server's hand to the last of {OPEN} open connections being \
         closed, as its client sees it; a node looks at its files each second.",
        effort.handshakes
    ));
    report.note("servers and clients share the machine's cores and its loopback. Ratios carry over to other machines, milliseconds do not.");
    for fact in facts {
        report.note(fact);
    }
    let command =
        if options.quick { "scripts/bench agent-channel --quick" } else { "scripts/bench agent-channel" };
    report.finish(options.report.as_deref(), command)
}

fn delegations(report: &mut Report, rig: &Rig, effort: &Effort) -> Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let (mut our_times, mut bare_times) = (Vec::new(), Vec::new());
    let mut our_connections = rig.connections(rig.channel(), CONNECTIONS)?;
    let mut bare_connections = rig.connections(rig.echo(), CONNECTIONS)?;
    for round in 0..effort.rounds {
        let mut turn = |is_ours: bool| -> Result<()> {
            let connections = if is_ours { &mut our_connections } else { &mut bare_connections };
            let (rate, times) = rig.load(connections, effort.time)?;
            let (rates, all) =
                if is_ours { (&mut ours, &mut our_times) } else { (&mut bare, &mut bare_times) };
            rates.push(rate);
            all.push(percentile(&times, 0.99));
            Ok(())
        };
        turn(round % 2 == 0)?;
        turn(round % 2 == 1)?;
    }
    report.row("delegations a second, beside the bare echo", "x", Goal::AtLeast(0.7), ratio(&ours, &bare));
    report.row("delegations a second", "/s", Goal::None, estimate(&ours));
    report.row("the bare echo", "/s", Goal::None, estimate(&bare));
    report.row("99th percentile of a delegation", "ms", Goal::None, estimate(&our_times));
    report.row("99th percentile of the bare echo", "ms", Goal::None, estimate(&bare_times));
    Ok(())
}

fn handshakes(report: &mut Report, rig: &Rig, effort: &Effort) -> Result<()> {
    let mut times = rig.handshakes(effort.handshakes)?;
    let rates: Vec<f64> =
        times.chunks(25).map(|some| some.len() as f64 * 1e3 / some.iter().sum::<f64>()).collect();
    report.row(
        "handshakes a second, one after the other, each with a ping",
        "/s",
        Goal::None,
        estimate(&rates),
    );
    sort(&mut times);
    report.exact("99th percentile of a handshake with a ping", "ms", Goal::None, percentile(&times, 0.99));
    Ok(())
}
