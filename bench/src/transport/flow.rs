//! What is measured on two connected ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_transport::testing::bare::Duplex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::ways::{CHUNK_BYTES, COUNT, DEADLINE, ECHO, Echo, Ends};
use crate::stats::{percentile, sort};

/// MB/s (10^6 bytes) that arrive by so many streams at once, each written to for this long; until all have arrived.
pub(super) async fn rate(ends: &Ends, streams: usize, time: Duration) -> Result<f64> {
    let mut open = Vec::new();
    for _ in 0..streams {
        let mut stream = ends.open().await?;
        stream.write_all(&[COUNT]).await?;
        stream.flush().await?;
        open.push(stream);
    }
    let begin = Instant::now();
    let mut writers = JoinSet::new();
    for stream in open {
        writers.spawn(tokio::time::timeout(time + DEADLINE, fill(stream, begin, time)));
    }
    let mut arrived = 0;
    while let Some(counted) = writers.join_next().await {
        arrived += counted?.context("a stream did not end in time")??;
    }
    Ok(arrived as f64 / 1e6 / begin.elapsed().as_secs_f64())
}

async fn fill(mut stream: Box<dyn Duplex>, begin: Instant, time: Duration) -> Result<u64> {
    let chunk = vec![0x5a; CHUNK_BYTES];
    let mut written = 0;
    while begin.elapsed() < time {
        stream.write_all(&chunk).await?;
        written += chunk.len() as u64;
    }
    stream.shutdown().await?;
    let arrived = stream.read_u64().await?;
    ensure!(arrived == written, "{arrived} of {written} bytes arrived");
    Ok(arrived)
}

/// The median milliseconds of so many exchanges of `bytes` each way, each on a stream of its own.
pub(super) async fn stream_round_trip(ends: &Ends, bytes: usize, requests: usize) -> Result<f64> {
    let mut request = vec![0x5a; bytes + 1];
    request[0] = ECHO;
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begin = Instant::now();
        let exchange = async {
            let mut stream = ends.open().await?;
            stream.write_all(&request).await?;
            stream.shutdown().await?;
            let mut answer = Vec::with_capacity(bytes);
            stream.read_to_end(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = tokio::time::timeout(DEADLINE, exchange).await.context("no answer in time")??;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(answer == request[1..], "another answer than expected");
    }
    sort(&mut times);
    Ok(percentile(&times, 0.5))
}

/// The same by our calls.
pub(super) async fn call_round_trip(ends: &Ends, bytes: usize, requests: usize) -> Result<f64> {
    let call = Echo { text: "z".repeat(bytes) };
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begin = Instant::now();
        let answer = ends.call(&call).await?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(answer == call.text, "another answer than expected");
    }
    sort(&mut times);
    Ok(percentile(&times, 0.5))
}

#[cfg(test)]
mod tests {
    use super::super::ways::{Ours, Way};
    use super::*;

    #[tokio::test]
    async fn every_way_carries_both_measurements() -> Result<()> {
        let mut ways = vec![Way::RawTcp, Way::Ours(Ours::Memory)];
        for ours in Ours::CARRIED {
            let (library, _) = ours.library().context("carried by one")?;
            ways.extend([Way::Bare(library), Way::Ours(ours)]);
        }
        for way in ways {
            let ends = Ends::connect(way).await?;
            assert!(rate(&ends, 2, Duration::from_millis(5)).await? > 0.0, "{way:?}");
            assert!(stream_round_trip(&ends, 1024, 2).await? > 0.0, "{way:?}");
            if matches!(way, Way::Ours(_)) {
                assert!(call_round_trip(&ends, 16 * 1024, 2).await? > 0.0, "{way:?}");
            }
            ends.close().await;
        }
        Ok(())
    }
}
