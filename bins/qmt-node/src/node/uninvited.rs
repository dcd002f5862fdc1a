//! The scope `lan`: peers of the local network that nobody invited, and what each of them may do here.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_identity::{
    Grant, IssueError, LanScope, NodeId, NodeName, Permissions, RevocationSet, Role, ScopeId, SignedGrant,
    UnixTime,
};
use mesh_transport::Refusal;

use super::Node;
use super::scopes::Scope;
use crate::config::{Mesh, StaticPeer, Trust};

/// What the scope of uninvited peers is called, everywhere.
pub(crate) const LAN: &str = "lan";

/// The scope, and this node's own rule for its peers.
#[derive(Debug)]
pub(crate) struct Uninvited {
    lan: LanScope,
    trust: Trust,
    /// The peers that the configuration names by key.
    named: BTreeMap<NodeId, Named>,
}

#[derive(Debug)]
struct Named {
    name: Option<String>,
    role: Option<Role>,
}

impl Uninvited {
    /// The scope that the configuration asks for: none where an invite is needed, or where there is no LAN transport.
    pub(super) fn of(mesh: &Mesh) -> Option<Self> {
        let (trust, psk) =
            mesh.lan.as_ref().map_or((Trust::default(), None), |lan| (lan.trust, lan.psk.as_deref()));
        let is_on = mesh.enabled != Some(false) && (mesh.lan.is_some() || !mesh.peers.is_empty());
        if !is_on || trust == Trust::Invite {
            return None;
        }
        let named = |peer: &StaticPeer| Some((peer.id?, Named { name: peer.name.clone(), role: peer.role }));
        let lan = LanScope::new(psk.map(str::as_bytes));
        Some(Self { lan, trust, named: mesh.peers.iter().filter_map(named).collect() })
    }

    pub(crate) fn id(&self) -> ScopeId {
        self.lan.id()
    }

    /// What a peer is here, whatever it says of itself; none for one that is not let in.
    pub(crate) fn role_of(&self, node: &NodeId) -> Option<Role> {
        let named = self.named.get(node);
        let by_trust = match self.trust {
            Trust::Open => Some(Role::Member),
            Trust::Client => Some(Role::Client),
            Trust::Peers => named.map(|_| Role::Client),
            Trust::Invite => None,
        };
        by_trust.map(|role| named.and_then(|named| named.role).unwrap_or(role))
    }

    /// The name that the configuration gives to a peer: what a stranger calls itself names nobody.
    pub(crate) fn name_of(&self, node: &NodeId) -> Option<&str> {
        self.named.get(node)?.name.as_deref()
    }

    /// The rule in a word, for people.
    pub(crate) fn rule(&self) -> &'static str {
        match self.trust {
            Trust::Client => "client",
            Trust::Open => "open",
            Trust::Invite => "invite",
            Trust::Peers => "peers",
        }
    }

    /// A peer's own grant, and what it is worth here.
    pub(super) fn check(&self, subject: NodeId, grant: &SignedGrant) -> Result<Grant, Refusal> {
        let grant = grant
            .verify_uninvited(&subject, &self.id(), UnixTime::now())
            .map_err(|error| Refusal::from(&error))?;
        let role = self.role_of(&subject).ok_or(Refusal::NotAdmitted)?;
        Ok(Grant { role, permissions: Permissions { role, can_invite: false, admin: false }, ..grant })
    }

    pub(super) fn sign_for(&self, me: NodeId, name: NodeName) -> Result<SignedGrant, IssueError> {
        self.lan.sign_for(me, name, UnixTime::now())
    }

    /// The scope as this node stands in it, by a grant of its own making.
    fn scope(self, me: NodeId, name: NodeName) -> Option<Scope> {
        let signed = self.sign_for(me, name).ok()?;
        let id = self.id();
        let grant = signed.verify_uninvited(&me, &id, UnixTime::now()).ok()?;
        Some(Scope {
            root: self.lan.root(),
            name: LAN.to_owned(),
            signed: Arc::new(signed),
            grant,
            authority: None,
            revoked: RevocationSet::new(id),
            invite: None,
            uninvited: Some(Arc::new(self)),
        })
    }
}

impl Node {
    /// Takes part in the scope of uninvited peers, if the configuration asks for it.
    pub(super) fn enter_lan(&self) {
        let Some(uninvited) = Uninvited::of(&self.config().mesh) else { return };
        let rule = uninvited.rule();
        let Some(scope) = uninvited.scope(self.id(), self.name().clone()) else {
            tracing::error!(
                "the clock of this machine is out of range: no grant for the scope lan can be made"
            );
            return;
        };
        tracing::info!(trust = rule, "peers of the local network may come without an invite");
        let meeting = scope.uninvited.clone();
        self.enter(scope);
        if let Some(uninvited) = meeting {
            self.inner.tasks.spawn(self.clone().meet(uninvited));
        }
    }

    /// Whether the scope is the one of uninvited peers.
    pub(crate) fn is_lan(&self, scope: &ScopeId) -> bool {
        self.scopes().get(scope).is_some_and(|scope| scope.uninvited.is_some())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use mesh_identity::NodeKey;

    use super::*;
    use crate::config::Lan;

    fn node(seed: u8) -> NodeId {
        NodeKey::from_seed([seed; 32]).node_id()
    }

    fn lan(trust: Trust) -> Lan {
        let listen = "/ip4/0.0.0.0/tcp/0".parse().unwrap();
        Lan { listen, discovery: Default::default(), trust, psk: None }
    }

    /// Node 1 is named without a role, 2 as a member, 3 as a client, 4 not at all.
    fn roles(trust: Trust) -> Option<[Option<Role>; 4]> {
        let peer = |seed, role| StaticPeer {
            name: Some(format!("peer-{seed}")),
            addr: None,
            id: Some(node(seed)),
            role,
        };
        let peers = vec![peer(1, None), peer(2, Some(Role::Member)), peer(3, Some(Role::Client))];
        let uninvited = Uninvited::of(&Mesh { lan: Some(lan(trust)), peers, ..Mesh::default() })?;
        assert_eq!((uninvited.name_of(&node(2)), uninvited.name_of(&node(4))), (Some("peer-2"), None));
        Some([1, 2, 3, 4].map(|seed| uninvited.role_of(&node(seed))))
    }

    #[test]
    fn each_rule_says_what_a_peer_is() {
        let (member, client) = (Some(Role::Member), Some(Role::Client));
        assert_eq!(roles(Trust::Client), Some([client, member, client, client]));
        assert_eq!(roles(Trust::Open), Some([member, member, client, member]));
        assert_eq!(roles(Trust::Peers), Some([client, member, client, None]));
        assert_eq!(roles(Trust::Invite), None);
    }

    #[test]
    fn a_grant_says_who_and_the_rule_says_what() {
        let uninvited = |trust| Uninvited::of(&Mesh { lan: Some(lan(trust)), ..Mesh::default() }).unwrap();
        let name = NodeName::new("stranger").unwrap();
        let shown = uninvited(Trust::Open).sign_for(node(4), name).unwrap();
        let grant = uninvited(Trust::Client).check(node(4), &shown).unwrap();
        assert_eq!((grant.role, grant.permissions), (Role::Client, Permissions::CLIENT));
        assert_eq!(uninvited(Trust::Open).check(node(4), &shown).unwrap().permissions, Permissions::MEMBER);
        assert_eq!(uninvited(Trust::Peers).check(node(4), &shown), Err(Refusal::NotAdmitted));
        assert!(uninvited(Trust::Open).check(node(5), &shown).is_err(), "another node's grant");
    }

    #[test]
    fn without_a_lan_there_is_no_such_scope() {
        assert!(Uninvited::of(&Mesh::default()).is_none());
        let peer = StaticPeer { name: None, addr: "/ip4/192.0.2.1/tcp/9".parse().ok(), id: None, role: None };
        let mesh = Mesh { peers: vec![peer], ..Mesh::default() };
        assert!(Uninvited::of(&mesh).is_some());
        assert!(Uninvited::of(&Mesh { enabled: Some(false), ..mesh }).is_none());
    }
}
