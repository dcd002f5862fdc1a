//! A new CA: the root, and the intermediate that it signs.

use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use zeroize::Zeroizing;

use super::authority::{date, not_signed, random_serial};
use super::{Authority, CaChain, Constraints, SKEW_SECONDS, SignError, key};
use crate::UnixTime;

const DAY: u64 = 86_400;

/// What a new CA is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name, for people: the root is called `<name> root`, the intermediate `<name> CA`.
    pub name: String,
    /// What the intermediate may name.
    pub constraints: Constraints,
    /// How long the root holds. A node cannot be told of a new root over the channel that the old one secures.
    pub root_ttl: Duration,
    /// How long the intermediate holds.
    pub intermediate_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "mesh".to_owned(),
            constraints: Constraints::mesh(),
            root_ttl: Duration::from_secs(3650 * DAY),
            intermediate_ttl: Duration::from_secs(1095 * DAY),
        }
    }
}

/// The certificates and keys of a new CA. Both keys are in it: the root's should leave the machine.
pub struct Founding {
    /// The root's certificate, in PEM.
    pub root: String,
    /// The root's key, in PEM.
    pub root_key: Zeroizing<String>,
    /// The intermediate's certificate, in PEM.
    pub intermediate: String,
    /// The intermediate's key, in PEM.
    pub intermediate_key: Zeroizing<String>,
}

impl Founding {
    /// A CA with new keys.
    ///
    /// # Errors
    /// [`SignError::NotSigned`] when the operating system gives no random bytes, or a permitted name is none.
    pub fn new(options: &Options, now: UnixTime) -> Result<Self, SignError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(not_signed)?;
        let root_key = Zeroizing::new(pair.serialize_pem());
        let mut params = ca_params(&format!("{} root", options.name), options.root_ttl, now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let root = params.self_signed(&pair).map_err(not_signed)?.pem();
        let below = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(not_signed)?;
        let intermediate_key = Zeroizing::new(below.serialize_pem());
        let intermediate = Self::intermediate(&root, &root_key, &intermediate_key, options, now)?;
        Ok(Self { root, root_key, intermediate, intermediate_key })
    }

    /// A certificate in PEM for the intermediate's key, new or the old one again, signed by the root.
    ///
    /// # Errors
    /// [`SignError`] when a key cannot be read, is not the root's, or the root has ended.
    pub fn intermediate(
        root: &str,
        root_key: &str,
        intermediate_key: &str,
        options: &Options,
        now: UnixTime,
    ) -> Result<String, SignError> {
        let chain = CaChain::from_pem(root).map_err(|source| SignError::Chain { source })?;
        // An authority exists only where key and certificate belong together.
        let root_end = Authority::new(chain.clone(), root_key)?.not_after();
        if now >= root_end {
            return Err(SignError::Ended { at: root_end });
        }
        let read = |pem| key::pair(pem).map_err(|source| SignError::Key { source });
        let own = chain.certificates().first().ok_or(SignError::NotInChain)?;
        let issuer = Issuer::from_ca_cert_der(own, read(root_key)?).map_err(not_signed)?;
        let mut params = ca_params(&format!("{} CA", options.name), options.intermediate_ttl, now)?;
        params.not_after = params.not_after.min(date(root_end));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.name_constraints = options.constraints.extension();
        params.use_authority_key_identifier_extension = true;
        let signed: Certificate = params.signed_by(&read(intermediate_key)?, &issuer).map_err(not_signed)?;
        Ok(signed.pem())
    }

    /// The chain that nodes are given: the intermediate, then the root.
    ///
    /// # Errors
    /// [`SignError::Chain`] when the certificates were changed to something else.
    pub fn chain(&self) -> Result<CaChain, SignError> {
        CaChain::from_pem(&[self.intermediate.as_str(), &self.root].concat())
            .map_err(|source| SignError::Chain { source })
    }

    /// The intermediate, ready to sign.
    ///
    /// # Errors
    /// As [`Authority::new`].
    pub fn authority(&self) -> Result<Authority, SignError> {
        Authority::new(self.chain()?, &self.intermediate_key)
    }
}

fn ca_params(name: &str, ttl: Duration, now: UnixTime) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(random_serial()?.as_bytes().to_vec().into());
    params.not_before = date(UnixTime(now.0.saturating_sub(SKEW_SECONDS)));
    params.not_after = date(now.plus(ttl));
    // An intermediate that may not sign lists could revoke nothing.
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}
