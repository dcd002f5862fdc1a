//! Throughput over a wire with delay, without and with loss.

use std::time::Duration;

use anyhow::{Context, Result};
use qmt_tests::lab::{Host, Lab, Wire};
use tokio::runtime::Runtime;

use super::flow::rate;
use super::ways::{Ends, Ours, Place, Way};
use crate::report::{Goal, Lacking, Report};

/// Each way.
pub(super) const DELAY: Duration = Duration::from_millis(20);
const SEED: u64 = 1;
const WARM_UP: Duration = Duration::from_millis(500);

const WAYS: [(Way, &str); 4] = [
    (Way::RawTcp, "raw TCP"),
    (Way::Ours(Ours::LanTcp), "LAN by TCP"),
    (Way::Ours(Ours::LanQuic), "LAN by QUIC"),
    (Way::Ours(Ours::Internet), "internet"),
];

fn name(way: &str, loss_per_mille: u16) -> String {
    let loss =
        if loss_per_mille == 0 { "no loss".to_owned() } else { format!("{loss_per_mille} of 1000 lost") };
    format!("{way}, 1 stream, {} ms each way, {loss}", DELAY.as_millis())
}

/// MB/s of each way.
pub(super) async fn measure(loss_per_mille: u16, time: Duration) -> Result<Vec<f64>> {
    let mut rates = Vec::new();
    for (way, called) in WAYS {
        // A wire of its own for each, so that all lose the same packets.
        let mut lab = Lab::new()?;
        lab.check_wire()?;
        let (here, there) = (lab.lan(), lab.lan());
        let hosts = [lab.host(&here), lab.host(&there)];
        let wired = lab.wire(
            &hosts[0],
            &hosts[1],
            Wire { delay: DELAY, loss_per_mille, seed: SEED, ..Wire::default() },
        );
        let runtimes = [runtime(&hosts[0])?, runtime(&hosts[1])?];
        let place =
            |at: usize| Place { addr: wired.addresses()[at].into(), runtime: runtimes[at].handle().clone() };
        let ends = Ends::between(way, &[place(0), place(1)]).await?;
        rate(&ends, 1, WARM_UP).await.with_context(|| name(called, loss_per_mille))?;
        rates.push(rate(&ends, 1, time).await.with_context(|| name(called, loss_per_mille))?);
        ends.close().await;
        for runtime in runtimes {
            runtime.shutdown_background();
        }
    }
    Ok(rates)
}

/// A runtime all of whose threads, and so all of whose sockets, are in this host.
fn runtime(host: &Host) -> Result<Runtime> {
    let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    Ok(host.inside(build)?)
}

pub(super) fn tell(report: &mut Report, loss_per_mille: u16, rates: &[f64]) {
    for ((_, way), rate) in WAYS.iter().zip(rates) {
        report.exact(name(way, loss_per_mille), "MB/s", Goal::None, *rate);
    }
}

pub(super) fn lacking(loss_per_mille: u16) -> Lacking {
    WAYS.iter().map(|(_, way)| (name(way, loss_per_mille), "MB/s", Goal::None)).collect()
}
