//! The list of certificates that hold no more.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rcgen::RevocationReason;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::chain::pem;
use super::leaf::unix;
use super::{CrlError, Serial};
use crate::UnixTime;

/// The longest list that is read: some 12,000 revocations, which at 24 hours a certificate are never due at once.
pub const CRL_BYTES_MAX: usize = 512 * 1024;

/// For how long a list says that it is the latest. A new one is made whenever something is revoked, and at half of this
/// time by a running node of the CA.
pub const CRL_TTL: Duration = Duration::from_secs(30 * 86_400);

/// Why a certificate was revoked, in the words of RFC 5280.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Nothing was said.
    Unspecified,
    /// Somebody else may have the key.
    KeyCompromise,
    /// Another certificate takes its place.
    Superseded,
    /// The node is gone for good.
    Cessation,
    /// The node may no longer do what the certificate let it do.
    Withdrawn,
}

impl Reason {
    /// All of them, as they are written.
    pub const NAMES: [&str; 5] = ["unspecified", "key-compromise", "superseded", "cessation", "withdrawn"];

    fn code(self) -> Option<RevocationReason> {
        match self {
            Self::Unspecified => None,
            Self::KeyCompromise => Some(RevocationReason::KeyCompromise),
            Self::Superseded => Some(RevocationReason::Superseded),
            Self::Cessation => Some(RevocationReason::CessationOfOperation),
            Self::Withdrawn => Some(RevocationReason::PrivilegeWithdrawn),
        }
    }

    fn of(code: u8) -> Self {
        match code {
            1 => Self::KeyCompromise,
            4 => Self::Superseded,
            5 => Self::Cessation,
            9 => Self::Withdrawn,
            _ => Self::Unspecified,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::Superseded => "superseded",
            Self::Cessation => "cessation",
            Self::Withdrawn => "withdrawn",
        })
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all =
            [Self::Unspecified, Self::KeyCompromise, Self::Superseded, Self::Cessation, Self::Withdrawn];
        let found = all.into_iter().find(|reason| reason.to_string() == text);
        found.ok_or_else(|| format!("not a reason (expected one of {})", Self::NAMES.join(", ")))
    }
}

/// A certificate that a list names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedSerial {
    /// Its number.
    pub serial: Serial,
    /// Since when.
    pub at: UnixTime,
    /// Why.
    pub reason: Reason,
}

impl RevokedSerial {
    pub(super) fn params(&self) -> rcgen::RevokedCertParams {
        rcgen::RevokedCertParams {
            serial_number: self.serial.as_bytes().to_vec().into(),
            revocation_time: super::authority::date(self.at),
            reason_code: self.reason.code(),
            invalidity_date: None,
        }
    }
}

/// A list of revoked certificates, signed by the CA whose they are. Reading it verifies nothing:
/// [`super::CaChain::vouches_for`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crl {
    der: Vec<u8>,
    /// Its number: of two lists of a CA the one with the higher number counts.
    pub number: u64,
    /// When it was made.
    pub this_update: UnixTime,
    /// When the next one is due.
    pub next_update: Option<UnixTime>,
    revoked: BTreeMap<Serial, RevokedSerial>,
}

impl Crl {
    /// The list in a PEM text.
    ///
    /// # Errors
    /// As [`Crl::read`].
    pub fn from_pem(text: &str) -> Result<Self, CrlError> {
        let der = CertificateRevocationListDer::from_pem_slice(text.as_bytes());
        Self::read(&der.map_err(|error| CrlError::Malformed { reason: error.to_string() })?)
    }

    /// The list in `der`.
    ///
    /// # Errors
    /// [`CrlError`] when it is none, or longer than [`CRL_BYTES_MAX`].
    pub fn read(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > CRL_BYTES_MAX {
            return Err(CrlError::TooLong { bytes: der.len() });
        }
        let malformed = |reason: &dyn fmt::Display| CrlError::Malformed { reason: reason.to_string() };
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|error| malformed(&error))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes follow it"));
        }
        // The verifier that the handshake uses must be able to read it too.
        webpki::BorrowedCertRevocationList::from_der(der)
            .map_err(|error| malformed(&format!("{error:?}")))?;
        let mut revoked = BTreeMap::new();
        for row in list.iter_revoked_certificates() {
            let serial = Serial::from_bytes(row.raw_serial()).map_err(|error| malformed(&error))?;
            let reason = row.reason_code().map_or(Reason::Unspecified, |(_, code)| Reason::of(code.0));
            let at = unix(row.revocation_date);
            revoked.insert(serial.clone(), RevokedSerial { serial, at, reason });
        }
        Ok(Self {
            number: list.crl_number().map_or(0, |number| u64::try_from(number).unwrap_or(u64::MAX)),
            this_update: unix(list.last_update()),
            next_update: list.next_update().map(unix),
            revoked,
            der: der.to_vec(),
        })
    }

    /// The list in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The list in PEM.
    pub fn to_pem(&self) -> String {
        pem("X509 CRL", &self.der)
    }

    /// Whether it names this certificate.
    pub fn revokes(&self, serial: &Serial) -> bool {
        self.revoked.contains_key(serial)
    }

    /// All that it names, by number.
    pub fn revoked(&self) -> impl Iterator<Item = &RevokedSerial> {
        self.revoked.values()
    }

    /// Whether half of its time is over, so that a new one should be made.
    pub fn is_due(&self, now: UnixTime) -> bool {
        self.next_update.is_some_and(|next| now.0 >= next.0.saturating_sub(CRL_TTL.as_secs() / 2))
    }

    pub(super) fn is_signed_by(&self, ca: &[u8]) -> bool {
        let Ok((_, ca)) = X509Certificate::from_der(ca) else { return false };
        let Ok((_, list)) = CertificateRevocationList::from_der(&self.der) else { return false };
        let may = ca.key_usage().ok().flatten().is_none_or(|usage| usage.value.crl_sign());
        may && list.issuer().as_raw() == ca.subject().as_raw()
            && list.verify_signature(ca.public_key()).is_ok()
    }
}
