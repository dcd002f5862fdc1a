//! A request for a certificate (PKCS #10), signed by the key that it is for.

use std::net::IpAddr;

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::{self, PemObject as _};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

use super::leaf::{NAMES_MAX, NODE_URI_PREFIX, address, shown};
use super::{CsrError, LeafKey, PublicKey};
use crate::{NodeId, NodeName};

/// The longest request that is read. One with a P-256 key has some 400 bytes, one with RSA 4096 and many names 3,000.
pub const CSR_BYTES_MAX: usize = 16 * 1024;

/// What a request asks for, its signature verified: who sent it has the private key. Whether it gets that is the CA's say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    /// The common name.
    pub name: Option<NodeName>,
    /// The node of the `qmt:node:` URI.
    pub node: Option<NodeId>,
    /// Host names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// The key that signed it.
    pub key: PublicKey,
}

impl Csr {
    /// A request in DER for `key`, of the node `node` called `name`, under these addresses.
    ///
    /// # Errors
    /// [`CsrError::NotMade`] when it could not be signed.
    pub fn make(
        key: &LeafKey,
        name: &NodeName,
        node: Option<&NodeId>,
        ips: &[IpAddr],
    ) -> Result<Vec<u8>, CsrError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.subject_alt_names = ips.iter().copied().map(SanType::IpAddress).collect();
        if let Some(node) = node {
            let uri = format!("{NODE_URI_PREFIX}{node}");
            params.subject_alt_names.push(SanType::URI(uri.try_into().map_err(not_made)?));
        }
        let request = params.serialize_request(key.pair()).map_err(not_made)?;
        Ok(request.der().to_vec())
    }

    /// The request in PEM.
    ///
    /// # Errors
    /// As [`Csr::read`].
    pub fn read_pem(text: &str) -> Result<Self, CsrError> {
        let der =
            CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
                pem::Error::NoItemsFound => malformed("there is no CERTIFICATE REQUEST in it (PEM)"),
                error => malformed(error),
            })?;
        Self::read(&der)
    }

    /// What the request in `der` asks for.
    ///
    /// # Errors
    /// [`CsrError`] when it is none, is damaged, or is not signed by its own key.
    pub fn read(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_BYTES_MAX {
            return Err(CsrError::TooLong { bytes: der.len() });
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(malformed)?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow it"));
        }
        let info = &request.certification_request_info;
        let key = PublicKey::read(info.subject_pki.raw).map_err(|source| CsrError::Key { source })?;
        request.verify_signature().map_err(|_| CsrError::NotItsKey)?;
        let mut csr = Self { name: name(&request)?, node: None, dns: Vec::new(), ips: Vec::new(), key };
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                csr.take(&names.general_names)?;
            }
        }
        Ok(csr)
    }

    fn take(&mut self, names: &[GeneralName<'_>]) -> Result<(), CsrError> {
        if names.len() > NAMES_MAX {
            return Err(malformed(format!("it has more than {NAMES_MAX} names")));
        }
        for name in names {
            match name {
                GeneralName::DNSName(dns) => self.dns.push(dns.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => {
                    self.ips.push(address(bytes).ok_or_else(|| malformed("an address of it is none"))?);
                }
                GeneralName::URI(uri) => {
                    let Some(id) = uri.strip_prefix(NODE_URI_PREFIX) else { continue };
                    let id = id.parse().map_err(|_| malformed("its node id is none"))?;
                    if self.node.replace(id).is_some() {
                        return Err(malformed("it names two nodes"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn name(request: &X509CertificationRequest<'_>) -> Result<Option<NodeName>, CsrError> {
    let mut names = request.certification_request_info.subject.iter_common_name();
    let Some(first) = names.next() else { return Ok(None) };
    if names.next().is_some() {
        return Err(malformed("it has two common names"));
    }
    let text = first.as_str().map_err(malformed)?;
    NodeName::new(text).map(Some).map_err(|_| malformed(format!("{:?} cannot name a node", shown(text))))
}

fn malformed(reason: impl ToString) -> CsrError {
    CsrError::Malformed { reason: reason.to_string() }
}

fn not_made(reason: impl ToString) -> CsrError {
    CsrError::NotMade { reason: reason.to_string() }
}
