//! Whose certificate a relay may show: anyone's that the public roots vouch for, or a node's own.
//!
//! A relay of ours shows a certificate that its node signed with its own key ([`crate::relay::Tls::of_node`]). Names and
//! dates in it mean nothing; the key does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use iroh::tls::CaTlsConfig;
use mesh_identity::{NodeId, ScopeId};
use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::{connection::Carried, convert};

/// The nodes whose relays are believed by their key, scope by scope. Clones are handles to one set; a change counts for
/// the next connection to a relay.
#[derive(Clone, Default)]
pub struct RelayTrust {
    scopes: Arc<RwLock<BTreeMap<ScopeId, Trusted>>>,
}

#[derive(Default)]
struct Trusted {
    nodes: BTreeSet<NodeId>,
    /// The URL at whose host any node's key is taken, and that host.
    guest_at: Option<(String, String)>,
}

impl RelayTrust {
    /// Nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Believes the relay of a node, for this scope's traffic.
    pub fn trust(&self, scope: ScopeId, node: NodeId) {
        self.write().entry(scope).or_default().nodes.insert(node);
    }

    /// No longer believes the relay of a node, for this scope's traffic.
    pub fn distrust(&self, scope: &ScopeId, node: &NodeId) {
        if let Some(trusted) = self.write().get_mut(scope) {
            trusted.nodes.remove(node);
        }
    }

    /// Takes the key of any node at the host of this URL: for a joiner, whose invite names a relay and not who runs it.
    /// One host for each scope; [`RelayTrust::end_guest`] ends it.
    pub fn guest_at(&self, scope: ScopeId, url: &str) {
        self.write().entry(scope).or_default().guest_at = host_of(url).map(|host| (url.to_owned(), host));
    }

    /// The URL of [`RelayTrust::guest_at`], while that holds.
    pub fn guest_url(&self, scope: &ScopeId) -> Option<String> {
        let scopes = self.read();
        let (url, _) = scopes.get(scope)?.guest_at.as_ref()?;
        Some(url.clone())
    }

    /// From now on only nodes that are known are believed.
    pub fn end_guest(&self, scope: &ScopeId) {
        if let Some(trusted) = self.write().get_mut(scope) {
            trusted.guest_at = None;
        }
    }

    /// Believes nobody for the sake of this scope any more.
    pub fn forget(&self, scope: &ScopeId) {
        self.write().remove(scope);
    }

    fn accepts(&self, node: &NodeId, host: &str, carried: &Carried) -> bool {
        let scopes = self.read();
        let mut counting = scopes.iter().filter(|(scope, _)| carried.carries(scope));
        counting.any(|(_, trusted)| {
            let is_guest = trusted.guest_at.as_ref().is_some_and(|(_, at)| at == host);
            is_guest || trusted.nodes.contains(node)
        })
    }

    /// The sets are changed by single calls, so they are whole even after another holder's panic.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ScopeId, Trusted>> {
        self.scopes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<ScopeId, Trusted>> {
        self.scopes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handles to the same set are equal.
impl PartialEq for RelayTrust {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.scopes, &other.scopes)
    }
}

impl Eq for RelayTrust {}

impl std::fmt::Debug for RelayTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayTrust").field("scopes", &self.read().len()).finish()
    }
}

/// How one endpoint checks relays: by these roots (Mozilla's if there are none), or by the keys of `trust` for the scopes
/// that it carries, or by its own.
pub(super) fn tls_config(
    me: NodeId,
    roots: Vec<Vec<u8>>,
    trust: RelayTrust,
    carried: Arc<Carried>,
) -> CaTlsConfig {
    CaTlsConfig::custom_server_cert_verifier(Arc::new(move |provider| {
        let public = by_roots(&roots, provider)?;
        Ok(Arc::new(Verifier { public, me, trust: trust.clone(), carried: carried.clone() }))
    }))
}

fn by_roots(roots: &[Vec<u8>], provider: Arc<CryptoProvider>) -> io::Result<Arc<WebPkiServerVerifier>> {
    let mut store = RootCertStore::empty();
    if roots.is_empty() {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for root in roots {
        store.add(CertificateDer::from(root.as_slice()).into_owned()).map_err(io::Error::other)?;
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider).build().map_err(io::Error::other)
}

#[derive(Debug)]
struct Verifier {
    public: Arc<WebPkiServerVerifier>,
    me: NodeId,
    trust: RelayTrust,
    carried: Arc<Carried>,
}

/// A relay showed the certificate of a node that is not believed here.
#[derive(Debug, thiserror::Error)]
#[error("the relay at {host} belongs to node {}, which is no member known here", node.short())]
struct UnknownNode {
    host: String,
    node: NodeId,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let public = self.public.verify_server_cert(leaf, others, name, ocsp, now);
        let (Err(_), Some(node), []) = (&public, node_of(leaf), others) else { return public };
        let host = host_named(name);
        if node == self.me || self.trust.accepts(&node, &host, &self.carried) {
            return Ok(ServerCertVerified::assertion());
        }
        let unknown = OtherError(Arc::new(UnknownNode { host, node }));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(unknown)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if node_of(leaf).is_some() {
            // A node's key signs in TLS 1.3 only, whose signatures say what they are for.
            return Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered));
        }
        self.public.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.public.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.public.supported_verify_schemes()
    }
}

/// The node whose key a certificate carries; `None` for a key of another kind.
fn node_of(leaf: &CertificateDer<'_>) -> Option<NodeId> {
    let parsed = ParsedCertificate::try_from(leaf).ok()?;
    convert::node_of_spki(parsed.subject_public_key_info().as_ref())
}

fn host_of(url: &str) -> Option<String> {
    let url: iroh::RelayUrl = url.parse().ok()?;
    let host = url.host_str()?;
    Some(plain_host(host.trim_start_matches('[').trim_end_matches(']')))
}

fn host_named(name: &ServerName<'_>) -> String {
    match name {
        ServerName::DnsName(name) => plain_host(name.as_ref()),
        ServerName::IpAddress(ip) => IpAddr::from(*ip).to_string(),
        _ => String::new(),
    }
}

fn plain_host(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;
    use rustls::crypto::ring;

    use super::*;
    use crate::relay::Tls;

    fn node(seed: u8) -> NodeKey {
        NodeKey::from_seed([seed; 32])
    }

    struct Bench {
        trust: RelayTrust,
        verifier: Verifier,
    }

    fn bench(carries: &[ScopeId]) -> Bench {
        let trust = RelayTrust::new();
        let public = by_roots(&[], Arc::new(ring::default_provider())).expect("the embedded roots");
        let carried = Arc::new(Carried::default());
        carries.iter().for_each(|scope| carried.carry(*scope));
        let verifier = Verifier { public, me: node(9).node_id(), trust: trust.clone(), carried };
        Bench { trust, verifier }
    }

    impl Bench {
        fn takes(&self, relay: &NodeKey, host: &str) -> bool {
            let tls = Tls::of_node(relay, ([127, 0, 0, 1], 0).into()).expect("a certificate");
            let leaf = CertificateDer::from(tls.chain[0].clone());
            let name = ServerName::try_from(host.to_owned()).expect("a host");
            self.verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now()).is_ok()
        }
    }

    #[test]
    fn a_nodes_certificate_counts_for_the_scopes_that_the_endpoint_carries() {
        let (ours, others) = (ScopeId::lan(None), ScopeId::lan(Some(b"x")));
        let bench = bench(&[ours]);
        let relay = node(1);
        assert!(!bench.takes(&relay, "192.0.2.1"), "a stranger");
        bench.trust.trust(others, relay.node_id());
        assert!(!bench.takes(&relay, "192.0.2.1"), "a member of a scope that another endpoint carries");
        bench.trust.trust(ours, relay.node_id());
        assert!(bench.takes(&relay, "192.0.2.1") && bench.takes(&relay, "relay.example.org"));
        assert!(!bench.takes(&node(2), "192.0.2.1"), "another node");
        bench.trust.distrust(&ours, &relay.node_id());
        assert!(!bench.takes(&relay, "192.0.2.1"), "a member that was revoked");
        assert!(bench.takes(&node(9), "192.0.2.1"), "its own");
    }

    #[test]
    fn a_guest_takes_any_node_at_the_one_host_of_its_invite() {
        let scope = ScopeId::lan(None);
        let bench = bench(&[]);
        for (url, host) in [
            ("https://192.0.2.1:3340", "192.0.2.1"),
            ("https://[2001:db8::1]:3340", "2001:db8::1"),
            ("https://Relay.Example.org", "relay.example.org"),
        ] {
            bench.trust.guest_at(scope, url);
            assert!(bench.takes(&node(1), host), "{url}");
            assert!(!bench.takes(&node(1), "192.0.2.2"), "{url}");
            bench.trust.end_guest(&scope);
            assert!(!bench.takes(&node(1), host), "{url}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let bench = bench(&[]);
        let name = ServerName::try_from("192.0.2.1").expect("an address");
        for bytes in [vec![], vec![0x30], vec![0; 300]] {
            let leaf = CertificateDer::from(bytes);
            assert!(bench.verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now()).is_err());
        }
    }
}
