//! Memberships that end: by leaving, and by revocation.

use mesh_control::{
    ErrorCode, JoinRequest, LeaveRequest, NodeState, PingRequest, RevokeRequest, RevokedKind,
};

use crate::support::stub::{FLOODS, HANGS, Stub};
use crate::support::{Host, PATIENCE, Place, api_error, http, pair, stop_both, until};

async fn ping(from: &Host, to: &str) -> Result<Vec<mesh_control::Pong>, mesh_control::ClientError> {
    from.client.ping(&PingRequest { node: to.to_owned(), count: Some(1) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_out_at_both_ends_and_may_come_again() {
    let (first, second) = pair().await;
    assert_eq!(ping(&second, "first").await.unwrap().len(), 1);
    let scope = second.client.status().await.unwrap().scopes[0].clone();
    let left = second.client.leave(&LeaveRequest { scope: scope.name.clone() }).await.unwrap();
    assert_eq!((left.scope, left.name), (scope.id, scope.name));
    assert!(second.client.status().await.unwrap().scopes.is_empty());
    assert!(second.client.nodes().await.unwrap().is_empty());
    assert_eq!(api_error(ping(&second, "first").await).code, ErrorCode::UnknownNode);
    until("the first forgets who left", || async {
        let view = first.view_of(&second.id()).await;
        view.is_none_or(|view| view.state == NodeState::Down).then_some(())
    })
    .await;
    assert_eq!(first.client.status().await.unwrap().links.direct, 0);
    second.join(&first.invite().await.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_lasts_over_a_restart() {
    let (place, first) = (Place::new("second"), Host::new("first").await);
    let second = place.start().await;
    let joined = second.join(&first.invite().await.token).await;
    second.client.leave(&LeaveRequest { scope: joined.scope }).await.unwrap();
    second.stop().await;
    let second = place.start().await;
    assert!(second.client.status().await.unwrap().scopes.is_empty());
    let error = api_error(second.client.leave(&LeaveRequest { scope: joined.name }).await);
    assert_eq!(error.code, ErrorCode::UnknownScope);
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_cut_off_and_stays_out() {
    let stub = Stub::start(&[HANGS]).await;
    let (here, there) = (Place::new("first"), Place::new("second"));
    let start_first = || here.start_with(|config| config.providers = vec![stub.provider()]);
    let (first, second) = tokio::join!(start_first(), there.start());
    second.join(&first.invite().await.token).await;
    second.offers(HANGS).await;
    let mut answer = http::open(second.gateway().await, "/v1/chat/completions", http::chat(HANGS)).await;
    assert!(answer.piece().await.unwrap().is_ok());
    stub.wait_open(1).await;

    let subject = RevokeRequest { subject: "second".to_owned(), scope: None };
    let revoked = first.client.revoke(&subject).await.unwrap();
    assert_eq!(
        (revoked.kind, &revoked.id, revoked.name.as_str()),
        (RevokedKind::Node, &second.id(), "second")
    );
    // The answer under way ends at both ends, and nothing new begins.
    stub.wait_open(0).await;
    let last = answer.piece().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&last).contains("\"error\""), "{last:?}");
    until("no link is left", || async {
        (first.client.status().await.unwrap().links.direct == 0).then_some(())
    })
    .await;
    assert_shut_out(&first, &second).await;
    assert_eq!(stub.bodies().len(), 1);

    // Nor do restarts help, of the one or of the other.
    second.stop().await;
    let second = there.start().await;
    assert_shut_out(&first, &second).await;
    first.stop().await;
    let first = start_first().await;
    assert_shut_out(&first, &second).await;
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_holder_cuts_what_runs_to_and_from_a_revoked_node() {
    let (of_subject, of_holder) = (format!("{FLOODS}-subject"), format!("{FLOODS}-holder"));
    let (subject_stub, holder_stub) = (Stub::start(&[&of_subject]).await, Stub::start(&[&of_holder]).await);
    let [first, subject, holder] = ["first", "subject", "holder"].map(Place::new);
    let (first, subject, holder) = tokio::join!(
        first.start(),
        subject.start_with(|config| config.providers = vec![subject_stub.provider()]),
        holder.start_with(|config| config.providers = vec![holder_stub.provider()]),
    );
    subject.join(&first.invite().await.token).await;
    holder.join(&first.invite().await.token).await;
    tokio::join!(subject.offers(&of_holder), holder.offers(&of_subject));
    // Two answers that never end, between two nodes that revoke nobody; the callers take a piece and rest.
    let ask = async |host: &Host, model: &str| {
        let path = "/v1/chat/completions";
        let mut answer = http::open(host.gateway().await, path, http::chat(model)).await;
        assert!(answer.piece().await.unwrap().is_ok());
        answer
    };
    let (mut to_holder, to_subject) = tokio::join!(ask(&holder, &of_subject), ask(&subject, &of_holder));
    tokio::join!(subject_stub.wait_open(1), holder_stub.wait_open(1));
    let revoked = RevokeRequest { subject: "subject".to_owned(), scope: None };
    first.client.revoke(&revoked).await.unwrap();
    tokio::join!(subject_stub.wait_open(0), holder_stub.wait_open(0));
    let last = async {
        let mut last = None;
        while let Some(piece) = to_holder.piece().await {
            last = Some(piece.unwrap());
        }
        last.unwrap()
    };
    let last = tokio::time::timeout(PATIENCE, last).await.unwrap();
    assert!(String::from_utf8_lossy(&last).contains("not allowed here any more"), "{last:?}");
    drop(to_subject);
    tokio::join!(first.stop(), subject.stop(), holder.stop());
}

/// The second node gets neither a pong nor an answer from the first, which does not count it among the living.
async fn assert_shut_out(first: &Host, second: &Host) {
    let error = api_error(ping(second, &first.id()).await);
    assert!(matches!(error.code, ErrorCode::NodeUnreachable | ErrorCode::UnknownNode), "{error:?}");
    let answer = http::post(second.gateway().await, "/v1/chat/completions", http::chat(HANGS)).await;
    assert!(matches!(answer.status.as_u16(), 404 | 503), "{answer:?}");
    // The links are cut before gossip has drawn its conclusion.
    until("the first counts it out", || async {
        let view = first.view_of(&second.id()).await;
        view.is_none_or(|view| view.state == NodeState::Down).then_some(())
    })
    .await;
    assert_eq!(first.client.status().await.unwrap().scopes[0].members_alive, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_says_so_and_comes_back_by_a_new_invite_alone() {
    let (first, second) = tokio::join!(Host::new("first"), Host::new("second"));
    let old = first.invite().await.token;
    second.join(&old).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    first.client.revoke(&RevokeRequest { subject: "second".to_owned(), scope: None }).await.unwrap();
    let warning = || async {
        let warnings = second.client.status().await.unwrap().warnings;
        warnings.into_iter().find(|warning| warning.contains("was revoked, first says"))
    };
    until("the revoked node says so", warning).await;
    let again = second.client.join(&JoinRequest { token: old }).await;
    assert_eq!(api_error(again).code, ErrorCode::InviteRevoked);
    assert!(warning().await.is_some());

    second.join(&first.invite().await.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    until("nothing is said any more", || async { warning().await.is_none().then_some(()) }).await;
    assert_eq!(ping(&second, "first").await.unwrap().len(), 1);
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_an_invite_ends_what_came_of_it_and_nothing_else() {
    let (first, second, third) = tokio::join!(Host::new("first"), Host::new("second"), Host::new("third"));
    let (bad, good) = (first.invite().await, first.invite().await);
    second.join(&bad.token).await;
    third.join(&good.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), first.sees(&third, NodeState::Alive));
    let revoked = first.client.revoke(&RevokeRequest { subject: bad.invite_id.clone(), scope: None }).await;
    let revoked = revoked.unwrap();
    assert_eq!((revoked.kind, revoked.id), (RevokedKind::Invite, bad.invite_id));
    until("who joined by it is out", || async {
        let view = first.view_of(&second.id()).await;
        view.is_none_or(|view| view.state == NodeState::Down).then_some(())
    })
    .await;
    let error = api_error(ping(&second, &first.id()).await);
    assert!(matches!(error.code, ErrorCode::NodeUnreachable | ErrorCode::UnknownNode), "{error:?}");
    assert_eq!(ping(&third, &first.id()).await.unwrap().len(), 1);
    tokio::join!(first.stop(), second.stop(), third.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_revokes_the_founder_without_the_recovery_key() {
    let (first, second) = pair().await;
    let subject = |subject: String| RevokeRequest { subject, scope: None };
    for host in [&first, &second] {
        let error = api_error(host.client.revoke(&subject(first.id())).await);
        assert_eq!(
            (error.code, error.message.as_str()),
            (ErrorCode::NotAllowed, "the founder of a mesh cannot be revoked")
        );
    }
    let error = api_error(first.client.revoke(&subject("nobody".to_owned())).await);
    assert_eq!(error.code, ErrorCode::UnknownNode);
    assert!(error.message.contains("\"nobody\"") && error.mend.is_some(), "{error:?}");
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    stop_both(first, second).await;
}
