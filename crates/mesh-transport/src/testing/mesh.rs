//! Some nodes in one scope.

use std::{future::Future, ops::Index, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use mesh_identity::{
    Authority, Founding, NodeAddr, NodeId, NodeKey, NodeName, Permissions, ScopeId, SignedGrant, UnixTime,
};

use super::TestAdmission;
use crate::{Config, Driver, Transport, memory::Network};

/// Where nodes get their drivers: one network in memory, one loopback.
pub trait Site: Send + Sync {
    /// A driver for the key.
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>>;
}

impl Site for Network {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>> {
        let driver: Arc<dyn Driver> = Network::driver(self, key);
        Box::pin(std::future::ready(driver))
    }
}

/// One node of a [`Mesh`].
pub struct TestNode {
    /// Its key.
    pub key: NodeKey,
    /// What it knows of its scopes.
    pub admission: Arc<TestAdmission>,
    /// Its transport.
    pub transport: Transport,
}

impl TestNode {
    /// A node without any grant.
    pub async fn start(key: NodeKey, site: &dyn Site, config: Config) -> Self {
        let admission = Arc::new(TestAdmission::default());
        let driver = site.driver(&key).await;
        let transport = Transport::start(key.clone(), vec![driver], admission.clone(), config);
        Self { key, admission, transport }
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.key.node_id()
    }
}

/// Nodes in one scope, founded by the first. Each may dial each; all are members.
pub struct Mesh {
    authority: Authority,
    site: Arc<dyn Site>,
    config: Config,
    nodes: Vec<TestNode>,
}

impl Mesh {
    /// `count` nodes on a perfect network in memory.
    pub async fn memory(count: usize) -> Self {
        Self::on(Network::new(0), count).await
    }

    /// `count` nodes on that network; keep a clone of it to cut and heal.
    pub async fn on(network: Network, count: usize) -> Self {
        Self::start(Arc::new(network), count, Config::default()).await
    }

    /// `count` nodes at any site with any limits.
    ///
    /// # Panics
    /// If `count` is not 1 to 200.
    pub async fn start(site: Arc<dyn Site>, count: usize, config: Config) -> Self {
        assert!((1..=200).contains(&count), "a few nodes");
        let founder = key_of(0);
        let founding = Founding::with_recovery(&founder, NodeKey::from_seed([0xfe; 32]));
        let authority = Authority::founder(founder, founding.root).expect("the founder's own root");
        let mut mesh = Self { authority, site, config, nodes: Vec::new() };
        for _ in 0..count {
            mesh.add(Permissions::MEMBER).await;
        }
        mesh[0].admission.appoint(mesh.authority.clone());
        mesh
    }

    /// One more node, with a grant of these permissions (the founder's own is an admin's). Everybody knows its address.
    pub async fn add(&mut self, permissions: Permissions) -> &TestNode {
        let number = self.nodes.len();
        let node = TestNode::start(key_of(number), &*self.site, self.config.clone()).await;
        node.admission.join(self.grant(node.id(), &format!("node-{number}"), permissions));
        self.nodes.push(node);
        self.introduce(number);
        &self.nodes[number]
    }

    /// A node at the same site without a grant, that nobody knows and that knows everybody.
    pub async fn stranger(&self) -> TestNode {
        let node = TestNode::start(NodeKey::from_seed([0xee; 32]), &*self.site, self.config.clone()).await;
        for member in &self.nodes {
            node.transport.book().insert(self.scope(), member.id(), self.addr(member));
        }
        node
    }

    /// A grant of this scope, signed by its founder.
    ///
    /// # Panics
    /// If the name is no node name.
    pub fn grant(&self, subject: NodeId, name: &str, permissions: Permissions) -> SignedGrant {
        let name = NodeName::new(name).expect("a node name");
        self.authority.sign_grant(subject, name, permissions, None, UnixTime::now()).expect("the founder may")
    }

    /// The scope.
    pub fn scope(&self) -> ScopeId {
        self.authority.scope()
    }

    /// The founder's authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The nodes, the founder first.
    pub fn nodes(&self) -> &[TestNode] {
        &self.nodes
    }

    /// Shuts every node down and waits for it.
    pub async fn shutdown(&self) {
        for node in &self.nodes {
            node.transport.shutdown().await;
        }
    }

    fn introduce(&self, number: usize) {
        let (new, scope) = (&self.nodes[number], self.scope());
        for node in &self.nodes[..number] {
            node.transport.book().insert(scope, new.id(), self.addr(new));
            new.transport.book().insert(scope, node.id(), self.addr(node));
        }
    }

    fn addr(&self, node: &TestNode) -> NodeAddr {
        node.transport.local_addr(&self.scope())
    }
}

impl Index<usize> for Mesh {
    type Output = TestNode;

    fn index(&self, number: usize) -> &TestNode {
        &self.nodes[number]
    }
}

fn key_of(number: usize) -> NodeKey {
    let mut seed = [0x51; 32];
    seed[0] = u8::try_from(number).expect("a few nodes");
    NodeKey::from_seed(seed)
}

/// Waits until `holds` does, looking every 5 ms.
///
/// # Panics
/// After 10 s: a test that waits so long has failed.
pub async fn until<Fut: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> Fut) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), waited).await.is_err() {
        panic!("waited in vain: {what}");
    }
}
