//! Sizes, times and round trips as people say them.

use std::time::Duration;

/// Seconds in their largest fitting unit, to the nearest: `12 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_570 => format!("{} min", (seconds + 30) / 60),
        3_570..171_000 => format!("{} h", (seconds + 1_800) / 3_600),
        _ => format!("{} d", (seconds + 43_200) / 86_400),
    }
}

/// What something took: `0.4 s`, `12 s`, `3 min`.
pub(crate) fn elapsed(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        return format!("{:.1} s", time.as_secs_f64());
    }
    duration(time.as_secs())
}

/// When something ends: `in 23 h`, `5 min ago`, `never`.
pub(crate) fn end(time: Option<u64>, now: u64) -> String {
    match time {
        None => "never".to_owned(),
        Some(time) if time > now => format!("in {}", duration(time - now)),
        Some(time) => format!("{} ago", duration(now - time)),
    }
}

/// Bytes in decimal units: `253 MB`, `4.1 GB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1_000 {
        return format!("{count} B");
    }
    let (mut whole, mut tenth, mut unit) = (count / 1_000, count % 1_000 / 100, 0);
    while whole >= 1_000 && unit + 1 < UNITS.len() {
        (tenth, whole, unit) = (whole % 1_000 / 100, whole / 1_000, unit + 1);
    }
    if whole < 10 { format!("{whole}.{tenth} {}", UNITS[unit]) } else { format!("{whole} {}", UNITS[unit]) }
}

/// A round trip: `0.12 ms`, `12.3 ms`, `123 ms`.
pub(crate) fn milliseconds(ms: f64) -> String {
    let digits = if ms < 10.0 { 2 } else { usize::from(ms < 100.0) };
    format!("{ms:.digits$} ms")
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_their_largest_unit() {
        let said: Vec<String> =
            [0, 59, 60, 89, 90, 3_569, 3_570, 86_398, 170_999, 171_000, 30 * 86_400 - 1].map(duration).into();
        assert_eq!(
            said,
            ["0 s", "59 s", "1 min", "1 min", "2 min", "59 min", "1 h", "24 h", "47 h", "2 d", "30 d"]
        );
    }

    #[test]
    fn what_took_little_has_a_tenth() {
        assert_eq!(
            [440, 9_940, 12_900, 190_000].map(|ms| elapsed(Duration::from_millis(ms))),
            ["0.4 s", "9.9 s", "12 s", "3 min"]
        );
    }

    #[test]
    fn an_end_lies_ahead_or_behind() {
        assert_eq!(end(None, 100), "never");
        assert_eq!(end(Some(100 + 7_200), 100), "in 2 h");
        assert_eq!(end(Some(40), 100), "1 min ago");
    }

    #[test]
    fn sizes_have_two_figures_or_more() {
        let said: Vec<String> =
            [999, 1_000, 9_999, 10_000, 253_113_024, 999_999_999, 4_130_000_000, u64::MAX].map(bytes).into();
        assert_eq!(said, ["999 B", "1.0 kB", "9.9 kB", "10 kB", "253 MB", "999 MB", "4.1 GB", "18446 PB"]);
    }

    #[test]
    fn round_trips_have_three_figures() {
        assert_eq!(
            [0.118, 9.5, 12.34, 99.96, 230.4].map(milliseconds),
            ["0.12 ms", "9.50 ms", "12.3 ms", "100.0 ms", "230 ms"]
        );
    }
}
