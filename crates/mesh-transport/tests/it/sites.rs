//! Where the contract is run: loopback, and a relay of ours and nothing else.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use mesh_identity::{NodeKey, ScopeId};
use mesh_transport::{
    Driver,
    internet::{Bind, Config, Internet, Relays},
    lan::{self, Lan},
    relay::{self, AccessList, Server},
    testing::Site,
};

/// iroh on loopback, relays disabled.
pub(crate) struct Loopback;

impl Site for Loopback {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>> {
        Box::pin(async {
            let driver: Arc<dyn Driver> = Internet::bind(key, Config::loopback()).await.unwrap();
            driver
        })
    }
}

/// libp2p on loopback, by TCP alone or by QUIC alone.
pub(crate) enum LanLoopback {
    Tcp,
    Quic,
}

impl Site for LanLoopback {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>> {
        let listen = match self {
            Self::Tcp => "/ip4/127.0.0.1/tcp/0",
            Self::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
        };
        let config = lan::Config { listen: vec![listen.parse().unwrap()], ..lan::Config::default() };
        Box::pin(async {
            let driver: Arc<dyn Driver> = Lan::bind(key, config).await.unwrap();
            driver
        })
    }
}

/// iroh without any socket of its own: everything goes through one relay of ours.
pub(crate) struct RelayOnly(Server);

impl RelayOnly {
    pub(crate) async fn start() -> Arc<dyn Site> {
        Arc::new(Self(relay_server(AccessList::new()).await))
    }
}

pub(crate) async fn relay_server(access: AccessList) -> Server {
    let config = relay::Config { bind: (Ipv4Addr::LOCALHOST, 0).into(), tls: None, public_url: None };
    Server::start(config, access).await.unwrap()
}

pub(crate) async fn relayed(key: &NodeKey, relays: Relays) -> Arc<Internet> {
    Internet::bind(key, Config { bind: Bind::RelayOnly, relays, ..Config::default() }).await.unwrap()
}

pub(crate) async fn online(driver: &Internet) {
    tokio::time::timeout(Duration::from_secs(10), driver.online()).await.expect("the relay takes it in");
}

impl Site for RelayOnly {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>> {
        Box::pin(async {
            self.0.access().allow_member(ScopeId::lan(None), key.node_id());
            let driver = relayed(key, Relays::Custom(vec![self.0.relay()])).await;
            online(&driver).await;
            driver as Arc<dyn Driver>
        })
    }
}
