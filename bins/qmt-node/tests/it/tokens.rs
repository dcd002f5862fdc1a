//! Invites that admit nobody: each says what it is, and leaves the joiner as it was.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_control::{ApiError, ErrorCode, InviteRequest, LeaveRequest, RevokeRequest};
use mesh_identity::{Authority, Founding, InviteOptions, InviteToken, NodeAddr, NodeKey, UnixTime};

use crate::support::{Host, Place, stop_both};

fn bytes_of(token: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(token).unwrap()
}

fn text_of(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn assert_says(error: &ApiError, code: ErrorCode, message: &str) {
    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(message), "{:?} does not say {message:?}", error.message);
    assert!(error.mend.as_ref().is_some_and(|mend| !mend.is_empty()), "{error:?} has no advice");
}

/// A node that has joined nothing is in no scope and remembers none.
async fn assert_untouched(host: Host, place: &Place) {
    assert!(host.client.status().await.unwrap().scopes.is_empty());
    assert!(host.client.nodes().await.unwrap().is_empty());
    host.stop().await;
    let again = place.start().await;
    assert!(again.client.status().await.unwrap().scopes.is_empty());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_invite_is_told_apart() {
    let place = Place::new("joiner");
    let joiner = place.start().await;
    let issuer = Host::new("issuer").await;
    let token = issuer.invite().await.token;
    let mut newer = bytes_of(&token);
    newer[0] += 1;
    let mut forged = bytes_of(&token);
    *forged.last_mut().unwrap() ^= 1;
    let cases = [
        (String::new(), ErrorCode::InviteMalformed, "empty"),
        ("hello there".to_owned(), ErrorCode::InviteMalformed, "holds ' ' at character 6"),
        ("https://example.invalid/".to_owned(), ErrorCode::InviteMalformed, "a url of another kind"),
        (issuer.id(), ErrorCode::InviteMalformed, "a node's id"),
        ("192.0.2.1:9000".to_owned(), ErrorCode::InviteMalformed, "a network address"),
        ("${INVITE}".to_owned(), ErrorCode::InviteMalformed, "a variable"),
        ("x".repeat(10_000), ErrorCode::InviteMalformed, "10000 characters"),
        (token[..token.len() / 2].to_owned(), ErrorCode::InviteMalformed, "cut off"),
        (text_of(&newer), ErrorCode::InviteWrongVersion, "format version"),
        (text_of(&forged), ErrorCode::InviteBadSignature, "signature is wrong"),
    ];
    for (token, code, message) in cases {
        assert_says(&joiner.refused(&token).await, code, message);
    }
    assert_eq!(issuer.client.invites().await.unwrap()[0].uses, 0);
    issuer.stop().await;
    assert_untouched(joiner, &place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_invite_says_when_it_ended() {
    let place = Place::new("joiner");
    let joiner = place.start().await;
    let key = NodeKey::generate();
    let authority = Authority::founder(key.clone(), Founding::new(&key).root).unwrap();
    let then = UnixTime(UnixTime::now().0 - 7_200);
    let hour = InviteOptions { ttl: Some(Duration::from_secs(3_600)), ..InviteOptions::default() };
    let token = authority.issue_invite(&hour, then).unwrap();
    let at = token.verify(then).unwrap().grant().expires_at.time().unwrap();
    assert_says(&joiner.refused(&token.to_string()).await, ErrorCode::InviteExpired, &at.to_string());
    assert_untouched(joiner, &place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_invite_and_a_revoked_one_are_told_apart() {
    let place = Place::new("late");
    let (issuer, early, late) = tokio::join!(Host::new("issuer"), Host::new("early"), place.start());
    let once = issuer.invite().await;
    early.join(&once.token).await;
    assert_says(&late.refused(&once.token).await, ErrorCode::InviteUsedUp, "used up");
    let revoked = issuer.invite().await;
    issuer.client.revoke(&RevokeRequest { subject: revoked.invite_id.clone(), scope: None }).await.unwrap();
    assert_says(&late.refused(&revoked.token).await, ErrorCode::InviteRevoked, "revoked");
    let listed = issuer.client.invites().await.unwrap();
    let entry = |id: &str| listed.iter().find(|invite| invite.id == id).unwrap();
    assert_eq!((entry(&once.invite_id).uses, entry(&revoked.invite_id).uses), (1, 0));
    assert!(entry(&revoked.invite_id).revoked && !entry(&once.invite_id).revoked);
    assert_untouched(late, &place).await;
    stop_both(issuer, early).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_is_away_is_named_with_its_addresses() {
    let place = Place::new("joiner");
    let (issuer, joiner) = tokio::join!(Host::new("issuer"), place.start());
    let token = issuer.invite().await.token;
    issuer.stop().await;
    let hints = InviteToken::parse(&token).unwrap().verify(UnixTime::now()).unwrap().grant().hints.clone();
    let error = joiner.refused(&token).await;
    assert_says(&error, ErrorCode::IssuerUnreachable, &hints.direct[0].to_string());
    assert_untouched(joiner, &place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_has_left_the_scope_admits_nobody_to_it() {
    let place = Place::new("joiner");
    let (issuer, joiner) = tokio::join!(Host::new("issuer"), place.start());
    let invite = issuer.client.invite(&named("gone")).await.unwrap();
    // A second scope keeps the issuer reachable.
    issuer.client.invite(&named("stays")).await.unwrap();
    issuer.client.leave(&LeaveRequest { scope: "gone".to_owned() }).await.unwrap();
    assert_says(&joiner.refused(&invite.token).await, ErrorCode::InviteWrongScope, "another scope");
    issuer.stop().await;
    assert_untouched(joiner, &place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_shown_to_a_node_of_another_scope_is_refused() {
    let place = Place::new("joiner");
    let (other, joiner) = tokio::join!(Host::new("other"), place.start());
    let theirs = InviteToken::parse(&other.invite().await.token).unwrap();
    // Signed by somebody else, whose invite leads to the address of `other`.
    let key = NodeKey::generate();
    let authority = Authority::founder(key.clone(), Founding::new(&key).root).unwrap();
    let hints: NodeAddr = theirs.verify(UnixTime::now()).unwrap().grant().hints.clone();
    let token = authority.issue_invite(&InviteOptions { hints, ..InviteOptions::default() }, UnixTime::now());
    let error = joiner.refused(&token.unwrap().to_string()).await;
    assert_says(&error, ErrorCode::IssuerUnreachable, "cannot be reached");
    assert_eq!(other.client.invites().await.unwrap()[0].uses, 0);
    other.stop().await;
    assert_untouched(joiner, &place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_join_by_its_own_invite() {
    let host = Host::new("host").await;
    let invite = host.invite().await;
    assert_says(&host.refused(&invite.token).await, ErrorCode::Conflict, "this node's own");
    let status = host.client.status().await.unwrap();
    assert_eq!((status.scopes.len(), status.scopes[0].members_alive), (1, 1));
    assert_eq!(host.client.invites().await.unwrap()[0].uses, 0);
    host.stop().await;
}

fn named(name: &str) -> InviteRequest {
    InviteRequest { name: Some(name.to_owned()), ..InviteRequest::default() }
}
