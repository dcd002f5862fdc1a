//! The relays of one endpoint as they come and go: those it was bound with, those that members run, and one that fails
//! left out for a while, so that the endpoint makes another one its home at once. What only such a relay carried is closed:
//! iroh goes on sending to it for as long as one connection to the peer is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use iroh::{Endpoint, RelayUrl, Watcher};
use mesh_identity::ScopeId;
use tokio::time::Instant;

use super::{Relay, Relays, connection::IrohConnection, driver::relay_config, same_url};
use crate::{connection::Connection, error::CloseCode, relay::QUIC_PORT};

/// Relays of members that an endpoint knows at once, beside its own: it asks each of them for its round trip.
pub const LEARNED_MAX: usize = 8;
/// How long a relay that fails is left out. Afterwards it may become the home again if it answers.
const REST: Duration = Duration::from_secs(30);

/// The relays of one endpoint.
pub(super) struct RelaySet {
    endpoint: Endpoint,
    bound: Relays,
    state: Mutex<State>,
    /// Of the endpoint; those that have ended are swept out as new ones come.
    conns: Mutex<Vec<Weak<IrohConnection>>>,
}

#[derive(Default)]
struct State {
    learned: BTreeMap<ScopeId, Vec<Relay>>,
    /// A joiner's, until a restart.
    shown: Vec<Relay>,
    /// Left out until then, by URL.
    resting: BTreeMap<String, Instant>,
    /// What iroh was told.
    told: Vec<Relay>,
}

impl RelaySet {
    pub(super) fn new(endpoint: Endpoint, bound: Relays) -> Arc<Self> {
        let told = match &bound {
            Relays::Custom(relays) => relays.clone(),
            _ => Vec::new(),
        };
        let state = Mutex::new(State { told, ..State::default() });
        Arc::new(Self { endpoint, bound, state, conns: Mutex::default() })
    }

    pub(super) fn bound(&self) -> &Relays {
        &self.bound
    }

    /// The URLs in use besides those it was bound with.
    pub(super) fn learned_urls(&self) -> BTreeSet<String> {
        let state = self.lock();
        let learned = state.learned.values().flatten().chain(&state.shown);
        learned.map(|relay| same_url(&relay.url)).collect()
    }

    /// Takes these as the relays that members of the scope run, in place of what was said before.
    pub(super) async fn learn(&self, scope: ScopeId, relays: Vec<Relay>) {
        if self.lock().learned.get(&scope).map_or(relays.is_empty(), |known| *known == relays) {
            return;
        }
        self.lock().learned.insert(scope, relays);
        self.tell().await;
    }

    /// Forgets the relays of these URLs, which another endpoint has now.
    pub(super) async fn give_up(&self, urls: &BTreeSet<String>) {
        let keep = |relay: &Relay| !urls.contains(&same_url(&relay.url));
        {
            let mut state = self.lock();
            state.learned.values_mut().for_each(|relays| relays.retain(keep));
            state.shown.retain(keep);
        }
        self.tell().await;
    }

    /// A relay that this endpoint does not know yet is asked in with an invite's token; it becomes one of its relays.
    pub(super) async fn show_token(&self, url: String, token: String) {
        let relay = Relay { token: Some(token), ..Relay::new(url) };
        {
            let mut state = self.lock();
            let is_same = |known: &Relay| same_url(&known.url) == same_url(&relay.url);
            if self.wanted(&state).iter().any(is_same) || state.shown.len() >= LEARNED_MAX {
                return;
            }
            state.shown.push(relay);
        }
        self.tell().await;
    }

    /// The relays at which a peer may be: the one that it names, if it names one (a node that has just started names
    /// none), and every relay of this endpoint, unless the named one is our own home and works. Not one that rests.
    pub(super) fn of_peer(&self, named: Option<RelayUrl>) -> Vec<RelayUrl> {
        let home = self.endpoint.home_relay_status().get();
        if home.iter().any(|home| home.is_connected() && Some(home.url()) == named.as_ref()) {
            return named.into_iter().collect();
        }
        let state = self.lock();
        let told = state.told.iter().filter_map(|relay| relay.url.parse().ok());
        let urls: Vec<RelayUrl> =
            named.into_iter().chain(told).chain(home.iter().map(|home| home.url().clone())).collect();
        let is_awake = |url: &&RelayUrl| !state.resting.contains_key(&same_url(url.as_str()));
        let awake: Vec<RelayUrl> = urls.iter().filter(is_awake).cloned().collect();
        if awake.is_empty() { urls } else { awake }
    }

    /// Counts this connection among those that a relay may carry.
    pub(super) fn watch(&self, conn: &Arc<IrohConnection>) {
        let mut conns = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
        conns.retain(|conn| conn.strong_count() > 0);
        conns.push(Arc::downgrade(conn));
    }

    /// Closes what this relay carries, so that its users need not wait for silence. Direct links go on.
    fn close_carried(&self, relay: &RelayUrl) {
        let conns = self.conns.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for conn in conns.iter().filter_map(Weak::upgrade).filter(|conn| conn.is_carried_by(relay)) {
            conn.close(CloseCode::AddressGone, "the relay that carried it fails");
        }
    }

    /// Lets a home relay that fails rest, for as long as the endpoint lives.
    pub(super) async fn watch_home(self: Arc<Self>) {
        let mut status = self.endpoint.home_relay_status();
        loop {
            let failing =
                status.get().iter().find(|home| home.last_error().is_some()).map(|home| home.url().clone());
            if let Some(url) = failing {
                self.rest(&url).await;
            }
            let next = self.lock().resting.values().min().copied();
            tokio::select! {
                changed = status.updated() => if changed.is_err() { return },
                () = sleep_until(next) => self.end_rests().await,
            }
        }
    }

    async fn rest(&self, relay: &RelayUrl) {
        {
            let mut state = self.lock();
            let url = same_url(relay.as_str());
            let others = state.told.iter().any(|relay| same_url(&relay.url) != url);
            if !others || state.resting.contains_key(&url) {
                return;
            }
            tracing::info!(relay = url, "the home relay fails; moving to another one");
            state.resting.insert(url, Instant::now() + REST);
        }
        self.close_carried(relay);
        self.tell().await;
    }

    async fn end_rests(&self) {
        let now = Instant::now();
        self.lock().resting.retain(|_, until| *until > now);
        self.tell().await;
    }

    /// What the endpoint should know now: each URL once, the configured ones first.
    fn wanted(&self, state: &State) -> Vec<Relay> {
        let bound = match &self.bound {
            Relays::Custom(relays) => relays.as_slice(),
            Relays::Disabled | Relays::Public => &[],
        };
        let mut wanted = bound.to_vec();
        for relay in state.shown.iter().chain(state.learned.values().flatten()) {
            let is_known = wanted.iter().any(|known| same_url(&known.url) == same_url(&relay.url));
            if !is_known && wanted.len() < bound.len() + LEARNED_MAX {
                wanted.push(relay.clone());
            }
        }
        for relay in &mut wanted {
            let told =
                state.learned.values().flatten().filter(|told| same_url(&told.url) == same_url(&relay.url));
            let ports: Vec<Option<u16>> = told.map(|told| told.quic_port).collect();
            // Who runs it knows the port better than who only knows the URL; a lie does not change the usual one.
            if let Some(port) = ports.first().filter(|_| !ports.contains(&Some(QUIC_PORT))) {
                relay.quic_port = *port;
            }
        }
        wanted
    }

    /// Brings iroh's map of relays up to date.
    async fn tell(&self) {
        let (gone, new) = {
            let mut state = self.lock();
            let mut wanted = self.wanted(&state);
            if wanted.iter().any(|relay| !state.resting.contains_key(&same_url(&relay.url))) {
                wanted.retain(|relay| !state.resting.contains_key(&same_url(&relay.url)));
            }
            let is_gone =
                |known: &&Relay| !wanted.iter().any(|relay| same_url(&relay.url) == same_url(&known.url));
            let gone: Vec<Relay> = state.told.iter().filter(is_gone).cloned().collect();
            let new: Vec<Relay> =
                wanted.iter().filter(|relay| !state.told.contains(relay)).cloned().collect();
            state.told = wanted;
            (gone, new)
        };
        for relay in new {
            if let Ok(config) = relay_config(&relay) {
                self.endpoint.insert_relay(config.url.clone(), Arc::new(config)).await;
            }
        }
        for relay in gone {
            if let Ok(url) = relay.url.parse() {
                self.endpoint.remove_relay(&url).await;
            }
        }
    }

    /// Changed by single assignments, so it is whole even after another holder's panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
