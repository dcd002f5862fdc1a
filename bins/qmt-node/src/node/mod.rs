//! The node: every crate of the mesh, wired.

mod agents;
mod appoint;
mod audit;
mod channel;
mod copied;
mod disk;
mod doctor;
mod events;
mod facts;
mod health;
mod home;
mod lan;
mod launch;
mod lending;
mod machine;
mod meet;
mod membership;
mod mend;
pub mod metrics;
mod models;
mod offers;
mod ping;
mod placing;
mod plans;
mod pulls;
mod relay;
mod relays;
mod renew;
mod resolve;
mod scopes;
mod serving;
mod speed;
mod start;
mod uninvited;
mod views;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use mesh_control::Event;
use mesh_gossip::Gossip;
use mesh_identity::{NodeAddr, NodeId, NodeKey, NodeName, ScopeId, UnixTime};
use mesh_inference::backend::Backends;
use mesh_inference::gateway::Gateway;
use mesh_routing::Router;
use mesh_transport::Transport;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::console::Door;
use crate::store::audit::Entry;
use crate::store::{ScopeRow, SeenPeer, Store, StoreError};

pub(crate) use agents::followed::Followed;
pub use audit::audit_without_node;
pub use channel::{ChannelError, FilesError};
pub use doctor::{Diagnosis, diagnose};
pub use home::HomeError;
pub use relay::RelayStartError;
pub use start::StartError;

use home::Home;
use scopes::{Scope, Scopes};

/// A running node. Clones are handles to the same one; the last one dropped ends it without the courtesy of
/// [`Node::shutdown`].
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
    /// None in the node's own tasks: they do not keep it alive.
    _last_handle: Option<Arc<DropGuard>>,
}

struct Inner {
    config: Config,
    home: Home,
    key: NodeKey,
    /// The key that lasts, when `key` is a throw-away one.
    lasting: Option<NodeKey>,
    /// Announced addresses.
    external: Vec<SocketAddr>,
    name: NodeName,
    store: Arc<Store>,
    agents: agents::Agents,
    channel: channel::Channel,
    scopes: Arc<Scopes>,
    transport: Transport,
    gossips: RwLock<BTreeMap<ScopeId, Gossip>>,
    router: Router,
    backends: Backends,
    pulls: pulls::Pulls,
    /// Models that are downloaded to be served.
    coming: pulls::Coming,
    serving: Arc<serving::Serving>,
    /// This machine as others were told of it last.
    told_machine: arc_swap::ArcSwapOption<machine::MachineFacts>,
    tunnels: mesh_tunnel::Tunnels,
    lending: lending::Lending,
    disk: disk::Disk,
    measured: speed::Measured,
    providers: tokio::sync::Mutex<Vec<mesh_inference::gateway::Provider>>,
    gateway: Gateway,
    /// Where the console is, and who may come in.
    console: Option<(SocketAddr, Arc<Door>)>,
    relay: Mutex<Option<mesh_transport::relay::Server>>,
    /// Who may use the own relay.
    relay_access: Option<mesh_transport::relay::AccessList>,
    /// Whose relays are believed by their node's key.
    relay_trust: mesh_transport::internet::RelayTrust,
    /// The own relay as others learn of it.
    own_relay: Option<relays::RelayFacts>,
    /// An invite was issued or ended, which relays should know soon.
    relays_changed: Notify,
    endpoints: mesh_transport::internet::Endpoints,
    relays: mesh_transport::internet::Relays,
    exchange: mesh_gossip::Exchange,
    events: broadcast::Sender<Event>,
    event_number: AtomicU64,
    /// Since when members are in their present state, Unix seconds.
    since: Mutex<BTreeMap<(ScopeId, NodeId), u64>>,
    /// Scopes that routing knows, so that those we left are taken out.
    fed: Mutex<BTreeSet<ScopeId>>,
    copied_keys: copied::CopiedKeys,
    /// Memberships that had ended when this node started, each in one sentence.
    ended: Mutex<BTreeMap<ScopeId, String>>,
    /// A grant that is due may find somebody to renew it.
    renewal: Notify,
    /// What the last check of the audit trail found wrong.
    trail_fault: Mutex<Option<String>>,
    /// Something changed that our record should show.
    changed: Notify,
    /// Something changed that routing should know.
    routes_changed: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
    started: Instant,
    started_at: UnixTime,
}

impl Node {
    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn home(&self) -> &Home {
        &self.inner.home
    }

    pub(crate) fn key(&self) -> &NodeKey {
        &self.inner.key
    }

    pub(crate) fn lasting_key(&self) -> Option<&NodeKey> {
        self.inner.lasting.as_ref()
    }

    /// Who this node is.
    pub fn id(&self) -> NodeId {
        self.inner.key.node_id()
    }

    /// What it asks to be called.
    pub fn name(&self) -> &NodeName {
        &self.inner.name
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn scopes(&self) -> &Arc<Scopes> {
        &self.inner.scopes
    }

    /// Its links.
    pub fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    /// What answers requests for models here.
    pub fn backends(&self) -> &Backends {
        &self.inner.backends
    }

    /// Which node serves which model.
    pub fn router(&self) -> &Router {
        &self.inner.router
    }

    pub(crate) fn started(&self) -> Instant {
        self.inner.started
    }

    pub(crate) fn started_at(&self) -> u64 {
        self.inner.started_at.0
    }

    pub(crate) fn stopping(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// The control socket, `node.sock` in the node's home.
    pub fn control_socket(&self) -> PathBuf {
        mesh_control::socket_path(self.inner.home.path())
    }

    pub(crate) fn gateway_url(&self) -> Option<String> {
        Some(format!("http://{}", self.inner.gateway.local_addr()))
    }

    /// Where the gateway listens.
    pub(crate) fn gateway_addr(&self) -> SocketAddr {
        self.inner.gateway.local_addr()
    }

    /// The console's address as people open it, and its door.
    pub(crate) fn console(&self) -> Option<(String, &Arc<Door>)> {
        let (addr, door) = self.inner.console.as_ref()?;
        Some((format!("http://{addr}"), door))
    }

    /// The last log lines.
    pub(crate) fn logs(&self) -> crate::logs::Logs {
        self.inner.config.logs.clone()
    }

    pub(crate) fn gossip(&self, scope: &ScopeId) -> Option<Gossip> {
        self.inner.gossips.read().unwrap_or_else(PoisonError::into_inner).get(scope).cloned()
    }

    pub(crate) fn take_gossip(&self, scope: &ScopeId) -> Option<Gossip> {
        self.inner.gossips.write().unwrap_or_else(PoisonError::into_inner).remove(scope)
    }

    /// Routing and our record are brought up to date soon.
    pub(crate) fn refresh(&self) {
        self.inner.routes_changed.notify_one();
        self.inner.changed.notify_one();
        self.inner.serving.look();
    }

    /// Where this node can be dialed in a scope: announced addresses first.
    pub(crate) fn own_addr(&self, scope: &ScopeId) -> NodeAddr {
        let own = self.transport().local_addr(scope);
        let mut direct = self.inner.external.clone();
        for addr in &own.direct {
            if !direct.contains(addr) {
                direct.push(*addr);
            }
        }
        direct.truncate(mesh_identity::DIRECT_ADDRS_MAX);
        NodeAddr { direct, ..own }
    }

    /// Remembers a scope for the next start, and writes why to the trail. The scope of uninvited peers is the configuration's alone.
    pub(crate) async fn store_scope(&self, scope: &Scope, entry: &Entry) -> Result<(), StoreError> {
        if scope.uninvited.is_some() {
            return Ok(());
        }
        self.store()
            .put_scope(
                &ScopeRow {
                    root: scope.root,
                    name: scope.name.clone(),
                    founded: scope.is_founder(),
                    grant: Some((*scope.signed).clone()),
                    delegation: scope.later_authority(),
                    joined_at: UnixTime::now(),
                    invite: scope.invite.clone(),
                },
                entry,
            )
            .await
    }

    /// Remembers where a peer was reached, for the next start. A failure costs a slower start and nothing else.
    /// Strangers are found anew.
    pub(crate) async fn store_peer(&self, scope: &ScopeId, node: &NodeId, addr: &NodeAddr) {
        if self.is_lan(scope) {
            return;
        }
        let name = NodeName::from_lossy(&self.member_name(scope, node));
        let seen =
            SeenPeer { scope: *scope, node: *node, name, addr: addr.clone(), seen_at: UnixTime::now() };
        if let Err(error) = self.store().put_peers(&[seen]).await {
            tracing::warn!(error = %chain(&error), "a peer's address could not be stored");
        }
    }

    pub(crate) fn member_name(&self, scope: &ScopeId, node: &NodeId) -> String {
        self.gossip(scope)
            .and_then(|gossip| gossip.members().get(node).map(|member| member.name.to_string()))
            .unwrap_or_default()
    }

    pub(crate) fn member_since(&self, scope: &ScopeId, node: &NodeId) -> u64 {
        let since = self.inner.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get(&(*scope, *node)).copied().unwrap_or(self.inner.started_at.0)
    }

    /// Takes part in a scope from now on: gossip, links, routes.
    pub(crate) fn enter(&self, scope: Scope) {
        let id = scope.id();
        self.inner.scopes.insert(scope.clone());
        self.inner.ended.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        self.note_member_at_relays(&id, self.id());
        self.start_gossip(&scope);
        self.refresh();
        let node = self.clone();
        self.inner.tasks.spawn(async move { node.tell_status().await });
        tracing::debug!(scope = %id.short(), "entered");
    }

    /// Stops everything this node runs: sessions are put to rest, gossip ends, answers under way get their time, models end, and links close with
    /// the word that this node shuts down, so that peers need not wait for it.
    /// Idempotent; returns when no task and no child process of the node is left.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        // No more callers, and the answers to those that are there get their time.
        inner.channel.shutdown().await;
        // First, while models and links are there for what they say last.
        inner.agents.shutdown().await;
        inner.serving.hold();
        inner.stop.cancel();
        let gossips: Vec<Gossip> = {
            let mut all = inner.gossips.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *all).into_values().collect()
        };
        for gossip in &gossips {
            gossip.shutdown().await;
        }
        inner.gateway.shutdown().await;
        for mut provider in std::mem::take(&mut *inner.providers.lock().await) {
            provider.shutdown().await;
        }
        inner.pulls.shutdown().await;
        inner.serving.shutdown().await;
        inner.lending.shutdown().await;
        inner.tunnels.shutdown().await;
        inner.transport.shutdown().await;
        self.stop_relay().await;
        inner.tasks.close();
        inner.tasks.wait().await;
        inner.store.close().await;
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use mesh_inference::backend::{Backend, BackendKind, BackendState};

    use super::*;

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .unwrap_or_else(|_| panic!("in vain: {what}"));
    }

    /// Two members of one scope, and their homes.
    async fn pair() -> (Node, Node, [tempfile::TempDir; 2]) {
        let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let first = Box::pin(Node::start(Config::at(homes[0].path()))).await.unwrap();
        let second = Box::pin(Node::start(Config::at(homes[1].path()))).await.unwrap();
        let invite = first.invite(mesh_control::InviteRequest::default()).await.unwrap();
        second.join(mesh_control::JoinRequest { token: invite.token }).await.unwrap();
        (first, second, homes)
    }

    /// In this crate's own tests facts are looked at once an hour: what routing knows, it was told of.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_gossip_tells_of_a_member_reaches_routing_without_a_timer() {
        let (first, second, _homes) = pair().await;
        let (_state, state) = tokio::sync::watch::channel(BackendState::Ready);
        first.backends().insert(Backend {
            model: "m".into(),
            url: http::Uri::from_static("http://127.0.0.1:9"),
            upstream_model: None,
            auth: None,
            share: mesh_inference::backend::Share::Members,
            state,
            slots: None,
            kind: BackendKind::Provider,
            terms: None,
        });
        let scope = second.scopes().list()[0].id();
        let has_route =
            || second.router().route(&mesh_routing::Query::new("m", vec![scope]), 0, Instant::now()).is_ok();
        until("the model is offered and the member is alive", has_route).await;
        first.shutdown().await;
        until("the member is down", || !has_route()).await;
        second.shutdown().await;
    }

    /// Whoever places a model goes by what members say is free.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memory_that_is_promised_or_given_back_is_told_without_a_timer() {
        let (first, second, _homes) = pair().await;
        let scope = second.scopes().list()[0].id();
        let held = || {
            let members = second.gossip(&scope)?.members();
            let facts = members.get(&first.id())?.value(machine::MACHINE_KEY)?.to_vec();
            serde_json::from_slice::<machine::MachineFacts>(&facts).ok().map(|facts| facts.holds)
        };
        until("the member tells of its machine", || held() == Some(Vec::new())).await;
        let promised = first.inner.lending.ledger().reserve("m", 1 << 20).unwrap();
        until("it is promised", || held() == Some(vec![("m".to_owned(), 1 << 20)])).await;
        drop(promised);
        until("it is given back", || held() == Some(Vec::new())).await;
        first.shutdown().await;
        second.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_last_handle_dropped_ends_the_node_and_frees_its_home() {
        let home = tempfile::tempdir().unwrap();
        let first = Node::start(Config::at(home.path())).await.unwrap();
        let second = first.clone();
        drop(first);
        mesh_control::Client::new(second.control_socket()).status().await.unwrap();
        drop(second);
        let again = async {
            loop {
                match Node::start(Config::at(home.path())).await {
                    Ok(node) => return node,
                    Err(StartError::Home(HomeError::Busy { .. })) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let again = tokio::time::timeout(Duration::from_secs(20), again).await.expect("the home is free");
        again.shutdown().await;
    }
}
