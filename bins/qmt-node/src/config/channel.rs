//! The agent channel as the configuration describes it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mesh_identity::{NodeName, Role};

use super::types::Listener;

/// Port of the agent channel when none is asked for.
pub const AGENT_CHANNEL_PORT: u16 = 3000;

/// The agent channel: HTTPS with mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentChannel {
    /// The name in the node's certificate. Default: the node's name.
    pub node_name: NodeName,
    /// The certificate, its key and whom it trusts.
    pub tls: ChannelTls,
    /// Where it listens. Default: port 3000 of all addresses; a taken default port moves on.
    pub listener: Listener,
    /// The address that others are told, an IP address or a host name; none for the machine's own.
    pub host: Option<String>,
    /// Folder with `mesh.json`.
    pub storage_dir: PathBuf,
    /// Folder of the mesh CA: a node that finds the intermediate's key in it signs for members. Default: `ca` in the home
    /// folder, where `qmt-cli ca` keeps it.
    pub ca_dir: PathBuf,
    /// How often the node says that it lives. Default 30 s.
    pub heartbeat: Duration,
    /// Silence after which a node counts as stale. Default 90 s.
    pub stale: Duration,
    /// How other nodes are found.
    pub discovery: ChannelDiscovery,
    /// Nodes that are asked whatever the way of discovery; their names are unique.
    pub peers: Vec<ChannelPeer>,
    /// Role of callers whose certificate names no grant; none refuses them.
    pub role: Option<Role>,
}

impl AgentChannel {
    /// The defaults of the node that has this name, its files under `home`.
    pub fn at(home: impl Into<PathBuf>, node_name: NodeName) -> Self {
        let storage_dir = PathBuf::from("/rivet-shared");
        Self {
            tls: ChannelTls::in_folder(&storage_dir.join("rivet-ca"), &node_name),
            node_name,
            listener: Listener {
                addr: SocketAddr::from((Ipv4Addr::UNSPECIFIED, AGENT_CHANNEL_PORT)),
                asked: false,
            },
            host: None,
            storage_dir,
            ca_dir: home.into().join("ca"),
            heartbeat: Duration::from_secs(30),
            stale: Duration::from_secs(90),
            discovery: ChannelDiscovery::Static,
            peers: Vec::new(),
            role: None,
        }
    }
}

/// The files of the agent channel's TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelTls {
    /// Chain of the CA, PEM.
    pub ca_path: PathBuf,
    /// The node's certificate, PEM.
    pub cert_path: PathBuf,
    /// The certificate's key, PEM.
    pub key_path: PathBuf,
    /// Whether any of them was written down. Those of `tls = true` are where the files would be that somebody issued by
    /// hand; a node without them may enrol instead.
    pub asked: bool,
}

impl ChannelTls {
    /// The files of this node in a CA's folder.
    pub fn in_folder(folder: &std::path::Path, node_name: &NodeName) -> Self {
        let issued = |extension: &str| folder.join("issued").join(format!("{node_name}.{extension}"));
        Self {
            ca_path: folder.join("intermediate").join("ca-chain.pem"),
            cert_path: issued("crt"),
            key_path: issued("key"),
            asked: false,
        }
    }
}

/// How the agent channel finds other nodes, beside the registry's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelDiscovery {
    /// By [`AgentChannel::peers`] alone.
    Static,
    /// By asking this node, again and again.
    Seed {
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
    },
    /// By mDNS.
    Mdns,
}

/// A node that is asked for its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelPeer {
    /// The name in its certificate.
    pub name: NodeName,
    /// Its host.
    pub host: String,
    /// Its port. Default 3000.
    pub port: u16,
}
