//! The core's only source of chance: SplitMix64 from the seed it was made with, so that a seed fixes a run.

use std::time::Duration;

/// Deterministic generator (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
/// It spreads load and breaks ties; nothing secret comes from it.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        let mut state = 0_u64;
        for chunk in seed.as_chunks::<8>().0 {
            state = Self(state ^ u64::from_le_bytes(*chunk)).next();
        }
        Self(state)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0. The bias of the remainder is irrelevant at our sizes.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }

    /// True with a probability of `share` (0.0 ..= 1.0).
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        let unit = f64::from(u32::try_from(self.next() >> 32).unwrap_or(0)) / f64::from(u32::MAX);
        unit < share
    }

    /// A duration between `low` and `high`.
    pub(crate) fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_micros()).unwrap_or(u64::MAX);
        low + Duration::from_micros(self.next() % span.saturating_add(1).max(1))
    }

    /// `base` give or take a quarter, so that nodes that started together do not stay in step.
    pub(crate) fn jittered(&mut self, base: Duration) -> Duration {
        self.between(base * 3 / 4, base * 5 / 4)
    }

    /// Up to `count` elements of `all`, each equally likely.
    pub(crate) fn pick<T: Copy>(&mut self, mut all: Vec<T>, count: usize) -> Vec<T> {
        for index in 0..count.min(all.len()) {
            let other = index + self.below(all.len() - index);
            all.swap(index, other);
        }
        all.truncate(count);
        all
    }
}
