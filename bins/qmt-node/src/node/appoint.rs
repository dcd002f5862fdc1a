//! `appoint/1`: the founder, or the recovery key, makes a member an admin, who may admit, renew and revoke.

use std::path::Path;
use std::time::Duration;

use mesh_control::{ApiError, AppointRequest, Appointed, ErrorCode};
use mesh_gossip::State;
use mesh_identity::{
    Authority, NodeId, Permissions, Revoked, Role, ScopeId, SignedGrant, UnixTime, key_file,
};
use mesh_transport::{Call, CallFault, Member, Protocol, Transport, serve_call};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::membership::{issue_error, storage};
use super::scopes::Scope;
use super::{Node, chain};
use crate::store::audit::Kind;

const DEADLINE: Duration = Duration::from_secs(10);
/// Appointments that wait for the node's task; a further one waits on its stream.
const WAITING_MAX: usize = 8;

/// Hands the new grant over.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Appoint {
    grant: SignedGrant,
}

impl Call for Appoint {
    const PROTOCOL: Protocol = Protocol::new("appoint/1");
    type Reply = ();
}

/// A grant that came, and who waits to hear whether it was taken.
pub(crate) struct Offered {
    scope: ScopeId,
    grant: SignedGrant,
    reply: oneshot::Sender<Result<(), CallFault>>,
}

/// Takes [`Appoint`] from any member: what counts is who signed the grant.
pub(crate) fn serve(transport: &Transport) -> mpsc::Receiver<Offered> {
    let (offers, receiver) = mpsc::channel(WAITING_MAX);
    serve_call::<Appoint, _, _>(transport, move |member: Member, appoint| {
        let offers = offers.clone();
        async move {
            let (reply, replied) = oneshot::channel();
            let offered = Offered { scope: member.scope, grant: appoint.grant, reply };
            let stopping = || CallFault::not_allowed("this node stops");
            offers.send(offered).await.map_err(|_| stopping())?;
            replied.await.unwrap_or_else(|_| Err(stopping()))
        }
    });
    receiver
}

impl Node {
    /// Takes appointments for as long as the node runs.
    pub(crate) async fn follow_appointments(self, mut offers: mpsc::Receiver<Offered>) {
        loop {
            let offered = tokio::select! {
                offered = offers.recv() => offered,
                () = self.stopping().cancelled_owned() => return,
            };
            let Some(Offered { scope, grant, reply }) = offered else { return };
            let taken = self.take_appointment(&scope, grant).await.map_err(CallFault::not_allowed);
            drop(reply.send(taken)); // who asked may have gone
        }
    }

    async fn take_appointment(&self, scope: &ScopeId, grant: SignedGrant) -> Result<(), String> {
        let ours = self.scopes().get(scope).filter(|ours| ours.uninvited.is_none());
        let ours = ours.ok_or("not a scope of this node")?;
        let says = grant
            .verify_for(&self.id(), scope, UnixTime::now(), &ours.revoked)
            .map_err(|error| format!("the grant does not hold: {error}"))?;
        let is_by_root = grant.chain().links.is_empty() && grant.own_delegation().is_some();
        if !says.permissions.admin || !is_by_root {
            return Err("an admin is appointed by the founder or the recovery key".into());
        }
        if self.take_grant(&ours, grant, Kind::Appointed).await {
            Ok(())
        } else {
            Err("the grant was not taken".into())
        }
    }

    /// Makes a member an admin, and waits until it has its grant.
    pub(crate) async fn appoint(&self, request: AppointRequest) -> Result<Appointed, ApiError> {
        let (id, node) = self.resolve_node(&request.node, request.scope.as_deref())?;
        let scope = self.scopes().get(&id).filter(|scope| scope.uninvited.is_none());
        let scope =
            scope.ok_or_else(|| ApiError::new(ErrorCode::NotAllowed, "the scope lan has no admins"))?;
        let authority = match &request.recovery_key_file {
            Some(file) => recovery_authority(&scope, Path::new(file))?,
            None => {
                scope.authority.clone().filter(|authority| authority.chain().links.is_empty()).ok_or_else(
                    || {
                        ApiError::new(ErrorCode::NotAllowed, "only the founder of a mesh appoints its admins")
                            .with_mend("run it at the founder's node, or with --recovery-key FILE")
                    },
                )?
            }
        };
        if node == scope.root.founder {
            return Err(ApiError::new(ErrorCode::Conflict, "the founder of a mesh leads it already"));
        }
        let name = self.name_to_appoint(&scope, &node)?;
        let grant = authority
            .sign_grant(node, name.clone(), Permissions::ADMIN, None, scope.revoked.after(UnixTime::now()))
            .map_err(|error| issue_error(&error))?;
        grant.verify_for(&node, &id, UnixTime::now(), &scope.revoked).map_err(|error| {
            ApiError::new(ErrorCode::NotAllowed, format!("nobody would believe this appointment: {error}"))
                .with_mend("when the founder is revoked, use --recovery-key FILE")
        })?;
        let until = grant.expires_at();
        if node == self.id() {
            self.take_appointment(&id, grant)
                .await
                .map_err(|why| ApiError::new(ErrorCode::NotAllowed, why))?;
        } else {
            let entry = self.entry(Kind::Appointed, &scope, Revoked::Node(node));
            let by = authority.node_id();
            let entry = entry.by(by, self.name_in(&id, &by)).with("until", until.0);
            self.store().note(&entry).await.map_err(|error| storage(&error))?;
            self.transport().call(&id, &node, &Appoint { grant }, DEADLINE).await.map_err(|error| {
                ApiError::new(
                    ErrorCode::NodeUnreachable,
                    format!("{name} did not take the appointment: {}", chain(&error)),
                )
                .with_mend("start qmt-node there, and try again")
            })?;
        }
        tracing::info!(node = %node.short(), %name, scope = %scope.name, "appointed an admin");
        Ok(Appointed { id: node.to_string(), name: name.to_string(), scope: id.to_string(), until: until.0 })
    }

    /// The name that the new grant carries: the one that the member has.
    fn name_to_appoint(&self, scope: &Scope, node: &NodeId) -> Result<mesh_identity::NodeName, ApiError> {
        if *node == self.id() {
            return Ok(scope.grant.name.clone());
        }
        let gossip = self.gossip(&scope.id());
        let members = gossip.map(|gossip| gossip.members());
        let member = members.as_ref().and_then(|members| members.get(node));
        let member = member.filter(|member| member.state != State::Down).ok_or_else(|| {
            ApiError::new(ErrorCode::NodeUnreachable, "only a member that is there can be appointed")
                .with_mend("`qmt-cli nodes` shows who is there")
        })?;
        if member.role != Role::Member {
            return Err(ApiError::new(ErrorCode::NotAllowed, "a client cannot be an admin")
                .with_mend("invite it again with --role member"));
        }
        Ok(member.name.clone())
    }
}

/// What the recovery key in this file may do in a scope.
pub(super) fn recovery_authority(scope: &Scope, file: &Path) -> Result<Authority, ApiError> {
    let key = key_file::load(file)
        .map_err(|error| ApiError::new(ErrorCode::BadRequest, chain(&error)).with_mend(error.mend()))?;
    if !scope.root.is_recovery_key(&key.node_id()) {
        return Err(ApiError::new(
            ErrorCode::NotAllowed,
            format!("{} does not hold the recovery key of {}", file.display(), scope.name),
        )
        .with_mend("it is the file that was made when the mesh was founded"));
    }
    Authority::founder(key, scope.root).map_err(|error| issue_error(&error))
}
