//! Relays: the one this node may run, and which relays carry which scope.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use mesh_identity::{Invite, InviteToken, NodeId, NodeKey, ScopeId, UnixTime};
use mesh_transport::internet::{BindError, EndpointsError, Relay, Relays};
use mesh_transport::relay::{AccessList, Config as ServerConfig, QUIC_PORT, RelayError, Server, Tls};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Node;
use super::scopes::Scope;
use crate::config::{self, RelayServer, ScopeEntry};
use crate::store::StoreError;

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
pub(super) async fn start(
    key: &NodeKey,
    wanted: &RelayServer,
    external: &[SocketAddr],
) -> Result<Server, RelayStartError> {
    let tls = tls(key, wanted)?;
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
    tracing::info!(url = server.url(), discovery_port = server.quic_port(), "relay started");
    match server.quic_port() {
        None => tracing::warn!(
            "the relay speaks plain http, as its url says: what it carries is encrypted end to end, but nodes behind \
             NAT find no direct path by it; leave url out, or let it begin with https"
        ),
        Some(QUIC_PORT) => {}
        Some(port) => tracing::warn!(
            port,
            "another program has UDP port {QUIC_PORT}, so the relay's address discovery is at another port: members \
             learn it once they are in, but a node that only has an invite is relayed until then; free the port and \
             restart the node"
        ),
    }
    Ok(server)
}

/// The certificate of the configuration, else the node's own; none where the relay's URL asks for plain http.
fn tls(key: &NodeKey, wanted: &RelayServer) -> Result<Option<Tls>, RelayStartError> {
    let bind = wanted.listen;
    if let Some((chain, key)) = &wanted.tls {
        return Ok(Some(Tls {
            of_node: false,
            bind,
            quic_bind: Some(SocketAddr::new(bind.ip(), QUIC_PORT)),
            chain: certificates(chain)?,
            key: private_key(key)?,
        }));
    }
    if wanted.url.as_deref().is_some_and(|url| url.starts_with("http://")) {
        return Ok(None);
    }
    Tls::of_node(key, bind).map(Some).map_err(|source| RelayStartError::Server { listen: bind, source })
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
        config::Relays::OfMembers => Relays::Custom(Vec::new()),
        config::Relays::Disabled => Relays::Disabled,
        config::Relays::Custom(urls) => Relays::Custom(urls.iter().map(Relay::new).collect()),
        config::Relays::Public => Relays::Public,
    }
}

impl Node {
    /// The URL of our own relay, if we run one.
    pub(crate) fn own_relay(&self) -> Option<String> {
        self.inner.own_relay.as_ref().map(|own| own.url().to_owned())
    }

    /// Lets in at our own relay, if we run one: this node, the members of its scopes seen so far, and the holders of its
    /// open invites. Believes the relays of these members.
    pub(super) async fn fill_relay(&self) -> Result<(), StoreError> {
        for row in self.store().scopes().await? {
            let scope = row.id();
            self.note_member_at_relays(&scope, self.id());
            for peer in self.store().peers(&scope).await? {
                self.note_member_at_relays(&scope, peer.node);
            }
            if let Some(invite) = &row.invite {
                self.trust_invite(invite);
            }
        }
        if self.inner.relay_access.is_none() {
            return Ok(());
        }
        for invite in self.store().invites().await? {
            if invite.revoked_at.is_none() {
                self.admit_to_relay(&invite.token);
            }
        }
        Ok(())
    }

    /// Lets joiners with this invite reach us through our own relay, if we run one, or another member's.
    pub(crate) fn admit_to_relay(&self, token: &InviteToken) {
        self.inner.relays_changed.notify_one();
        let Some(access) = &self.inner.relay_access else { return };
        if let Ok(invite) = token.verify(UnixTime::now()) {
            access.allow_token(invite.relay_token(), invite.grant().expires_at);
        }
    }

    /// Joiners with this invite no longer reach us through our own relay, or another member's.
    pub(crate) fn end_at_relay(&self, token: &InviteToken) {
        self.inner.relays_changed.notify_one();
        let Some(access) = &self.inner.relay_access else { return };
        if let Ok(invite) = token.verify(UnixTime::now()) {
            access.remove_token(&invite.relay_token());
        }
    }

    /// Lets a member use our own relay, if we run one, and believes its relay, if it runs one. Those whom only the network
    /// made members are not meant.
    pub(crate) fn note_member_at_relays(&self, scope: &ScopeId, node: NodeId) {
        if self.is_lan(scope) {
            return;
        }
        self.inner.relay_trust.trust(*scope, node);
        if let Some(access) = &self.inner.relay_access {
            access.allow_member(*scope, node);
        }
    }

    /// A node is no member any more: it leaves our own relay, if we run one, and its relay is not believed.
    pub(crate) fn remove_from_relays(&self, scope: &ScopeId, node: &NodeId) {
        self.inner.relay_trust.distrust(scope, node);
        if let Some(access) = &self.inner.relay_access {
            access.remove_member(scope, node);
        }
    }

    /// We are no member of the scope any more: nobody uses our own relay for its sake, and no relay is believed for it.
    pub(crate) fn forget_at_relays(&self, scope: &ScopeId) {
        self.inner.relay_trust.forget(scope);
        if let Some(access) = &self.inner.relay_access {
            access.remove_scope(scope);
        }
    }

    /// Believes what an invite names: its issuer's relay, and while the invite is open whatever node answers at its relay,
    /// since that may be another member's, of whom nothing is known yet.
    pub(crate) fn trust_invite(&self, token: &InviteToken) {
        let Ok(invite) = token.verify(token.id().issued_at()) else { return };
        let trust = &self.inner.relay_trust;
        trust.trust(token.scope(), invite.issuer());
        if let Some(url) = &invite.grant().hints.relay
            && !invite.grant().expires_at.is_over(UnixTime::now())
        {
            trust.guest_at(token.scope(), url);
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
        let error = start(&NodeKey::generate(), &wanted, &[]).await.err().unwrap().to_string();
        assert!(error.contains(&cert.display().to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_relay_speaks_https_unless_its_url_says_otherwise() {
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let key = NodeKey::generate();
        let plain = RelayServer { listen, url: Some("http://192.0.2.1:3340".to_owned()), tls: None };
        let server = start(&key, &plain, &[]).await.unwrap();
        assert_eq!((server.url(), server.quic_port()), ("http://192.0.2.1:3340", None));
        server.shutdown().await;
        let secure = RelayServer { url: None, ..plain };
        let server = start(&key, &secure, &[]).await.unwrap();
        assert!(server.url().starts_with("https://127.0.0.1:"), "{}", server.url());
        assert!(server.quic_port().is_some());
        server.shutdown().await;
    }

    #[tokio::test]
    async fn the_own_relay_comes_first_and_once() {
        let wanted = RelayServer { listen: (Ipv4Addr::LOCALHOST, 0).into(), url: None, tls: None };
        let server = start(&NodeKey::generate(), &wanted, &[]).await.unwrap();
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
        assert_eq!(defaults(&config::Relays::OfMembers, None), Relays::Custom(Vec::new()));
        server.shutdown().await;
    }
}
