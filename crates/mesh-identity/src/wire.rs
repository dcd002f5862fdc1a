//! The canonical encoding under every signed form: fixed fields, LEB128 integers, nothing optional that is not tagged.
//!
//! One value has one encoding: integers in more bytes than they need, unknown flag bits and bytes left over are errors.

use thiserror::Error;

/// Why bytes are not one of this crate's encoded forms. Nothing was changed; the bytes will never decode.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end in the middle of a field.
    #[error("the data is cut off")]
    Truncated,
    /// Bytes follow the last field.
    #[error("{count} extra bytes follow the data")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// An integer is written in more bytes than it needs.
    #[error("a number is not written in its shortest form")]
    NonCanonical,
    /// The form is longer than its bound.
    #[error("the data is longer than {max} bytes")]
    TooLong {
        /// The bound in bytes.
        max: usize,
    },
    /// The form's first byte names a version that this build does not read.
    #[error("version {found} is not known here")]
    WrongVersion {
        /// The version in the bytes.
        found: u8,
    },
    /// A field holds a value that the form does not allow.
    #[error("invalid {what}")]
    Invalid {
        /// The field.
        what: &'static str,
    },
}

/// Reads a form front to back.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, refusing more than `max` of them at once.
    pub(crate) fn new(bytes: &'a [u8], max: usize) -> Result<Self, DecodeError> {
        if bytes.len() > max {
            return Err(DecodeError::TooLong { max });
        }
        Ok(Self { rest: bytes })
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// A LEB128 integer in its shortest form.
    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Invalid { what: "number" });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                let padded = byte == 0 && shift > 0;
                return if padded { Err(DecodeError::NonCanonical) } else { Ok(value) };
            }
        }
        Err(DecodeError::Invalid { what: "number" })
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::TrailingBytes { count }),
        }
    }
}

/// Appends `value` as LEB128 in its shortest form.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Appends `bytes` behind their length in one byte.
///
/// The callers bound every such field below 256 bytes; a longer one is cut rather than mislabelled.
pub(crate) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    out.push(length);
    out.extend_from_slice(&bytes[..usize::from(length)]);
}

/// Lower-case hexadecimal.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Exactly `N` bytes of hexadecimal, either case.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

/// serde for a type with `encode`/`decode`: bytes in binary formats, base64url text in readable ones.
macro_rules! serde_as_encoded {
    ($type:ty, $expecting:literal, $max:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                crate::wire::serialize_form(&self.encode(), serializer)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let bytes = crate::wire::deserialize_form(deserializer, $expecting, $max)?;
                <$type>::decode(&bytes).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_encoded;

pub(crate) fn serialize_form<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    use base64::Engine as _;
    if serializer.is_human_readable() {
        serializer.serialize_str(&base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
    } else {
        serializer.serialize_bytes(bytes)
    }
}

pub(crate) fn deserialize_form<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
    expecting: &'static str,
    max: usize,
) -> Result<Vec<u8>, D::Error> {
    let form = Form { expecting, max };
    if deserializer.is_human_readable() {
        deserializer.deserialize_str(form)
    } else {
        deserializer.deserialize_bytes(form)
    }
}

struct Form {
    expecting: &'static str,
    max: usize,
}

impl serde::de::Visitor<'_> for Form {
    type Value = Vec<u8>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.expecting)
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        if bytes.len() > self.max {
            return Err(E::custom(DecodeError::TooLong { max: self.max }));
        }
        Ok(bytes.to_vec())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
        use base64::Engine as _;
        if text.len() > self.max.saturating_mul(2) {
            return Err(E::custom(DecodeError::TooLong { max: self.max }));
        }
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_have_one_form() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes, 16).expect("short");
            assert_eq!(reader.varint(), Ok(value));
            reader.finish().expect("nothing left");
        }
        let read = |bytes: &[u8]| Reader::new(bytes, 16).expect("short").varint();
        assert_eq!(read(&[0x80, 0x00]), Err(DecodeError::NonCanonical));
        assert_eq!(read(&[0x80]), Err(DecodeError::Truncated));
        assert_eq!(read(&[0xff; 10]), Err(DecodeError::Invalid { what: "number" }));
    }

    #[test]
    fn hexadecimal_round_trips_and_refuses_the_rest() {
        assert_eq!(to_hex(&[0, 0x9f, 0xff]), "009fff");
        assert_eq!(from_hex::<3>("009fFF"), Some([0, 0x9f, 0xff]));
        assert_eq!(from_hex::<3>("009ff"), None);
        assert_eq!(from_hex::<3>("+09fff"), None);
    }
}
