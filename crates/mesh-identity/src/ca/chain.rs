//! The certificates of a CA, and what they vouch for.

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime as PkiTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error, KeyUsage, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy, anchor_from_trusted_cert,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::leaf::{shown, unix};
use super::{ChainError, Constraints, Crl, CrlError, LEAF_BYTES_MAX, Leaf, Serial, VerifyError};
use crate::UnixTime;

/// A chain has two certificates; while a CA is replaced, the next one's two stand beside them.
const CERTIFICATES_MAX: usize = 16;

/// What a certificate is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To a server, by who calls.
    Client,
    /// To a client, by who is called.
    Server,
}

/// The certificates of CAs that are trusted: what `ca-chain.pem` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaChain {
    certificates: Vec<CertificateDer<'static>>,
}

/// What a CA's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaFacts {
    /// Its subject, such as `CN=home root`.
    pub subject: String,
    /// Its number.
    pub serial: Serial,
    /// Whether it is a root: signed by itself.
    pub is_root: bool,
    /// From when it holds.
    pub not_before: UnixTime,
    /// Until when.
    pub not_after: UnixTime,
    /// The names that it may give.
    pub constraints: Constraints,
}

impl CaChain {
    /// The certificates in a PEM text, which are all of CAs.
    ///
    /// # Errors
    /// [`ChainError`] when there is none, one is damaged, or one is of no CA.
    pub fn from_pem(text: &str) -> Result<Self, ChainError> {
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            certificates
                .push(certificate.map_err(|error| ChainError::Malformed { reason: error.to_string() })?);
        }
        Self::new(certificates)
    }

    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, ChainError> {
        if certificates.is_empty() {
            return Err(ChainError::Empty);
        }
        if certificates.len() > CERTIFICATES_MAX {
            return Err(ChainError::TooMany);
        }
        for certificate in &certificates {
            facts(certificate)?;
        }
        Ok(Self { certificates })
    }

    /// The chain as PEM, in the order in which it was read.
    pub fn to_pem(&self) -> String {
        self.certificates.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }

    /// The certificates in DER.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// What each certificate says, in order.
    pub fn facts(&self) -> Vec<CaFacts> {
        self.certificates.iter().filter_map(|certificate| facts(certificate).ok()).collect()
    }

    /// The facts of a node's certificate that these CAs signed, that holds at `now`, that no list revokes, and that may be
    /// shown for `usage`. It is the check that a server of the agent channel makes in the handshake.
    ///
    /// A list speaks about the certificates of the CA that signed it; about those of a CA without a list nothing is known,
    /// and they pass. Lists must have been verified by [`CaChain::vouches_for`].
    ///
    /// # Errors
    /// [`VerifyError`] says which of these does not hold.
    pub fn verify(&self, der: &[u8], usage: Usage, crls: &[Crl], now: UnixTime) -> Result<Leaf, VerifyError> {
        if der.len() > LEAF_BYTES_MAX {
            return Err(super::LeafError::TooLong { bytes: der.len() }.into());
        }
        let der = CertificateDer::from(der);
        let leaf = Leaf::read(&der)?;
        let certificate = EndEntityCert::try_from(&der).map_err(|error| VerifyError::of(error, &leaf))?;
        let lists: Vec<CertRevocationList<'_>> = crls
            .iter()
            .filter_map(|crl| OwnedCertRevocationList::from_der(crl.der()).ok())
            .map(CertRevocationList::Owned)
            .collect();
        let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::EndEntity)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .build()
        });
        let usage = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        let time = PkiTime::since_unix_epoch(std::time::Duration::from_secs(now.0));
        certificate
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &self.anchors(),
                &self.certificates,
                time,
                usage,
                revocation,
                None,
            )
            .map_err(|error| VerifyError::of(error, &leaf))?;
        Ok(leaf)
    }

    /// Checks that one of these CAs, and one that may, signed this list.
    ///
    /// # Errors
    /// [`CrlError::NotSigned`] when none did.
    pub fn vouches_for(&self, crl: &Crl) -> Result<(), CrlError> {
        let signed = self.certificates.iter().any(|certificate| crl.is_signed_by(certificate));
        if signed { Ok(()) } else { Err(CrlError::NotSigned) }
    }

    /// Whether both chains lead to the same roots, so that who believes one may take the other.
    pub fn has_roots_of(&self, other: &Self) -> bool {
        self.roots() == other.roots()
    }

    /// The first 16 hexadecimal digits of a hash of the roots: names a CA among those of a mesh, and proves nothing.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new_derive_key("qmt 2026-11 ca chain fingerprint");
        for root in self.roots() {
            hash.update(blake3::hash(root).as_bytes());
        }
        crate::wire::to_hex(&hash.finalize().as_bytes()[..8])
    }

    /// The roots in one order; all certificates where there is no root.
    fn roots(&self) -> std::collections::BTreeSet<&[u8]> {
        let is_root = |der: &&CertificateDer<'_>| facts(der).is_ok_and(|facts| facts.is_root);
        let roots: Vec<_> = self.certificates.iter().filter(is_root).collect();
        let trusted = if roots.is_empty() { self.certificates.iter().collect() } else { roots };
        trusted.into_iter().map(AsRef::as_ref).collect()
    }

    /// The roots; where there are none (a chain that begins at an intermediate), all of it is trusted.
    fn anchors(&self) -> Vec<TrustAnchor<'_>> {
        let anchor = |certificate| anchor_from_trusted_cert(certificate).ok();
        let is_root = |certificate: &&CertificateDer<'_>| facts(certificate).is_ok_and(|facts| facts.is_root);
        let roots: Vec<_> = self.certificates.iter().filter(is_root).filter_map(anchor).collect();
        if roots.is_empty() { self.certificates.iter().filter_map(anchor).collect() } else { roots }
    }
}

/// What a CA's certificate says.
pub(super) fn facts(der: &[u8]) -> Result<CaFacts, ChainError> {
    let malformed = |reason: &dyn std::fmt::Display| ChainError::Malformed { reason: reason.to_string() };
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(&error))?;
    if !certificate.is_ca() {
        return Err(ChainError::NotCa { subject: shown(&certificate.subject().to_string()) });
    }
    Ok(CaFacts {
        subject: shown(&certificate.subject().to_string()),
        serial: Serial::from_bytes(certificate.raw_serial()).map_err(|error| malformed(&error))?,
        is_root: certificate.subject().as_raw() == certificate.issuer().as_raw(),
        not_before: unix(certificate.validity().not_before),
        not_after: unix(certificate.validity().not_after),
        constraints: Constraints::of(&certificate),
    })
}

/// DER as PEM.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

impl VerifyError {
    fn of(error: Error, leaf: &Leaf) -> Self {
        match error {
            Error::CertExpired { .. } => Self::Expired { at: leaf.not_after },
            Error::CertNotValidYet { .. } => Self::NotYetValid { from: leaf.not_before },
            Error::CertRevoked => Self::Revoked { serial: leaf.serial.clone() },
            Error::UnknownIssuer
            | Error::InvalidSignatureForPublicKey
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Self::UnknownIssuer,
            Error::NameConstraintViolation => Self::Names,
            Error::RequiredEkuNotFoundContext(_) => Self::WrongUsage,
            other => Self::Other { reason: format!("{other:?}") },
        }
    }
}
