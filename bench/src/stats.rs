//! Medians, percentiles and their 95 % intervals by bootstrap.

/// Resamples for an interval; more changes the third digit only.
const RESAMPLES: usize = 2_000;

/// The value below which a share `part` (0..=1) of `sorted` lies, by nearest rank.
pub(crate) fn percentile(sorted: &[f64], part: f64) -> f64 {
    assert!(!sorted.is_empty(), "no samples");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the slice")]
    let rank = ((sorted.len() as f64 - 1.0) * part).round() as usize;
    sorted[rank.min(sorted.len() - 1)]
}

pub(crate) fn sort(values: &mut [f64]) {
    values.sort_by(f64::total_cmp);
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sort(&mut sorted);
    percentile(&sorted, 0.5)
}

/// A median over rounds with its 95 % interval.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The median of `rounds` with the 95 % interval of a percentile bootstrap; the same rounds give the same interval.
pub(crate) fn estimate(rounds: &[f64]) -> Estimate {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |bound: usize| {
        // splitmix64 (Steele, Lea and Flood 2014)
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap_or(0)
    };
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let sample: Vec<f64> = (0..rounds.len()).map(|_| rounds[next(rounds.len())]).collect();
            median(&sample)
        })
        .collect();
    sort(&mut medians);
    Estimate { median: median(rounds), low: percentile(&medians, 0.025), high: percentile(&medians, 0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let sorted: Vec<f64> = (1..=101).map(f64::from).collect();
        assert_eq!(
            (percentile(&sorted, 0.5), percentile(&sorted, 0.99), percentile(&sorted, 1.0)),
            (51.0, 100.0, 101.0)
        );
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn interval_holds_the_median_and_narrows_with_agreement() {
        let wide = estimate(&[1.0, 5.0, 2.0, 9.0, 3.0, 8.0, 4.0, 7.0, 6.0, 10.0]);
        assert!(wide.low <= wide.median && wide.median <= wide.high);
        assert!(wide.high - wide.low > 1.0);
        let same = estimate(&[2.0; 10]);
        assert_eq!((same.low, same.median, same.high), (2.0, 2.0, 2.0));
    }
}
