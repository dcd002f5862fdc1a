//! Starting the channel, and putting new certificates into it while it runs.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::UnixTime;
use mesh_sessions::channel::{
    Client, ClientConfig, Clock, Credentials, CredentialsError, Limits, Server, Tls,
};
use tokio::net::TcpListener;

use super::desk::NodeDesk;
use super::directory::{Known, Nodes};
use super::files::{Files, FilesError};
use super::{Node, Running};
use crate::config::Listener;

/// How often the files are looked at: a revocation is honoured within 2 s.
const LOOK: Duration = Duration::from_secs(1);
/// Ports that are tried beside a default one that is taken.
const PORTS: u16 = 100;

/// Why the agent channel does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The certificate's files.
    #[error("it has no certificate")]
    Files(#[from] FilesError),
    /// The certificate.
    #[error("its certificate cannot be used ({mend})", mend = .0.mend())]
    Credentials(#[from] CredentialsError),
    /// The port.
    #[error("port {} cannot be listened on; set agent_channel_port", address.port())]
    Port {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Node {
    /// Starts the channel with the configured certificate; without one it waits for a certificate of the mesh's CA.
    ///
    /// # Errors
    /// [`ChannelError`] when the certificate cannot be used, or none can come.
    pub(in super::super) async fn start_channel(&self) -> Result<(), ChannelError> {
        let Some(config) = self.config().agent_channel.clone() else { return Ok(()) };
        self.inner.channel.directory.store(Some(Arc::new(Box::new(Known::new(self, &config)))));
        let files = Files::of(&config, &self.config().home);
        let may_come = !config.tls.asked && self.config().mesh.enabled != Some(false);
        if files.are_there() || !may_come {
            let reading = files.clone();
            let credentials = tokio::task::spawn_blocking(move || reading.read()).await;
            let credentials = credentials.map_err(|error| FilesError::Unreadable {
                path: files.cert().to_owned(),
                source: io::Error::other(error),
            })??;
            self.take_credentials(&credentials).await?;
        } else {
            tracing::info!(
                certificate = %files.cert().display(),
                "the agent channel waits for a certificate: there is none here yet"
            );
        }
        self.inner.tasks.spawn(self.clone().follow_files(files));
        self.inner.tasks.spawn(self.clone().keep_registry(config));
        Ok(())
    }

    /// Shows and believes these from now on. The first ones start the server.
    ///
    /// # Errors
    /// [`ChannelError`]; then nothing has changed.
    pub(crate) async fn take_credentials(&self, credentials: &Credentials) -> Result<(), ChannelError> {
        if let Some(running) = self.channel() {
            let closed = running.tls.reload(credentials)?.closed;
            let leaf = running.tls.leaf();
            tracing::info!(name = %leaf.name, until = %leaf.not_after, closed, "the agent channel has a new certificate or revocation list");
            return Ok(());
        }
        let Some(config) = &self.config().agent_channel else { return Ok(()) };
        let clock: Clock = Arc::new(UnixTime::now);
        let tls = Tls::with_ended(credentials, clock, self.ended_members())?;
        if !tls.leaf().is_of(config.node_name.as_str()) {
            tracing::warn!(
                certificate = %tls.leaf().name, node_name = %config.node_name,
                "the certificate is for another name than node_name of [agent_channel]: others know this node by the certificate"
            );
        }
        let listener = listen(&config.listener).await?;
        let (desk, directory) = (Arc::new(NodeDesk::new(self)), Arc::new(Nodes::new(self)));
        let address = listener.local_addr().map_err(|source| port(&config.listener, source))?;
        let server = Server::start(listener, tls.clone(), desk, directory.clone(), Limits::default())
            .map_err(|source| port(&config.listener, source))?;
        let leaf = tls.leaf();
        tracing::info!(%address, name = %leaf.name, until = %leaf.not_after, "agent channel listening (mutual TLS)");
        let client = Client::new(tls.clone(), directory, ClientConfig::default());
        self.inner.channel.running.send_replace(Some(Running { tls, server, client }));
        self.refresh();
        Ok(())
    }

    /// Takes up what is put into the files, for as long as the node runs.
    async fn follow_files(self, files: Files) {
        let mut seen = look(&files).await;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.stopping().cancelled_owned() => return,
            }
            let now = look(&files).await;
            if now == seen || !files.are_there() {
                seen = now;
                continue;
            }
            let reading = files.clone();
            let read = tokio::task::spawn_blocking(move || reading.read()).await;
            let taken = match read {
                Ok(Ok(credentials)) => self.take_credentials(&credentials).await,
                Ok(Err(error)) => Err(error.into()),
                Err(_) => return,
            };
            match taken {
                Ok(()) => seen = now,
                // Files that are replaced one after the other fit together once the last is there: it is tried again.
                Err(error) => {
                    tracing::warn!(error = %super::super::chain(&error), "the certificate's files changed and cannot be used; those in use stay");
                }
            }
        }
    }
}

async fn look(files: &Files) -> super::files::Looks {
    let files = files.clone();
    tokio::task::spawn_blocking(move || files.looks()).await.unwrap_or_default()
}

async fn listen(wanted: &Listener) -> Result<TcpListener, ChannelError> {
    let mut address = wanted.addr;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                if address != wanted.addr {
                    tracing::warn!(
                        wanted = wanted.addr.port(),
                        port = address.port(),
                        "the agent channel's port is taken: it listens on the next free one"
                    );
                }
                return Ok(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !wanted.asked => {
                let next = address.port().checked_add(1).filter(|next| next - wanted.addr.port() < PORTS);
                address.set_port(next.ok_or_else(|| port(wanted, error))?);
            }
            Err(error) => return Err(port(wanted, error)),
        }
    }
}

fn port(wanted: &Listener, source: io::Error) -> ChannelError {
    ChannelError::Port { address: wanted.addr, source }
}
