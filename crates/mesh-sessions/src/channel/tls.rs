//! The certificate that a node shows and the CA that it believes, in force from the next handshake on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_identity::UnixTime;
use mesh_identity::ca::{Leaf, LeafError};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{self, CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

use super::handshake::{self, Refusal, Refused};
use super::open::{Entered, Open, Side};

/// Longer chains than a root with a few intermediates are no mesh CA's.
const ANCHORS_MAX: usize = 32;

/// The only protocol that is spoken.
const ALPN: &[u8] = b"http/1.1";

/// What a node shows and what it believes, as files hold it.
#[derive(Clone)]
pub struct Credentials {
    /// The certificates of the CA, PEM: each of them, root or intermediate, vouches for nodes.
    pub chain_pem: Vec<u8>,
    /// The node's certificate, PEM, its own first; intermediates may follow.
    pub cert_pem: Vec<u8>,
    /// The certificate's key, PEM.
    pub key_pem: Vec<u8>,
    /// Revocation lists of the CA's certificates, PEM or DER; none for a CA that has none.
    pub crls: Vec<Vec<u8>>,
}

/// Reads the wall clock.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// Whether the node of a certificate is let in no more, though the certificate's CA vouches for it: its membership ended.
pub type Ended = Arc<dyn Fn(&Leaf) -> bool + Send + Sync>;

/// Why credentials cannot be used. Those in use before stay in use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file holds no PEM of what it should.
    #[error("{what} cannot be read: {why}")]
    Unreadable {
        /// Which.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The key is not that of the certificate.
    #[error("the key is not the one of the certificate")]
    KeyOfAnother,
    /// The certificate is none of a node.
    #[error("the certificate cannot be used")]
    NotANode(#[source] LeafError),
    /// The CA's own certificates do not vouch for it now.
    #[error("this node's {reason} (CN={name})")]
    Refused {
        /// The name in it.
        name: String,
        /// Why.
        reason: String,
    },
}

impl CredentialsError {
    /// What to do about it.
    pub fn mend(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => {
                "`qmt-cli ca show FILE` says what a certificate's file holds, `qmt-cli ca show --dir DIR` what a CA's folder does"
            }
            Self::KeyOfAnother => "put the key and the certificate that were made together side by side",
            Self::NotANode(_) => {
                "have the CA issue one for this node: CN=NAME, with NAME.mesh among its host names"
            }
            Self::Refused { .. } => {
                "have the CA renew it: `qmt-cli ca renew NODE`; `qmt-cli ca verify CERT_PATH --dir DIR` says whether the CA in DIR vouches for it"
            }
        }
    }
}

/// What became of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloaded {
    /// Connections that were closed, since their certificates are accepted no more.
    pub closed: usize,
}

/// The credentials in use, for servers and clients of one node. Clones are handles to the same ones.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    ended: Ended,
    in_use: ArcSwap<InUse>,
    open: Arc<Open>,
}

/// Made whole from one set of credentials, so that no handshake mixes two.
pub(crate) struct InUse {
    /// One more with each reload.
    pub(crate) generation: u64,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    /// This node's own.
    pub(crate) leaf: Arc<Leaf>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Tls {
    /// Credentials to begin with.
    ///
    /// # Errors
    /// [`CredentialsError`]: there is no channel without a certificate that its CA vouches for.
    pub fn new(credentials: &Credentials, clock: Clock) -> Result<Self, CredentialsError> {
        Self::with_ended(credentials, clock, Arc::new(|_| false))
    }

    /// The same, where more than the certificate decides. `ended` is asked at each handshake, of callers and of servers, and
    /// by [`Tls::close_ended`], which is to be called when its answers change.
    ///
    /// # Errors
    /// As [`Tls::new`].
    pub fn with_ended(
        credentials: &Credentials,
        clock: Clock,
        ended: Ended,
    ) -> Result<Self, CredentialsError> {
        let in_use = InUse::new(credentials, &clock, 0)?;
        let shared = Shared { clock, ended, in_use: ArcSwap::from_pointee(in_use), open: Arc::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Puts others in their place, for handshakes from now on. Requests under way go on; connections whose other ends are
    /// accepted no more (revoked, expired, of another CA) are closed.
    ///
    /// # Errors
    /// [`CredentialsError`]; then nothing has changed.
    pub fn reload(&self, credentials: &Credentials) -> Result<Reloaded, CredentialsError> {
        let generation = self.in_use().generation + 1;
        let in_use = InUse::new(credentials, &self.shared.clock, generation)?;
        self.shared.in_use.store(Arc::new(in_use));
        Ok(Reloaded { closed: self.close_refused() })
    }

    /// Closes connections whose certificates, or memberships, have ended since their handshake, and returns how many. A server
    /// does so by itself every minute.
    pub fn close_refused(&self) -> usize {
        let (in_use, now) = (self.in_use(), (self.shared.clock)());
        let accepts = |side, chain: &[_]| in_use.accepts(side, chain, now) && !self.is_ended(chain);
        self.shared.open.close_unless(accepts)
    }

    /// The same for memberships alone, which takes no signature to see.
    pub fn close_ended(&self) -> usize {
        self.shared.open.close_unless(|_, chain| !self.is_ended(chain))
    }

    fn is_ended(&self, chain: &[CertificateDer<'_>]) -> bool {
        let leaf = chain.first().and_then(|own| Leaf::read(own).ok());
        leaf.is_some_and(|leaf| (self.shared.ended)(&leaf))
    }

    /// What this node's certificate says.
    pub fn leaf(&self) -> Arc<Leaf> {
        self.in_use().leaf.clone()
    }

    /// Connections open now: those that others opened, and those that this node did.
    pub fn connections(&self) -> (usize, usize) {
        (self.shared.open.count(Side::Client), self.shared.open.count(Side::Server))
    }

    pub(crate) fn clock(&self) -> Clock {
        self.shared.clock.clone()
    }

    pub(crate) fn in_use(&self) -> Arc<InUse> {
        self.shared.in_use.load_full()
    }

    /// Enters a connection whose handshake was made with `made_with`, if what was put in its place since then does not refuse
    /// the other end, and its membership has not ended.
    pub(crate) fn enter(
        &self,
        made_with: &InUse,
        side: Side,
        chain: &[CertificateDer<'_>],
        leaf: &Leaf,
    ) -> Result<Entered, Refused> {
        let chain: Arc<[_]> = chain.iter().map(|one| one.clone().into_owned()).collect();
        // In the table before it is asked: what ends from here on closes it.
        let entered = self.shared.open.enter(side, chain.clone());
        let in_use = self.in_use();
        let is_same = in_use.generation == made_with.generation;
        if !is_same && !in_use.accepts(side, &chain, (self.shared.clock)()) {
            return Err(Refused::new(Refusal::Revoked, "certificate revoked"));
        }
        if (self.shared.ended)(leaf) {
            return Err(Refused::new(Refusal::Revoked, "the membership of its node was revoked"));
        }
        Ok(entered)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("leaf", &self.leaf()).finish_non_exhaustive()
    }
}

impl InUse {
    fn new(credentials: &Credentials, clock: &Clock, generation: u64) -> Result<Self, CredentialsError> {
        let provider = Arc::new(ring::default_provider());
        let anchors = Arc::new(anchors(&credentials.chain_pem)?);
        let chain = certificates("the certificate", &credentials.cert_pem)?;
        let own = chain.first().cloned().ok_or_else(|| unreadable("the certificate", "there is none"))?;
        let key = PrivateKeyDer::from_pem_slice(&credentials.key_pem)
            .map_err(|error| unreadable("the key", error))?;
        let leaf = Leaf::read(&own).map_err(CredentialsError::NotANode)?;
        let key = certified(&provider, chain.clone(), key)?;
        // Its own certificate is judged without the lists: one that is revoked has to hear of later lists too.
        let unlisted = clients(&provider, &anchors, Vec::new())?;
        let refused = |error| CredentialsError::Refused {
            name: leaf.name.to_string(),
            reason: handshake::reason(&std::io::Error::other(error)),
        };
        unlisted.verify_client_cert(&own, &chain[1..], tls_time(clock())).map_err(refused)?;
        let crls = lists(&credentials.crls)?;
        let clients = clients(&provider, &anchors, crls.clone())?;
        let servers = servers(&provider, &anchors, crls)?;
        // Both ends show it.
        let name = ServerName::try_from(format!("{}.mesh", leaf.name)).map_err(|_| {
            unreadable("the certificate", "its common name followed by .mesh is no host name")
        })?;
        match servers.verify_server_cert(&own, &chain[1..], &name, &[], tls_time(clock())) {
            Ok(_) | Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => {}
            Err(error) => return Err(refused(error)),
        }
        Ok(Self {
            generation,
            server: Arc::new(server_config(&provider, clock, clients.clone(), key.clone())),
            client: Arc::new(client_config(&provider, clock, servers.clone(), key)),
            leaf: Arc::new(leaf),
            clients,
            servers,
        })
    }

    fn accepts(&self, side: Side, chain: &[CertificateDer<'static>], now: UnixTime) -> bool {
        let Some((own, between)) = chain.split_first() else { return false };
        match side {
            Side::Client => self.clients.verify_client_cert(own, between, tls_time(now)).is_ok(),
            Side::Server => {
                let Ok(leaf) = Leaf::read(own) else { return false };
                let Some(name) = leaf.dns.first().and_then(|dns| ServerName::try_from(dns.clone()).ok())
                else {
                    return false;
                };
                self.servers.verify_server_cert(own, between, &name, &[], tls_time(now)).is_ok()
            }
        }
    }
}

/// Any certificate of the CA vouches for nodes: some nodes show theirs without the intermediate, as the seed's do.
fn anchors(pem: &[u8]) -> Result<RootCertStore, CredentialsError> {
    let what = "the CA's chain";
    let certificates = certificates(what, pem)?;
    if certificates.is_empty() || certificates.len() > ANCHORS_MAX {
        return Err(unreadable(
            what,
            format!("it has {} certificates, not 1 to {ANCHORS_MAX}", certificates.len()),
        ));
    }
    let mut anchors = RootCertStore::empty();
    for certificate in certificates {
        anchors.add(certificate).map_err(|error| unreadable(what, error))?;
    }
    Ok(anchors)
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| unreadable(what, error))
}

fn lists(of: &[Vec<u8>]) -> Result<Vec<CertificateRevocationListDer<'static>>, CredentialsError> {
    let mut lists = Vec::new();
    for bytes in of {
        if bytes.starts_with(b"-----") || !bytes.starts_with(&[0x30]) {
            for list in CertificateRevocationListDer::pem_slice_iter(bytes) {
                lists.push(list.map_err(|error| unreadable("a revocation list", error))?);
            }
        } else {
            lists.push(bytes.clone().into());
        }
    }
    Ok(lists)
}

fn certified(
    provider: &CryptoProvider,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, CredentialsError> {
    let certified = CertifiedKey::from_der(chain, key, provider);
    certified.map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => CredentialsError::KeyOfAnother,
        error => unreadable("the key", error),
    })
}

/// A list that has run out still counts, and a CA without one is believed: a certificate of a node lives a day, so nobody is
/// served much longer by keeping a list from a node, and no node falls silent since its CA was away.
fn clients(
    provider: &Arc<CryptoProvider>,
    anchors: &Arc<RootCertStore>,
    crls: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, CredentialsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(anchors.clone(), provider.clone())
        .with_crls(crls)
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status();
    builder.build().map_err(unusable)
}

fn servers(
    provider: &Arc<CryptoProvider>,
    anchors: &Arc<RootCertStore>,
    crls: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<WebPkiServerVerifier>, CredentialsError> {
    let builder = WebPkiServerVerifier::builder_with_provider(anchors.clone(), provider.clone())
        .with_crls(crls)
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status();
    builder.build().map_err(unusable)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    clock: &Clock,
    clients: Arc<dyn ClientCertVerifier>,
    key: Arc<CertifiedKey>,
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_details(provider.clone(), Arc::new(Time(clock.clone())))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(Always(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A session that is resumed skips the client's certificate: whoever was revoked since would be in.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    clock: &Clock,
    servers: Arc<WebPkiServerVerifier>,
    key: Arc<CertifiedKey>,
) -> ClientConfig {
    let mut config = ClientConfig::builder_with_details(provider.clone(), Arc::new(Time(clock.clone())))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_webpki_verifier(servers)
        .with_client_cert_resolver(Arc::new(Always(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

fn unusable(error: VerifierBuilderError) -> CredentialsError {
    unreadable("a revocation list", error)
}

fn unreadable(what: &'static str, why: impl ToString) -> CredentialsError {
    CredentialsError::Unreadable { what, why: why.to_string() }
}

fn tls_time(time: UnixTime) -> pki_types::UnixTime {
    pki_types::UnixTime::since_unix_epoch(Duration::from_secs(time.0))
}

/// The clock as rustls asks for it.
struct Time(Clock);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<pki_types::UnixTime> {
        Some(tls_time((self.0)()))
    }
}

/// One certificate, whoever asks.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for Always {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
