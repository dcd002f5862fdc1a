//! Keys of certificates: P-256, which every TLS library takes.

use std::fmt;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::SubjectPublicKeyInfo;
use zeroize::Zeroizing;

use super::KeyError;

/// Below this an RSA key can be broken by those who can pay for it; webpki does not verify such keys either.
const RSA_BITS_MIN: usize = 2048;

/// The key of one node's certificate. It is made at the node and never leaves it.
pub struct LeafKey(KeyPair);

impl LeafKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`KeyError::NotMade`] when the operating system gives no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|error| KeyError::NotMade { reason: error.to_string() })
    }

    /// The key in a PEM file.
    ///
    /// # Errors
    /// [`KeyError`] when the text is no private key that can be used here.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        pair(text).map(Self)
    }

    /// The key as PEM (PKCS #8). Whoever reads it has the key.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

impl fmt::Debug for LeafKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeafKey(..)")
    }
}

/// A key pair from PEM, with what to do about the forms that are not read.
pub(super) fn pair(text: &str) -> Result<KeyPair, KeyError> {
    if ["BEGIN RSA PRIVATE KEY", "BEGIN EC PRIVATE KEY"].iter().any(|form| text.contains(form)) {
        return Err(KeyError::OldForm);
    }
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") {
        return Err(KeyError::Encrypted);
    }
    KeyPair::from_pem(text).map_err(|error| KeyError::Malformed { reason: error.to_string() })
}

/// The public key that a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(rcgen::SubjectPublicKeyInfo);

impl PublicKey {
    pub(super) fn of(pair: &KeyPair) -> Self {
        // A pair that exists has a public key in one of the forms that rcgen itself writes.
        Self::read(&pair.subject_public_key_info()).expect("rcgen reads the keys that it writes")
    }

    /// The key in a `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] for other bytes, and for keys that no verifier takes: RSA below 2048 bits, other curves.
    pub(super) fn read(der: &[u8]) -> Result<Self, KeyError> {
        let unusable = |reason: &dyn fmt::Display| KeyError::Unusable { reason: reason.to_string() };
        let key = rcgen::SubjectPublicKeyInfo::from_der(der).map_err(|error| unusable(&error))?;
        let (_, parsed) = SubjectPublicKeyInfo::from_der(der).map_err(|error| unusable(&error))?;
        match parsed.parsed().map_err(|error| unusable(&error))? {
            x509_parser::public_key::PublicKey::RSA(rsa) if rsa.key_size() < RSA_BITS_MIN => {
                Err(unusable(&format!("an RSA key of {} bits is too short", rsa.key_size())))
            }
            _ => Ok(Self(key)),
        }
    }

    /// The key that a certificate is for.
    ///
    /// # Errors
    /// [`KeyError::Unusable`] for a key that no verifier takes.
    pub fn of_certificate(der: &[u8]) -> Result<Self, KeyError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| KeyError::Unusable { reason: error.to_string() })?;
        Self::read(certificate.public_key().raw)
    }

    /// The `SubjectPublicKeyInfo` of the key, in DER.
    pub fn to_der(&self) -> Vec<u8> {
        self.0.subject_public_key_info()
    }

    /// Whether it is of the kind that nodes make for themselves.
    pub fn is_p256(&self) -> bool {
        self.0.algorithm() == &PKCS_ECDSA_P256_SHA256
    }

    pub(super) fn inner(&self) -> &rcgen::SubjectPublicKeyInfo {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_pem() {
        let key = LeafKey::generate().expect("a key");
        let pem = key.to_pem();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let again = LeafKey::from_pem(&pem).expect("the same");
        assert_eq!(again.public(), key.public());
        assert!(key.public().is_p256());
        assert_eq!(PublicKey::read(&key.public().to_der()).expect("a key"), key.public());
    }

    #[test]
    fn other_forms_are_named() {
        let old = LeafKey::from_pem("-----BEGIN RSA PRIVATE KEY-----\nAA==\n-----END RSA PRIVATE KEY-----\n");
        assert!(matches!(old, Err(KeyError::OldForm)));
        assert!(matches!(LeafKey::from_pem("hello"), Err(KeyError::Malformed { .. })));
        assert!(matches!(PublicKey::read(&[0x30; 90]), Err(KeyError::Unusable { .. })));
    }
}
