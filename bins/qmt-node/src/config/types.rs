//! The settings by subject. Every field is checked when it comes from [`super::load`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_identity::{InviteToken, NodeId, NodeName, Role};
pub use mesh_inference::backend::{Secret, Share};
pub use mesh_inference::fetch::Proxies;
pub use mesh_inference::terms::{Price, Quota};
use mesh_sessions::ids::AgentId;
use multiaddr::Multiaddr;

pub use super::agent::*;
pub use super::channel::*;
use crate::logs::Logs;
use crate::traces::Traces;

/// Port of the gateway when none is asked for.
pub const GATEWAY_PORT: u16 = 9337;
/// Port of the console when none is asked for.
pub const CONSOLE_PORT: u16 = 3131;

/// Everything that a node is asked to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the node's files: `QMT_HOME`, else `~/.qmt`. Absolute when it comes from [`super::load`].
    pub home: PathBuf,
    /// The configuration file that was read; none when there was none.
    pub file: Option<PathBuf>,
    /// The name that the node asks its grants to carry. Default: the host's name.
    pub node_name: NodeName,
    /// Where the node's key is.
    pub identity: Identity,
    /// `--client`: a lite client, with no model and a throw-away key.
    pub client: bool,
    /// Scopes, transports and peers.
    pub mesh: Mesh,
    /// Models that this node runs.
    pub inference: Inference,
    /// Where models are downloaded from.
    pub hub: Hub,
    /// Other servers whose models this node passes on, in the file's order; names are unique.
    pub providers: Vec<Provider>,
    /// The OpenAI-compatible gateway.
    pub gateway: Gateway,
    /// The console; none when it was not asked for.
    pub console: Option<Listener>,
    /// A relay that this node runs for its scopes; none when it was not asked for.
    pub relay: Option<RelayServer>,
    /// Agents that this node hosts; ids are unique, those of delegates included.
    pub agents: Vec<AgentEntry>,
    /// Agents at other nodes that are used here by name; ids are unique.
    pub remote_agents: Vec<RemoteAgent>,
    /// Agents that work for this node's agents.
    pub delegates: Vec<AgentEntry>,
    /// Database of the sessions. Default: `sessions.db` in the home folder.
    pub sessions_db: PathBuf,
    /// The agent channel; none when it was not asked for.
    pub agent_channel: Option<AgentChannel>,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// The last log lines; whoever sets up logging gives them [`Logs::layer`].
    pub logs: Logs,
    /// The collector to which spans of requests are sent, an `http` URL; none sends nothing.
    pub otlp_endpoint: Option<http::Uri>,
    /// Spans on their way there; whoever sets up logging gives them [`Traces::layer`] when there is a collector.
    pub traces: Traces,
    /// What the node says at start: settings it does not act on, forms it had to mend. One sentence each.
    pub warnings: Vec<String>,
}

impl Config {
    /// The defaults of a node whose files are in `home`. Reads the host's name, nothing else.
    pub fn at(home: impl Into<PathBuf>) -> Self {
        let home = home.into();
        Self {
            file: None,
            node_name: host_name(),
            identity: Identity::File(home.join("mesh_identity.key")),
            client: false,
            mesh: Mesh::default(),
            inference: Inference::default(),
            hub: Hub::default(),
            providers: Vec::new(),
            gateway: Gateway::default(),
            console: None,
            relay: None,
            agents: Vec::new(),
            remote_agents: Vec::new(),
            delegates: Vec::new(),
            sessions_db: home.join("sessions.db"),
            agent_channel: None,
            log_format: LogFormat::Text,
            logs: Logs::default(),
            otlp_endpoint: None,
            traces: Traces::default(),
            warnings: Vec::new(),
            home,
        }
    }

    /// The node's database.
    pub fn node_db(&self) -> PathBuf {
        self.home.join("node.db")
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        mesh_control::socket_path(&self.home)
    }

    /// The folder in which llama.cpp builds are kept.
    pub fn runtime_dir(&self) -> PathBuf {
        self.home.join("runtime")
    }
}

impl Default for Config {
    /// [`Config::at`] the folder that the environment names, `.qmt` in the working directory when it names none.
    fn default() -> Self {
        Self::at(mesh_control::home_from_env().unwrap_or_else(|_| Path::new(".qmt").to_owned()))
    }
}

fn host_name() -> NodeName {
    NodeName::from_lossy(&rustix::system::uname().nodename().to_string_lossy())
}

/// Where the node's key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A file, made on first use.
    File(PathBuf),
    /// A throw-away key of this process (`QMT_EPHEMERAL_KEY=1`, `--client`).
    Ephemeral,
}

/// Scopes, transports and peers.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// What was said about the mesh as a whole: `Some(true)` by `enabled = true`, `--mesh`, an invite to make or to use;
    /// `Some(false)` by `enabled = false` alone; `None` when nothing was said. A node keeps to the scopes of its database
    /// unless this is `Some(false)`.
    pub enabled: Option<bool>,
    /// Whether a request may fall back to other providers of the model in the mesh.
    pub auto_fallback: bool,
    /// Labels published in the node's record, such as `gpu`.
    pub labels: Vec<String>,
    /// Addresses announced as given (port forwarding).
    pub external_addrs: Vec<Multiaddr>,
    /// Limit for one request that does not stream. Default 300 s.
    pub request_timeout: Duration,
    /// How long a broken stream may take to come back. Default 120 s.
    pub stream_grace: Duration,
    /// The LAN transport; none when it was not asked for.
    pub lan: Option<Lan>,
    /// The internet transport. It is there whenever the node is in a scope or asked to join or to found one.
    pub internet: Internet,
    /// Scopes to join or, without an invite, to found under their name.
    pub scopes: Vec<ScopeEntry>,
    /// An invite to make at start (`--mesh-invite`), founding a scope when the node is in none.
    pub invite: Option<FoundingInvite>,
    /// Peers to dial (`[[mesh.peers]]`, `--peer`).
    pub peers: Vec<StaticPeer>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            enabled: None,
            auto_fallback: false,
            labels: Vec::new(),
            external_addrs: Vec::new(),
            request_timeout: Duration::from_secs(300),
            stream_grace: Duration::from_secs(120),
            lan: None,
            internet: Internet::default(),
            scopes: Vec::new(),
            invite: None,
            peers: Vec::new(),
        }
    }
}

/// The LAN transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lan {
    /// Where it listens. Default `/ip4/0.0.0.0/tcp/0`; `/ip4/0.0.0.0/tcp/9000` by `--mesh` without a value.
    pub listen: Multiaddr,
    /// How it finds peers.
    pub discovery: Discovery,
    /// What LAN peers without an invite may do.
    pub trust: Trust,
    /// Secret that all peers of the LAN scope share; none for the open one.
    pub psk: Option<String>,
}

/// How LAN peers are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Discovery {
    /// By mDNS.
    #[default]
    Mdns,
    /// By a Kademlia of our own.
    Kademlia,
    /// Only by `[[mesh.peers]]`.
    None,
}

/// What LAN peers without an invite may do here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trust {
    /// Use what is shared with clients.
    #[default]
    Client,
    /// Everything.
    Open,
    /// Nothing: an invite is needed.
    Invite,
    /// Nothing, but for those in `[[mesh.peers]]`.
    Peers,
}

/// The internet transport (iroh).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Internet {
    /// Relays of every scope that does not name its own.
    pub relays: Relays,
    /// UDP port to bind; none lets the system choose.
    pub bind_port: Option<u16>,
    /// Whether to ask the router for an open port, where the build can.
    pub port_mapping: bool,
}

/// Which relays may carry traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Relays {
    /// None was named: those that members of a scope run, and the one that an invite names. The default.
    #[default]
    OfMembers,
    /// None: direct paths only.
    Disabled,
    /// These, `http` or `https` URLs; at least one.
    Custom(Vec<String>),
    /// The public relays of the iroh project, only when `relay_mode = "default"` was written.
    Public,
}

/// One scope to be in.
#[derive(Debug, Clone)]
pub struct ScopeEntry {
    /// Local label; for an entry without an invite the name of the scope to found.
    pub name: Option<String>,
    /// The invite that decides the scope; its signature is not yet checked.
    pub invite: Option<InviteToken>,
    /// Relays of this scope alone; none for those of [`Internet`].
    pub relays: Option<Relays>,
    /// Where it was written (`--mesh-join`, `config.toml:12 [[mesh.iroh]]`), for messages.
    pub origin: String,
}

/// The invite that `--mesh-invite` makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundingInvite {
    /// Name of the mesh.
    pub name: Option<String>,
    /// How long the invite lives; none for ever. Default 24 h.
    pub ttl: Option<Duration>,
    /// How many different nodes may use it; 0 for any number. Default 1.
    pub uses: u32,
}

/// A peer that is dialed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticPeer {
    /// Local name; none when it came by `--peer`.
    pub name: Option<String>,
    /// Its address without `/p2p/`; none when only the id is known.
    pub addr: Option<Multiaddr>,
    /// Its id, from `id` or the address' `/p2p/`; none when any node at the address will do.
    pub id: Option<NodeId>,
    /// Role to give it, whatever `trust` says.
    pub role: Option<Role>,
}

/// Where models are downloaded from.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// `HF_ENDPOINT`; none for huggingface.co.
    pub endpoint: Option<String>,
    /// What it asks for with gated models: `HF_TOKEN`.
    pub token: Option<Secret>,
    /// `https_proxy` and its kin.
    pub proxies: Proxies,
}

/// Models that this node runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Inference {
    /// Models to serve: names, paths, `org/repo/file.gguf` or URLs, in order of wish.
    pub models: Vec<String>,
    /// Folders with GGUF files. Default `~/.models`.
    pub model_dirs: Vec<PathBuf>,
    /// Folder with llama-server; none for `PATH` and the runtime folder.
    pub bin_dir: Option<PathBuf>,
    /// Most memory to use for models, bytes; none for what there is.
    pub max_vram_bytes: Option<u64>,
    /// Context length in tokens; none for the model's own.
    pub ctx_size: Option<u32>,
    /// Requests that one model works on at a time, 1 to 64; none for llama-server's own choice.
    pub slots: Option<u32>,
    /// Split models over nodes even when they fit one.
    pub split: bool,
    /// The draft model.
    pub draft: Draft,
    /// Most tokens drafted at a time; none for llama-server's own choice.
    pub draft_max: Option<u32>,
    /// Device for llama-server (`--device`), such as `CUDA0` or `none`.
    pub device: Option<String>,
    /// Shares of the devices, as llama-server's `--tensor-split`, such as `3,1`.
    pub tensor_split: Option<String>,
    /// Threads of llama-server, and of what is lent; none for one a core.
    pub threads: Option<u32>,
    /// Who may use them. Default members.
    pub share: Share,
    /// Whether members may borrow this node's memory for models that do not fit theirs. Default true.
    pub lend: bool,
    /// Whether a node of which no model is asked takes up what the mesh wants and this disk has. Default true.
    pub assign: bool,
    /// Whether this machine's speed is measured, once, before its first model. Default true.
    pub calibrate: bool,
    /// Times by which models are placed.
    pub election: ElectionTimes,
}

/// Times by which it is decided which node runs what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElectionTimes {
    /// News are gathered for so long before they are acted on. Default 2 s; losses are acted on at once.
    pub debounce: Duration,
    /// A worker that refused or was lost is left out for so long. Default 30 s.
    pub left_out_for: Duration,
    /// An elected node has so long to claim a model. Default 10 s.
    pub patience: Duration,
}

impl Default for ElectionTimes {
    fn default() -> Self {
        Self {
            debounce: Duration::from_secs(2),
            left_out_for: Duration::from_secs(30),
            patience: Duration::from_secs(10),
        }
    }
}

impl Default for Inference {
    fn default() -> Self {
        let dir = std::env::home_dir().map(|home| home.join(".models"));
        Self {
            models: Vec::new(),
            model_dirs: dir.into_iter().collect(),
            bin_dir: None,
            max_vram_bytes: None,
            ctx_size: None,
            slots: None,
            split: false,
            draft: Draft::Auto,
            draft_max: None,
            device: None,
            tensor_split: None,
            threads: None,
            share: Share::Members,
            lend: true,
            assign: true,
            calibrate: true,
            election: ElectionTimes::default(),
        }
    }
}

/// The draft model for speculative decoding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Draft {
    /// One beside the main model whose vocabulary matches.
    #[default]
    Auto,
    /// None (`--no-draft`).
    Off,
    /// This file.
    Path(PathBuf),
}

/// Another server whose models this node passes on.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Its name here.
    pub name: String,
    /// The API it speaks.
    pub kind: ProviderKind,
    /// Base of its API, such as `http://127.0.0.1:8000/v1`; the kind's public address when none was written.
    pub base_url: http::Uri,
    /// Its key, read from the variable that `api_key_env` names.
    pub api_key: Option<Secret>,
    /// Models to offer; empty to ask the server.
    pub models: Vec<String>,
    /// Who may use it. Default members.
    pub share: Share,
    /// What each other node may use of it. Default: no bounds.
    pub quota: Quota,
    /// What its tokens cost.
    pub price: Option<Price>,
}

/// The API that a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// OpenAI's, and every server compatible with it.
    OpenAi,
    /// Anthropic's.
    Anthropic,
}

/// A socket that a node listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub addr: SocketAddr,
    /// Whether the port was asked for: then a taken port is an error, else the next free one is used and named.
    pub asked: bool,
}

/// The OpenAI-compatible gateway.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Where it listens. Default 127.0.0.1:9337.
    pub listener: Listener,
    /// Key that callers must show; always there when the address is not loopback.
    pub api_key: Option<Secret>,
    /// How long an answer that lost its host may look for one that goes on with it. Default 60 s.
    pub continue_timeout: Duration,
    /// Whether answers that can be resumed are copied to another member. Default true.
    pub make_replicas: bool,
    /// Whether this node keeps copies of other members' answers. Default true.
    pub keep_replicas: bool,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listener: Listener { addr: (Ipv4Addr::LOCALHOST, GATEWAY_PORT).into(), asked: false },
            api_key: None,
            continue_timeout: Duration::from_secs(60),
            make_replicas: true,
            keep_replicas: true,
        }
    }
}

/// A relay that this node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayServer {
    /// Where it listens. Default 0.0.0.0:3340.
    pub listen: SocketAddr,
    /// The URL at which others reach it; none to use the node's own addresses.
    pub url: Option<String>,
    /// Certificate chain and key, PEM; none for plain http.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// An agent at another node, used here by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteAgent {
    /// Its id, there and here.
    pub id: AgentId,
    /// Its name for people.
    pub name: Option<String>,
    /// What it is good for.
    pub description: Option<String>,
    /// The node that hosts it: a `[[mesh.peers]]` name, a granted name or an id.
    pub peer: String,
    /// Labels it is known by.
    pub capabilities: Vec<String>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
