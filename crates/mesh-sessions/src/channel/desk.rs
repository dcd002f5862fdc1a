//! The agents behind the channel.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use mesh_identity::ca::Leaf;
use mesh_identity::{NodeId, Role, ScopeId};

use super::fault::Fault;
use super::message::ListedAgent;
use crate::chain::Chain;

/// What the node whose channel it is does for callers.
pub trait Desk: Send + Sync + 'static {
    /// The node, to whom delegations are signed.
    fn me(&self) -> NodeId;

    /// What whoever shows this certificate is here; none for nobody. It is asked at each request: grants end.
    fn standing(&self, leaf: &Leaf) -> Option<Standing>;

    /// The agents that the caller may delegate to. A node that has just started may wait until it knows them.
    fn agents(
        &self,
        caller: &Caller,
        standing: &Standing,
    ) -> BoxFuture<'static, Result<Vec<ListedAgent>, Fault>>;

    /// Has an agent do a task. The stream ends with [`Piece::Done`] or [`Piece::Failed`]; dropped before that, the agent's
    /// turn ends too.
    fn deliver(&self, delegation: Delegation) -> BoxStream<'static, Piece>;
}

/// What a caller is to this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it may do.
    pub role: Role,
    /// The scopes in which its chains may be signed; none for one whose certificate names no node.
    pub scopes: Vec<ScopeId>,
}

/// Who calls, as its certificate proves it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its certificate.
    pub leaf: Arc<Leaf>,
    /// Where its connection comes from.
    pub address: IpAddr,
}

/// A task for an agent of this node.
#[derive(Debug, Clone)]
pub struct Delegation {
    /// On whose behalf.
    pub caller: Caller,
    /// What it is here.
    pub standing: Standing,
    /// The agent that asks, without its node.
    pub from_agent: String,
    /// The agent that is asked; none for whichever the node thinks best.
    pub to_agent: Option<String>,
    /// What to do.
    pub task: String,
    /// What to know for it.
    pub context: Vec<String>,
    /// The model asked for.
    pub model: Option<String>,
    /// Who delegated to whom, verified: it leads to an agent of this node. None when the request brought none.
    pub chain: Option<Chain>,
    /// How many delegations lead here, this one included: 1 to [`crate::chain::DEPTH_MAX`].
    pub depth: usize,
    /// When it will be given up, from now.
    pub deadline: Duration,
}

/// What comes of a delegation, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The agent is at work.
    Begun {
        /// Which.
        agent: String,
        /// The session in which it works.
        session: Option<String>,
    },
    /// More of its answer.
    Text(String),
    /// It is done.
    Done {
        /// The whole answer; none when the texts are it.
        answer: Option<String>,
    },
    /// It could not be done.
    Failed(Fault),
}
