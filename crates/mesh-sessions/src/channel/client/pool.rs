//! Connections that are kept, and how new ones are made.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_identity::NodeName;
use mesh_identity::ca::Leaf;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::super::directory::Place;
use super::super::handshake;
use super::super::open::Side;
use super::super::tls::Tls;
use super::AskError;
use super::wire::Wire;

/// Idle connections kept for each place; more than so many requests at a time are rare among nodes.
const IDLE_MAX: usize = 64;
/// Shorter than a server waits for the next request, so that no request goes into a closing connection.
const IDLE_TIME: Duration = Duration::from_secs(40);

/// The end of a connection: a node by its name, or whoever is there.
pub(super) type Key = (Option<NodeName>, Place);

pub(super) struct Pool {
    tls: Tls,
    connect: Duration,
    idle: Mutex<HashMap<Key, Vec<(Wire, Instant)>>>,
}

impl Pool {
    pub(super) fn new(tls: Tls, connect: Duration) -> Self {
        Self { tls, connect, idle: Mutex::default() }
    }

    /// A kept connection, or a new one; and whether it was kept.
    pub(super) async fn wire(&self, key: &Key) -> Result<(Wire, bool), AskError> {
        match self.kept(key) {
            Some(wire) => Ok((wire, true)),
            None => Ok((self.connect(key).await?, false)),
        }
    }

    /// A connection whose last answer was read to its end.
    pub(super) fn keep(&self, key: Key, mut wire: Wire) {
        if wire.is_reusable() && wire.generation == self.tls.in_use().generation {
            let mut idle = self.lock();
            let kept = idle.entry(key).or_default();
            if kept.len() < IDLE_MAX {
                kept.push((wire, Instant::now()));
            }
        }
    }

    fn kept(&self, key: &Key) -> Option<Wire> {
        let generation = self.tls.in_use().generation;
        let mut idle = self.lock();
        // Of all places: nobody else would look.
        idle.retain(|_, kept| {
            kept.retain(|(wire, since)| since.elapsed() < IDLE_TIME && wire.generation == generation);
            !kept.is_empty()
        });
        let kept = idle.get_mut(key)?;
        std::iter::from_fn(|| kept.pop())
            .map(|(wire, _)| wire)
            .find_map(|mut wire| wire.is_reusable().then_some(wire))
    }

    pub(super) async fn connect(&self, key: &Key) -> Result<Wire, AskError> {
        let (name, place) = key;
        let unreachable = |why: String| AskError::Unreachable { place: place.clone(), why };
        let work = async {
            let host = place.host.trim_matches(['[', ']']);
            let stream = TcpStream::connect((host, place.port))
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            // Requests are small, and somebody waits for them.
            let _ = stream.set_nodelay(true);
            self.handshake(name.as_ref(), place, stream).await
        };
        match tokio::time::timeout(self.connect, work).await {
            Ok(wire) => wire,
            Err(_) => Err(unreachable(format!("no answer within {:?}", self.connect))),
        }
    }

    async fn handshake(
        &self,
        name: Option<&NodeName>,
        place: &Place,
        stream: TcpStream,
    ) -> Result<Wire, AskError> {
        let refused = |reason: String| AskError::Handshake { place: place.clone(), reason };
        let server =
            server_name(name, place).ok_or_else(|| refused("its name is no host name".to_owned()))?;
        let in_use = self.tls.in_use();
        let connect = TlsConnector::from(in_use.client.clone()).connect(server, stream);
        let stream = connect.await.map_err(|error| refused(handshake::reason(&error)))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let own = chain.first().ok_or_else(|| refused("it showed no certificate".to_owned()))?;
        let leaf = Leaf::read(own).map_err(|error| refused(error.to_string()))?;
        if let Some(name) = name.filter(|name| !leaf.is_of(name.as_str())) {
            return Err(refused(format!("{} answers there, and {name} was asked", leaf.name)));
        }
        let entered = self.tls.enter(&in_use, Side::Server, chain, &leaf);
        let entered = entered.map_err(|error| refused(error.words))?;
        Wire::new(stream, Arc::new(leaf), entered, in_use.generation)
            .await
            .map_err(|error| refused(error.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<(Wire, Instant)>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the certificate has to be for: the node's name under `.mesh`, which needs no DNS, or the host as it was given.
fn server_name(name: Option<&NodeName>, place: &Place) -> Option<ServerName<'static>> {
    match name {
        Some(name) => ServerName::try_from(format!("{name}.mesh")).ok(),
        None => match place.host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => Some(ServerName::from(address)),
            Err(_) => ServerName::try_from(place.host.clone()).ok(),
        },
    }
}
