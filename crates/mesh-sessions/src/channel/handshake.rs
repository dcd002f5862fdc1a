//! Why a handshake failed, in words that an administrator knows from other servers.

use std::io;

use rustls::{CertificateError, Error, InvalidMessage, PeerIncompatible};

/// The reason in one line. It names nothing that the other end chose.
pub(crate) fn reason(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => words(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the connection ended within it".to_owned(),
        None => error.to_string(),
    }
}

fn words(error: &Error) -> String {
    let words = match error {
        Error::NoCertificatesPresented => "peer did not return a certificate",
        Error::InvalidCertificate(error) => return certificate(error),
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "unsupported protocol (TLS 1.3 is needed)",
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "not TLS (there is no plaintext channel)"
        }
        Error::AlertReceived(alert) => {
            return format!("peer refused this node's certificate or protocol ({alert:?})");
        }
        other => return other.to_string(),
    };
    words.to_owned()
}

/// What is wrong with a certificate of the other end.
fn certificate(error: &CertificateError) -> String {
    let words = match error {
        CertificateError::UnknownIssuer => "certificate is not signed by the mesh CA",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not yet valid"
        }
        CertificateError::Revoked => "certificate revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "unsupported certificate purpose"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "certificate is for another host"
        }
        CertificateError::BadEncoding => "certificate is malformed",
        CertificateError::BadSignature => "certificate has a bad signature",
        other => return format!("certificate is not accepted ({other:?})"),
    };
    words.to_owned()
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
