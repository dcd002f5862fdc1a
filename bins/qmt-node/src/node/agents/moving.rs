//! Handing a session to another node, as the node's user asks for it.

use std::time::Duration;

use mesh_control::{ApiError, ErrorCode, MoveSession, SessionView};
use mesh_identity::NodeId;
use mesh_sessions::proto::wire::Deed;
use mesh_sessions::remote::RemoteHost;
use tokio::time::Instant;

use super::super::Node;
use super::asked::PEER_ANSWERS;
use super::held::{Held, refused, refused_there};

/// So long an arrival is waited for; a session that takes longer arrives all the same.
const ARRIVES: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

impl Node {
    pub(crate) async fn move_session(&self, moving: MoveSession) -> Result<SessionView, ApiError> {
        let host = self.host_of(&moving.to)?;
        let held = self.hold(&moving.session).await?;
        if let (Held::Here { .. }, Some(host)) = (&held, &host) {
            self.is_wanted(&held, host).await?;
        }
        let to = host.map_or(self.id(), |host| host.node());
        let from = match &held {
            Held::Here { .. } => self.id(),
            Held::There(session) => session.host().node(),
        };
        held.act(Deed::HandOver { to }).await?;
        let (id, end) = (held.id(), Instant::now() + ARRIVES);
        loop {
            let held = self.hold(&format!("{id}@{from}")).await?;
            let (at, view) = self.whereabouts(&held).await?;
            if at == Some(to) || Instant::now() >= end {
                return Ok(view);
            }
            if at == Some(from) {
                let what = format!("{} did not take the session, which goes on where it was", moving.to);
                let mend = format!("has it the agent {}? `qmt-cli agents` lists them", view.agent);
                return Err(ApiError::new(ErrorCode::Conflict, what).with_mend(mend));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks before anything is done for it, so that a session does not go and come back.
    async fn is_wanted(&self, held: &Held, host: &RemoteHost) -> Result<(), ApiError> {
        let agent = self.view_of(held).await?.agent;
        let agents = tokio::time::timeout(PEER_ANSWERS, host.agents()).await;
        let name = self.name_of(&host.node());
        let silent = || ApiError::new(ErrorCode::NodeUnreachable, format!("{name} does not answer"));
        let agents = agents.map_err(|_| silent())?.map_err(|error| refused_there(&error))?;
        if agents.iter().any(|offered| offered.id.as_str() == agent) {
            return Ok(());
        }
        let what = format!("{name} has no agent {agent} for this node");
        Err(ApiError::new(ErrorCode::UnknownAgent, what)
            .with_mend("configure it there, open to members; `qmt-cli agents` lists those that there are"))
    }

    /// The node that has a session and goes on with it, none while it is on its way, and how it stands.
    async fn whereabouts(&self, held: &Held) -> Result<(Option<NodeId>, SessionView), ApiError> {
        let view = self.view_of(held).await?;
        let at = match held {
            Held::Here { sessions, id, .. } => {
                let host = sessions.host_of(*id).await.map_err(|error| refused(&error))?;
                host.is_none().then_some(self.id())
            }
            Held::There(session) => {
                let host = session.host().node();
                (view.node == host.to_string()).then_some(host)
            }
        };
        Ok((at, view))
    }
}
