//! The client: requests to other nodes' channels, with this node's certificate.

mod answer;
mod pool;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_identity::NodeName;
use mesh_identity::ca::Leaf;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::answer::{Answering, Heard};
use self::pool::{Key, Pool};
use self::wire::{Broken, Wire};
use super::directory::{Directory, Place};
use super::fault::{Fault, FaultBody};
use super::message::{CHAIN_HEADER, KEY_HEADER, ListedAgents, MessageRequest, Ping};
use super::tls::Tls;
use crate::chain::SignedChain;

/// The longest answer that is read whole, in bytes: an agent's of the longest, as JSON.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What an agent's channel is called by when no registry has it: names of the mesh resolve where the seed's DNS is.
const SUFFIX: &str = ".mesh";

/// How the client behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// From a name to the end of the handshake (5 s).
    pub connect: Duration,
    /// How long an answer that is no agent's may take (10 s).
    pub answer: Duration,
    /// How long an agent's answer may bring nothing, not even a heartbeat (60 s): four of a server of ours.
    pub silence: Duration,
    /// The port of a node that is in no registry (3000).
    pub port: u16,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            silence: Duration::from_secs(60),
            port: 3000,
        }
    }
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The node of this name, wherever the registry says that it is.
    Node(NodeName),
    /// The node of this name, there.
    NodeAt(NodeName, Place),
    /// Whichever node is there. Of `NAME.mesh` it is the node of that name.
    Place(Place),
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// No registry says where the node is. Nothing was sent.
    #[error("{0} is in no registry that this node knows")]
    UnknownNode(NodeName),
    /// Nothing listens there. Nothing was sent.
    #[error("{host}:{port} does not answer: {why}", host = place.host, port = place.port)]
    Unreachable {
        /// Where.
        place: Place,
        /// What happened.
        why: String,
    },
    /// One end does not accept the other's certificate, or it is another node. Nothing was sent.
    #[error("TLS handshake with {host}:{port} failed: {reason}", host = place.host, port = place.port)]
    Handshake {
        /// Where.
        place: Place,
        /// Why.
        reason: String,
    },
    /// The node refuses or failed, and says why.
    #[error("{fault} (HTTP {status})")]
    Refused {
        /// The status.
        status: u16,
        /// What it says.
        fault: Fault,
    },
    /// The connection ended before the answer did.
    #[error("the connection broke off: {0}")]
    BrokenOff(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The answer is none.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
}

impl AskError {
    /// Whether another node may be asked in its place: this one has not begun.
    pub fn has_not_begun(&self) -> bool {
        match self {
            Self::UnknownNode(_) | Self::Unreachable { .. } | Self::Handshake { .. } => true,
            Self::Refused { status, .. } => matches!(*status, 403 | 404 | 429 | 503 | 508),
            _ => false,
        }
    }
}

/// A delegation to another node.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// What is asked.
    pub request: MessageRequest,
    /// The delegations so far and this one, signed by this node; none towards a node without an id.
    pub chain: Option<SignedChain>,
    /// By which it is the same delegation when it has to be sent again.
    pub key: String,
}

/// Asks other nodes. Clones share the connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    pool: Pool,
    directory: Arc<dyn Directory>,
    config: ClientConfig,
}

impl Client {
    /// A client with this node's certificate, that finds nodes by the registry.
    pub fn new(tls: Tls, directory: Arc<dyn Directory>, config: ClientConfig) -> Self {
        let pool = Pool::new(tls, config.connect);
        Self { shared: Arc::new(Shared { pool, directory, config }) }
    }

    /// Whether the node is there, and what it says of itself.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ping(&self, to: &Target) -> Result<(Ping, Arc<Leaf>), AskError> {
        self.json(to, Method::GET, "/api/mesh/ping", None).await
    }

    /// The registry as the node has it, and what the node's certificate says.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn registry(&self, to: &Target) -> Result<(Value, Arc<Leaf>), AskError> {
        self.json(to, Method::GET, "/api/mesh", None).await
    }

    /// Has this node taken into the other's registry, and returns it as it is then.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn join(&self, to: &Target, node: &Value) -> Result<(Value, Arc<Leaf>), AskError> {
        self.json(to, Method::POST, "/api/mesh/join", Some(node.to_string().into())).await
    }

    /// The agents that this node may delegate to there.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn agents(&self, to: &Target) -> Result<ListedAgents, AskError> {
        Ok(self.json(to, Method::GET, "/api/agents", None).await?.0)
    }

    /// Delegates, and returns when the node has begun to answer. Dropped, this or what it returns, the delegation is cancelled
    /// there.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn delegate(&self, to: &Target, what: &Outgoing) -> Result<Answering, AskError> {
        let body =
            serde_json::to_vec(&what.request).map_err(|error| AskError::Malformed(error.to_string()))?;
        let body = Bytes::from(body);
        let build = || {
            let mut request = Request::post("/api/message")
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::ACCEPT, "text/event-stream, application/json")
                .header(KEY_HEADER, &what.key);
            if let Some(chain) = &what.chain {
                request = request.header(CHAIN_HEADER, chain.to_string());
            }
            request.body(Full::new(body.clone()))
        };
        let asked = self.ask(to, build);
        let silence = self.shared.config.silence;
        let (key, wire, head, body) =
            tokio::time::timeout(silence, asked).await.map_err(|_| AskError::TimedOut(silence))??;
        let answering = Answering::new(self.clone(), key, wire, body, head.headers, silence);
        if head.status.is_success() { Ok(answering) } else { Err(answering.refusal(head.status).await) }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        to: &Target,
        method: Method,
        path: &'static str,
        body: Option<Bytes>,
    ) -> Result<(T, Arc<Leaf>), AskError> {
        let limit = self.shared.config.answer;
        let work = async {
            let build = || {
                let request = Request::builder().method(method.clone()).uri(path);
                let request = request.header(header::CONTENT_TYPE, "application/json");
                request.body(Full::new(body.clone().unwrap_or_default()))
            };
            let (key, mut wire, head, mut answer) = self.ask(to, build).await?;
            let bytes = read(&mut wire, &mut answer).await?;
            let leaf = wire.leaf.clone();
            self.shared.pool.keep(key, wire);
            if !head.status.is_success() {
                return Err(refusal(head.status, &bytes));
            }
            let value = serde_json::from_slice(&bytes);
            Ok((value.map_err(|error| AskError::Malformed(error.to_string()))?, leaf))
        };
        tokio::time::timeout(limit, work).await.unwrap_or(Err(AskError::TimedOut(limit)))
    }

    /// Sends a request. A kept connection may have ended in this moment: then it goes out once more over a new one, which is
    /// safe, since what changes something carries a key or means the same twice.
    async fn ask(
        &self,
        to: &Target,
        build: impl Fn() -> Result<Request<Full<Bytes>>, http::Error>,
    ) -> Result<(Key, Wire, http::response::Parts, Incoming), AskError> {
        let key = self.key(to)?;
        let request = || {
            let mut request = build().map_err(|error| AskError::Malformed(error.to_string()))?;
            let host = match &key.0 {
                Some(name) => format!("{name}{SUFFIX}"),
                None => key.1.host.clone(),
            };
            let host = HeaderValue::try_from(host).map_err(|error| AskError::Malformed(error.to_string()))?;
            request.headers_mut().insert(header::HOST, host);
            Ok(request)
        };
        let (mut wire, was_kept) = self.shared.pool.wire(&key).await?;
        let answer = match wire.send(request()?).await {
            Err(Broken::Http(_)) if was_kept => {
                wire = self.shared.pool.connect(&key).await?;
                wire.send(request()?).await
            }
            answer => answer,
        };
        let (head, body) = answer.map_err(|error| broken(&key.1, error))?.into_parts();
        Ok((key, wire, head, body))
    }

    fn key(&self, to: &Target) -> Result<Key, AskError> {
        match to {
            Target::NodeAt(name, place) => Ok((Some(name.clone()), place.clone())),
            Target::Node(name) => {
                let place = self.shared.directory.place_of(name);
                let place = place.ok_or_else(|| AskError::UnknownNode(name.clone()))?;
                Ok((Some(name.clone()), place))
            }
            Target::Place(place) => {
                let name = place.host.strip_suffix(SUFFIX).and_then(|name| NodeName::new(name).ok());
                let known = name.as_ref().and_then(|name| self.shared.directory.place_of(name));
                // The port that was given counts; the registry knows the address better than a resolver does.
                let place = match known {
                    Some(known) => Place { host: known.host, port: place.port },
                    None => place.clone(),
                };
                Ok((name, place))
            }
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// A server tells what it thinks of a certificate after the handshake: its alert comes in place of an answer.
fn broken(place: &Place, error: Broken) -> AskError {
    use std::error::Error as _;
    let Broken::Http(error) = error else { return AskError::BrokenOff(error.to_string()) };
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    let tls = io.filter(|io| io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()));
    match tls {
        Some(io) => AskError::Handshake { place: place.clone(), reason: super::handshake::reason(io) },
        None => AskError::BrokenOff(match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }),
    }
}

async fn read(wire: &mut Wire, body: &mut Incoming) -> Result<Vec<u8>, AskError> {
    let mut bytes = Vec::new();
    while let Some(frame) = wire.frame(body).await {
        let frame = frame.map_err(|error| AskError::BrokenOff(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > ANSWER_BYTES_MAX {
            return Err(AskError::Malformed(format!("it is longer than {ANSWER_BYTES_MAX} bytes")));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn refusal(status: StatusCode, body: &[u8]) -> AskError {
    let said = serde_json::from_slice::<FaultBody>(body).map(|body| body.error);
    let fault = said.unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body[..body.len().min(FOREIGN_BYTES_MAX)]);
        let plain: String = text.chars().filter(|c| !c.is_control()).collect();
        Fault::new(super::Code::Other, if plain.is_empty() { status.to_string() } else { plain })
    });
    AskError::Refused { status: status.as_u16(), fault }
}

/// What is shown of an error that is not in our words.
const FOREIGN_BYTES_MAX: usize = 300;
