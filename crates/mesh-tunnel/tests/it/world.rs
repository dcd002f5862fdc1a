//! Two nodes with tunnels, and a service to reach.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::Permissions;
use mesh_transport::memory::Network;
use mesh_transport::testing::Mesh;
use mesh_tunnel::{Config, LocalListener, Offered, Remote, ServiceName, Tunnels};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) fn echo() -> ServiceName {
    ServiceName::new("echo").unwrap()
}

/// Node 0 uses what node 1 offers.
pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) mesh: Mesh,
    pub(crate) near: Tunnels,
    pub(crate) far: Tunnels,
    pub(crate) far_number: usize,
}

impl World {
    pub(crate) async fn new(config: Config) -> Self {
        let network = Network::new(1);
        let mesh = Mesh::on(network.clone(), 2).await;
        let near = Tunnels::start(mesh[0].transport.clone(), config.clone());
        let far = Tunnels::start(mesh[1].transport.clone(), config);
        Self { network, mesh, near, far, far_number: 1 }
    }

    /// As above, with a client as the user.
    pub(crate) async fn with_client() -> Self {
        let network = Network::new(1);
        let mut mesh = Mesh::on(network.clone(), 1).await;
        let client = Permissions { role: mesh_identity::Role::Client, can_invite: false, admin: false };
        mesh.add(client).await;
        let far = Tunnels::start(mesh[0].transport.clone(), Config::default());
        let near = Tunnels::start(mesh[1].transport.clone(), Config::default());
        Self { network, mesh, near, far, far_number: 0 }
    }

    pub(crate) fn remote(&self, service: ServiceName) -> Remote {
        Remote { scope: self.mesh.scope(), peer: self.mesh[self.far_number].id(), service }
    }

    pub(crate) fn listen(&self) -> Arc<LocalListener> {
        self.near.listen(self.remote(echo())).unwrap()
    }

    /// Offers a service that answers each connection with `serve`.
    pub(crate) async fn serve<F, Fut>(&self, serve: F) -> Offered
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let offered = self.far.offer(echo(), listener.local_addr().unwrap()).unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket));
            }
        });
        offered
    }

    pub(crate) async fn end(self) {
        self.near.shutdown().await;
        self.far.shutdown().await;
        assert_eq!((self.near.stats().open, self.far.stats().open), (0, 0), "nothing is left open");
        self.mesh.shutdown().await;
    }
}

/// Answers only after the whole question: works over a half-close and over nothing else.
pub(crate) async fn reverse(mut socket: TcpStream) {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.unwrap();
    all.reverse();
    socket.write_all(&all).await.unwrap();
    socket.shutdown().await.unwrap();
}

/// Answers byte by byte until the other side goes.
pub(crate) async fn copy(mut socket: TcpStream) {
    let (mut from, mut to) = socket.split();
    let _ = tokio::io::copy(&mut from, &mut to).await;
}

/// What a connection to the address brings: the bytes, or the error that cut it off.
pub(crate) async fn ask(at: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let exchange = async {
        let mut socket = TcpStream::connect(at).await?;
        socket.write_all(question).await?;
        socket.shutdown().await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(20), exchange).await.expect("an answer or an error")
}
