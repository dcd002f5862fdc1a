//! Why a handshake failed, in words that an administrator knows from other servers.

use std::io;

use rustls::{CertificateError, Error, InvalidMessage, PeerIncompatible};

/// Why a handshake failed, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The other end showed no certificate.
    NoCertificate,
    /// Its certificate is of another CA.
    AnotherCa,
    /// Its certificate has ended.
    Expired,
    /// Its certificate has not begun.
    NotYetValid,
    /// Its certificate was revoked.
    Revoked,
    /// Its certificate is for something else.
    WrongPurpose,
    /// Its certificate is malformed, or none of a node.
    BadCertificate,
    /// It speaks TLS 1.2 or older, or nothing that both know.
    Protocol,
    /// It does not speak TLS.
    Plaintext,
    /// It refused this node.
    ByPeer,
    /// It went away, or took too long.
    Broken,
    /// Too many connections.
    Busy,
    /// Anything else.
    Other,
}

impl Refusal {
    /// All of them, in the order in which they are declared.
    pub const ALL: [Self; 13] = [
        Self::NoCertificate,
        Self::AnotherCa,
        Self::Expired,
        Self::NotYetValid,
        Self::Revoked,
        Self::WrongPurpose,
        Self::BadCertificate,
        Self::Protocol,
        Self::Plaintext,
        Self::ByPeer,
        Self::Broken,
        Self::Busy,
        Self::Other,
    ];
}

/// A handshake that failed: the reason as it is counted, and in one line that names nothing that the other end chose.
pub(crate) struct Refused {
    pub(crate) why: Refusal,
    pub(crate) words: String,
}

impl Refused {
    pub(crate) fn new(why: Refusal, words: impl Into<String>) -> Self {
        Self { why, words: words.into() }
    }
}

/// The reason in one line. It names nothing that the other end chose.
pub(crate) fn reason(error: &io::Error) -> String {
    refused(error).words
}

pub(crate) fn refused(error: &io::Error) -> Refused {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => of_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            Refused::new(Refusal::Broken, "the connection ended within it")
        }
        None => Refused::new(Refusal::Broken, error.to_string()),
    }
}

fn of_tls(error: &Error) -> Refused {
    let (why, words) = match error {
        Error::NoCertificatesPresented => (Refusal::NoCertificate, "peer did not return a certificate"),
        Error::InvalidCertificate(error) => return of_certificate(error),
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => (Refusal::Protocol, "unsupported protocol (TLS 1.3 is needed)"),
        Error::PeerIncompatible(_) => return Refused::new(Refusal::Protocol, error.to_string()),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            (Refusal::Plaintext, "not TLS (there is no plaintext channel)")
        }
        Error::AlertReceived(alert) => {
            let words = format!("peer refused this node's certificate or protocol ({alert:?})");
            return Refused::new(Refusal::ByPeer, words);
        }
        other => return Refused::new(Refusal::Other, other.to_string()),
    };
    Refused::new(why, words)
}

/// What is wrong with a certificate of the other end.
fn of_certificate(error: &CertificateError) -> Refused {
    let (why, words) = match error {
        CertificateError::UnknownIssuer => (Refusal::AnotherCa, "certificate is not signed by the mesh CA"),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (Refusal::Expired, "certificate has expired")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            (Refusal::NotYetValid, "certificate is not yet valid")
        }
        CertificateError::Revoked => (Refusal::Revoked, "certificate revoked"),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            (Refusal::WrongPurpose, "unsupported certificate purpose")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (Refusal::BadCertificate, "certificate is for another host")
        }
        CertificateError::BadEncoding => (Refusal::BadCertificate, "certificate is malformed"),
        CertificateError::BadSignature => (Refusal::AnotherCa, "certificate has a bad signature"),
        other => {
            let words = format!("certificate is not accepted ({other:?})");
            return Refused::new(Refusal::BadCertificate, words);
        }
    };
    Refused::new(why, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_said_in_the_words_of_other_servers() {
        let said = |error: Error| reason(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(said(Error::NoCertificatesPresented), "peer did not return a certificate");
        assert_eq!(said(CertificateError::Revoked.into()), "certificate revoked");
        assert_eq!(said(CertificateError::Expired.into()), "certificate has expired");
        assert_eq!(
            said(PeerIncompatible::Tls12NotOffered.into()),
            "unsupported protocol (TLS 1.3 is needed)"
        );
        assert_eq!(reason(&io::ErrorKind::UnexpectedEof.into()), "the connection ended within it");
    }
}
