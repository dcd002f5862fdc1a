//! Points in time as the signed forms carry them: whole seconds since 1970, in UTC.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::wire::{DecodeError, Reader, put_varint};

/// How far two honest clocks may disagree. Whatever ends is taken for this much longer.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// 9999-12-31T23:59:59Z: the last second with a four-digit year, and the last that a signed form may name.
const LAST_SECOND: u64 = 253_402_300_799;

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The wall clock's now; zero on a machine whose clock stands before 1970.
    ///
    /// The only place of this crate that reads a clock: everything else takes `now` as an argument.
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// This time plus `duration` in whole seconds, at most the year 9999.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_secs()).min(LAST_SECOND))
    }

    pub(crate) fn put(self, out: &mut Vec<u8>) {
        put_varint(out, self.0);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.varint()? {
            seconds if seconds <= LAST_SECOND => Ok(Self(seconds)),
            _ => Err(DecodeError::Invalid { what: "time" }),
        }
    }
}

/// RFC 3339 in UTC, such as `2026-11-21T04:05:06Z`.
impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Year, month and day of a day number since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// When something ends; it may be never. On the wire zero means never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Expiry(u64);

impl Expiry {
    /// It does not end by itself.
    pub const NEVER: Self = Self(0);

    /// It ends at `time`. (Time zero, 1970, is taken as one second later, because zero means never.)
    pub fn at(time: UnixTime) -> Self {
        Self(time.0.clamp(1, LAST_SECOND))
    }

    /// It ends `ttl` after `now`; `None` is never.
    pub fn after(now: UnixTime, ttl: Option<Duration>) -> Self {
        ttl.map_or(Self::NEVER, |ttl| Self::at(now.plus(ttl)))
    }

    /// When it ends, `None` for never.
    pub fn time(self) -> Option<UnixTime> {
        (self.0 != 0).then_some(UnixTime(self.0))
    }

    /// Whether it has ended at `now`, [`CLOCK_SKEW`] being tolerated.
    pub fn is_over(self, now: UnixTime) -> bool {
        self.time().is_some_and(|end| now.0 > end.0.saturating_add(CLOCK_SKEW.as_secs()))
    }

    /// Whether it ends no later than `other` does.
    pub fn is_within(self, other: Self) -> bool {
        match (self.time(), other.time()) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(mine), Some(theirs)) => mine <= theirs,
        }
    }

    /// The earlier of the two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if self.is_within(other) { self } else { other }
    }

    pub(crate) fn put(self, out: &mut Vec<u8>) {
        put_varint(out, self.0);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        UnixTime::read(reader).map(|time| Self(time.0))
    }
}

/// The time, or `never`.
impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.time() {
            Some(time) => time.fmt(f),
            None => f.write_str("never"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_233_906, "2026-11-21T04:05:06Z"),
            (LAST_SECOND, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(UnixTime(seconds).to_string(), text);
        }
    }

    #[test]
    fn an_expiry_tolerates_a_minute_of_skew_and_never_ends_when_never() {
        let expiry = Expiry::at(UnixTime(1000));
        assert!(!expiry.is_over(UnixTime(1060)));
        assert!(expiry.is_over(UnixTime(1061)));
        assert!(!Expiry::NEVER.is_over(UnixTime(u64::MAX)));
        assert!(expiry.is_within(Expiry::NEVER) && !Expiry::NEVER.is_within(expiry));
        assert_eq!(expiry.min(Expiry::NEVER), expiry);
        assert_eq!(Expiry::NEVER.min(expiry), expiry);
    }
}
