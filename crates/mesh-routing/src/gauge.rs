//! What this node has measured of one model at one node: latency, requests under way, and health.
//!
//! A gauge is a few atomic words, shared by all snapshots that know its target, so that a request neither waits for a lock
//! nor rebuilds a snapshot. Every word is read and replaced as a whole: there is no state between two of them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::{Config, Load};

/// What is known of the health of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Requests go there.
    Up,
    /// Its last requests failed: none go there before the time has passed.
    Down {
        /// How much longer.
        retry_in: Duration,
    },
    /// Its last requests failed and the cool-down has passed: one request may try.
    Probing,
}

/// What a finished request tells of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Time until the first byte of the answer (until the failure, when it failed).
    pub latency: Duration,
    /// Whether the target answered. A fault of the caller (a 4xx) is an answer.
    pub ok: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Gauge {
    in_flight: AtomicU32,
    /// EWMA in microseconds (high 32 bits, 0 = never measured) and when it was written, in tenths of a second (low 32).
    latency: AtomicU64,
    /// Others' requests at the target (high 32 bits) and when it said so, in tenths of a second plus one (low 32, 0 = never).
    others: AtomicU64,
    /// Milliseconds at which the next request may try (high 56 bits, 0 = closed) and consecutive failures (low 8).
    health: AtomicU64,
}

/// How much of a new latency enters the average: the last ten requests carry 97 % of it.
const EWMA_WEIGHT: f64 = 0.3;

impl Gauge {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Counts a request in. A target on probation is closed to others for one cool-down, so that one request tries it.
    pub(crate) fn begin(&self, at: Duration, config: &Config) {
        self.in_flight.fetch_add(1, Relaxed);
        let _ = self.health.fetch_update(Relaxed, Relaxed, |word| {
            let (failures, retry_at) = unpack_health(word);
            (retry_at != 0 && millis(at) >= retry_at)
                .then(|| pack_health(failures, millis(at + cool_down(failures, config))))
        });
    }

    pub(crate) fn end(&self) {
        let _ = self.in_flight.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
    }

    /// The target's own word on its load, in an answer to one of our requests: what is not ours is others'.
    pub(crate) fn note_load(&self, load: Load, at: Duration) {
        let others = load.running.saturating_add(load.waiting).saturating_sub(self.in_flight());
        self.others.store(u64::from(others) << 32 | u64::from(tenths(at).saturating_add(1)), Relaxed);
    }

    /// Requests of others at the target, while its word is fresh.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
    pub(crate) fn others(&self, at: Duration, config: &Config) -> Option<u32> {
        let word = self.others.load(Relaxed);
        let (others, written) = ((word >> 32) as u32, word as u32);
        let age = Duration::from_millis(u64::from((tenths(at) + 1).saturating_sub(written)) * 100);
        (written > 0 && age <= config.load_fresh).then_some(others)
    }

    pub(crate) fn observe(&self, outcome: Outcome, at: Duration, config: &Config) {
        if !outcome.ok {
            let _ = self.health.fetch_update(Relaxed, Relaxed, |word| {
                let failures = unpack_health(word).0.saturating_add(1);
                let open = u32::from(failures) >= config.failures_to_open.get();
                Some(pack_health(failures, if open { millis(at + cool_down(failures, config)) } else { 0 }))
            });
            return;
        }
        self.health.store(0, Relaxed);
        let _ = self.latency.fetch_update(Relaxed, Relaxed, |word| {
            let new = outcome.latency.as_secs_f64() * 1e6;
            let average = match unpack_latency(word, at, config) {
                Some(old) => old + (new - old) * EWMA_WEIGHT,
                None => new,
            };
            Some(pack_latency(average, at))
        });
    }

    pub(crate) fn health(&self, at: Duration) -> Health {
        match unpack_health(self.health.load(Relaxed)).1 {
            0 => Health::Up,
            retry_at if millis(at) < retry_at => {
                Health::Down { retry_in: Duration::from_millis(retry_at - millis(at)) }
            }
            _ => Health::Probing,
        }
    }

    /// The average latency in microseconds; an old one counts half after each half-life, so that a node that was slow
    /// once is tried again. `None` until the first answer.
    pub(crate) fn latency_us(&self, at: Duration, config: &Config) -> Option<f64> {
        unpack_latency(self.latency.load(Relaxed), at, config)
    }
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX) & (u64::MAX >> 8)
}

/// The cool-down doubles with each failure after the one that opened, up to the configured maximum.
fn cool_down(failures: u8, config: &Config) -> Duration {
    let extra = u32::from(failures).saturating_sub(config.failures_to_open.get()).min(16);
    // At least a millisecond, the unit in which the end is kept: zero would read as closed.
    (config.cool_down * 2_u32.pow(extra)).min(config.cool_down_max).max(Duration::from_millis(1))
}

fn pack_health(failures: u8, retry_at: u64) -> u64 {
    retry_at << 8 | u64::from(failures)
}

fn unpack_health(word: u64) -> (u8, u64) {
    (word.to_le_bytes()[0], word >> 8)
}

fn tenths(at: Duration) -> u32 {
    u32::try_from(at.as_millis() / 100).unwrap_or(u32::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the range of u32 first"
)]
fn pack_latency(average_us: f64, at: Duration) -> u64 {
    let clamped = average_us.clamp(1.0, f64::from(u32::MAX)) as u32;
    u64::from(clamped) << 32 | u64::from(tenths(at))
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
fn unpack_latency(word: u64, at: Duration, config: &Config) -> Option<f64> {
    let (average, written) = ((word >> 32) as u32, word as u32);
    let age = f64::from(tenths(at).saturating_sub(written)) / 10.0;
    let half_life = config.latency_half_life.as_secs_f64().max(0.1);
    (average > 0).then(|| (f64::from(average) * (-age / half_life).exp2()).max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FAILED: Outcome = Outcome { latency: SECOND, ok: false };

    fn answered(latency: Duration) -> Outcome {
        Outcome { latency, ok: true }
    }

    #[test]
    fn opens_after_consecutive_failures_only() {
        let (gauge, config) = (Gauge::default(), Config::default());
        for _ in 0..2 {
            gauge.observe(FAILED, SECOND, &config);
        }
        gauge.observe(answered(SECOND), SECOND, &config);
        for _ in 0..2 {
            gauge.observe(FAILED, SECOND, &config);
        }
        assert_eq!(gauge.health(SECOND), Health::Up);
        gauge.observe(FAILED, SECOND, &config);
        assert_eq!(gauge.health(SECOND), Health::Down { retry_in: config.cool_down });
    }

    #[test]
    fn one_request_probes_after_the_cool_down_and_its_outcome_decides() {
        let (gauge, config) = (Gauge::default(), Config::default());
        for _ in 0..3 {
            gauge.observe(FAILED, Duration::ZERO, &config);
        }
        let later = config.cool_down;
        assert_eq!(gauge.health(later), Health::Probing);
        gauge.begin(later, &config);
        assert_eq!(
            gauge.health(later),
            Health::Down { retry_in: config.cool_down },
            "others wait for the probe"
        );
        gauge.observe(FAILED, later, &config);
        assert_eq!(
            gauge.health(later),
            Health::Down { retry_in: config.cool_down * 2 },
            "the cool-down doubles"
        );
        gauge.observe(answered(SECOND), later, &config);
        assert_eq!(gauge.health(later), Health::Up);
    }

    #[test]
    fn a_lost_probe_does_not_close_the_target_for_ever() {
        let (gauge, config) = (Gauge::default(), Config::default());
        for _ in 0..3 {
            gauge.observe(FAILED, Duration::ZERO, &config);
        }
        gauge.begin(config.cool_down, &config);
        assert_eq!(gauge.health(config.cool_down * 2), Health::Probing);
    }

    #[test]
    fn the_cool_down_is_bounded() {
        let (gauge, config) = (Gauge::default(), Config::default());
        for _ in 0..1000 {
            gauge.observe(FAILED, SECOND, &config);
        }
        assert_eq!(gauge.health(SECOND), Health::Down { retry_in: config.cool_down_max });
    }

    #[test]
    fn latency_is_averaged_and_fades() {
        let (gauge, config) = (Gauge::default(), Config::default());
        assert_eq!(gauge.latency_us(SECOND, &config), None);
        gauge.observe(answered(SECOND), SECOND, &config);
        gauge.observe(answered(SECOND * 2), SECOND, &config);
        let average = gauge.latency_us(SECOND, &config).expect("measured");
        assert!((average - 1_300_000.0).abs() < 1.0, "{average}");
        let faded = gauge.latency_us(SECOND + config.latency_half_life, &config).expect("measured");
        assert!((faded - average / 2.0).abs() < 1.0, "{faded}");
        let old = gauge.latency_us(SECOND * 1_000_000, &config).expect("measured");
        assert!(old >= 1.0, "never free");
    }

    #[test]
    fn the_targets_word_on_others_counts_while_it_is_fresh() {
        let (gauge, config) = (Gauge::default(), Config::default());
        assert_eq!(gauge.others(SECOND, &config), None);
        gauge.begin(SECOND, &config);
        gauge.note_load(Load { running: 4, waiting: 2, slots: Some(4) }, SECOND);
        assert_eq!(gauge.others(SECOND, &config), Some(5), "one of the six is ours");
        assert_eq!(gauge.others(SECOND + config.load_fresh, &config), Some(5));
        assert_eq!(gauge.others(SECOND + config.load_fresh * 2, &config), None);
        gauge.note_load(Load::default(), SECOND);
        assert_eq!(gauge.others(SECOND, &config), Some(0));
    }

    #[test]
    fn ending_more_than_began_stays_at_zero() {
        let gauge = Gauge::default();
        gauge.end();
        assert_eq!(gauge.in_flight(), 0);
    }
}
