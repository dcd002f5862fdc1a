//! What a node's certificate says.

use std::net::IpAddr;

use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use super::Serial;
use crate::{NodeId, NodeName, UnixTime};

/// What stands before a node's id in the URI among a certificate's names.
pub const NODE_URI_PREFIX: &str = "qmt:node:";

/// The longest certificate that is looked at. One of ours has some 700 bytes, one with an RSA key and many addresses 3,000.
pub const LEAF_BYTES_MAX: usize = 16 * 1024;

/// More names than any node has: each costs a comparison at every request.
pub(super) const NAMES_MAX: usize = 64;

/// The facts of a node's certificate. Reading it verifies no signature and no time: TLS has done that, or
/// `verify` of this module does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The node's name: the certificate's common name.
    pub name: NodeName,
    /// The node's id, when the certificate carries it.
    pub node: Option<NodeId>,
    /// Host names that it may serve under, in lower case.
    pub dns: Vec<String>,
    /// Addresses that it may serve under.
    pub ips: Vec<IpAddr>,
    /// Its number.
    pub serial: Serial,
    /// From when it holds.
    pub not_before: UnixTime,
    /// Until when it holds, this second included.
    pub not_after: UnixTime,
    /// Whether it may be shown by a server.
    pub is_server: bool,
    /// Whether it may be shown by a client.
    pub is_client: bool,
}

/// Why a certificate is none of a node.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LeafError {
    /// It is longer than any certificate of a node.
    #[error("the certificate has {bytes} bytes; one of a node has at most {LEAF_BYTES_MAX}")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// The bytes are no certificate.
    #[error("this is no X.509 certificate: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// It may sign certificates.
    #[error("this is the certificate of a CA, not of a node")]
    IsCa,
    /// It has no common name or more than one, or one that cannot name a node.
    #[error("the certificate's common name {found:?} is no node name")]
    Name {
        /// What stands there.
        found: String,
    },
    /// No host name of it is `<name>.mesh` or the name itself.
    #[error(
        "the certificate is for {name} by its common name, and none of its host names is {name}.mesh or {name}"
    )]
    Mismatch {
        /// The common name.
        name: NodeName,
    },
    /// It has a `qmt:node:` URI that is no node id, or two.
    #[error("the certificate's URI {uri:?} does not name one node")]
    Node {
        /// What stands there.
        uri: String,
    },
}

impl Leaf {
    /// The facts of the certificate in `der`.
    ///
    /// # Errors
    /// [`LeafError`] when the bytes are no certificate of a node; nothing is guessed.
    pub fn read(der: &[u8]) -> Result<Self, LeafError> {
        if der.len() > LEAF_BYTES_MAX {
            return Err(LeafError::TooLong { bytes: der.len() });
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(malformed)?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow it"));
        }
        if certificate.basic_constraints().map_err(malformed)?.is_some_and(|constraints| constraints.value.ca)
        {
            return Err(LeafError::IsCa);
        }
        let names = Names::of(&certificate)?;
        let name = common_name(&certificate)?;
        if !names.dns.iter().any(|dns| is_host_of(dns, &name)) {
            return Err(LeafError::Mismatch { name });
        }
        let usage = certificate.extended_key_usage().map_err(malformed)?.map(|usage| usage.value);
        let validity = certificate.validity();
        Ok(Self {
            name,
            node: names.node,
            dns: names.dns,
            ips: names.ips,
            serial: Serial::from_bytes(certificate.raw_serial()).map_err(malformed)?,
            not_before: unix(validity.not_before),
            not_after: unix(validity.not_after),
            is_server: usage.is_none_or(|usage| usage.any || usage.server_auth),
            is_client: usage.is_none_or(|usage| usage.any || usage.client_auth),
        })
    }

    /// Whether this is the certificate of the node called `name`; the case of letters does not count, as in host names.
    pub fn is_of(&self, name: &str) -> bool {
        self.name.as_str().eq_ignore_ascii_case(name)
    }
}

/// The names of a certificate beside its subject.
#[derive(Default)]
struct Names {
    node: Option<NodeId>,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Names {
    fn of(certificate: &X509Certificate<'_>) -> Result<Self, LeafError> {
        let mut names = Self::default();
        let Some(alternatives) = certificate.subject_alternative_name().map_err(malformed)? else {
            return Ok(names);
        };
        let all = &alternatives.value.general_names;
        if all.len() > NAMES_MAX {
            return Err(malformed(format!("it has more than {NAMES_MAX} names")));
        }
        for name in all {
            match name {
                GeneralName::DNSName(dns) => names.dns.push(dns.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => {
                    names.ips.push(address(bytes).ok_or_else(|| malformed("an address of it is none"))?);
                }
                GeneralName::URI(uri) => names.take_uri(uri)?,
                GeneralName::Invalid(..) => return Err(malformed("a name of it is damaged")),
                _ => {}
            }
        }
        Ok(names)
    }

    fn take_uri(&mut self, uri: &str) -> Result<(), LeafError> {
        let Some(id) = uri.strip_prefix(NODE_URI_PREFIX) else { return Ok(()) };
        let id = id.parse().map_err(|_| LeafError::Node { uri: shown(uri) })?;
        match self.node.replace(id) {
            None => Ok(()),
            Some(_) => Err(LeafError::Node { uri: shown(uri) }),
        }
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> Result<NodeName, LeafError> {
    let mut names = certificate.subject().iter_common_name();
    let wrong = |found: &str| LeafError::Name { found: shown(found) };
    let name = names.next().and_then(|name| name.as_str().ok()).ok_or_else(|| wrong(""))?;
    if names.next().is_some() {
        return Err(wrong(name));
    }
    NodeName::new(name).map_err(|_| wrong(name))
}

/// Whether `dns`, in lower case, is the host name of the node `name`.
fn is_host_of(dns: &str, name: &NodeName) -> bool {
    let bare = dns.strip_suffix(".mesh").unwrap_or(dns);
    bare.eq_ignore_ascii_case(name.as_str()) || dns.eq_ignore_ascii_case(name.as_str())
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The time in whole seconds; what lies before 1970 is 1970.
pub(super) fn unix(time: ASN1Time) -> UnixTime {
    UnixTime(u64::try_from(time.timestamp()).unwrap_or(0))
}

fn malformed(reason: impl ToString) -> LeafError {
    LeafError::Malformed { reason: reason.to_string() }
}

/// What a stranger wrote, short and harmless on a terminal.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
        SerialNumber, date_time_ymd,
    };

    use super::*;
    use crate::NodeKey;

    fn params(name: &str, dns: &[&str]) -> CertificateParams {
        let dns: Vec<String> = dns.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(dns).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(1001_u64));
        params.not_before = date_time_ymd(2026, 11, 21);
        params.not_after = date_time_ymd(2026, 11, 22);
        params
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.to_owned().try_into().expect("ascii"))
    }

    fn read(params: &CertificateParams) -> Result<Leaf, LeafError> {
        let key = KeyPair::generate().expect("a key");
        Leaf::read(params.self_signed(&key).expect("a certificate").der())
    }

    #[test]
    fn a_node_is_named_by_common_name_host_names_and_uri() {
        let id = NodeKey::from_seed([7; 32]).node_id();
        let mut params = params("ct110", &["CT110.mesh", "ct110", "10.0.0.7", "fd00::7"]);
        params.subject_alt_names.push(uri(&format!("{NODE_URI_PREFIX}{id}")));
        params.subject_alt_names.push(uri("https://elsewhere.example/"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = read(&params).expect("a node's");
        assert_eq!((leaf.name.as_str(), leaf.node), ("ct110", Some(id)));
        assert_eq!(leaf.dns, ["ct110.mesh", "ct110"]);
        assert_eq!(leaf.ips, ["10.0.0.7".parse::<IpAddr>().expect("one"), "fd00::7".parse().expect("one")]);
        assert_eq!(leaf.serial.to_string(), "03e9");
        assert_eq!(leaf.not_before.to_string(), "2026-11-21T00:00:00Z");
        assert_eq!(leaf.not_after.to_string(), "2026-11-22T00:00:00Z");
        assert!(leaf.is_client && !leaf.is_server);
        assert!(leaf.is_of("CT110") && !leaf.is_of("ct111"));
    }

    #[test]
    fn a_certificate_of_the_seed_has_no_id_and_serves_both_ways() {
        let leaf = read(&params("ct110", &["ct110.mesh", "192.168.10.110"])).expect("a node's");
        assert!(leaf.node.is_none() && leaf.is_client && leaf.is_server);
    }

    #[test]
    fn names_that_do_not_agree_are_refused() {
        let mismatch = read(&params("ct110", &["ct111.mesh"]));
        assert!(matches!(mismatch, Err(LeafError::Mismatch { .. })), "{mismatch:?}");
        let bare = read(&params("ct110", &[]));
        assert!(matches!(bare, Err(LeafError::Mismatch { .. })), "{bare:?}");
        for name in ["opus@ct110", "", "a b", "../ct110"] {
            let found = read(&params(name, &["ct110.mesh"]));
            assert!(matches!(found, Err(LeafError::Name { .. })), "{name}: {found:?}");
        }
        let id = NodeKey::from_seed([7; 32]).node_id();
        let mut two = params("ct110", &["ct110.mesh"]);
        two.subject_alt_names
            .extend([uri(&format!("{NODE_URI_PREFIX}{id}")), uri(&format!("{NODE_URI_PREFIX}{id}"))]);
        assert!(matches!(read(&two), Err(LeafError::Node { .. })));
        let mut none = params("ct110", &["ct110.mesh"]);
        none.subject_alt_names.push(uri("qmt:node:somebody"));
        assert!(matches!(read(&none), Err(LeafError::Node { .. })));
    }

    #[test]
    fn a_ca_is_no_node_and_garbage_is_no_certificate() {
        let mut ca = params("ct110", &["ct110.mesh"]);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        assert_eq!(read(&ca), Err(LeafError::IsCa));
        assert!(matches!(Leaf::read(b""), Err(LeafError::Malformed { .. })));
        assert!(matches!(Leaf::read(&[0x30; 300]), Err(LeafError::Malformed { .. })));
        assert!(matches!(Leaf::read(&[0; LEAF_BYTES_MAX + 1]), Err(LeafError::TooLong { .. })));
        let key = KeyPair::generate().expect("a key");
        let good = params("ct110", &["ct110.mesh"]).self_signed(&key).expect("a certificate");
        for cut in 0..good.der().len() {
            assert!(Leaf::read(&good.der()[..cut]).is_err(), "{cut}");
        }
        let mut longer = good.der().to_vec();
        longer.push(0);
        assert!(matches!(Leaf::read(&longer), Err(LeafError::Malformed { .. })));
        for at in 0..good.der().len() {
            let mut other = good.der().to_vec();
            other[at] ^= 0xff;
            let _ = Leaf::read(&other); // whatever it says, it does not panic
        }
    }
}
