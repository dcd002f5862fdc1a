//! The number of a certificate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// RFC 5280, section 4.1.2.2: no conforming CA uses more.
const BYTES_MAX: usize = 20;

/// The number that a CA gave a certificate, at most 20 bytes: what a revocation names.
///
/// Its text is lower-case hexadecimal, two digits a byte, without a leading zero byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

/// The bytes or the text are no serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a serial number (expected 1 to 20 bytes, as hexadecimal digits)")]
pub struct InvalidSerial;

impl Serial {
    /// The number with these big-endian bytes; leading zeros do not count.
    ///
    /// # Errors
    /// [`InvalidSerial`] for no bytes or more than 20.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidSerial> {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let bytes = &bytes[zeros.min(bytes.len().saturating_sub(1))..];
        if bytes.is_empty() || bytes.len() > BYTES_MAX {
            Err(InvalidSerial)
        } else {
            Ok(Self(bytes.to_vec()))
        }
    }

    /// The big-endian bytes, without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&crate::wire::to_hex(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// Hexadecimal digits of either case, colons between bytes allowed, as openssl prints them.
impl FromStr for Serial {
    type Err = InvalidSerial;

    fn from_str(text: &str) -> Result<Self, InvalidSerial> {
        let digits: Vec<u32> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).ok_or(InvalidSerial))
            .collect::<Result<_, _>>()?;
        let padded: Vec<u32> =
            std::iter::repeat_n(0, digits.len() % 2).chain(digits.iter().copied()).collect();
        let bytes: Result<Vec<u8>, _> =
            padded.chunks_exact(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1])).collect();
        Self::from_bytes(&bytes.map_err(|_| InvalidSerial)?)
    }
}

impl Serialize for Serial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_has_one_text() {
        for text in ["03e9", "3e9", "3E9", "03:e9", "00:00:03:E9"] {
            assert_eq!(text.parse::<Serial>().expect("a number").to_string(), "03e9", "{text}");
        }
        assert_eq!("0".parse::<Serial>().expect("zero").to_string(), "00");
        assert_eq!(Serial::from_bytes(&[0, 0x80]).expect("a number").as_bytes(), [0x80]);
    }

    #[test]
    fn other_texts_and_longer_numbers_are_refused() {
        for text in ["", ":", "xyz", "-1", &"1".repeat(41)] {
            assert_eq!(text.parse::<Serial>(), Err(InvalidSerial), "{text}");
        }
        assert!("1".repeat(40).parse::<Serial>().is_ok());
    }
}
