//! What names a CA may give.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// Private, link-local, shared (RFC 6598: what overlay networks use) and loopback addresses.
const PRIVATE: &[(&str, u8)] = &[
    ("10.0.0.0", 8),
    ("172.16.0.0", 12),
    ("192.168.0.0", 16),
    ("169.254.0.0", 16),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("fc00::", 7),
    ("fe80::", 10),
    ("::1", 128),
];

/// A range of addresses, such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

/// The text is no range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a range of addresses (expected one such as 203.0.113.0/24 or 2001:db8::/32)")]
pub struct InvalidCidr;

impl Cidr {
    /// The range of all addresses that begin with the first `prefix` bits of `addr`.
    ///
    /// # Errors
    /// [`InvalidCidr`] when the prefix is longer than the address, or when `addr` is not the first of its range: whoever
    /// writes `10.1.2.3/8` may have meant something else.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Self, InvalidCidr> {
        let (bits, length) = bits(addr);
        let rest = length.checked_sub(u32::from(prefix)).ok_or(InvalidCidr)?;
        let host = bits & !u128::MAX.checked_shl(rest).unwrap_or(0);
        if host == 0 { Ok(Self { addr, prefix }) } else { Err(InvalidCidr) }
    }

    /// Whether `addr` is in the range.
    pub fn contains(self, addr: IpAddr) -> bool {
        let ((mine, length), (theirs, other)) = (bits(self.addr), bits(addr));
        let rest = length - u32::from(self.prefix);
        let head = |bits: u128| bits.checked_shr(rest).unwrap_or(0);
        length == other && head(mine) == head(theirs)
    }
}

/// The address as a number, and how many bits it has.
fn bits(addr: IpAddr) -> (u128, u32) {
    match addr {
        IpAddr::V4(addr) => (u128::from(u32::from(addr)), 32),
        IpAddr::V6(addr) => (u128::from(addr), 128),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// `ADDRESS/BITS`, or an address alone.
impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| InvalidCidr)?;
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(whole), |prefix| prefix.parse().map_err(|_| InvalidCidr))?;
        Self::new(addr, prefix)
    }
}

/// The names that a CA's certificate permits it to give. An empty list limits nothing, as in RFC 5280, section 4.2.1.10.
///
/// Only host names and addresses are limited. A limit on URIs or on the subject would be right in theory; the verifier that
/// nodes use (webpki) refuses every certificate below such a limit, because it does not implement it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Host names; each permits itself and everything below it.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<Cidr>,
}

impl Constraints {
    /// Hosts below `mesh`, and addresses of private networks.
    pub fn mesh() -> Self {
        let ips = PRIVATE.iter().filter_map(|(addr, prefix)| Cidr::new(addr.parse().ok()?, *prefix).ok());
        Self { dns: vec!["mesh".to_owned()], ips: ips.collect() }
    }

    /// Whether a certificate may carry this host name.
    pub fn permits_dns(&self, host: &str) -> bool {
        let below = |base: &String| {
            let host = host.to_ascii_lowercase();
            let base = base.to_ascii_lowercase();
            host == base || host.strip_suffix(&base).is_some_and(|head| head.ends_with('.'))
        };
        self.dns.is_empty() || self.dns.iter().any(below)
    }

    /// Whether a certificate may carry this address.
    pub fn permits_ip(&self, addr: IpAddr) -> bool {
        self.ips.is_empty() || self.ips.iter().any(|range| range.contains(addr))
    }

    /// As an extension of a CA's certificate; none when nothing is limited.
    pub(super) fn extension(&self) -> Option<NameConstraints> {
        let dns = self.dns.iter().map(|name| GeneralSubtree::DnsName(name.to_ascii_lowercase()));
        let range = |range: &Cidr| CidrSubnet::from_addr_prefix(range.addr, range.prefix);
        let ips = self.ips.iter().map(|ip| GeneralSubtree::IpAddress(range(ip)));
        let permitted_subtrees: Vec<_> = dns.chain(ips).collect();
        (!permitted_subtrees.is_empty())
            .then_some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() })
    }

    /// What this CA's certificate permits. What it excludes is not told: the verification of what was signed knows it.
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut found = Self::default();
        let Ok(Some(extension)) = certificate.name_constraints() else { return found };
        for subtree in extension.value.permitted_subtrees.iter().flatten() {
            match &subtree.base {
                GeneralName::DNSName(name) => found.dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => found.ips.extend(subnet(bytes)),
                _ => {}
            }
        }
        found
    }
}

/// An address and a mask, as they stand in a certificate.
fn subnet(bytes: &[u8]) -> Option<Cidr> {
    let (addr, mask) = match bytes.len() {
        8 => (IpAddr::from(<[u8; 4]>::try_from(&bytes[..4]).ok()?), &bytes[4..]),
        32 => (IpAddr::from(<[u8; 16]>::try_from(&bytes[..16]).ok()?), &bytes[16..]),
        _ => return None,
    };
    let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    Cidr::new(addr, u8::try_from(ones).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_range_is_its_first_address_and_a_length() {
        for text in ["10.0.0.0/8", "fc00::/7", "0.0.0.0/0", "::/0", "192.0.2.7/32"] {
            assert_eq!(text.parse::<Cidr>().expect("a range").to_string(), text);
        }
        assert_eq!("192.0.2.7".parse::<Cidr>().expect("a range").to_string(), "192.0.2.7/32");
        for text in
            ["10.1.2.3/8", "10.0.0.0/33", "fc00::/129", "10.0.0.0/-1", "mesh", "", "/8", "10.0.0.0/8/8"]
        {
            assert_eq!(text.parse::<Cidr>(), Err(InvalidCidr), "{text}");
        }
    }

    #[test]
    fn private_addresses_are_permitted_and_public_ones_are_not() {
        let mesh = Constraints::mesh();
        for addr in [
            "10.255.0.1",
            "172.31.0.1",
            "192.168.1.1",
            "100.127.0.1",
            "127.0.0.1",
            "::1",
            "fd00::1",
            "fe80::1",
        ] {
            assert!(mesh.permits_ip(ip(addr)), "{addr}");
        }
        for addr in
            ["11.0.0.1", "172.32.0.1", "100.128.0.1", "8.8.8.8", "2001:db8::1", "::2", "::ffff:10.0.0.1"]
        {
            assert!(!mesh.permits_ip(ip(addr)), "{addr}");
        }
        assert!(Constraints::default().permits_ip(ip("8.8.8.8")), "no list, no limit");
    }

    #[test]
    fn a_host_name_permits_itself_and_what_is_below_it() {
        let mut mesh = Constraints::mesh();
        for name in ["ct110.mesh", "CT110.Mesh", "mesh", "a.b.mesh"] {
            assert!(mesh.permits_dns(name), "{name}");
        }
        for name in ["ct110", "ct110.mesh.example.org", "amesh", ""] {
            assert!(!mesh.permits_dns(name), "{name}");
        }
        mesh.dns.push("ct110".to_owned());
        assert!(mesh.permits_dns("ct110") && !mesh.permits_dns("ct111"));
    }
}
