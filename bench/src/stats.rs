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
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
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
    bootstrap(rounds.len(), |sample| median(&pick(rounds, sample)))
}

/// The percentile `part` of `rounds` with its interval. Of a few rounds a high one is their maximum.
pub(crate) fn estimate_at(rounds: &[f64], part: f64) -> Estimate {
    bootstrap(rounds.len(), |sample| {
        let mut sample = pick(rounds, sample);
        sort(&mut sample);
        percentile(&sample, part)
    })
}

/// The median of `above` over the median of `below`, two measurements of the same rounds, with its interval: rounds are
/// resampled as pairs, so that what disturbed both in one round does not widen it.
pub(crate) fn ratio(above: &[f64], below: &[f64]) -> Estimate {
    assert_eq!(above.len(), below.len(), "the same rounds");
    bootstrap(above.len(), |sample| median(&pick(above, sample)) / median(&pick(below, sample)))
}

fn pick(rounds: &[f64], sample: &[usize]) -> Vec<f64> {
    sample.iter().map(|at| rounds[*at]).collect()
}

fn bootstrap(rounds: usize, figure: impl Fn(&[usize]) -> f64) -> Estimate {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |bound: usize| {
        // splitmix64 (Steele, Lea and Flood 2014)
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap_or(0)
    };
    let mut figures: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let sample: Vec<usize> = (0..rounds).map(|_| next(rounds)).collect();
            figure(&sample)
        })
        .collect();
    sort(&mut figures);
    let all: Vec<usize> = (0..rounds).collect();
    Estimate { median: figure(&all), low: percentile(&figures, 0.025), high: percentile(&figures, 0.975) }
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
    /// 1,000 experiments of 20 rounds each around a known median: about 950 intervals are to hold it.
    #[test]
    fn interval_holds_the_truth_about_as_often_as_it_says() {
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1_u64 << 24) as f64
        };
        let held = (0..1_000)
            .filter(|_| {
                // Skewed as latencies are: the median of -ln(1 - u) is ln 2.
                let rounds: Vec<f64> = (0..20).map(|_| -(1.0 - uniform()).ln()).collect();
                let found = estimate(&rounds);
                (found.low..=found.high).contains(&std::f64::consts::LN_2)
            })
            .count();
        assert!((900..=985).contains(&held), "{held} of 1000");
    }

    #[test]
    fn a_high_percentile_lies_high() {
        let rounds: Vec<f64> = (1..=101).map(f64::from).collect();
        let found = estimate_at(&rounds, 0.95);
        assert_eq!(found.median, 96.0);
        assert!((85.0..96.0).contains(&found.low) && (96.0..=101.0).contains(&found.high), "{found:?}");
    }

    #[test]
    fn ratio_is_that_of_the_medians_and_pairs_cancel_what_disturbs_both() {
        let below = [1.0, 2.0, 4.0, 8.0, 16.0, 1.0, 2.0, 4.0, 8.0, 16.0];
        let above: Vec<f64> = below.iter().map(|value| value * 1.5).collect();
        let found = ratio(&above, &below);
        assert_eq!((found.low, found.median, found.high), (1.5, 1.5, 1.5));
        let negative = ratio(&[1.0, 1.0, 1.0], &[2.0, -0.5, 2.0]);
        assert_eq!(negative.median, 0.5);
    }

    #[test]
    fn medians_do_not_depend_on_order() {
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[1.0, 2.0, 3.0, 4.0]), 2.5);
    }
}
