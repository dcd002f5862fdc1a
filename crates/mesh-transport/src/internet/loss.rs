//! How much of what is sent gets lost, from the counters of the path in use.

/// Packets over which one sample is taken.
const SAMPLE: u64 = 64;
/// A new sample counts one part in so many.
const SMOOTHING: u64 = 4;

/// A smoothed ratio over the latest packets of one path.
#[derive(Debug)]
pub(super) struct LossMeter<K> {
    path: Option<K>,
    sent: u64,
    lost: u64,
    per_mille: Option<u64>,
}

impl<K> Default for LossMeter<K> {
    fn default() -> Self {
        Self { path: None, sent: 0, lost: 0, per_mille: None }
    }
}

impl<K: PartialEq> LossMeter<K> {
    /// Takes the counters of the path in use since its beginning; the loss per mille, once enough was sent on it.
    pub(super) fn measure(&mut self, path: K, sent: u64, lost: u64) -> Option<u16> {
        if self.path.as_ref() != Some(&path) || sent < self.sent || lost < self.lost {
            *self = Self { path: Some(path), sent, lost, per_mille: None };
        }
        let (fresh_sent, fresh_lost) = (sent - self.sent, lost - self.lost);
        if fresh_sent >= SAMPLE {
            let sample = fresh_lost.saturating_mul(1000) / fresh_sent;
            let smooth = |old: u64| (old * (SMOOTHING - 1) + sample) / SMOOTHING;
            self.per_mille = Some(self.per_mille.map_or(sample, smooth).min(1000));
            (self.sent, self.lost) = (sent, lost);
        }
        self.per_mille.and_then(|loss| u16::try_from(loss).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_the_latest_packets_of_the_path_in_use() {
        let mut meter = LossMeter::default();
        assert_eq!(meter.measure(1, 1000, 500), None, "what was before is not ours to judge");
        assert_eq!(meter.measure(1, 1063, 500), None, "too few");
        assert_eq!(meter.measure(1, 1100, 510), Some(100));
        assert_eq!(meter.measure(1, 1100, 510), Some(100), "nothing was sent");
        assert_eq!(meter.measure(1, 1200, 510), Some(75));
        assert_eq!(meter.measure(2, 10, 10), None, "another path");
        assert_eq!(meter.measure(2, 5, 1), None, "a counter that went back");
        assert_eq!(meter.measure(2, 105, 201), Some(1000));
    }
}
