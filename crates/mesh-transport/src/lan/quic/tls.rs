//! TLS 1.3 with raw public keys (RFC 7250): each side proves the ed25519 key that is its id, and there is nothing else
//! in the handshake.

use std::sync::Arc;

use libp2p::PeerId;
use mesh_identity::{NodeId, NodeKey};
use noq::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use crate::convert;

/// Agreed upon in the handshake: another program's QUIC ends there. Scopes are named in hello, never here.
const ALPN: &[u8] = b"qmt-lan/1";
/// Both sides' parameters for the node's key.
pub(super) fn configs(key: &NodeKey) -> Result<(QuicClientConfig, QuicServerConfig), rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let own = Arc::new(certified(key)?);
    let verifier = Arc::new(AnyNode(provider.clone()));
    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own.clone())));
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.enable_sni = false;
    // Each connection proves both keys afresh.
    client.resumption = Resumption::disabled();
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let unfit = |error: noq::crypto::rustls::NoInitialCipherSuite| rustls::Error::General(error.to_string());
    Ok((client.try_into().map_err(unfit)?, server.try_into().map_err(unfit)?))
}

fn certified(key: &NodeKey) -> Result<CertifiedKey, rustls::Error> {
    let mut secret = convert::pkcs8(key);
    let signing = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(secret.as_slice()))?;
    secret.fill(0);
    Ok(CertifiedKey::new(vec![CertificateDer::from(convert::spki(&key.node_id()))], signing))
}

/// The node whose key a handshake has proved.
pub(super) fn proved(conn: &noq::Connection) -> Option<PeerId> {
    let identity = conn.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    match identity.as_slice() {
        [key] => node_of(key).map(|node| convert::peer_id(&node)),
        _ => None,
    }
}

fn node_of(key: &CertificateDer<'_>) -> Option<NodeId> {
    convert::node_of_spki(key.as_ref())
}

/// Takes any node that proves its key: whether it is the one that was dialed the swarm checks, and whether it may be
/// here is hello's business.
#[derive(Debug)]
struct AnyNode(Arc<CryptoProvider>);

impl AnyNode {
    fn check(key: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if others.is_empty() && node_of(key).is_some() {
            return Ok(());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.0.signature_verification_algorithms)
    }

    fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Self::check(key, others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for AnyNode {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::check(key, others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
