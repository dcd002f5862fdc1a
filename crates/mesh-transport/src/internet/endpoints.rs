//! One endpoint per set of relays.

use std::{collections::BTreeSet, sync::Arc};

use mesh_identity::{NodeKey, ScopeId};
use tokio::sync::Mutex;

use super::{BindError, Config, Internet, Relay, Relays, same_url};
use crate::connection::Driver;

/// The endpoints of one node. Two of them never share a relay: a relay gives all traffic of a key to the endpoint that
/// connected last, and the other would be deaf without knowing it.
pub struct Endpoints {
    key: NodeKey,
    /// For every endpoint but for its relays; the port is the first one's.
    config: Config,
    bound: Mutex<Vec<Arc<Internet>>>,
}

/// Why a scope gets no endpoint. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointsError {
    /// Another scope uses the relay together with other ones. Give both scopes the same set.
    #[error("relay {relay} is already used together with other relays; use the same set for both scopes")]
    Overlap {
        /// The relay that both name.
        relay: String,
    },
    /// The endpoint does not start.
    #[error(transparent)]
    Bind(#[from] BindError),
}

impl Endpoints {
    /// None yet. `config.relays` is ignored.
    pub fn new(key: NodeKey, config: Config) -> Self {
        Self { key, config, bound: Mutex::default() }
    }

    /// The endpoint for the scope's relays: a shared one, or a new one (`true`), which the caller adds to its
    /// transport. The scope is carried by it from now on. Not cancel safe, like [`Internet::bind`].
    pub async fn for_scope(
        &self,
        scope: ScopeId,
        relays: &Relays,
    ) -> Result<(Arc<Internet>, bool), EndpointsError> {
        let mut bound = self.bound.lock().await;
        let wanted = urls(relays);
        for endpoint in bound.iter() {
            let used = urls(endpoint.relays());
            let all: BTreeSet<String> = used.union(&endpoint.relay_set().learned_urls()).cloned().collect();
            if used == wanted || (!wanted.is_empty() && wanted.is_subset(&all)) {
                endpoint.carry(scope);
                return Ok((endpoint.clone(), false));
            }
            if let Some(relay) = used.intersection(&wanted).next() {
                return Err(EndpointsError::Overlap { relay: relay.clone() });
            }
        }
        for endpoint in bound.iter() {
            endpoint.relay_set().give_up(&wanted).await;
        }
        let mut config = Config { relays: relays.clone(), ..self.config.clone() };
        if !bound.is_empty() {
            config.bind = any_port(config.bind);
        }
        let endpoint = Internet::bind(&self.key, config).await?;
        endpoint.carry(scope);
        bound.push(endpoint.clone());
        Ok((endpoint, true))
    }

    /// Takes these as the relays that members of the scope run, in place of what was said before: its endpoint makes the
    /// next one its home when one fails. Left out are relays that another endpoint of this node has, what is over
    /// [`super::LEARNED_MAX`], and all of them where relays are disabled. Cancel safe: at worst some are not used yet.
    pub async fn learn(&self, scope: ScopeId, relays: &[Relay]) {
        let bound = self.bound.lock().await;
        let Some(endpoint) = bound.iter().find(|endpoint| endpoint.carries(&scope)) else { return };
        if *endpoint.relays() == Relays::Disabled {
            return;
        }
        let others = bound.iter().filter(|other| !Arc::ptr_eq(other, endpoint));
        let elsewhere: BTreeSet<String> = others
            .flat_map(|other| urls(other.relays()).into_iter().chain(other.relay_set().learned_urls()))
            .collect();
        let free = relays.iter().filter(|relay| !elsewhere.contains(&same_url(&relay.url)));
        endpoint.relay_set().learn(scope, free.take(super::LEARNED_MAX).cloned().collect()).await;
    }

    /// The endpoint that carries a scope.
    pub async fn of(&self, scope: &ScopeId) -> Option<Arc<Internet>> {
        self.bound.lock().await.iter().find(|endpoint| endpoint.carries(scope)).cloned()
    }

    /// The UDP port of the first endpoint, the one that `config` asked for; `None` while there is no endpoint.
    pub async fn port(&self) -> Option<u16> {
        let bound = self.bound.lock().await;
        let addrs = bound.first()?.bound_addrs();
        addrs.iter().find(|addr| addr.is_ipv4()).or(addrs.first()).map(|addr| addr.port())
    }
}

fn any_port(bind: super::Bind) -> super::Bind {
    match bind {
        super::Bind::Any { .. } | super::Bind::Prefer { .. } => super::Bind::Any { port: 0 },
        super::Bind::Addr(addr) => super::Bind::Addr((addr.ip(), 0).into()),
        super::Bind::RelayOnly => super::Bind::RelayOnly,
    }
}

/// What makes two sets of relays the same.
fn urls(relays: &Relays) -> BTreeSet<String> {
    match relays {
        Relays::Disabled => BTreeSet::from(["disabled".to_owned()]),
        Relays::Public => BTreeSet::from(["public".to_owned()]),
        Relays::Custom(relays) => relays.iter().map(|relay| same_url(&relay.url)).collect(),
    }
}
