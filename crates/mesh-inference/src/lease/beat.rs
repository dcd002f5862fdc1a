//! What both sides of a lease do while it holds.

use mesh_transport::{FrameReader, RecvStream, SendStream, write_message};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::LeaseConfig;
use super::wire::FRAME_BYTES_MAX;

/// Says that this side lives, and listens for the other one, which errors call `other`, until that one ends the lease, breaks
/// it or falls silent; returns which. `ends` says what a message ends it for; `None` is a beat.
pub(super) async fn keep<T: DeserializeOwned>(
    send: &mut SendStream,
    reader: &mut FrameReader<RecvStream>,
    times: &LeaseConfig,
    beat: &impl Serialize,
    other: &str,
    ends: impl Fn(T) -> Option<String>,
) -> String {
    let mut beats = tokio::time::interval(times.beat_every);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            biased;
            message = reader.next_message::<T>() => match message {
                Ok(Some(message)) => match ends(message) {
                    None => heard = Instant::now(),
                    Some(why) => return why,
                },
                Ok(None) => return format!("the {other} ended it"),
                Err(error) => return format!("the stream to the {other} broke: {error}"),
            },
            () = tokio::time::sleep_until(heard + times.silence_max) => {
                return format!("the {other} was silent for {:?}", times.silence_max);
            }
            _ = beats.tick() => {
                if let Err(why) = write_within(send, beat, times, other).await {
                    return why;
                }
            }
        }
    }
}

/// Writes one message, unless the other side takes nothing for as long as it may be silent.
pub(super) async fn write_within(
    send: &mut SendStream,
    message: &impl Serialize,
    times: &LeaseConfig,
    other: &str,
) -> Result<(), String> {
    match tokio::time::timeout(times.silence_max, write_message(send, message, FRAME_BYTES_MAX)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("the stream to the {other} broke: {error}")),
        Err(_) => Err(format!("the {other} took nothing for {:?}", times.silence_max)),
    }
}
