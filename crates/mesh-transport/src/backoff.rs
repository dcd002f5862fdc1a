//! How long to wait before the next dial.

use std::time::Duration;

/// The wait before try number `tries` (1 is the first again): it doubles from `first` up to `longest`, and lies
/// anywhere between half of that and all of it, by `chance` in 0..1, so that nodes that lost each other together do not
/// all dial at once.
pub(crate) fn wait_before(tries: u32, first: Duration, longest: Duration, chance: f64) -> Duration {
    let doublings = tries.saturating_sub(1).min(30);
    let full = first.saturating_mul(1 << doublings).min(longest);
    full.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn doubles_up_to_the_longest() {
        let waits = [1, 2, 3, 8, 9, 1000, u32::MAX].map(|tries| wait_before(tries, FIRST, LONGEST, 1.0));
        let wanted = [200, 400, 800, 25_600, 30_000, 30_000, 30_000].map(Duration::from_millis);
        assert_eq!(waits, wanted);
    }

    #[test]
    fn chance_spreads_over_the_upper_half() {
        let waits = [0.0, 0.5, 1.0, 7.0, -1.0].map(|chance| wait_before(2, FIRST, LONGEST, chance));
        assert_eq!(waits, [200, 300, 400, 400, 200].map(Duration::from_millis));
    }
}
