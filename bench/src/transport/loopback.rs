//! Throughput and round trips on loopback, ours beside the bare library's and raw TCP's in the same rounds.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Effort;
use super::flow::{call_round_trip, rate, stream_round_trip};
use super::ways::{Ends, Ours, Way};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, ratio};

/// Streams at once.
const STREAMS: [usize; 2] = [1, 8];
/// Bytes each way of a round trip.
const SIZES: [(usize, &str); 2] = [(1024, "1 KiB"), (16 * 1024, "16 KiB")];
/// Before anything is counted on a connection: QUIC first finds its packet size and its rate.
const WARM_UP: Duration = Duration::from_millis(100);
const WARM_UP_REQUESTS: usize = 20;

/// Every driver and its library, beside each other.
fn ways() -> Result<Vec<Way>> {
    let mut ways = vec![Way::RawTcp];
    for ours in Ours::CARRIED {
        let (library, _) = ours.library().context("carried by one")?;
        ways.extend([Way::Bare(library), Way::Ours(ours)]);
    }
    ways.push(Way::Ours(Ours::Memory));
    Ok(ways)
}

fn over_bare(ours: Ours, called: &str, streams: usize) -> String {
    format!("{}, {}, over bare {called}'s", ours.name(), by(streams))
}

fn by(streams: usize) -> String {
    if streams == 1 { "1 stream".to_owned() } else { format!("{streams} streams") }
}

/// The figures with a goal.
pub(super) fn lacking_throughput() -> Lacking {
    let each = STREAMS.into_iter().flat_map(|streams| Ours::CARRIED.map(|ours| (streams, ours)));
    each.filter_map(|(streams, ours)| {
        let (_, called) = ours.library()?;
        Some((over_bare(ours, called, streams), "x", NEAR))
    })
    .collect()
}

/// How much of the bare library's rate is to be left.
const NEAR: Goal = Goal::AtLeast(0.9);

fn at(ways: &[Way], way: Way) -> Result<usize> {
    ways.iter().position(|one| *one == way).context("a way that is measured")
}

pub(super) async fn throughput(report: &mut Report, effort: &Effort) -> Result<()> {
    let ways = ways()?;
    let mut rates = vec![vec![Vec::new(); STREAMS.len()]; ways.len()];
    for round in 0..effort.rate_rounds {
        for turn in 0..ways.len() {
            // Forwards and backwards by turns, so that of two neighbours neither is always the second.
            let way = if round % 2 == 0 { turn } else { ways.len() - 1 - turn };
            let ends = Ends::connect(ways[way]).await?;
            rate(&ends, STREAMS[STREAMS.len() - 1], WARM_UP).await?;
            for (number, streams) in STREAMS.into_iter().enumerate() {
                let measured = rate(&ends, streams, effort.rate_time).await;
                rates[way][number].push(measured.with_context(|| format!("{:?}", ways[way]))?);
            }
            ends.close().await;
        }
    }
    for (number, streams) in STREAMS.into_iter().enumerate() {
        let measured = |way: Way| -> Result<&Vec<f64>> { Ok(&rates[at(&ways, way)?][number]) };
        let raw = measured(Way::RawTcp)?;
        report.row(format!("raw TCP, {}", by(streams)), "MB/s", Goal::None, estimate(raw));
        for ours in Ours::CARRIED {
            let (library, called) = ours.library().context("carried by one")?;
            let (name, beside) =
                (format!("{}, {}", ours.name(), by(streams)), over_bare(ours, called, streams));
            let (bare, ours) = (measured(Way::Bare(library))?, measured(Way::Ours(ours))?);
            report.row(name.clone(), "MB/s", Goal::None, estimate(ours));
            report.row(beside, "x", NEAR, ratio(ours, bare));
            report.row(format!("{name}, over raw TCP's"), "x", Goal::None, ratio(ours, raw));
        }
        let memory = measured(Way::Ours(Ours::Memory))?;
        report.row(format!("{}, {}", Ours::Memory.name(), by(streams)), "MB/s", Goal::None, estimate(memory));
    }
    Ok(())
}

/// What the same exchange takes in milliseconds, round by round.
#[derive(Default)]
struct RoundTrips {
    bare: Vec<f64>,
    stream: Vec<f64>,
    call: Vec<f64>,
}

pub(super) async fn round_trips(report: &mut Report, effort: &Effort) -> Result<()> {
    for ours in Ours::CARRIED {
        let (library, called) = ours.library().context("carried by one")?;
        let (bare, own) = (Ends::connect(Way::Bare(library)).await?, Ends::connect(Way::Ours(ours)).await?);
        for (bytes, size) in SIZES {
            stream_round_trip(&bare, bytes, WARM_UP_REQUESTS).await?;
            call_round_trip(&own, bytes, WARM_UP_REQUESTS).await?;
            let mut times = RoundTrips::default();
            for round in 0..effort.latency_rounds {
                for turn in 0..3 {
                    match (turn + round) % 3 {
                        0 => times.bare.push(stream_round_trip(&bare, bytes, effort.requests).await?),
                        1 => times.stream.push(stream_round_trip(&own, bytes, effort.requests).await?),
                        _ => times.call.push(call_round_trip(&own, bytes, effort.requests).await?),
                    }
                }
            }
            let name = ours.name();
            let added = |times: &[f64], bare: &[f64]| {
                let pairs = times.iter().zip(bare);
                estimate(&pairs.map(|(ours, bare)| ours - bare).collect::<Vec<_>>())
            };
            report.row(
                format!("bare {called}, {size} there and back on a new stream"),
                "ms",
                Goal::None,
                estimate(&times.bare),
            );
            report.row(
                format!("{name}, {size}, added on a new stream"),
                "ms",
                Goal::None,
                added(&times.stream, &times.bare),
            );
            report.row(
                format!("{name}, {size}, added by a call"),
                "ms",
                Goal::None,
                added(&times.call, &times.bare),
            );
        }
        bare.close().await;
        own.close().await;
    }
    Ok(())
}
