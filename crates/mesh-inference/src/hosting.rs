//! A model that this node serves with the memory of others: leases, tunnels to them, and one llama-server.
//!
//! What it is given is decided already (which workers, in which order, how much of each); what it does not hold is the word
//! on what follows when a worker is lost: it then says so, and its owner stops it and decides anew.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::{select_all, try_join_all};
use mesh_identity::{NodeId, ScopeId};
use mesh_transport::Transport;
use mesh_tunnel::{ListenError, LocalListener, Remote, RpcUse, Tunnels, Weights};
use tokio::sync::watch;

use crate::backend::{BackendState, Backends};
use crate::instance::{
    Config as InstanceConfig, Instance, Launch, RpcLaunch, RpcServer, RpcServerError, Running,
};
use crate::lease::{Ask, Lease, LeaseConfig, LeaseError};
use crate::llama::SplitArguments;
use crate::memory::{Ledger, NotEnough, Reservation};

/// What a host works with.
#[derive(Clone)]
pub struct HostParts {
    /// Reaches the workers.
    pub transport: Transport,
    /// Carries llama-server's connections to them.
    pub tunnels: Tunnels,
    /// What this node's own memory is promised to.
    pub ledger: Ledger,
    /// Where the model is registered.
    pub backends: Backends,
    /// How this node's own rpc-server is run; `None` where llama.cpp brings none.
    pub rpc: Option<RpcLaunch>,
    /// Times of leases.
    pub times: LeaseConfig,
}

/// What to run.
#[derive(Clone)]
pub struct HostLaunch {
    /// The scope of the workers.
    pub scope: ScopeId,
    /// The election by which this node is host.
    pub epoch: u64,
    /// The build of llama.cpp here, which the workers must have too.
    pub build: String,
    /// Who holds which part, in the order of `--rpc`. This node's own id stands for an rpc-server of its own on loopback:
    /// llama-server leaves processors out of a split.
    pub shares: Vec<Share>,
    /// Shares of the devices in llama-server's order: those of `shares`, then this node's GPUs.
    pub tensor_split: Vec<f32>,
    /// Layers on all of them, with the output.
    pub gpu_layers: u32,
    /// The weights of the model on this machine's disk: those that a worker has too do not cross the network.
    pub weights: Option<Arc<dyn Weights>>,
    /// What llama-server itself takes here beside the shares.
    pub own_bytes: u64,
    /// llama-server, with everything but the split.
    pub launch: Launch,
    /// How it is kept.
    pub instance: InstanceConfig,
}

/// Memory of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Whose.
    pub node: NodeId,
    /// How much.
    pub bytes: u64,
}

/// Why a model cannot be hosted. Nothing is held anywhere; who decides may decide anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A worker does not lend.
    #[error("{} does not lend its share", node.short())]
    Lease {
        /// Which worker.
        node: NodeId,
        /// Why.
        #[source]
        error: LeaseError,
    },
    /// This node's own memory.
    #[error("this node's own share")]
    Memory(#[from] NotEnough),
    /// This node's own rpc-server.
    #[error("this node's own rpc-server")]
    OwnServer(#[from] RpcServerError),
    /// There is no rpc-server here, and this node has no device that llama-server splits over.
    #[error("llama.cpp brings no rpc-server here, by which this node would lend its own share")]
    NoRpcServer,
    /// No local port for a worker.
    #[error("no local port for a worker")]
    Listen(#[from] ListenError),
}

/// A running split. Dropping it ends llama-server and gives everything back, without waiting.
pub struct Hosted {
    instance: Instance,
    parts: Vec<Part>,
    _own: Reservation,
}

/// What holds one share. Fields drop in order: nothing is connected to a lease that is given back.
enum Part {
    Worker { _listener: Arc<LocalListener>, lease: Lease },
    Own { node: NodeId, server: RpcServer, _held: Reservation },
}

impl Hosted {
    /// Borrows all shares at once, and starts llama-server when it has them. Returns before that is ready: its state shows in
    /// [`Hosted::state`] and in the registry.
    ///
    /// Cancel safe: dropped early, everything is given back.
    ///
    /// # Errors
    /// [`HostError`] of the first share that cannot be had.
    pub async fn start(parts: &HostParts, host: HostLaunch) -> Result<Self, HostError> {
        let model = host.instance.names.first().cloned().unwrap_or_default();
        let own = parts.ledger.reserve(model.clone(), host.own_bytes)?;
        let me = parts.transport.node_id();
        let workers: Vec<NodeId> =
            host.shares.iter().map(|share| share.node).filter(|node| *node != me).collect();
        let taken = host.shares.iter().map(|share| async {
            if share.node == me {
                return Self::own(parts, &model, share).await;
            }
            let ask = Ask {
                model: model.clone(),
                epoch: host.epoch,
                bytes: share.bytes,
                build: host.build.clone(),
                workers: workers.iter().copied().filter(|node| *node != share.node).collect(),
            };
            let node = share.node;
            let lease = Lease::ask(&parts.transport, host.scope, node, ask, &parts.times).await;
            let lease = lease.map_err(|error| HostError::Lease { node, error })?;
            let remote = Remote { scope: host.scope, peer: node, service: lease.service().clone() };
            let how = RpcUse { weights: host.weights.clone(), build: host.build.clone() };
            Ok(Part::Worker { _listener: parts.tunnels.listen_rpc(remote, how)?, lease })
        });
        let taken = try_join_all(taken).await?;
        let rpc: Vec<SocketAddr> = taken.iter().map(Part::addr).collect();
        let shares = rpc.len();
        tracing::info!(
            model,
            epoch = host.epoch,
            shares,
            "this node hosts a model with the memory of others"
        );
        let mut launch = host.launch;
        let split = SplitArguments { rpc, tensor_split: host.tensor_split, gpu_layers: host.gpu_layers };
        launch.arguments.split = Some(split);
        let instance = Instance::start(launch, host.instance, parts.backends.clone());
        Ok(Self { instance, parts: taken, _own: own })
    }

    async fn own(parts: &HostParts, model: &str, share: &Share) -> Result<Part, HostError> {
        let mut rpc = parts.rpc.clone().ok_or(HostError::NoRpcServer)?;
        rpc.name = format!("rpc-{model}-own");
        let held = parts.ledger.reserve(model, share.bytes)?;
        let server = RpcServer::start(rpc).await?;
        Ok(Part::Own { node: share.node, server, _held: held })
    }

    /// What llama-server is doing.
    pub fn state(&self) -> watch::Receiver<BackendState> {
        self.instance.state()
    }

    /// Its processes.
    pub fn running(&self) -> watch::Receiver<Option<Running>> {
        self.instance.running()
    }

    /// Resolves once a share is lost: whose, and why. llama-server cannot go on without it, and what it has said until then is
    /// all that it will say. Never resolves for a host without shares. Cancel safe.
    pub async fn lost(&self) -> (NodeId, String) {
        if self.parts.is_empty() {
            return std::future::pending().await;
        }
        let (lost, ..) = select_all(self.parts.iter().map(|part| Box::pin(part.lost()))).await;
        lost
    }

    /// Ends llama-server, then gives the shares back. Returns when no process of it is left here.
    pub async fn stop(self) {
        self.instance.stop().await;
        for part in &self.parts {
            if let Part::Own { server, .. } = part {
                server.stop().await;
            }
        }
    }
}

impl Part {
    fn addr(&self) -> SocketAddr {
        match self {
            Self::Worker { _listener: listener, .. } => listener.addr(),
            Self::Own { server, .. } => server.addr(),
        }
    }

    fn node(&self) -> NodeId {
        match self {
            Self::Worker { lease, .. } => lease.worker(),
            Self::Own { node, .. } => *node,
        }
    }

    async fn lost(&self) -> (NodeId, String) {
        match self {
            Self::Worker { lease, .. } => (lease.worker(), lease.lost().await),
            Self::Own { node, server, .. } => (*node, server.ended().await),
        }
    }
}

impl fmt::Debug for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<NodeId> = self.parts.iter().map(Part::node).collect();
        f.debug_struct("Hosted").field("shares", &nodes).field("instance", &self.instance).finish()
    }
}
