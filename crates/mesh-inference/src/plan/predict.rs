//! How fast it would be.
//!
//! Each word reads all weights that it goes through once, so a device gives as many words a second as it reads them in a second;
//! the devices of a split work one after the other, and between them each word waits for the network.

use serde::Serialize;

use super::machine::{Link, Speed};
use super::needs::Needs;
use super::split::Load;
use super::{Alternative, Refusal, Way};

/// What one device of a split costs each word beyond its work and the network: frames, copies, and waking a process.
const RPC_STEP_SECONDS: f64 = 0.0006;
/// Bytes of one element of what goes from device to device.
const ELEMENT_BYTES: u64 = 4;
/// A way counts as faster when it is by so much: less is noise.
const CLEARLY: f64 = 1.02;

/// Tokens a second, with little context yet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prediction {
    /// Generated.
    pub tokens_per_second: f64,
    /// Read of a prompt.
    pub prompt_tokens_per_second: f64,
    /// Of the time for one generated token: reading weights.
    pub reading_seconds: f64,
    /// And waiting for other machines.
    pub network_seconds: f64,
}

/// One device at work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) load: Load,
    pub(crate) speed: Speed,
    /// The way to it, when it is reached through an rpc-server.
    pub(crate) rpc: Option<Link>,
}

/// One device after the other.
pub(crate) fn predict(needs: &Needs, steps: &[Step]) -> Prediction {
    let (mut reading, mut network, mut prompt) = (0.0, 0.0, 0.0);
    for step in steps.iter().filter(|step| step.load.read > 0 || step.load.weights > 0) {
        let speed = step.speed.or_unknown();
        reading += step.load.read as f64 / speed.bytes_per_second;
        prompt += step.load.operations as f64 / speed.flops;
        if let Some(link) = step.rpc {
            // In with the device's input, out with its output.
            let bytes = needs.width.saturating_mul(2 * ELEMENT_BYTES);
            network += RPC_STEP_SECONDS + link.seconds(bytes);
            prompt += link.seconds(bytes) - link.seconds(0);
        }
    }
    // What comes back of the last device is a number for each token of the vocabulary.
    if let Some(link) = steps.last().and_then(|last| last.rpc) {
        network += link.seconds(needs.vocabulary.saturating_mul(ELEMENT_BYTES)) - link.seconds(0);
    }
    Prediction {
        tokens_per_second: 1.0 / (reading + network).max(f64::MIN_POSITIVE),
        prompt_tokens_per_second: 1.0 / prompt.max(f64::MIN_POSITIVE),
        reading_seconds: reading,
        network_seconds: network,
    }
}

/// Possible ones first, by speed; then by the order they were in.
pub(crate) fn fastest_first(alternatives: &mut [Alternative]) {
    alternatives.sort_by(|a, b| {
        let possible = a.refusal.is_some().cmp(&b.refusal.is_some());
        possible.then(rate(b).total_cmp(&rate(a)))
    });
}

/// What is to be done first; the rest is told why it is not.
pub(crate) fn best_first(alternatives: &mut [Alternative]) {
    let order = |way: &Way| match way {
        Way::Solo => 0,
        Way::Remote { .. } => 1,
        Way::Split(_) | Way::NoSplit => 2,
    };
    alternatives.sort_by_key(|alternative| (alternative.refusal.is_some(), order(&alternative.way)));
    let possible = alternatives.iter().take_while(|alternative| alternative.refusal.is_none()).count();
    let best = (0..possible).reduce(|best, next| {
        let is_faster = rate(&alternatives[next]) > rate(&alternatives[best]) * CLEARLY;
        if is_faster { next } else { best }
    });
    if let Some(best) = best {
        alternatives[..=best].rotate_right(1);
        for slower in &mut alternatives[1..possible] {
            slower.refusal = Some(Refusal::Slower);
        }
    }
}

fn rate(alternative: &Alternative) -> f64 {
    alternative.prediction.map_or(0.0, |prediction| prediction.tokens_per_second)
}

/// For sorting workers: what one costs each word with a given amount to read, cheapest first.
pub(crate) fn cost(needs: &Needs, speed: Speed, link: Link, read: u64) -> Cost {
    let bytes = needs.width.saturating_mul(2 * ELEMENT_BYTES);
    Cost(read as f64 / speed.or_unknown().bytes_per_second + link.seconds(bytes))
}

/// Seconds, in order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost(f64);

impl PartialEq for Cost {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Cost {}

impl PartialOrd for Cost {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Cost {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
