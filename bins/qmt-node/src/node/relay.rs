//! Relays: the one this node may run, and which relays carry which scope.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use mesh_identity::{Invite, InviteToken, NodeId, ScopeId, UnixTime};
use mesh_transport::internet::{BindError, EndpointsError, Relay, Relays};
use mesh_transport::relay::{AccessList, Config as ServerConfig, RelayError, Server, Tls};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Node;
use super::scopes::Scope;
use crate::config::{self, RelayServer, ScopeEntry};
use crate::store::StoreError;

/// Where nodes look for a relay's address discovery unless they are told otherwise.
const QUIC_PORT: u16 = 7842;
/// A documentation address (RFC 5737): asking the system for a way to it sends nothing.
const SOMEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// Why the relay of `[relay]` does not run. Nothing is left open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayStartError {
    /// A file of its certificate cannot be read.
    #[error("cannot read the relay's certificate or key {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PemError,
    },
    /// The server.
    #[error("at {listen}")]
    Server {
        /// Where it was to listen.
        listen: SocketAddr,
        /// Why not.
        #[source]
        source: RelayError,
    },
}

/// Starts the relay of `[relay]`. `external` are the announced addresses of this node.
pub(super) async fn start(wanted: &RelayServer, external: &[SocketAddr]) -> Result<Server, RelayStartError> {
    let tls = match &wanted.tls {
        Some((chain, key)) => Some(Tls {
            bind: wanted.listen,
            quic_bind: Some(SocketAddr::new(wanted.listen.ip(), QUIC_PORT)),
            chain: certificates(chain)?,
            key: private_key(key)?,
        }),
        None => None,
    };
    let reachable = reachable_ip(wanted.listen.ip(), external);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = match &wanted.url {
        Some(url) => Some(url.clone()),
        // With port 0 the system chooses, so the server must say where it listens.
        None if wanted.listen.port() == 0 => None,
        None => Some(format!("{scheme}://{}", SocketAddr::new(reachable, wanted.listen.port()))),
    };
    // Beside https only a probe of captive portals is plain, which nobody outside needs.
    let bind = if tls.is_some() { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) } else { wanted.listen };
    let config = ServerConfig { bind, tls, public_url: url };
    let server = Server::start(config, AccessList::new())
        .await
        .map_err(|source| RelayStartError::Server { listen: wanted.listen, source })?;
    tracing::info!(url = server.url(), "relay started");
    if wanted.tls.is_none() && !reachable.is_loopback() {
        tracing::warn!(
            "the relay speaks plain http: what it carries is encrypted end to end, but nodes behind NAT cannot \
             find a direct path by it; give it tls_cert and tls_key"
        );
    }
    Ok(server)
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, RelayStartError> {
    let failed = |source| RelayStartError::Pem { path: path.to_owned(), source };
    let chain = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let chain: Vec<Vec<u8>> =
        chain.map(|one| one.map(|one| one.to_vec())).collect::<Result<_, _>>().map_err(failed)?;
    if chain.is_empty() { Err(failed(PemError::NoItemsFound)) } else { Ok(chain) }
}

fn private_key(path: &Path) -> Result<Vec<u8>, RelayStartError> {
    let key = PrivateKeyDer::from_pem_file(path)
        .map_err(|source| RelayStartError::Pem { path: path.to_owned(), source })?;
    Ok(key.secret_der().to_vec())
}

/// At which of this machine's addresses others find what listens there.
fn reachable_ip(listen: IpAddr, external: &[SocketAddr]) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    let by_route = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect(SOMEWHERE).ok()?;
        socket.local_addr().ok().map(|addr| addr.ip())
    };
    external.first().map(SocketAddr::ip).or_else(by_route).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// The relays of scopes that name none: those of the configuration, and the own one, whose scopes it serves.
pub(super) fn defaults(wanted: &config::Relays, own: Option<&Server>) -> Relays {
    let configured = of_config(wanted);
    let Some(own) = own else { return configured };
    let mut all = vec![own.relay()];
    if let Relays::Custom(others) = configured {
        all.extend(others.into_iter().filter(|other| other.url != own.url()));
    }
    Relays::Custom(all)
}

fn of_config(wanted: &config::Relays) -> Relays {
    match wanted {
        config::Relays::Disabled => Relays::Disabled,
        config::Relays::Custom(urls) => Relays::Custom(urls.iter().map(Relay::new).collect()),
        config::Relays::Public => Relays::Public,
    }
}

impl Node {
    /// The URL of our own relay, if we run one.
    pub(crate) fn own_relay(&self) -> Option<String> {
        self.inner.relay_access.as_ref()?;
        match &self.inner.relays {
            // As [`defaults`] puts it.
            Relays::Custom(all) => all.first().map(|own| own.url.clone()),
            _ => None,
        }
    }

    /// Lets in at our own relay, if we run one: this node, the members of its scopes seen so far, and the holders of its
    /// open invites.
    pub(super) async fn fill_relay(&self) -> Result<(), StoreError> {
        if self.inner.relay_access.is_none() {
            return Ok(());
        }
        for row in self.store().scopes().await? {
            let scope = row.id();
            self.admit_member_to_relay(&scope, self.id());
            for peer in self.store().peers(&scope).await? {
                self.admit_member_to_relay(&scope, peer.node);
            }
        }
        for invite in self.store().invites().await? {
            if invite.revoked_at.is_none() {
                self.admit_to_relay(&invite.token);
            }
        }
        Ok(())
    }

    /// Lets joiners with this invite reach us through our own relay, if we run one.
    pub(crate) fn admit_to_relay(&self, token: &InviteToken) {
        let Some(access) = &self.inner.relay_access else { return };
        if let Ok(invite) = token.verify(UnixTime::now()) {
            access.allow_token(invite.relay_token(), invite.grant().expires_at);
        }
    }

    /// Joiners with this invite no longer reach us through our own relay.
    pub(crate) fn end_at_relay(&self, token: &InviteToken) {
        let Some(access) = &self.inner.relay_access else { return };
        if let Ok(invite) = token.verify(UnixTime::now()) {
            access.remove_token(&invite.relay_token());
        }
    }

    /// Lets a member use our own relay, if we run one.
    pub(crate) fn admit_member_to_relay(&self, scope: &ScopeId, node: NodeId) {
        if let Some(access) = self.inner.relay_access.as_ref().filter(|_| !self.is_lan(scope)) {
            access.allow_member(*scope, node);
        }
    }

    /// A node is no member any more: it leaves our own relay, if we run one.
    pub(crate) fn remove_from_relay(&self, scope: &ScopeId, node: &NodeId) {
        if let Some(access) = &self.inner.relay_access {
            access.remove_member(scope, node);
        }
    }

    /// The relays that carry a scope: those that the configuration gives to it, else the one that our invite named, else
    /// those of every scope.
    pub(crate) fn relays_of(&self, scope: &ScopeId, label: &str, invite: Option<&Invite>) -> Relays {
        let is_it = |entry: &&ScopeEntry| match &entry.invite {
            Some(token) => token.scope() == *scope,
            None => entry.name.as_deref() == Some(label),
        };
        if let Some(relays) =
            self.config().mesh.scopes.iter().find(is_it).and_then(|entry| entry.relays.as_ref())
        {
            return of_config(relays);
        }
        let Some((url, invite)) =
            invite.and_then(|invite| Some((invite.grant().hints.relay.clone()?, invite)))
        else {
            return self.inner.relays.clone();
        };
        let relay = Relay { token: Some(invite.relay_token()), ..Relay::new(url) };
        match &self.inner.relays {
            Relays::Custom(own) if own.iter().any(|own| own.url == relay.url) => self.inner.relays.clone(),
            _ => Relays::Custom(vec![relay]),
        }
    }

    /// Carries a scope over the endpoint for these relays, opening it if it is the first scope with them, and remembers
    /// the port of the first one for the next start.
    pub(crate) async fn carry(&self, scope: ScopeId, relays: &Relays) -> Result<(), EndpointsError> {
        let (driver, is_new) = self.inner.endpoints.for_scope(scope, relays).await?;
        if is_new {
            self.transport().add_driver(driver);
            if let Some(port) = self.inner.endpoints.port().await
                && let Err(error) = self.store().set_kv(super::start::PORT_KEY, Some(&port.to_string())).await
            {
                tracing::warn!(error = %super::chain(&error), "the UDP port could not be remembered for the next start");
            }
        }
        Ok(())
    }

    /// Carries a scope of the last run again.
    pub(super) async fn carry_again(&self, scope: &Scope) -> Result<(), EndpointsError> {
        let id = scope.id();
        // Read as of its issue: what it says of relays outlives it.
        let invite = scope.invite.as_ref().and_then(|token| token.verify(token.id().issued_at()).ok());
        match self.carry(id, &self.relays_of(&id, &scope.name, invite.as_ref())).await {
            Err(EndpointsError::Bind(error @ BindError::PortTaken { .. })) => Err(error.into()),
            Err(error) => {
                tracing::error!(scope = %scope.name, error = %super::chain(&error), "a mesh cannot be reached");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Stops our own relay, if we run one.
    pub(super) async fn stop_relay(&self) {
        let relay = self.inner.relay.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(relay) = relay {
            relay.shutdown().await;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_found_where_it_listens_or_is_announced() {
        let announced = ["198.51.100.7:4433".parse().unwrap()];
        let given = "10.0.0.5".parse().unwrap();
        assert_eq!(reachable_ip(given, &announced), given);
        assert_eq!(reachable_ip(Ipv4Addr::UNSPECIFIED.into(), &announced), announced[0].ip());
        assert!(!reachable_ip(Ipv4Addr::UNSPECIFIED.into(), &[]).is_unspecified());
    }

    #[tokio::test]
    async fn a_certificate_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        std::fs::write(&cert, "no certificate").unwrap();
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let wanted = RelayServer { listen, url: None, tls: Some((cert.clone(), key)) };
        let error = start(&wanted, &[]).await.err().unwrap().to_string();
        assert!(error.contains(&cert.display().to_string()), "{error}");
    }

    #[tokio::test]
    async fn the_own_relay_comes_first_and_once() {
        let wanted = RelayServer { listen: (Ipv4Addr::LOCALHOST, 0).into(), url: None, tls: None };
        let server = start(&wanted, &[]).await.unwrap();
        let own = server.url().to_owned();
        let others = config::Relays::Custom(vec![own.clone(), "https://relay.example.org".to_owned()]);
        let urls = |relays| match relays {
            Relays::Custom(relays) => relays.into_iter().map(|relay| relay.url).collect(),
            _ => Vec::new(),
        };
        assert_eq!(
            urls(defaults(&others, Some(&server))),
            [own.clone(), "https://relay.example.org".to_owned()]
        );
        assert_eq!(urls(defaults(&config::Relays::Disabled, Some(&server))), [own]);
        assert_eq!(defaults(&config::Relays::Disabled, None), Relays::Disabled);
        server.shutdown().await;
    }
}
