//! How long something shall last, as people write it.

use std::time::Duration;

use thiserror::Error;

/// The longest time that can be written: 100 years, so that an end always has a date.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The text is no time to live. A typo is an error, never "for ever".
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a time to live: {text:?} (expected such as 90m, 24h, 7d, 2w, or never)")]
pub struct InvalidTtl {
    /// What was written, its first 32 characters.
    pub text: String,
}

/// Reads a whole number with `s`, `m`, `h`, `d` or `w`, such as `90m`, or `never`, which is `None`.
///
/// # Errors
/// [`InvalidTtl`] for anything else, for zero, and for more than 100 years.
pub fn parse(text: &str) -> Result<Option<Duration>, InvalidTtl> {
    let invalid = || InvalidTtl { text: text.chars().take(32).collect() };
    if text == "never" {
        return Ok(None);
    }
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(invalid)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(invalid()),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let count: u64 = number.parse().map_err(|_| invalid())?;
    let ttl = count.checked_mul(seconds).map(Duration::from_secs);
    ttl.filter(|ttl| !ttl.is_zero() && *ttl <= LONGEST).map(Some).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, seconds) in [("90m", 5400), ("24h", 86_400), ("7d", 604_800), ("2w", 1_209_600), ("1s", 1)]
        {
            assert_eq!(parse(text), Ok(Some(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!(parse("never"), Ok(None));
    }

    #[test]
    fn a_typo_is_never_for_ever() {
        for text in [
            "",
            "0",
            "0h",
            "24",
            "h",
            "24 h",
            "-1h",
            "+1h",
            "1.5h",
            "24hh",
            "nevr",
            "Never",
            "1y",
            "٣h",
            "24ħ",
            "999999999999999999999d",
            "36501d",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
