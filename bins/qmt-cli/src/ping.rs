//! `ping`: one round trip after the other, shown as they come.

use std::time::Duration;

use mesh_control::{Client, ClientError, ErrorCode, PathKind, PingRequest, Pong};
use serde::Serialize;
use tokio::time::sleep;

use crate::failure::Failure;
use crate::screen::Screen;
use crate::units;

/// Between two pings, so that they meet the link at different moments.
const PAUSE: Duration = Duration::from_millis(200);

/// What pinging a node showed.
#[derive(Debug, Default, Serialize)]
struct Pings {
    /// The node, as it was asked for.
    node: String,
    /// Pings sent.
    sent: u32,
    /// Pings answered.
    answered: u32,
    /// Round trips of those; none without any.
    rtt_ms: Option<RoundTrips>,
    /// The answered ones, in order.
    pongs: Vec<Pong>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct RoundTrips {
    min: f64,
    median: f64,
    max: f64,
}

pub(crate) async fn ping(client: &Client, screen: &Screen, node: String, count: u32) -> Result<(), Failure> {
    let mut pings = Pings { node, ..Pings::default() };
    let mut lost = Some(Failure::interrupted("ended before the first answer"));
    tokio::select! {
        sent = send_all(client, screen, count, &mut pings, &mut lost) => sent?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|error| Failure::new("signal", error.to_string()))?;
        }
    }
    pings.rtt_ms = RoundTrips::of(&pings.pongs);
    match lost {
        Some(failure) if pings.pongs.is_empty() => Err(failure),
        _ => screen.show(&pings, summary),
    }
}

async fn send_all(
    client: &Client,
    screen: &Screen,
    count: u32,
    pings: &mut Pings,
    lost: &mut Option<Failure>,
) -> Result<(), Failure> {
    let request = PingRequest { node: pings.node.clone(), count: Some(1) };
    for number in 1..=count {
        if number > 1 {
            sleep(PAUSE).await;
        }
        let line = match client.ping(&request).await {
            Ok(pongs) => match pongs.first() {
                Some(pong) => {
                    pings.answered += 1;
                    pings.pongs.push(pong.clone());
                    answer(pong)
                }
                None => "no answer".to_owned(),
            },
            Err(error) if is_silence(&error) => {
                let line = error.to_string();
                *lost = Some(error.into());
                line
            }
            Err(error) => return Err(error.into()),
        };
        pings.sent += 1;
        if !screen.is_json() {
            screen.print(&format!("{} {number}: {line}\n", pings.node))?;
        }
    }
    Ok(())
}

/// The node is known and does not answer: the next ping may be answered.
fn is_silence(error: &ClientError) -> bool {
    match error {
        ClientError::Api(error) => matches!(error.code, ErrorCode::NodeUnreachable | ErrorCode::Timeout),
        _ => false,
    }
}

fn answer(pong: &Pong) -> String {
    let path = match pong.path {
        PathKind::None => "by a link that closed since".to_owned(),
        path => path.to_string(),
    };
    format!("{}, {path}", units::milliseconds(pong.rtt_ms))
}

fn summary(pings: &Pings) -> String {
    let answered = format!("{} of {} answered", pings.answered, units::count(pings.sent as usize, "ping"));
    match pings.rtt_ms {
        None => answered,
        Some(rtt) => {
            let [min, median, max] = [rtt.min, rtt.median, rtt.max].map(units::milliseconds);
            format!("{answered}; round trip {min} at least, {median} median, {max} at most")
        }
    }
}

impl RoundTrips {
    fn of(pongs: &[Pong]) -> Option<Self> {
        let mut all: Vec<f64> = pongs.iter().map(|pong| pong.rtt_ms).collect();
        all.sort_by(f64::total_cmp);
        let middle = all.len() / 2;
        let median = if all.len().is_multiple_of(2) {
            (all.get(middle.checked_sub(1)?)? + all.get(middle)?) / 2.0
        } else {
            *all.get(middle)?
        };
        Some(Self { min: *all.first()?, median, max: *all.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pongs(ms: &[f64]) -> Vec<Pong> {
        ms.iter().map(|rtt_ms| Pong { rtt_ms: *rtt_ms, path: PathKind::Direct }).collect()
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(RoundTrips::of(&[]), None);
        assert_eq!(RoundTrips::of(&pongs(&[3.0])), Some(RoundTrips { min: 3.0, median: 3.0, max: 3.0 }));
        assert_eq!(
            RoundTrips::of(&pongs(&[9.0, 1.0, 2.0])),
            Some(RoundTrips { min: 1.0, median: 2.0, max: 9.0 })
        );
        assert_eq!(
            RoundTrips::of(&pongs(&[4.0, 1.0, 2.0, 9.0])),
            Some(RoundTrips { min: 1.0, median: 3.0, max: 9.0 })
        );
    }

    #[test]
    fn the_summary_counts_what_was_lost() {
        let pongs = pongs(&[0.25, 0.75]);
        let pings =
            Pings { node: "lap".to_owned(), sent: 3, answered: 2, rtt_ms: RoundTrips::of(&pongs), pongs };
        assert_eq!(
            summary(&pings),
            "2 of 3 pings answered; round trip 0.25 ms at least, 0.50 ms median, 0.75 ms at most"
        );
    }
}
