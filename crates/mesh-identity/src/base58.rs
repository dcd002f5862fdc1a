//! base58btc, for the one text form that needs it: a peer id.

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// The base58btc text of `bytes`.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    let mut digits: Vec<u8> = Vec::with_capacity(bytes.len() * 138 / 100 + 1); // least significant first
    for &byte in &bytes[zeros..] {
        let mut carry = u32::from(byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    let ones = std::iter::repeat_n('1', zeros);
    ones.chain(digits.iter().rev().map(|&digit| char::from(ALPHABET[usize::from(digit)]))).collect()
}

/// Exactly `N` bytes of base58btc text, or `None`.
pub(crate) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() > 2 * N {
        return None;
    }
    let mut out = [0u8; N];
    for symbol in text.bytes() {
        let position = ALPHABET.iter().position(|&known| known == symbol)?;
        let mut carry = u32::try_from(position).ok()?;
        for byte in out.iter_mut().rev() {
            carry += u32::from(*byte) * 58;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        if carry > 0 {
            return None;
        }
    }
    // Leading zeros have one spelling each, so anything but the canonical text is refused.
    (encode(&out) == text).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_known_vectors() {
        // Bitcoin Core, src/test/data/base58_encode_decode.json.
        for (bytes, text) in [
            (&b"\x61"[..], "2g"),
            (&b"\x62\x62\x62"[..], "a3gV"),
            (&b"simply a long string"[..], "2cFupjhnEsSn59qHXstmK2ffpLv2"),
            (&b"\x00\xeb\x15\x23\x1d\xfc\xeb\x60\x92\x58\x86\xb6\x7d\x06\x52\x99\x92\x59\x15\xae\xb1\x72\xc0\x66\x47"[..],
                "1NS17iag9jJgTHD1VXjvLCEnZuQ3rJDE9L"),
            (&b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"[..], "1111111111"),
        ] {
            assert_eq!(encode(bytes), text);
        }
        assert_eq!(decode::<3>("a3gV"), Some(*b"\x62\x62\x62"));
        assert_eq!(decode::<10>("1111111111"), Some([0; 10]));
    }

    #[test]
    fn refuses_what_is_not_canonical_or_of_another_length() {
        assert_eq!(decode::<3>("1a3gV"), None);
        assert_eq!(decode::<3>("a3g0"), None);
        assert_eq!(decode::<4>("a3gV"), None);
        assert_eq!(decode::<2>("a3gV"), None);
    }
}
