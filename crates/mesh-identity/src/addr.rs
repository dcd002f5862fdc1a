//! Where a node can be dialed: hints in an invite, entries in an address book.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::wire::{DecodeError, Reader, put_short};

/// The most direct addresses of one node; the family of each is a bit of one byte.
pub const DIRECT_ADDRS_MAX: usize = 8;
/// The longest relay URL in bytes.
pub const RELAY_URL_BYTES_MAX: usize = 120;

/// The longest encoding: header, families, eight IPv6 addresses, a relay behind its length.
pub(crate) const ENCODED_BYTES_MAX: usize = 2 + DIRECT_ADDRS_MAX * 18 + 1 + RELAY_URL_BYTES_MAX;

const COUNT_MASK: u8 = 0x0f;
const RELAY_BIT: u8 = 0x10;
const HTTPS_BIT: u8 = 0x20;
const HTTPS: &str = "https://";

/// Where a node can be reached. In the order of preference that its author chose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NodeAddr {
    /// Addresses to dial directly, at most [`DIRECT_ADDRS_MAX`]. Scope ids and flow labels of IPv6 are not carried.
    pub direct: Vec<SocketAddr>,
    /// The URL of the relay at which it listens, at most [`RELAY_URL_BYTES_MAX`] bytes of visible ASCII.
    pub relay: Option<String>,
}

/// The address cannot be written down. Fix the value; it will not encode as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidNodeAddr {
    /// More than [`DIRECT_ADDRS_MAX`] direct addresses.
    #[error("more than {DIRECT_ADDRS_MAX} direct addresses")]
    TooManyDirect,
    /// The relay is empty, longer than [`RELAY_URL_BYTES_MAX`], or holds spaces or anything but visible ASCII.
    #[error("a relay url has 1 to {RELAY_URL_BYTES_MAX} visible ASCII characters after https://")]
    Relay,
}

impl NodeAddr {
    /// Whether it names no address at all.
    pub fn is_empty(&self) -> bool {
        self.direct.is_empty() && self.relay.is_none()
    }

    /// Whether it can be written down.
    ///
    /// # Errors
    /// [`InvalidNodeAddr`] says which bound it breaks.
    pub fn check(&self) -> Result<(), InvalidNodeAddr> {
        if self.direct.len() > DIRECT_ADDRS_MAX {
            return Err(InvalidNodeAddr::TooManyDirect);
        }
        match &self.relay {
            Some(url) if !is_relay_url(url) => Err(InvalidNodeAddr::Relay),
            _ => Ok(()),
        }
    }

    /// The compact encoding: 1 byte for nothing, 6 bytes for each IPv4 and 18 for each IPv6 address, 1 for all families,
    /// and the relay's URL behind its length, `https://` left out.
    ///
    /// # Errors
    /// [`InvalidNodeAddr`] when [`NodeAddr::check`] refuses it.
    pub fn encode(&self) -> Result<Vec<u8>, InvalidNodeAddr> {
        let mut out = Vec::new();
        self.put(&mut out)?;
        Ok(out)
    }

    /// Reads what [`NodeAddr::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, ENCODED_BYTES_MAX)?;
        let addr = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(addr)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) -> Result<(), InvalidNodeAddr> {
        self.check()?;
        let count = u8::try_from(self.direct.len()).map_err(|_| InvalidNodeAddr::TooManyDirect)?;
        let (relay, bits) = match self.relay.as_deref().map(|url| (url.strip_prefix(HTTPS), url)) {
            None => (None, 0),
            Some((Some(rest), _)) => (Some(rest), RELAY_BIT | HTTPS_BIT),
            Some((None, url)) => (Some(url), RELAY_BIT),
        };
        out.push(count | bits);
        if count > 0 {
            let bit = |(at, addr): (usize, &SocketAddr)| u8::from(addr.is_ipv6()) << at;
            out.push(self.direct.iter().enumerate().map(bit).sum());
        }
        for addr in &self.direct {
            match addr.ip() {
                IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
                IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
            }
            out.extend_from_slice(&addr.port().to_be_bytes());
        }
        if let Some(relay) = relay {
            put_short(out, relay.as_bytes());
        }
        Ok(())
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        const INVALID: DecodeError = DecodeError::Invalid { what: "address" };
        let header = reader.byte()?;
        let count = usize::from(header & COUNT_MASK);
        let bits = header & !COUNT_MASK;
        if count > DIRECT_ADDRS_MAX || ![0, RELAY_BIT, RELAY_BIT | HTTPS_BIT].contains(&bits) {
            return Err(INVALID);
        }
        let families = if count > 0 { reader.byte()? } else { 0 };
        if u32::from(families) >> count != 0 {
            return Err(INVALID);
        }
        let mut direct = Vec::with_capacity(count);
        for at in 0..count {
            let ip = if families >> at & 1 == 0 {
                IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?))
            } else {
                IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?))
            };
            direct.push(SocketAddr::new(ip, u16::from_be_bytes(reader.array()?)));
        }
        let relay = if bits == 0 { None } else { Some(read_relay(reader, bits & HTTPS_BIT != 0)?) };
        Ok(Self { direct, relay })
    }
}

fn read_relay(reader: &mut Reader<'_>, https: bool) -> Result<String, DecodeError> {
    let length = reader.byte()?;
    let rest = std::str::from_utf8(reader.bytes(usize::from(length))?).unwrap_or_default();
    let url = if https { [HTTPS, rest].concat() } else { rest.to_owned() };
    let canonical = https || !url.starts_with(HTTPS);
    if canonical && is_relay_url(&url) { Ok(url) } else { Err(DecodeError::Invalid { what: "relay url" }) }
}

fn is_relay_url(url: &str) -> bool {
    url.len() <= RELAY_URL_BYTES_MAX
        && !url.strip_prefix(HTTPS).unwrap_or(url).is_empty()
        && url.bytes().all(|byte| byte.is_ascii_graphic())
}

#[derive(Serialize, Deserialize)]
struct Readable {
    #[serde(default)]
    direct: Vec<SocketAddr>,
    #[serde(default)]
    relay: Option<String>,
}

/// `{"direct": [...], "relay": ...}` in readable formats, the compact encoding in binary ones.
impl Serialize for NodeAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let encoded = self.encode().map_err(serde::ser::Error::custom)?;
        if serializer.is_human_readable() {
            Readable { direct: self.direct.clone(), relay: self.relay.clone() }.serialize(serializer)
        } else {
            serializer.serialize_bytes(&encoded)
        }
    }
}

impl<'de> Deserialize<'de> for NodeAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            let Readable { direct, relay } = Readable::deserialize(deserializer)?;
            let addr = Self { direct, relay };
            addr.check().map_err(D::Error::custom)?;
            return Ok(addr);
        }
        let bytes = crate::wire::deserialize_form(deserializer, "a node's address", ENCODED_BYTES_MAX)?;
        Self::decode(&bytes).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(direct: &[&str], relay: Option<&str>) -> NodeAddr {
        let direct = direct.iter().map(|text| text.parse().expect("a socket address")).collect();
        NodeAddr { direct, relay: relay.map(str::to_owned) }
    }

    #[test]
    fn round_trips_in_order() {
        for (value, bytes) in [
            (addr(&[], None), 1),
            (addr(&["192.0.2.1:9000"], None), 2 + 6),
            (addr(&["[2001:db8::1]:1", "192.0.2.1:2"], Some("https://relay.example.org")), 2 + 24 + 1 + 17),
            (addr(&[], Some("http://127.0.0.1:3340")), 1 + 1 + 21),
        ] {
            let encoded = value.encode().expect("encodes");
            assert_eq!(encoded.len(), bytes);
            assert_eq!(NodeAddr::decode(&encoded), Ok(value.clone()));
            let json = serde_json::to_string(&value).expect("serializes");
            assert_eq!(serde_json::from_str::<NodeAddr>(&json).expect("parses"), value);
            let frame = postcard::to_allocvec(&value).expect("serializes");
            assert_eq!(postcard::from_bytes::<NodeAddr>(&frame).expect("parses"), value);
        }
    }

    #[test]
    fn the_largest_address_fits_its_bound_and_larger_ones_are_refused() {
        let relay = format!("http://{}", "x".repeat(RELAY_URL_BYTES_MAX - 7));
        let mut largest = addr(&["[2001:db8::1]:1"; DIRECT_ADDRS_MAX], Some(&relay));
        assert_eq!(largest.encode().expect("encodes").len(), ENCODED_BYTES_MAX);
        largest.relay = Some(relay + "x");
        assert_eq!(largest.encode(), Err(InvalidNodeAddr::Relay));
        let crowd = addr(&["192.0.2.1:9"; DIRECT_ADDRS_MAX + 1], None);
        assert_eq!(crowd.encode(), Err(InvalidNodeAddr::TooManyDirect));
    }

    #[test]
    fn other_spellings_are_refused() {
        let literal_https = [&[RELAY_BIT, 9][..], b"https://a"].concat();
        for bytes in
            [&[0x09][..], &[0x20], &[0x40], &[1, 2], &[0x10, 0], &[0x30, 0], &[0x10, 1, 7], &literal_https]
        {
            let result = NodeAddr::decode(bytes);
            assert!(matches!(result, Err(DecodeError::Invalid { .. })), "{bytes:?} {result:?}");
        }
        assert_eq!(NodeAddr::decode(&[1, 0, 1, 2]), Err(DecodeError::Truncated));
        assert_eq!(NodeAddr::decode(&[0, 0]), Err(DecodeError::TrailingBytes { count: 1 }));
    }
}
