//! Grants that are old, issuers that are gone, and each of those who may revoke.

use std::path::Path;
use std::sync::Arc;

use mesh_control::{
    AppointRequest, AuditQuery, ErrorCode, InviteRequest, NodeState, RecoverRequest, RevokeRequest, Revoked,
    Verdict,
};
use mesh_identity::{
    AdmissionRequest, Authority, Founding, InviteError, InviteOptions, InviteToken, NodeKey, Permissions,
    RevocationSet, SignedGrant, UnixTime, key_file, redeem,
};
use qmt_node::store::audit::{Entry, Kind};
use qmt_node::store::{Recorded, ScopeRow, SeenPeer, Store};

use crate::support::{Host, Place, api_error, until};

const DAY_SECS: u64 = 86_400;

fn days_ago(days: u64) -> UnixTime {
    UnixTime(UnixTime::now().0 - days * DAY_SECS)
}

/// A scope as a test makes it, so that its grants are as old as they need to be.
struct Mesh {
    founder: NodeKey,
    founding: Founding,
}

impl Mesh {
    fn new() -> Self {
        let founder = NodeKey::generate();
        let founding = Founding::new(&founder);
        Self { founder, founding }
    }

    fn authority(&self) -> Authority {
        Authority::founder(self.founder.clone(), self.founding.root).unwrap()
    }

    fn grant(&self, key: &NodeKey, name: &str, permissions: Permissions, at: UnixTime) -> SignedGrant {
        self.authority().sign_grant(key.node_id(), name.parse().unwrap(), permissions, None, at).unwrap()
    }

    /// A home whose node is in this mesh by this grant.
    async fn settle(&self, place: &Place, key: &NodeKey, grant: SignedGrant, invite: Option<InviteToken>) {
        key_file::create(&place.home().join("mesh_identity.key"), key).unwrap();
        let store = open(place).await;
        let founded = self.founder.node_id() == key.node_id();
        let row = ScopeRow {
            root: self.founding.root,
            name: "home".into(),
            founded,
            grant: Some(grant),
            delegation: None,
            joined_at: days_ago(40),
            invite,
        };
        let what = mesh_identity::Revoked::Node(key.node_id());
        let entry = Entry::new(Kind::Joined, row.id(), "home", what, days_ago(40));
        store.put_scope(&row, &entry).await.unwrap();
        store.close().await;
    }
}

async fn open(place: &Place) -> Store {
    Store::open(&place.home().join("node.db")).await.unwrap()
}

/// Tells a home that is not in use where another node is.
async fn acquaint(place: &Place, mesh: &Mesh, other: &Host) {
    let scope = mesh.founding.root.id();
    let addr = other.node.transport().local_addr(&scope);
    let seen = SeenPeer {
        scope,
        node: other.node.id(),
        name: other.node.name().clone(),
        addr,
        seen_at: UnixTime::now(),
    };
    let store = open(place).await;
    store.put_peers(&[seen]).await.unwrap();
    store.close().await;
}

async fn told(host: &Host) -> Vec<String> {
    let rows = host.client.audit(&AuditQuery::default()).await.unwrap().entries;
    rows.into_iter().map(|row| format!("{} {} by {}", row.kind, row.subject_name, row.actor_name)).collect()
}

async fn until_told(host: &Host, row: &str) {
    let what = format!("the trail of {} tells {row:?}", host.node.name());
    until(&what, || async { told(host).await.contains(&row.to_owned()).then_some(()) }).await;
}

async fn warnings(host: &Host) -> String {
    host.client.status().await.unwrap().warnings.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_past_its_half_is_renewed_by_another_member_while_its_issuer_is_gone() {
    let mesh = Mesh::new();
    let (second, third) = (Place::new("second"), Place::new("third"));
    let (key2, key3) = (NodeKey::generate(), NodeKey::generate());
    let may_invite = Permissions { can_invite: true, ..Permissions::MEMBER };
    mesh.settle(&second, &key2, mesh.grant(&key2, "second", may_invite, days_ago(1)), None).await;
    let old = mesh.grant(&key3, "third", Permissions::MEMBER, days_ago(20));
    let old_end = old.expires_at();
    mesh.settle(&third, &key3, old, None).await;
    let host2 = second.start().await;
    acquaint(&third, &mesh, &host2).await;
    let host3 = third.start().await;
    let end = until("the grant is renewed", || async {
        let scope = host3.client.status().await.unwrap().scopes.remove(0);
        scope.grant_expires_at.filter(|end| *end > old_end.0)
    })
    .await;
    assert!(end > UnixTime::now().0 + 29 * DAY_SECS, "{end}");
    until_told(&host2, "renewed third by second").await;
    until_told(&host3, "renewed third by second").await;
    // And it lasts: the next start has the new one.
    host3.stop().await;
    let host3 = third.start().await;
    assert_eq!(host3.client.status().await.unwrap().scopes[0].grant_expires_at, Some(end));
    host3.sees(&host2, NodeState::Alive).await;
    tokio::join!(host2.stop(), host3.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_after_its_inviter_is_gone_rejoins_through_another_member() {
    let place = Place::new("second");
    let (first, second, third) = tokio::join!(Host::new("first"), place.start(), Host::new("third"));
    let (one, two) = (first.invite().await, first.invite().await);
    second.join(&one.token).await;
    third.join(&two.token).await;
    tokio::join!(second.sees(&third, NodeState::Alive), third.sees(&second, NodeState::Alive));
    second.stop().await;
    first.stop().await; // for good
    let second = place.start().await;
    tokio::join!(second.sees(&third, NodeState::Alive), third.sees(&second, NodeState::Alive));
    tokio::join!(second.stop(), third.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_ended_while_the_node_was_off_comes_back_by_its_invite_or_says_what_to_do() {
    let mesh = Mesh::new();
    let (second, third) = (Place::new("second"), Place::new("third"));
    let (key2, key3) = (NodeKey::generate(), NodeKey::generate());
    let may_invite = Permissions { can_invite: true, ..Permissions::MEMBER };
    mesh.settle(&second, &key2, mesh.grant(&key2, "second", may_invite, days_ago(1)), None).await;
    let ended = || mesh.grant(&key3, "third", Permissions::MEMBER, days_ago(40));
    mesh.settle(&third, &key3, ended(), None).await;
    let host2 = second.start().await;
    let host3 = third.start().await;
    let said = "the membership in home ended at ";
    let warning = warnings(&host3).await;
    assert!(warning.contains(said) && warning.contains("qmt-cli join TOKEN"), "{warning}");
    let findings = host3.client.doctor().await.unwrap();
    let failure = findings.iter().find(|finding| finding.verdict == Verdict::Fail && finding.check == "mesh");
    let failure = failure.unwrap_or_else(|| panic!("{findings:?}"));
    assert!(failure.detail.starts_with(said) && failure.mend.is_some(), "{failure:?}");
    assert!(host3.client.status().await.unwrap().scopes.is_empty());
    until_told(&host3, "expired third by ").await;
    // A new invite mends it, and the warning goes.
    let invite = host2.client.invite(&InviteRequest::default()).await.unwrap();
    host3.join(&invite.token).await;
    assert_eq!(warnings(&host3).await, "");
    host3.stop().await;

    // With an invite that still admits nobody need do anything.
    let place = Place::new("fourth");
    let key4 = NodeKey::generate();
    let invite = host2.client.invite(&InviteRequest::default()).await.unwrap();
    let token = InviteToken::parse(&invite.token).unwrap();
    let ended = mesh.grant(&key4, "fourth", Permissions::MEMBER, days_ago(40));
    mesh.settle(&place, &key4, ended, Some(token)).await;
    let host4 = place.start().await;
    host4.sees(&host2, NodeState::Alive).await;
    assert_eq!(warnings(&host4).await, "");
    tokio::join!(host2.stop(), host4.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_that_was_off_for_longer_than_a_grant_still_leads_its_mesh() {
    let mesh = Mesh::new();
    let place = Place::new("first");
    let old = mesh.grant(&mesh.founder, "first", Permissions::ADMIN, days_ago(40));
    mesh.settle(&place, &mesh.founder, old, None).await;
    let (first, second) = tokio::join!(place.start(), Host::new("second"));
    let status = first.client.status().await.unwrap();
    assert!(status.scopes[0].founder, "{status:?}");
    second.join(&first.invite().await.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    tokio::join!(first.stop(), second.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_who_redeem_an_invite_for_five_at_once_are_five_with_a_row_each() {
    let mesh = Mesh::new();
    let place = Place::new("first");
    std::fs::create_dir_all(place.home()).unwrap();
    let store = Arc::new(open(&place).await);
    let options = InviteOptions { max_uses: 5, ..InviteOptions::default() };
    let token = mesh.authority().issue_invite(&options, UnixTime::now()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (store, token, authority) = (store.clone(), token.clone(), mesh.authority());
        tasks.spawn(async move {
            let joiner = NodeKey::generate().node_id();
            let request = AdmissionRequest { token, node_name: "n".parse().unwrap(), device: None };
            let what = mesh_identity::Revoked::Node(joiner);
            let entry = Entry::new(Kind::Admitted, authority.scope(), "home", what, UnixTime::now());
            let ledger = Recorded { store: &store, entry };
            let revoked = RevocationSet::new(authority.scope());
            redeem(&authority, &request, joiner, &ledger, &revoked, UnixTime::now()).await
        });
    }
    let outcomes = tasks.join_all().await;
    let (admitted, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert!(refused.iter().all(|one| matches!(one, Err(InviteError::UsedUp))), "{refused:?}");
    assert_eq!(admitted.len(), 5);
    let search = qmt_node::store::audit::Search { limit: 100, ..Default::default() };
    let mut told: Vec<String> =
        store.trail().rows(&search).await.unwrap().into_iter().map(|row| row.subject).collect();
    let mut subjects: Vec<String> =
        admitted.into_iter().map(|grant| grant.unwrap().subject().to_string()).collect();
    told.sort();
    subjects.sort();
    assert_eq!(told, subjects);
    store.close().await;
}

fn subject(text: &str) -> RevokeRequest {
    RevokeRequest { subject: text.to_owned(), ..RevokeRequest::default() }
}

async fn revoke(host: &Host, whom: &str) -> Revoked {
    host.client.revoke(&subject(whom)).await.unwrap()
}

async fn not_allowed(host: &Host, whom: &str) {
    let error = api_error(host.client.revoke(&subject(whom)).await);
    assert_eq!(error.code, ErrorCode::NotAllowed, "{error:?}");
    assert!(error.mend.is_some(), "{error:?}");
}

async fn sees_no_more(host: &Host, gone: &Host) {
    let what = format!("{} counts {} out", host.node.name(), gone.node.name());
    until(&what, || async {
        let view = host.view_of(&gone.id()).await;
        view.is_none_or(|view| view.state == NodeState::Down).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inviter_revokes_whom_it_let_in_and_a_node_itself() {
    let (first, second) = tokio::join!(Host::new("first"), Host::new("second"));
    let (third, fourth) = tokio::join!(Host::new("third"), Host::new("fourth"));
    let may_invite = InviteRequest { can_invite: Some(true), ..InviteRequest::default() };
    second.join(&first.client.invite(&may_invite).await.unwrap().token).await;
    third.join(&second.invite().await.token).await;
    fourth.join(&first.invite().await.token).await;
    for other in [&third, &fourth] {
        tokio::join!(first.sees(other, NodeState::Alive), second.sees(other, NodeState::Alive));
    }
    let linked = || async { (second.client.status().await.unwrap().links.direct >= 3).then_some(()) };
    until("the second is linked with all", linked).await;
    not_allowed(&second, "fourth").await;
    not_allowed(&second, "first").await;
    not_allowed(&fourth, "third").await;
    revoke(&second, "third").await;
    tokio::join!(sees_no_more(&first, &third), sees_no_more(&second, &third));
    until_told(&first, "revoked third by second").await;

    let revoked = revoke(&fourth, "fourth").await;
    assert_eq!(revoked.id, fourth.id());
    tokio::join!(sees_no_more(&first, &fourth), sees_no_more(&second, &fourth));
    until_told(&first, "revoked fourth by fourth").await;
    let warning = warnings(&fourth).await;
    assert!(warning.contains("the membership in home was revoked: ask for a new invite"), "{warning}");
    // A later invite brings it back, in the same second too.
    fourth.join(&first.invite().await.token).await;
    tokio::join!(first.sees(&fourth, NodeState::Alive), fourth.sees(&first, NodeState::Alive));
    assert_eq!(warnings(&fourth).await, "");
    tokio::join!(first.stop(), second.stop(), third.stop(), fourth.stop());
}

fn appoint(node: &str, recovery_key: Option<&str>) -> AppointRequest {
    AppointRequest { node: node.to_owned(), scope: None, recovery_key_file: recovery_key.map(str::to_owned) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_that_the_founder_appointed_admits_and_revokes_also_after_a_restart() {
    let place = Place::new("second");
    let (first, second, third) = tokio::join!(Host::new("first"), place.start(), Host::new("third"));
    second.join(&first.invite().await.token).await;
    third.join(&first.invite().await.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), first.sees(&third, NodeState::Alive));
    tokio::join!(second.sees(&first, NodeState::Alive), second.sees(&third, NodeState::Alive));
    third.sees(&second, NodeState::Alive).await;
    let error = api_error(third.client.appoint(&appoint("second", None)).await);
    assert_eq!(error.code, ErrorCode::NotAllowed, "{error:?}");
    assert_eq!(api_error(first.client.appoint(&appoint("first", None)).await).code, ErrorCode::Conflict);
    not_allowed(&second, "third").await;
    let appointed = first.client.appoint(&appoint("second", None)).await.unwrap();
    assert_eq!((appointed.id.as_str(), appointed.name.as_str()), (&*second.id(), "second"));
    until_told(&first, "appointed second by first").await;
    until_told(&second, "appointed second by first").await;

    second.stop().await;
    let second = place.start().await;
    tokio::join!(second.sees(&first, NodeState::Alive), second.sees(&third, NodeState::Alive));
    let fourth = Host::new("fourth").await;
    fourth.join(&second.invite().await.token).await;
    first.sees(&fourth, NodeState::Alive).await;
    revoke(&second, "third").await;
    tokio::join!(sees_no_more(&first, &third), sees_no_more(&second, &third));
    not_allowed(&second, "first").await;
    // The founder takes it back, and with it whom the admin let in.
    revoke(&first, "second").await;
    tokio::join!(sees_no_more(&first, &second), sees_no_more(&first, &fourth));
    tokio::join!(first.stop(), second.stop(), third.stop(), fourth.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recovery_key_revokes_a_founder_and_appoints_who_leads_next() {
    let (first, second, third) = tokio::join!(Host::new("first"), Host::new("second"), Host::new("third"));
    let invite = first.invite().await;
    let recovery = invite.recovery_key_file.clone().unwrap();
    second.join(&invite.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    let recover = |file: &str| RecoverRequest {
        subject: "first".into(),
        scope: None,
        recovery_key_file: file.to_owned(),
    };
    let other = Path::new(&recovery).with_file_name("other.key");
    key_file::create(&other, &NodeKey::generate()).unwrap();
    let error = api_error(second.client.recover(&recover(other.to_str().unwrap())).await);
    assert_eq!(error.code, ErrorCode::NotAllowed, "{error:?}");
    let missing = other.with_file_name("missing.key");
    let error = api_error(second.client.recover(&recover(missing.to_str().unwrap())).await);
    assert_eq!(error.code, ErrorCode::BadRequest, "{error:?}");
    not_allowed(&second, "first").await;

    let revoked = second.client.recover(&recover(&recovery)).await.unwrap();
    assert_eq!(revoked.id, first.id());
    sees_no_more(&second, &first).await;
    let warning = warnings(&second).await;
    assert!(warning.contains("was revoked"), "what the founder signed falls with it: {warning}");
    // Whoever holds the recovery key names the next to lead.
    second.client.appoint(&appoint("second", Some(&recovery))).await.unwrap();
    assert_eq!(warnings(&second).await, "");
    third.join(&second.invite().await.token).await;
    tokio::join!(second.sees(&third, NodeState::Alive), third.sees(&second, NodeState::Alive));
    sees_no_more(&third, &first).await;
    tokio::join!(first.stop(), second.stop(), third.stop());
}
