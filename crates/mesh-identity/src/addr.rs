//! Where a node can be dialed: hints in an invite, entries in an address book.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::wire::{DecodeError, Reader, put_short};

/// The most addresses of one node for each kind of transport; the family of each is a bit of one byte.
pub const DIRECT_ADDRS_MAX: usize = 8;
/// The longest relay URL in bytes.
pub const RELAY_URL_BYTES_MAX: usize = 120;

/// The longest encoding: twice a count, families and eight IPv6 addresses, and a relay behind its length.
pub(crate) const ENCODED_BYTES_MAX: usize = 2 * (2 + DIRECT_ADDRS_MAX * 18) + 1 + RELAY_URL_BYTES_MAX;

const COUNT_MASK: u8 = 0x0f;
const RELAY_BIT: u8 = 0x10;
const HTTPS_BIT: u8 = 0x20;
const LAN_BIT: u8 = 0x40;
const HTTPS: &str = "https://";

/// Where a node can be reached. In the order of preference that its author chose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NodeAddr {
    /// Addresses to dial directly over the internet transport, at most [`DIRECT_ADDRS_MAX`]. Scope ids and flow labels of
    /// IPv6 are not carried.
    pub direct: Vec<SocketAddr>,
    /// Addresses of the LAN transport, TCP and QUIC, at most [`DIRECT_ADDRS_MAX`]. Apart from the others: each transport is
    /// dialed at its own sockets, and never at those of the other one, which would turn it away.
    pub lan: Vec<SocketAddr>,
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
        self.direct.is_empty() && self.lan.is_empty() && self.relay.is_none()
    }

    /// Whether it can be written down.
    ///
    /// # Errors
    /// [`InvalidNodeAddr`] says which bound it breaks.
    pub fn check(&self) -> Result<(), InvalidNodeAddr> {
        if self.direct.len().max(self.lan.len()) > DIRECT_ADDRS_MAX {
            return Err(InvalidNodeAddr::TooManyDirect);
        }
        match &self.relay {
            Some(url) if !is_relay_url(url) => Err(InvalidNodeAddr::Relay),
            _ => Ok(()),
        }
    }

    /// The compact encoding: 1 byte for nothing, 6 bytes for each IPv4 and 18 for each IPv6 address, 1 for all families, those
    /// of the LAN transport behind a count of their own, and the relay's URL behind its length, `https://` left out.
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
        let (relay, bits) = match self.relay.as_deref().map(|url| (url.strip_prefix(HTTPS), url)) {
            None => (None, 0),
            Some((Some(rest), _)) => (Some(rest), RELAY_BIT | HTTPS_BIT),
            Some((None, url)) => (Some(url), RELAY_BIT),
        };
        let lan_bit = if self.lan.is_empty() { 0 } else { LAN_BIT };
        put_sockets(out, &self.direct, bits | lan_bit);
        if !self.lan.is_empty() {
            put_sockets(out, &self.lan, 0);
        }
        if let Some(relay) = relay {
            put_short(out, relay.as_bytes());
        }
        Ok(())
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        const INVALID: DecodeError = DecodeError::Invalid { what: "address" };
        let header = reader.byte()?;
        let bits = header & !COUNT_MASK & !LAN_BIT;
        if ![0, RELAY_BIT, RELAY_BIT | HTTPS_BIT].contains(&bits) {
            return Err(INVALID);
        }
        let direct = read_sockets(reader, header & COUNT_MASK)?;
        let lan = match header & LAN_BIT {
            0 => Vec::new(),
            _ => match reader.byte()? {
                // None at all is written without the bit.
                0 => return Err(INVALID),
                count => read_sockets(reader, count)?,
            },
        };
        let relay = if bits == 0 { None } else { Some(read_relay(reader, bits & HTTPS_BIT != 0)?) };
        Ok(Self { direct, lan, relay })
    }
}

/// A count, under these bits, the families and the addresses.
fn put_sockets(out: &mut Vec<u8>, addrs: &[SocketAddr], bits: u8) {
    // Checked before: at most eight.
    let count = u8::try_from(addrs.len()).unwrap_or(u8::MAX) & COUNT_MASK;
    out.push(count | bits);
    if count > 0 {
        let bit = |(at, addr): (usize, &SocketAddr)| u8::from(addr.is_ipv6()) << at;
        out.push(addrs.iter().enumerate().map(bit).sum());
    }
    for addr in addrs {
        match addr.ip() {
            IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
        }
        out.extend_from_slice(&addr.port().to_be_bytes());
    }
}

fn read_sockets(reader: &mut Reader<'_>, count: u8) -> Result<Vec<SocketAddr>, DecodeError> {
    const INVALID: DecodeError = DecodeError::Invalid { what: "address" };
    if usize::from(count) > DIRECT_ADDRS_MAX {
        return Err(INVALID);
    }
    let families = if count > 0 { reader.byte()? } else { 0 };
    if u32::from(families) >> count != 0 {
        return Err(INVALID);
    }
    let mut addrs = Vec::with_capacity(usize::from(count));
    for at in 0..count {
        let ip = if families >> at & 1 == 0 {
            IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?))
        } else {
            IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?))
        };
        addrs.push(SocketAddr::new(ip, u16::from_be_bytes(reader.array()?)));
    }
    Ok(addrs)
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lan: Vec<SocketAddr>,
    #[serde(default)]
    relay: Option<String>,
}

/// `{"direct": [...], "lan": [...], "relay": ...}` in readable formats, the compact encoding in binary ones.
impl Serialize for NodeAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let encoded = self.encode().map_err(serde::ser::Error::custom)?;
        if serializer.is_human_readable() {
            let Self { direct, lan, relay } = self.clone();
            Readable { direct, lan, relay }.serialize(serializer)
        } else {
            serializer.serialize_bytes(&encoded)
        }
    }
}

impl<'de> Deserialize<'de> for NodeAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            let Readable { direct, lan, relay } = Readable::deserialize(deserializer)?;
            let addr = Self { direct, lan, relay };
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
        NodeAddr { direct, lan: Vec::new(), relay: relay.map(str::to_owned) }
    }

    fn with_lan(addr: NodeAddr, lan: &[&str]) -> NodeAddr {
        let lan = lan.iter().map(|text| text.parse().expect("a socket address")).collect();
        NodeAddr { lan, ..addr }
    }

    #[test]
    fn round_trips_in_order() {
        for (value, bytes) in [
            (addr(&[], None), 1),
            (addr(&["192.0.2.1:9000"], None), 2 + 6),
            (addr(&["[2001:db8::1]:1", "192.0.2.1:2"], Some("https://relay.example.org")), 2 + 24 + 1 + 17),
            (addr(&[], Some("http://127.0.0.1:3340")), 1 + 1 + 21),
            (with_lan(addr(&[], None), &["192.0.2.1:9000"]), 1 + 2 + 6),
            (with_lan(addr(&["192.0.2.1:1"], Some("https://a")), &["[2001:db8::1]:1"]), 2 + 6 + 2 + 18 + 2),
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
        let crowd = ["[2001:db8::1]:1"; DIRECT_ADDRS_MAX];
        let mut largest = with_lan(addr(&crowd, Some(&relay)), &crowd);
        assert_eq!(largest.encode().expect("encodes").len(), ENCODED_BYTES_MAX);
        largest.relay = Some(relay + "x");
        assert_eq!(largest.encode(), Err(InvalidNodeAddr::Relay));
        let crowd = addr(&["192.0.2.1:9"; DIRECT_ADDRS_MAX + 1], None);
        assert_eq!(crowd.encode(), Err(InvalidNodeAddr::TooManyDirect));
        let crowd = NodeAddr { lan: crowd.direct, ..NodeAddr::default() };
        assert_eq!(crowd.encode(), Err(InvalidNodeAddr::TooManyDirect));
    }

    #[test]
    fn other_spellings_are_refused() {
        let literal_https = [&[RELAY_BIT, 9][..], b"https://a"].concat();
        for bytes in [
            &[0x09][..],
            &[0x20],
            &[0x40, 0],
            &[0x40, 9],
            &[0x80],
            &[1, 2],
            &[0x10, 0],
            &[0x30, 0],
            &[0x10, 1, 7],
            &literal_https,
        ] {
            let result = NodeAddr::decode(bytes);
            assert!(matches!(result, Err(DecodeError::Invalid { .. })), "{bytes:?} {result:?}");
        }
        assert_eq!(NodeAddr::decode(&[1, 0, 1, 2]), Err(DecodeError::Truncated));
        assert_eq!(NodeAddr::decode(&[0, 0]), Err(DecodeError::TrailingBytes { count: 1 }));
    }
}
