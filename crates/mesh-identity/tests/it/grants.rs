//! Grants: how long they hold, for whom, and what they bring with them.

use mesh_identity::{
    Authority, Expiry, GrantError, InviteOptions, IssueError, Permissions, Role, SignedGrant, UnixTime,
};

use crate::fixture::{DAY, NOW, below, extend, founder, founding, grant, key, name, nothing_revoked};

fn verify(grant: &SignedGrant, now: u64) -> Result<mesh_identity::Grant, GrantError> {
    grant.verify(&founding().root.id(), UnixTime(now), &nothing_revoked())
}

#[test]
fn a_grant_says_who_where_and_until_when() {
    let signed = founder().sign_grant(key(20).node_id(), name("laptop"), Permissions::CLIENT, None, NOW);
    let signed = signed.expect("may");
    let grant = verify(&signed, NOW.0).expect("sound");
    assert_eq!(
        (grant.subject, grant.scope, grant.issuer),
        (key(20).node_id(), founding().root.id(), key(1).node_id())
    );
    assert_eq!(
        (grant.name.as_str(), grant.role, grant.permissions),
        ("laptop", Role::Client, Permissions::CLIENT)
    );
    assert_eq!(grant.expires_at, UnixTime(NOW.0 + 30 * DAY));
    assert_eq!(grant.renew_at(), UnixTime(NOW.0 + 15 * DAY));
    assert!(signed.own_delegation().is_none());
}

#[test]
fn time_is_tolerant_by_a_minute_at_both_ends() {
    let signed = grant(&founder(), 20, Permissions::MEMBER);
    let end = NOW.0 + 30 * DAY;
    assert!(verify(&signed, NOW.0 - 60).is_ok());
    assert_eq!(verify(&signed, NOW.0 - 61), Err(GrantError::NotYetValid { at: NOW }));
    assert!(verify(&signed, end + 60).is_ok());
    assert_eq!(verify(&signed, end + 61), Err(GrantError::Expired { at: UnixTime(end) }));
}

#[test]
fn it_is_one_nodes_and_one_scopes() {
    let signed = grant(&founder(), 20, Permissions::MEMBER);
    let (scope, other) = (founding().root.id(), mesh_identity::ScopeId::lan(None));
    assert!(signed.verify_for(&key(20).node_id(), &scope, NOW, &nothing_revoked()).is_ok());
    let stolen = signed.verify_for(&key(21).node_id(), &scope, NOW, &nothing_revoked());
    assert_eq!(stolen, Err(GrantError::WrongSubject));
    let elsewhere = signed.verify(&other, NOW, &mesh_identity::RevocationSet::new(other));
    assert_eq!(elsewhere, Err(GrantError::WrongScope));
    let other_set = signed.verify(&scope, NOW, &mesh_identity::RevocationSet::new(other));
    assert_eq!(other_set, Err(GrantError::WrongScope));
}

#[test]
fn a_grant_that_may_invite_brings_an_authority() {
    let signed = grant(&founder(), 20, Permissions::INVITER);
    let authority = Authority::from_grant(key(20), &signed).expect("an authority");
    assert!(Authority::from_grant(key(21), &signed).is_none(), "another key has no use for it");
    assert_eq!(authority.permissions(), Permissions::INVITER);
    let token = authority.issue_invite(&InviteOptions::default(), NOW).expect("may");
    assert_eq!(token.verify(NOW).expect("sound").issuer(), key(20).node_id());
    // It outlives the grant, so that a scope lives on while its founder is away.
    let later = UnixTime(NOW.0 + 200 * DAY);
    assert!(authority.issue_invite(&InviteOptions::default(), later).is_ok());
    let admin = grant(&founder(), 20, Permissions::ADMIN);
    assert!(Authority::from_grant(key(20), &admin).expect("an authority").permissions().admin);
}

#[test]
fn a_grant_ends_with_the_authority_behind_it() {
    let end = UnixTime(NOW.0 + 3 * DAY);
    let link = founder().delegate(key(10).node_id(), Permissions::INVITER, Expiry::at(end)).expect("may");
    let issuer = extend(&founder(), link, 10);
    let signed = grant(&issuer, 20, Permissions::INVITER);
    assert_eq!(verify(&signed, NOW.0).expect("sound").expires_at, end);
    assert_eq!(Authority::from_grant(key(20), &signed).expect("one").chain().expires(), Expiry::at(end));
}

#[test]
fn any_member_allowed_to_admit_renews() {
    let first = grant(&founder(), 20, Permissions::MEMBER);
    let held = verify(&first, NOW.0).expect("sound");
    let other = below(&founder(), 10, Permissions::INVITER);
    let renewed = other.renew(&held, None, held.renew_at()).expect("may");
    let next = verify(&renewed, held.renew_at().0).expect("sound");
    assert_eq!((next.subject, next.issuer, &next.name), (held.subject, key(10).node_id(), &held.name));
    assert_eq!(next.expires_at, UnixTime(NOW.0 + 45 * DAY));
}

#[test]
fn nobody_renews_what_they_could_not_give() {
    let held = verify(&grant(&founder(), 20, Permissions::ADMIN), NOW.0).expect("sound");
    let refused = below(&founder(), 10, Permissions::INVITER).renew(&held, None, NOW);
    assert!(matches!(refused, Err(IssueError::Widened { .. })));
}

#[test]
fn grants_cross_frames_and_json() {
    let signed = grant(&below(&founder(), 10, Permissions::INVITER), 20, Permissions::INVITER);
    let frame = postcard::to_allocvec(&signed).expect("serializes");
    assert_eq!(postcard::from_bytes::<SignedGrant>(&frame).expect("parses"), signed);
    let json = serde_json::to_string(&signed).expect("serializes");
    assert_eq!(serde_json::from_str::<SignedGrant>(&json).expect("parses"), signed);
}

#[test]
fn the_largest_grant_fits_its_bound() {
    let mut authority = crate::fixture::recovery();
    for seed in 10..13 {
        authority = below(&authority, seed, Permissions::INVITER);
    }
    let longest = name(&"n".repeat(63));
    let signed =
        authority.sign_grant(key(20).node_id(), longest, Permissions::INVITER, None, NOW).expect("may");
    assert!(SignedGrant::decode(&signed.encode()).is_ok());
    let usual = founder().sign_grant(key(20).node_id(), name("abcdefgh"), Permissions::MEMBER, None, NOW);
    assert_eq!(usual.expect("may").encode().len(), 167);
}

#[test]
fn every_error_reads_well() {
    let errors = [
        GrantError::Malformed(mesh_identity::DecodeError::Truncated),
        GrantError::BadSignature,
        GrantError::Widened,
        GrantError::Expired { at: NOW },
        GrantError::NotYetValid { at: NOW },
        GrantError::WrongScope,
        GrantError::WrongSubject,
        GrantError::Revoked,
    ];
    for (error, code) in errors.iter().zip(64..) {
        let text = error.to_string();
        assert!(text.starts_with(char::is_lowercase) && !text.ends_with('.'), "{text}");
        assert_eq!(error.code(), code);
        assert!(!error.mend().is_empty());
    }
}
