//! A local port that stands for an echo service at another node: `cargo run --example forward`.
//!
//! Both nodes run in this process, over links in memory, to show the wiring; between machines only the drivers differ.

use std::sync::Arc;

use mesh_identity::{
    AdmissionRequest, Authority, Founding, Grant, InviteError, NodeKey, NodeName, Permissions, RevocationSet,
    ScopeId, SignedGrant, UnixTime,
};
use mesh_transport::memory::Network;
use mesh_transport::{Admission, Refusal, Transport};
use mesh_tunnel::{Config, Remote, ServiceName, Tunnels};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A node that is in one scope and admits nobody to it.
struct OneGrant(Arc<SignedGrant>, ScopeId);

type Admitted<'a> = std::pin::Pin<Box<dyn Future<Output = Result<SignedGrant, InviteError>> + Send + 'a>>;

impl Admission for OneGrant {
    fn credential(&self, scope: &ScopeId) -> Option<Arc<SignedGrant>> {
        (*scope == self.1).then(|| self.0.clone())
    }

    fn check(
        &self,
        scope: &ScopeId,
        subject: mesh_identity::NodeId,
        grant: &SignedGrant,
    ) -> Result<Grant, Refusal> {
        let grant = grant
            .verify(scope, UnixTime::now(), &RevocationSet::new(*scope))
            .map_err(|_| Refusal::NotAdmitted)?;
        if grant.subject == subject { Ok(grant) } else { Err(Refusal::NotAdmitted) }
    }

    fn admit(&self, _: &ScopeId, _: mesh_identity::NodeId, _: AdmissionRequest) -> Admitted<'_> {
        Box::pin(async { Err(InviteError::NotAllowed) })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let network = Network::new(0);
    let founder = NodeKey::generate();
    let authority = Authority::founder(founder.clone(), Founding::new(&founder).root)?;
    let scope = authority.scope();
    let start = |key: NodeKey, name: &str| {
        let name = NodeName::from_lossy(name);
        let grant = authority.sign_grant(key.node_id(), name, Permissions::MEMBER, None, UnixTime::now())?;
        let admission = Arc::new(OneGrant(Arc::new(grant), scope));
        let driver = network.driver(&key);
        Ok::<_, Box<dyn std::error::Error>>(Transport::start(
            key,
            vec![driver],
            admission,
            Default::default(),
        ))
    };
    let (far, near) = (start(founder.clone(), "far")?, start(NodeKey::generate(), "near")?);
    near.book().insert(scope, far.node_id(), far.local_addr(&scope));

    let service = TcpListener::bind("127.0.0.1:0").await?;
    let far_tunnels = Tunnels::start(far.clone(), Config::default());
    let _offered = far_tunnels.offer(ServiceName::new("echo")?, service.local_addr()?)?;
    let echo = tokio::spawn(async move {
        let (mut socket, _) = service.accept().await?;
        let (mut from, mut to) = socket.split();
        tokio::io::copy(&mut from, &mut to).await
    });

    let near_tunnels = Tunnels::start(near.clone(), Config::default());
    let remote = Remote { scope, peer: far.node_id(), service: ServiceName::new("echo")? };
    let listener = near_tunnels.listen(remote)?;
    println!("{} stands for echo at {}", listener.addr(), far.node_id().short());
    let mut socket = TcpStream::connect(listener.addr()).await?;
    socket.write_all(b"hello through the mesh").await?;
    socket.shutdown().await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    println!("{answer} ({} bytes)", echo.await??);

    near_tunnels.shutdown().await;
    far_tunnels.shutdown().await;
    near.shutdown().await;
    far.shutdown().await;
    Ok(())
}
