//! How far a download is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::stats::Counters;

/// The rate is that of about this long.
const RATE_TIME: Duration = Duration::from_secs(3);
/// How often the rate is looked at.
const RATE_EVERY: Duration = Duration::from_millis(250);

/// How far a download is. Display is a phrase for people: "12 of 253 MB, 11 MB/s, from hub.example".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What it does now.
    pub stage: Stage,
    /// Bytes that are here.
    pub bytes: u64,
    /// Size of all its files; `None` until it is known.
    pub total: Option<u64>,
    /// Bytes that come in a second.
    pub bytes_per_second: u64,
    /// Where they come from, for people: a host, or how many members.
    pub from: String,
}

/// What a download does now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// It waits for its turn, or asks what there is.
    #[default]
    Asking,
    /// It checks what is here already, or the whole.
    Checking,
    /// Bytes come.
    Downloading,
    /// It waits after a fault, in these words, and goes on by itself.
    Waiting(String),
    /// The model is here.
    Done,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes / 1_000_000;
        match &self.stage {
            Stage::Asking => return f.write_str("asking where it is"),
            Stage::Done => return write!(f, "{} MB", mb(self.bytes)),
            Stage::Checking => f.write_str("checking ")?,
            Stage::Downloading | Stage::Waiting(_) => {}
        }
        match self.total {
            Some(total) => write!(f, "{} of {} MB", mb(self.bytes), mb(total))?,
            None => write!(f, "{} MB", mb(self.bytes))?,
        }
        match &self.stage {
            Stage::Downloading => {
                let tenths = self.bytes_per_second / 100_000;
                write!(f, ", {}.{} MB/s", tenths / 10, tenths % 10)?;
                if !self.from.is_empty() {
                    write!(f, ", from {}", self.from)?;
                }
                Ok(())
            }
            Stage::Waiting(why) => write!(f, ", waits: {why}"),
            _ => Ok(()),
        }
    }
}

/// What a download tells its progress to.
#[derive(Debug)]
pub(crate) struct Meter {
    told: watch::Sender<Progress>,
    sample: std::sync::Mutex<Sample>,
    pub(crate) counters: Arc<Counters>,
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    /// Bytes since then.
    bytes: u64,
    rate: f64,
}

impl Meter {
    pub(crate) fn new(counters: Arc<Counters>) -> (Self, watch::Receiver<Progress>) {
        let (told, progress) = watch::channel(Progress::default());
        let sample = std::sync::Mutex::new(Sample { at: Instant::now(), bytes: 0, rate: 0.0 });
        (Self { told, sample, counters }, progress)
    }

    pub(crate) fn stage(&self, stage: Stage) {
        self.told.send_if_modified(|progress| {
            let changed = progress.stage != stage;
            progress.stage = stage;
            changed
        });
    }

    pub(crate) fn from(&self, from: String) {
        self.told.send_modify(|progress| {
            progress.from = from;
            progress.stage = Stage::Downloading;
        });
    }

    pub(crate) fn total(&self, total: u64) {
        self.told.send_modify(|progress| progress.total = Some(total));
    }

    /// So many bytes are here, without having come just now.
    pub(crate) fn stands_at(&self, bytes: u64) {
        self.told.send_modify(|progress| progress.bytes = bytes);
    }

    /// So many bytes came just now.
    pub(crate) fn came(&self, bytes: u64) {
        let rate = self.rate(bytes);
        self.told.send_modify(|progress| {
            progress.bytes += bytes;
            progress.stage = Stage::Downloading;
            if let Some(rate) = rate {
                progress.bytes_per_second = rate;
            }
        });
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is positive and far below 2^53"
    )]
    fn rate(&self, bytes: u64) -> Option<u64> {
        let mut sample = self.sample.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sample.bytes += bytes;
        let time = sample.at.elapsed();
        if time < RATE_EVERY {
            return None;
        }
        let now = sample.bytes as f64 / time.as_secs_f64();
        let weight = (time.as_secs_f64() / RATE_TIME.as_secs_f64()).min(1.0);
        let is_first = sample.rate == 0.0;
        let rate = if is_first { now } else { sample.rate + (now - sample.rate) * weight };
        *sample = Sample { at: Instant::now(), bytes: 0, rate };
        Some(rate as u64)
    }
}
