//! A relay that a node of ours runs, for members and for those whom an invite lets join.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use iroh::EndpointId;
use iroh_relay::server::{
    self, Access as Verdict, AccessControl, CertConfig, ClientRequest, QuicConfig, TlsConfig,
};
use mesh_identity::{Expiry, NodeId, NodeKey, ScopeId, UnixTime};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{convert, error};

/// Where nodes look for a relay's address discovery unless they are told otherwise.
pub const QUIC_PORT: u16 = 7842;
/// Join tokens remembered at once; a new one beyond that pushes out the one that ends first.
const TOKENS_MAX: usize = 4096;

/// Parameters of a relay.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens: the relay itself without `tls`, else only what must be plain (a probe of captive portals).
    pub bind: SocketAddr,
    /// For a relay that strangers' networks lie in between: `https`, and address discovery, which hole punching needs.
    pub tls: Option<Tls>,
    /// The URL that others use, where it is not the bound address: behind a port forwarding, or with a host name.
    pub public_url: Option<String>,
}

/// How a relay speaks TLS.
#[derive(Clone)]
pub struct Tls {
    /// Whether the certificate is a node's own: TLS 1.3 alone, in which a signature says what it is for.
    pub of_node: bool,
    /// Where `https` listens.
    pub bind: SocketAddr,
    /// UDP address of its address discovery. If it is taken, a free port is used in its place: whoever is told of the relay
    /// by its URL alone then does not find it, see [`Server::quic_port`].
    pub quic_bind: Option<SocketAddr>,
    /// The certificate and its issuers, DER.
    pub chain: Vec<Vec<u8>>,
    /// The certificate's key, PKCS #8 DER.
    pub key: Vec<u8>,
}

impl Tls {
    /// With a certificate that the node signs with its own key, which those who know the node believe
    /// ([`crate::internet::RelayTrust`]). Address discovery listens at the usual port of the same address.
    pub fn of_node(key: &NodeKey, bind: SocketAddr) -> Result<Self, RelayError> {
        let failed = |error: rcgen::Error| RelayError::Key(error.to_string());
        let secret = convert::pkcs8(key);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(secret.as_slice()),
            &rcgen::PKCS_ED25519,
        )
        .map_err(failed)?;
        let certificate = CertificateParams::default().self_signed(&pair).map_err(failed)?;
        Ok(Self {
            of_node: true,
            bind,
            quic_bind: Some(SocketAddr::new(bind.ip(), QUIC_PORT)),
            chain: vec![certificate.der().to_vec()],
            key: secret,
        })
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("bind", &self.bind)
            .field("quic_bind", &self.quic_bind)
            .finish_non_exhaustive()
    }
}

/// Why a relay does not start. Nothing is left open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The certificate or its key cannot be used.
    #[error("the relay's certificate cannot be used")]
    Certificate(#[source] rustls::Error),
    /// The key is not PKCS #8 DER.
    #[error("the relay's key cannot be read: {0}")]
    Key(String),
    /// The addresses cannot be listened on, or the server failed to start.
    #[error("the relay does not start: {0}")]
    Start(String),
}

/// A running relay. Dropped, it stops; [`Server::shutdown`] says goodbye first.
pub struct Server {
    server: server::Server,
    access: AccessList,
    url: String,
    quic_port: Option<u16>,
}

impl Server {
    /// Starts a relay that lets in whom `access` lists, now and later. Not cancel safe: a dropped future may leave
    /// sockets open for a moment.
    pub async fn start(config: Config, access: AccessList) -> Result<Self, RelayError> {
        let mut relay = server::RelayConfig::new(config.bind);
        relay.access = Arc::new(access.clone());
        let mut all = server::ServerConfig::default();
        if let Some(tls) = &config.tls {
            let server_config = tls_config(tls)?;
            if let Some(quic_bind) = tls.quic_bind {
                let mut quic = QuicConfig::new(free_or_any(quic_bind));
                quic.server_config = Some(server_config.clone());
                all.quic = Some(quic);
            }
            relay.tls = Some(TlsConfig::new(tls.bind, CertConfig::Manual { server_config }));
        }
        all.relay = Some(relay);
        let server =
            server::Server::spawn(all).await.map_err(|error| RelayError::Start(error::chain(&error)))?;
        if let Some(service) = server.relay_service() {
            access.lock().service = Some(service.clients().clone());
        }
        let bound = match server.https_addr() {
            Some(addr) => format!("https://{addr}"),
            None => server.http_addr().map(|addr| format!("http://{addr}")).unwrap_or_default(),
        };
        let (url, quic_port) =
            (config.public_url.unwrap_or(bound), server.quic_addr().map(|addr| addr.port()));
        Ok(Self { server, access, url, quic_port })
    }

    /// The relay's URL, for the relay sets of nodes and the hints of invites.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The UDP port of its address discovery: 7842 ([`QUIC_PORT`]) unless that was taken.
    pub fn quic_port(&self) -> Option<u16> {
        self.quic_port
    }

    /// The relay as nodes name it in their configuration.
    pub fn relay(&self) -> crate::internet::Relay {
        crate::internet::Relay { url: self.url.clone(), quic_port: self.quic_port, token: None }
    }

    /// Who may use it.
    pub fn access(&self) -> &AccessList {
        &self.access
    }

    /// Ends every connection and gives the sockets back. Cancel safe: dropped, the rest happens without waiting.
    pub async fn shutdown(self) {
        self.access.lock().service = None;
        drop(self.server.shutdown().await);
    }
}

/// The address, with any port if its own is taken by another program.
fn free_or_any(addr: SocketAddr) -> SocketAddr {
    match UdpSocket::bind(addr) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => SocketAddr::new(addr.ip(), 0),
        _ => addr,
    }
}

fn tls_config(tls: &Tls) -> Result<rustls::ServerConfig, RelayError> {
    // The provider is named, never taken from the process.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = tls.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivateKeyDer::try_from(tls.key.clone()).map_err(|error| RelayError::Key(error.to_owned()))?;
    let versions = if tls.of_node { &[&rustls::version::TLS13][..] } else { rustls::ALL_VERSIONS };
    rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(RelayError::Certificate)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(RelayError::Certificate)
}

/// Who may use a relay: members of scopes by their key, joiners by a token. Clones are handles to the same list, and
/// changes count at once: who is removed is disconnected, if no other scope lists it.
#[derive(Clone, Default)]
pub struct AccessList {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    members: BTreeMap<NodeId, BTreeSet<ScopeId>>,
    tokens: BTreeMap<String, Expiry>,
    service: Option<server::clients::Clients>,
}

impl AccessList {
    /// Nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a member of the scope in.
    pub fn allow_member(&self, scope: ScopeId, node: NodeId) {
        self.lock().members.entry(node).or_default().insert(scope);
    }

    /// No longer a member of the scope. Its connections end unless another scope lists it.
    pub fn remove_member(&self, scope: &ScopeId, node: &NodeId) {
        let mut state = self.lock();
        let Some(scopes) = state.members.get_mut(node) else { return };
        scopes.remove(scope);
        if scopes.is_empty() {
            state.members.remove(node);
            if let Some(service) = &state.service {
                service.disconnect(convert::endpoint_id(node), None);
            }
        }
    }

    /// The scope is no longer served: as [`AccessList::remove_member`] for all of its members.
    pub fn remove_scope(&self, scope: &ScopeId) {
        let of_scope =
            |(node, scopes): (&NodeId, &BTreeSet<ScopeId>)| scopes.contains(scope).then_some(*node);
        let nodes: Vec<NodeId> = self.lock().members.iter().filter_map(of_scope).collect();
        for node in &nodes {
            self.remove_member(scope, node);
        }
    }

    /// Lets in whoever shows the token, until then. Derive it from an invite: [`mesh_identity::Invite::relay_token`].
    pub fn allow_token(&self, token: String, until: Expiry) {
        let mut state = self.lock();
        let now = UnixTime::now();
        state.tokens.retain(|_, until| !until.is_over(now));
        while state.tokens.len() >= TOKENS_MAX {
            let first =
                state.tokens.iter().min_by_key(|(_, until)| until.time().map_or(u64::MAX, |time| time.0));
            let Some(first) = first.map(|(token, _)| token.clone()) else { break };
            state.tokens.remove(&first);
        }
        state.tokens.insert(token, until);
    }

    /// The token lets nobody in any more (those who are in stay until they disconnect).
    pub fn remove_token(&self, token: &str) {
        self.lock().tokens.remove(token);
    }

    fn allows(&self, node: Option<NodeId>, token: Option<&str>, now: UnixTime) -> bool {
        let state = self.lock();
        if node.is_some_and(|node| state.members.contains_key(&node)) {
            return true;
        }
        let Some(token) = token else { return false };
        state.tokens.get(token).is_some_and(|until| !until.is_over(now))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for AccessList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("AccessList")
            .field("members", &state.members.len())
            .field("tokens", &state.tokens.len())
            .finish()
    }
}

impl AccessControl for AccessList {
    async fn on_connect(&self, request: &ClientRequest) -> Verdict {
        let endpoint: EndpointId = request.endpoint_id();
        let node = convert::node_id(&endpoint).ok();
        if self.allows(node, request.auth_token().as_deref(), UnixTime::now()) {
            return Verdict::Allow;
        }
        tracing::debug!(endpoint = %endpoint.fmt_short(), "relay refused a stranger");
        Verdict::Deny { reason: Some("not a member of a scope of this relay".into()) }
    }
}
