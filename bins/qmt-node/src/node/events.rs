//! What happens at the node, told to everyone who follows it.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_control::{Event, EventKind, PathKind};
use mesh_gossip::{DownWhy, Event as GossipEvent, Gossip, UpWhy};
use mesh_identity::{NodeId, ScopeId, SignedRevocation, UnixTime};
use mesh_transport::LinkEvent;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::scopes::{AdmittedNode, Scope};
use super::{Node, views};
use crate::store::audit::Kind;

impl Node {
    /// Events from now on. A reader that lags gets an error from the channel and should take a new snapshot.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    pub(crate) fn tell(&self, kind: EventKind) {
        // Nobody listening is fine.
        let _ = self.inner.events.send(self.event(kind));
    }

    fn event(&self, kind: EventKind) -> Event {
        let number = self.inner.event_number.fetch_add(1, Ordering::Relaxed) + 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Event { number, at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), kind }
    }

    pub(crate) async fn snapshot_event(&self) -> Event {
        let status = Box::new(self.status().await);
        self.event(EventKind::Snapshot { status, nodes: self.nodes(), models: self.models() })
    }

    pub(crate) async fn tell_status(&self) {
        let status = Box::new(self.status().await);
        self.tell(EventKind::Status { status });
    }

    fn tell_node(&self, scope: &ScopeId, node: &NodeId) {
        let (scope_text, node_text) = (scope.to_string(), node.to_string());
        if let Some(view) =
            self.nodes().into_iter().find(|view| view.scope == scope_text && view.id == node_text)
        {
            self.tell(EventKind::Node { node: Box::new(view) });
        }
    }

    /// Follows links for as long as the node runs.
    pub(crate) async fn follow_links(self) {
        let mut events = self.transport().events();
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = self.stopping().cancelled_owned() => return,
            };
            match event {
                Ok(LinkEvent::Up { peer, path } | LinkEvent::Path { peer, path }) => {
                    self.tell(EventKind::Link {
                        id: peer.id.to_string(),
                        scope: peer.scope.to_string(),
                        path: views::path_view(path.kind),
                        rtt_ms: path.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                    })
                }
                Ok(LinkEvent::Down { peer, .. }) => self.tell(EventKind::Link {
                    id: peer.id.to_string(),
                    scope: peer.scope.to_string(),
                    path: PathKind::None,
                    rtt_ms: None,
                }),
                Ok(LinkEvent::KeyInUseTwice { node, places, .. }) => {
                    self.note_copied_key(node, &places).await
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
            self.refresh();
        }
    }

    /// Wakes routing whenever the picture of a scope's members changes, until it is left. It does nothing else: what events
    /// ask for beside that, such as rows on disk, is not waited for.
    pub(crate) async fn watch_members(self, gossip: Gossip) {
        let mut members = gossip.watch();
        drop(gossip); // its last handle ends it
        loop {
            tokio::select! {
                changed = members.changed() => if changed.is_err() { return },
                () = self.stopping().cancelled_owned() => return,
            }
            self.refresh();
        }
    }

    /// Follows the members of one scope until it is left.
    pub(crate) async fn follow_members(self, scope: Scope, gossip: Gossip) {
        let id = scope.id();
        let mut events = gossip.subscribe();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = self.stopping().cancelled_owned() => return,
            };
            let Some(event) = event else { return };
            self.take_member_event(&id, &gossip, event).await;
            self.refresh();
        }
    }

    async fn take_member_event(&self, scope: &ScopeId, gossip: &Gossip, event: GossipEvent) {
        match event {
            GossipEvent::MemberUp { node, why, .. } => {
                let name = self.member_name(scope, &node);
                tracing::info!(node = %node.short(), name, ?why, "a member is up");
                self.inner.renewal.notify_one();
                self.note_member_at_relays(scope, node);
                self.note_member(scope, gossip, node);
                self.remember(scope, gossip, node).await;
                if why != UpWhy::Recovered {
                    self.note_seen(Kind::Seen, scope, node).await;
                }
            }
            GossipEvent::MemberSuspect { node, .. } => {
                tracing::debug!(node = %node.short(), "a member is suspect");
                self.note_member(scope, gossip, node);
            }
            GossipEvent::MemberDown { node, why, .. } => {
                tracing::info!(node = %node.short(), name = self.member_name(scope, &node), ?why, "a member is down");
                self.note_member(scope, gossip, node);
                if why == DownWhy::GrantExpired {
                    self.note_seen(Kind::Expired, scope, node).await;
                }
            }
            GossipEvent::MemberLeft { node, .. } => {
                tracing::info!(node = %node.short(), "a member has left");
                self.remove_from_relays(scope, &node);
                self.tell(EventKind::NodeGone { id: node.to_string(), scope: scope.to_string() });
                self.note_seen(Kind::Left, scope, node).await;
            }
            GossipEvent::Record { node, .. } => self.tell_node(scope, &node),
            GossipEvent::Address { node } => self.remember(scope, gossip, node).await,
            GossipEvent::Revoked { revocation } => self.take_revocation(scope, &revocation).await,
            GossipEvent::KeyInUseTwice { addr } => {
                let [own, other] =
                    [self.own_addr(scope), addr].map(|addr| views::addresses(&addr).join(", "));
                self.note_copied_key(self.id(), &format!("{own} (this one) and {other}")).await;
            }
            GossipEvent::Snapshot => {
                for member in gossip.members().iter() {
                    self.tell_node(scope, &member.id);
                }
            }
            _ => {}
        }
    }

    /// Notes the moment of a change of state, and the name in use.
    fn note_member(&self, scope: &ScopeId, gossip: &Gossip, node: NodeId) {
        self.inner
            .since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((*scope, node), UnixTime::now().0);
        if let Some(member) = gossip.members().get(&node) {
            self.scopes().note_names(*scope, std::iter::once((node, member.name.clone())));
        }
        self.tell_node(scope, &node);
    }

    async fn remember(&self, scope: &ScopeId, gossip: &Gossip, node: NodeId) {
        let addr = gossip.members().get(&node).map(|member| member.addr.clone());
        if let Some(addr) = addr.filter(|addr| !addr.is_empty()) {
            self.store_peer(scope, &node, &addr).await;
        }
    }

    /// A revocation that came by gossip: stored, then obeyed.
    async fn take_revocation(&self, scope: &ScopeId, bytes: &[u8]) {
        let Ok(signed) = SignedRevocation::decode(bytes) else { return };
        let Ok(verified) = signed.verify(scope, UnixTime::now()) else { return };
        let Some(ours) = self.scopes().get(scope) else { return };
        if ours.revoked.iter().any(|known| *known == signed) {
            return self.tell_status().await; // our own, on its way back
        }
        let entry = self.revocation_entry(&ours, &verified).await.with("observed", true);
        if let Err(error) = self.store().put_revocation(&verified, &entry).await {
            tracing::warn!(error = %super::chain(&error), "a revocation could not be stored; it holds until the node restarts");
        }
        self.obey(scope, verified);
        self.tell_status().await;
    }

    /// Tells of admissions as the hello handler makes them.
    pub(crate) async fn follow_admissions(self, mut admitted: mpsc::Receiver<AdmittedNode>) {
        loop {
            let node = tokio::select! {
                node = admitted.recv() => node,
                () = self.stopping().cancelled_owned() => return,
            };
            let Some(node) = node else { return };
            let uses = self.store().uses(&node.invite).await.map_or(0, |holders| holders.len());
            self.note_member_at_relays(&node.scope, node.node);
            self.tell(EventKind::InviteUsed {
                invite: node.invite.to_string(),
                id: node.node.to_string(),
                name: node.name.to_string(),
                uses: u32::try_from(uses).unwrap_or(u32::MAX),
            });
        }
    }
}
