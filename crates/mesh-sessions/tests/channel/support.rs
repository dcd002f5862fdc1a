//! A CA, nodes with certificates, agents that do as they are told, and a client that says what it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _, future, stream};
use mesh_identity::ca::Leaf;
use mesh_identity::{NodeId, NodeKey, NodeName, Role, ScopeId, UnixTime};
use mesh_sessions::channel::{
    Caller, Client, ClientConfig, Clock, Code, Credentials, Delegation, Desk, Directory, Ended, Fault,
    JoinError, Limits, ListedAgent, Piece, Place, Server, Standing, Target, Tls,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const HOUR: i64 = 3600;

/// A certificate authority.
pub(crate) struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate is to say.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) serial: u64,
    /// Seconds from now.
    pub(crate) holds: (i64, i64),
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) node: Option<NodeId>,
}

impl Spec {
    pub(crate) fn of(name: &'static str, serial: u64) -> Self {
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Self { name, serial, holds: (-2 * HOUR, 22 * HOUR), usages, node: None }
    }
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
}

fn at(seconds_from_now: i64) -> u64 {
    UnixTime::now().0.checked_add_signed(seconds_from_now).unwrap()
}

/// So many seconds from now, in the type of a crate that has no name here.
macro_rules! moment {
    ($seconds:expr) => {
        date_time_ymd(1970, 1, 1) + Duration::from_secs(at($seconds))
    };
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (moment!(-1000 * HOUR), moment!(1000 * HOUR));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn issue(&self, spec: &Spec) -> Issued {
        let dns = vec![format!("{}.mesh", spec.name).replace('@', "-"), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(dns).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, spec.name);
        params.serial_number = Some(SerialNumber::from(spec.serial));
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = spec.usages.clone();
        (params.not_before, params.not_after) = (moment!(spec.holds.0), moment!(spec.holds.1));
        if let Some(node) = &spec.node {
            let uri = format!("qmt:node:{node}");
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Issued { cert: cert.pem(), key: key.serialize_pem() }
    }

    pub(crate) fn crl(&self, number: u64, revoked: &[u64]) -> Vec<u8> {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: moment!(-60),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: moment!(-60),
            next_update: moment!(HOUR),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap().into_bytes()
    }

    pub(crate) fn credentials(&self, issued: &Issued, crls: Vec<Vec<u8>>) -> Credentials {
        Credentials {
            chain_pem: self.pem().into_bytes(),
            cert_pem: issued.cert.clone().into_bytes(),
            key_pem: issued.key.clone().into_bytes(),
            crls,
        }
    }

    pub(crate) fn tls(&self, spec: &Spec) -> Tls {
        Tls::new(&self.credentials(&self.issue(spec), vec![]), shifted(&Arc::default())).unwrap()
    }
}

/// The wall clock, wrong by so many seconds.
pub(crate) fn shifted(by: &Arc<AtomicI64>) -> Clock {
    let by = by.clone();
    Arc::new(move || UnixTime(UnixTime::now().0.checked_add_signed(by.load(SeqCst)).unwrap()))
}

pub(crate) fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

/// Agents: `echo` repeats its task in two pieces, `slow` waits until it is let go, `broken` fails, `long` never stops talking.
pub(crate) struct Agents {
    pub(crate) key: NodeKey,
    pub(crate) scope: ScopeId,
    pub(crate) delivered: Mutex<Vec<Delegation>>,
    pub(crate) given_up: Arc<AtomicUsize>,
    pub(crate) let_go: Arc<Notify>,
}

impl Agents {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            key: NodeKey::from_seed([1; 32]),
            scope: ScopeId::lan(Some(b"a scope of the tests")),
            delivered: Mutex::default(),
            given_up: Arc::default(),
            let_go: Arc::default(),
        })
    }

    pub(crate) fn times(&self) -> usize {
        self.delivered.lock().unwrap().len()
    }
}

/// Counts itself when it is dropped before it was defused.
struct Alarm(Option<Arc<AtomicUsize>>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(count) = self.0.take() {
            count.fetch_add(1, SeqCst);
        }
    }
}

impl Desk for Agents {
    fn me(&self) -> NodeId {
        self.key.node_id()
    }

    fn standing(&self, leaf: &Leaf) -> Option<Standing> {
        let role = match leaf.name.as_str() {
            "nobody" => return None,
            "guest" => Role::Client,
            _ => Role::Member,
        };
        Some(Standing { role, scopes: leaf.node.iter().map(|_| self.scope).collect() })
    }

    fn agents(&self, _: &Caller, standing: &Standing) -> BoxFuture<'static, Result<Vec<ListedAgent>, Fault>> {
        let agent = |id: &str| ListedAgent { id: id.to_owned(), description: String::new(), model: None };
        let agents = match standing.role {
            Role::Member => vec![agent("echo"), agent("slow")],
            Role::Client => vec![agent("echo")],
        };
        future::ready(Ok(agents)).boxed()
    }

    fn deliver(&self, delegation: Delegation) -> BoxStream<'static, Piece> {
        self.delivered.lock().unwrap().push(delegation.clone());
        let agent = delegation.to_agent.unwrap_or_else(|| "echo".to_owned());
        let begun = Piece::Begun { agent: agent.clone(), session: Some("s-1".to_owned()) };
        match agent.as_str() {
            "echo" => {
                let mut text = delegation.context.join("|");
                text.push_str(&delegation.task);
                let (one, two) = text.split_at(text.floor_char_boundary(text.len() / 2));
                let texts = [Piece::Text(one.to_owned()), Piece::Text(two.to_owned())];
                let pieces = [begun].into_iter().chain(texts).chain([Piece::Done { answer: None }]);
                stream::iter(pieces.collect::<Vec<_>>()).boxed()
            }
            "slow" => {
                let (let_go, given_up) = (self.let_go.clone(), self.given_up.clone());
                let rest = stream::once(async move {
                    let mut alarm = Alarm(Some(given_up));
                    let_go.notified().await;
                    alarm.0 = None;
                    Piece::Done { answer: Some("at last".to_owned()) }
                });
                stream::iter([begun]).chain(rest).boxed()
            }
            "long" => {
                let text = "x".repeat(64 * 1024);
                stream::iter([begun]).chain(stream::repeat_with(move || Piece::Text(text.clone()))).boxed()
            }
            "broken" => {
                let fault = Fault::new(Code::AgentFailed, "the model is gone");
                stream::iter([begun, Piece::Failed(fault)]).boxed()
            }
            other => {
                let fault = Fault::new(Code::UnknownAgent, format!("there is no agent {other}"));
                stream::iter([Piece::Failed(fault)]).boxed()
            }
        }
    }
}

/// A registry in memory.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) known: Mutex<BTreeSet<String>>,
    pub(crate) places: Mutex<BTreeMap<String, Place>>,
    pub(crate) joined: Mutex<Vec<Value>>,
}

impl Registry {
    pub(crate) fn of(names: &[&str]) -> Arc<Self> {
        let registry = Self::default();
        registry.known.lock().unwrap().extend(names.iter().map(|&name| name.to_owned()));
        Arc::new(registry)
    }

    pub(crate) fn put(&self, name: &str, address: SocketAddr) {
        let place = Place { host: address.ip().to_string(), port: address.port() };
        self.places.lock().unwrap().insert(name.to_owned(), place);
    }
}

impl Directory for Registry {
    fn view(&self) -> Value {
        json!({"version": 1, "nodes": self.known.lock().unwrap().iter().collect::<Vec<_>>()})
    }

    fn knows(&self, name: &NodeName) -> bool {
        self.known.lock().unwrap().contains(name.as_str())
    }

    fn join(&self, by: &Leaf, node: Value) -> BoxFuture<'static, Result<Value, JoinError>> {
        self.known.lock().unwrap().insert(by.name.to_string());
        self.joined.lock().unwrap().push(node);
        std::future::ready(Ok(self.view())).boxed()
    }

    fn place_of(&self, name: &NodeName) -> Option<Place> {
        self.places.lock().unwrap().get(name.as_str()).cloned()
    }
}

/// A node `ct110` whose registry knows `ct111` and `guest`.
pub(crate) struct Node {
    pub(crate) ca: Arc<Ca>,
    pub(crate) tls: Tls,
    pub(crate) agents: Arc<Agents>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) server: Server,
    /// Nodes whose memberships have ended.
    pub(crate) ended: Arc<Mutex<BTreeSet<NodeId>>>,
    pub(crate) log: Log,
    _log: tracing::subscriber::DefaultGuard,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::with(Limits::default(), vec![], Arc::default()).await
    }

    pub(crate) async fn with(limits: Limits, revoked: Vec<u64>, clock: Arc<AtomicI64>) -> Self {
        let log = Log::default();
        let guard = log.listen();
        let ca = Arc::new(Ca::new("the mesh CA"));
        let credentials = ca.credentials(&ca.issue(&Spec::of("ct110", 1)), vec![ca.crl(1, &revoked)]);
        let ended: Arc<Mutex<BTreeSet<NodeId>>> = Arc::default();
        let of_ended = ended.clone();
        let is_ended: Ended =
            Arc::new(move |leaf| leaf.node.is_some_and(|node| of_ended.lock().unwrap().contains(&node)));
        let tls = Tls::with_ended(&credentials, shifted(&clock), is_ended).unwrap();
        let (agents, registry) = (Agents::new(), Registry::of(&["ct111", "guest", "nobody"]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server::start(listener, tls.clone(), agents.clone(), registry.clone(), limits).unwrap();
        Self { ca, tls, agents, registry, server, ended, log, _log: guard }
    }

    pub(crate) fn target(&self) -> Target {
        let address = self.server.address();
        Target::NodeAt(name("ct110"), Place { host: address.ip().to_string(), port: address.port() })
    }

    /// A client with a good certificate of this name.
    pub(crate) fn client(&self, name: &'static str) -> Client {
        self.client_of(&Spec::of(name, 2))
    }

    pub(crate) fn client_of(&self, spec: &Spec) -> Client {
        Client::new(self.ca.tls(spec), self.registry.clone(), ClientConfig::default())
    }

    /// A connection of somebody with a good certificate of this name.
    pub(crate) async fn raw(&self, name: &'static str) -> TlsStream<TcpStream> {
        let config = raw_config(&self.ca, Some(&self.ca.issue(&Spec::of(name, 3))));
        raw_connect(self.server.address(), config).await.unwrap()
    }

    pub(crate) async fn end(self) {
        self.server.shutdown().await;
        assert_eq!((self.server.stats().connections, self.server.stats().delegations), (0, 0));
    }
}

pub(crate) fn raw_config(ca: &Ca, issued: Option<&Issued>) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match issued {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = CertificateDer::pem_slice_iter(issued.cert.as_bytes()).map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

pub(crate) async fn raw_connect(
    to: SocketAddr,
    config: rustls::ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    let server = ServerName::try_from("ct110.mesh").unwrap();
    TlsConnector::from(Arc::new(config)).connect(server, stream).await
}

/// Writes text and reads all that comes back until the end, however it ends.
pub(crate) async fn say(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    text: &str,
) -> String {
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.flush().await;
    hear(stream).await
}

pub(crate) async fn hear(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut heard = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            heard.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the connection ends");
    String::from_utf8_lossy(&heard).into_owned()
}

/// An HTTP request that ends its connection.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: ct110.mesh\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Waits for a state.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// What was logged on this thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let (log, level) = (self.clone(), tracing::Level::INFO);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn has(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
