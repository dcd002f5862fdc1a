//! The CA that signs: an intermediate's key with its certificate.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::chain::{facts, pem};
use super::leaf::NODE_URI_PREFIX;
use super::{
    CRL_TTL, CaChain, Constraints, Crl, Leaf, PublicKey, RevokedSerial, Serial, SignError, Usage, key,
};
use crate::{NodeId, NodeName, UnixTime};

/// By how many seconds a certificate begins before it is signed: the clocks of a mesh may disagree by an hour, and a node
/// whose clock is behind must not refuse a certificate because it is new.
pub const SKEW_SECONDS: u64 = 2 * 3600;

/// A certificate that is to be made.
#[derive(Debug, Clone)]
pub struct Request {
    /// The node's name.
    pub name: NodeName,
    /// The node's id, where it has one.
    pub node: Option<NodeId>,
    /// The addresses at which it serves.
    pub ips: Vec<IpAddr>,
    /// How long it holds.
    pub ttl: Duration,
    /// Whose it is.
    pub key: PublicKey,
}

impl Request {
    /// For the node called `name` and its `key`, without id and addresses.
    pub fn new(name: NodeName, key: PublicKey, ttl: Duration) -> Self {
        Self { name, node: None, ips: Vec::new(), ttl, key }
    }
}

/// A certificate that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// It, in DER.
    pub der: Vec<u8>,
    /// What it says.
    pub leaf: Leaf,
}

impl Issued {
    /// It, in PEM.
    pub fn to_pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }
}

/// An intermediate that signs certificates of nodes, and the list of revoked ones. It holds its secret key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    chain: CaChain,
    constraints: Constraints,
    not_after: UnixTime,
}

impl Authority {
    /// The CA of the private key in `key_pem`, whose certificate is among `chain`.
    ///
    /// # Errors
    /// [`SignError::Key`] when the key cannot be read, [`SignError::NotInChain`] when no certificate is for it.
    pub fn new(chain: CaChain, key_pem: &str) -> Result<Self, SignError> {
        let pair = key::pair(key_pem).map_err(|source| SignError::Key { source })?;
        let public = PublicKey::of(&pair).to_der();
        let own = chain.certificates().iter().find(|certificate| is_for(certificate, &public));
        let own = own.ok_or(SignError::NotInChain)?.clone();
        let facts = facts(&own).map_err(|source| SignError::Chain { source })?;
        let issuer = Issuer::from_ca_cert_der(&own, pair).map_err(not_signed)?;
        Ok(Self { issuer, chain, constraints: facts.constraints, not_after: facts.not_after })
    }

    /// The certificates that vouch for what this CA signs.
    pub fn chain(&self) -> &CaChain {
        &self.chain
    }

    /// The names that it may give.
    pub fn constraints(&self) -> &Constraints {
        &self.constraints
    }

    /// Until when it can sign.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Signs a certificate: for servers and clients, under `<name>.mesh`, under the bare name where the constraints permit
    /// it, under the addresses, and with the node's id.
    ///
    /// It ends with this CA at the latest. What was signed has passed the check of [`CaChain::verify`] before anybody sees
    /// it.
    ///
    /// # Errors
    /// [`SignError`] when the name is no host name, an address is not permitted, or the CA has ended.
    pub fn issue(&self, request: &Request, now: UnixTime) -> Result<Issued, SignError> {
        if now >= self.not_after {
            return Err(SignError::Ended { at: self.not_after });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, request.name.as_str());
        params.subject_alt_names = self.names(request)?;
        params.serial_number = Some(random_serial()?.as_bytes().to_vec().into());
        params.not_before = date(UnixTime(now.0.saturating_sub(SKEW_SECONDS)));
        params.not_after = date(now.plus(request.ttl).min(self.not_after));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let der = params.signed_by(request.key.inner(), &self.issuer).map_err(not_signed)?.der().to_vec();
        for usage in [Usage::Server, Usage::Client] {
            self.chain.verify(&der, usage, &[], now).map_err(|source| SignError::NotPermitted { source })?;
        }
        let leaf = Leaf::read(&der).map_err(not_signed)?;
        Ok(Issued { der, leaf })
    }

    fn names(&self, request: &Request) -> Result<Vec<SanType>, SignError> {
        let name = request.name.as_str();
        if !is_host_name(name) {
            return Err(SignError::NoHostName { name: request.name.clone() });
        }
        let bare = name.to_ascii_lowercase();
        let host = format!("{bare}.mesh");
        if !self.constraints.permits_dns(&host) {
            return Err(SignError::Host { host, permitted: self.constraints.dns.join(", ") });
        }
        // A name such as `7` or `10.0.0.7` alone would be read as an address.
        let is_numeric =
            bare.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        let permits_bare = !is_numeric && self.constraints.permits_dns(&bare);
        let hosts = std::iter::once(host).chain(permits_bare.then_some(bare));
        let mut names = Vec::new();
        for host in hosts {
            names.push(SanType::DnsName(host.try_into().map_err(not_signed)?));
        }
        for &ip in &request.ips {
            if !self.constraints.permits_ip(ip) {
                return Err(SignError::Address { ip });
            }
            names.push(SanType::IpAddress(ip));
        }
        if let Some(node) = &request.node {
            names.push(SanType::URI(format!("{NODE_URI_PREFIX}{node}").try_into().map_err(not_signed)?));
        }
        Ok(names)
    }

    /// Signs a list of revoked certificates.
    ///
    /// # Errors
    /// [`SignError::NotSigned`] when this CA may sign no list (openssl leaves `cRLSign` out unless told otherwise).
    pub fn revoke(&self, number: u64, revoked: &[RevokedSerial], now: UnixTime) -> Result<Crl, SignError> {
        let params = CertificateRevocationListParams {
            this_update: date(UnixTime(now.0.saturating_sub(SKEW_SECONDS))),
            next_update: date(now.plus(CRL_TTL)),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(RevokedSerial::params).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).map_err(not_signed)?;
        Crl::read(list.der()).map_err(not_signed)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Whether `certificate` is for the key whose `SubjectPublicKeyInfo` is `public`.
fn is_for(certificate: &CertificateDer<'_>, public: &[u8]) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, found)| found.public_key().raw == public)
}

/// Whether `<name>.mesh` is a host name: labels of letters, digits, `_` and `-`, none empty or with `-` at an end.
fn is_host_name(name: &str) -> bool {
    name.split('.').all(|label| !label.is_empty() && !label.starts_with('-') && !label.ends_with('-'))
}

/// A number that nobody can foresee: 126 random bits, positive and of full length.
pub(super) fn random_serial() -> Result<Serial, SignError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(not_signed)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Serial::from_bytes(&bytes).map_err(not_signed)
}

pub(super) fn date(time: UnixTime) -> OffsetDateTime {
    let seconds = i64::try_from(time.plus(Duration::ZERO).0).unwrap_or(0);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

pub(super) fn not_signed(reason: impl ToString) -> SignError {
    SignError::NotSigned { reason: reason.to_string() }
}
