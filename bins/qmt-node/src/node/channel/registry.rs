//! The registry of the channel, and its bridge to the mesh.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mesh_control::{NodeState, NodeView};
use mesh_gossip::registry::{
    Ask, Asked, Config, Entry, Facts, FileError, JoinError as Refused, Life, Mdns, Place as At, Registry,
    View,
};
use mesh_gossip::{Audience, State};
use mesh_identity::NodeName;
use mesh_identity::ca::Leaf;
use mesh_sessions::channel::{Client, Directory, JoinError, Place, Target};
use serde_json::Value;

use super::super::Node;
use super::super::facts::{LOOK, put};
use super::Running;
use crate::config::{AgentChannel, ChannelDiscovery, ChannelPeer, OpenTo, Share};

/// The key of a node's own entry in its record.
const ENTRY_KEY: &str = "agent_channel";
/// What stands in the place of a mesh's name for nodes that are only in the registry.
const MESH: &str = "registry";
/// The bound of a value in gossip. An entry that is longer is told without its models, which the record has anyway.
const VALUE_BYTES_MAX: usize = mesh_gossip::limits::VALUE_BYTES_MAX;

impl Node {
    /// Keeps the registry from the first certificate on, for as long as the node runs.
    pub(super) async fn keep_registry(self, config: AgentChannel) {
        let mut certified = self.channel_running();
        let running = tokio::select! {
            running = certified.wait_for(Option::is_some) => running.ok().and_then(|running| running.clone()),
            () = self.stopping().cancelled_owned() => None,
        };
        let Some(running) = running else { return };
        let mut facts = self.registry_facts(&config, &running);
        let registry = match start(&config, facts.clone(), &running).await {
            Ok(registry) => registry,
            Err(error) => {
                tracing::error!(error = %super::super::chain(&error), "the agent channel has no registry: set storage_dir in [agent_channel]");
                return;
            }
        };
        let kept = Kept { registry: registry.clone(), peers: config.peers.clone() };
        self.inner.channel.directory.store(Some(Arc::new(Box::new(kept))));
        self.inner.channel.registry.store(Some(Arc::new(registry.clone())));
        let mut told: Option<Entry> = None;
        loop {
            // The record changes when the entry says something else, not with each sign of life.
            let view = registry.view();
            if let Some(me) = view.nodes().find(|node| node.is_me)
                && told.as_ref().is_none_or(|told| !told.says_the_same(&me.entry))
            {
                told = Some(me.entry.clone());
            }
            self.tell_mesh(told.as_ref()).await;
            registry.seen(self.members_with_channels(&registry.view())).await;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.stopping().cancelled_owned() => break,
            }
            let now = self.registry_facts(&config, &running);
            if now != facts {
                facts = now;
                registry.set(facts.clone()).await;
            }
        }
        registry.shutdown().await;
    }

    /// What this node says of itself in the registry.
    fn registry_facts(&self, config: &AgentChannel, running: &Running) -> Facts {
        let agents =
            self.running_sessions().map(|sessions| sessions.agents(&self.owner())).unwrap_or_default();
        let offered = |share: &Share| !matches!(share, Share::None);
        let providers = self.config().providers.iter().filter(|provider| offered(&provider.share));
        Facts {
            name: running.tls.leaf().name.clone(),
            node: Some(self.id()),
            host: config.host.clone().unwrap_or_else(|| own_host(config.listener.addr.ip())),
            port: running.server.address().port(),
            agents: agents
                .iter()
                .filter(|agent| agent.open_to != OpenTo::Nobody)
                .map(|agent| agent.id.to_string())
                .collect(),
            providers: providers.map(|provider| provider.name.clone()).collect(),
            models: self.local_models(),
            capabilities: self.config().mesh.labels.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Puts this node's entry into its record.
    async fn tell_mesh(&self, entry: Option<&Entry>) {
        let value = entry.map(encode).unwrap_or_default();
        for scope in self.scopes().list().iter().filter(|scope| scope.uninvited.is_none()) {
            if let Some(gossip) = self.gossip(&scope.id()) {
                put(&gossip, ENTRY_KEY, Audience::Everyone, value.clone()).await;
            }
        }
    }

    /// The entries of members that live, as their records say. A member speaks for itself alone: an entry of another node, or
    /// under the name that the registry has for another one, is none.
    fn members_with_channels(&self, known: &View) -> Vec<Entry> {
        let mut entries = Vec::new();
        for scope in self.scopes().list().iter().filter(|scope| scope.uninvited.is_none()) {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            for member in gossip.members().iter().filter(|member| member.state == State::Alive) {
                let value = member.value(ENTRY_KEY).and_then(|bytes| serde_json::from_slice(bytes).ok());
                let Some(entry) = value.and_then(|value: Value| Entry::read_whole(value).ok()) else {
                    continue;
                };
                let is_its_own = entry.node() == Some(member.id) && entry.id() == entry.name().as_str();
                let has_its_name = known
                    .named(entry.name())
                    .is_none_or(|node| !node.is_me && node.entry.node() == Some(member.id));
                if is_its_own && has_its_name {
                    entries.push(entry);
                }
            }
        }
        entries
    }

    /// The nodes of the registry that are in no mesh of this node, as `nodes` lists them.
    pub(crate) fn registry_nodes(&self, listed: &[NodeView]) -> Vec<NodeView> {
        let Some(registry) = self.inner.channel.registry.load_full() else { return Vec::new() };
        let view = registry.view();
        let is_listed = |entry: &Entry| {
            entry.node().is_some_and(|node| listed.iter().any(|view| view.id == node.to_string()))
        };
        let nodes = view.nodes().filter(|node| !node.is_me && !is_listed(&node.entry));
        nodes
            .map(|node| {
                let entry = &node.entry;
                let texts = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<String>>();
                NodeView {
                    id: entry.node().map_or_else(|| entry.id().to_owned(), |node| node.to_string()),
                    name: entry.name().to_string(),
                    scope_name: MESH.to_owned(),
                    role: mesh_control::Role::Client,
                    state: match node.life {
                        Life::Online => NodeState::Alive,
                        Life::Stale => NodeState::Suspect,
                        Life::Offline => NodeState::Down,
                    },
                    transport: Some("agent channel".to_owned()),
                    addresses: place(entry).map(|place| authority(&place)).into_iter().collect(),
                    models: texts(entry.models()),
                    capabilities: texts(entry.capabilities()),
                    version: Some(entry.version().to_owned()).filter(|version| !version.is_empty()),
                    ..NodeView::default()
                }
            })
            .collect()
    }
}

async fn start(config: &AgentChannel, facts: Facts, running: &Running) -> Result<Registry, FileError> {
    let mut places: Vec<At> = config
        .peers
        .iter()
        .map(|peer| At { name: Some(peer.name.clone()), host: peer.host.clone(), port: peer.port })
        .collect();
    let mut mdns = None;
    match &config.discovery {
        ChannelDiscovery::Static => {}
        ChannelDiscovery::Seed { host, port } => {
            places.push(At { name: None, host: host.clone(), port: *port });
        }
        ChannelDiscovery::Mdns => match Mdns::start(&facts.name, &facts.host, facts.port) {
            Ok(started) => mdns = Some(started),
            Err(error) => {
                tracing::error!(error = %super::super::chain(&error), "nodes are not looked for on the local network")
            }
        },
    }
    let kept = Config {
        heartbeat: config.heartbeat,
        stale: config.stale,
        places,
        ..Config::at(&config.storage_dir)
    };
    Registry::start(kept, facts, Some(Arc::new(ByClient(running.client.clone()))), mdns).await
}

/// Other nodes, asked with this node's certificate.
struct ByClient(Client);

impl Ask for ByClient {
    fn exchange(&self, place: At, own: Value) -> Asked {
        let client = self.0.clone();
        let at = Place { host: place.host, port: place.port };
        let target = match place.name {
            Some(name) => Target::NodeAt(name, at),
            None => Target::Place(at),
        };
        async move { Ok(client.join(&target, &own).await?.0) }.boxed()
    }
}

/// The running registry as the channel asks it.
struct Kept {
    registry: Registry,
    peers: Vec<ChannelPeer>,
}

impl Directory for Kept {
    fn view(&self) -> Value {
        self.registry.view().value(now_ms())
    }

    fn knows(&self, name: &NodeName) -> bool {
        self.registry.view().named(name).is_some()
    }

    fn join(&self, by: &Leaf, node: Value) -> BoxFuture<'static, Result<Value, JoinError>> {
        let (registry, caller) = (self.registry.clone(), by.name.clone());
        async move {
            registry.join(&caller, node).await.map_err(|refused| match &refused {
                Refused::Entry(_) => JoinError::Malformed(refused.to_string()),
                Refused::Closed => JoinError::Unavailable(refused.to_string()),
                _ => JoinError::NotYours(refused.to_string()),
            })?;
            Ok(registry.view().value(now_ms()))
        }
        .boxed()
    }

    fn place_of(&self, name: &NodeName) -> Option<Place> {
        let known = self.registry.view().named(name).and_then(|node| place(&node.entry));
        let peer = self.peers.iter().find(|peer| peer.name == *name);
        known.or_else(|| peer.map(|peer| Place { host: peer.host.clone(), port: peer.port }))
    }
}

fn place(entry: &Entry) -> Option<Place> {
    Some(Place { host: entry.host()?.to_owned(), port: entry.port()? })
}

fn authority(place: &Place) -> String {
    At { name: None, host: place.host.clone(), port: place.port }.to_string()
}

fn encode(entry: &Entry) -> Vec<u8> {
    let mut value = entry.value();
    let text = value.to_string();
    if text.len() <= VALUE_BYTES_MAX {
        return text.into_bytes();
    }
    value["models"] = Value::Array(Vec::new());
    let text = value.to_string();
    // Nothing at all says that there is no channel; a node with so many agents is found by its registry.
    if text.len() <= VALUE_BYTES_MAX { text.into_bytes() } else { Vec::new() }
}

/// The address that others are told when none is configured: the one that is listened on, or that of the route out.
fn own_host(bound: IpAddr) -> String {
    if !bound.is_unspecified() {
        return bound.to_string();
    }
    // Connecting a UDP socket sends nothing. The address is one for documentation (RFC 5737), which every default route covers.
    let out = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr())
    });
    let ip = out.map(|addr| addr.ip()).ok().filter(|ip| !ip.is_unspecified());
    ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
