//! Nobody gives more than they were given: not by asking nicely, and not by signing what the API would refuse to sign.

use std::time::Duration;

use mesh_identity::{
    Authority, ChainError, Expiry, InviteError, InviteOptions, InviteToken, IssueError, Permissions, Role,
    UnixTime,
};
use proptest::prelude::*;

use crate::fixture::{DAY, NOW, below, extend, founder, founding, key, name, recovery};

fn permissions() -> impl Strategy<Value = Permissions> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(client, can_invite, admin)| Permissions {
        role: if client { Role::Client } else { Role::Member },
        can_invite,
        admin,
    })
}

fn ttl() -> impl Strategy<Value = Option<Duration>> {
    proptest::option::of((1..400u64).prop_map(|days| Duration::from_secs(days * DAY)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is asked for along a chain: an invite that verifies gives no more than each issuer above it had.
    #[test]
    fn no_sub_invite_widens(steps in proptest::collection::vec((permissions(), ttl()), 0..6), last in (permissions(), ttl())) {
        let mut authority = founder();
        let mut above: Vec<(Permissions, Expiry)> = Vec::new();
        for (seed, (wanted, ttl)) in (10..).zip(steps) {
            let expires = Expiry::after(NOW, ttl);
            if let Ok(link) = authority.delegate(key(seed).node_id(), wanted, expires) {
                authority = extend(&authority, link, seed);
                above.push((wanted, expires));
            }
        }
        prop_assert!(above.len() <= 4);
        let options = InviteOptions { permissions: last.0, ttl: last.1, ..InviteOptions::default() };
        let Ok(token) = authority.issue_invite(&options, NOW) else { return Ok(()) };
        let invite = token.verify(NOW).expect("what was issued verifies");
        let says = invite.grant();
        for (permissions, expires) in &above {
            prop_assert!(says.permissions.is_within(*permissions));
            prop_assert!(says.expires_at.is_within(*expires));
            prop_assert!(permissions.may_admit());
        }
        prop_assert!(!says.permissions.admin || above.is_empty(), "only the root appoints admins");
    }

    /// A grant never ends after the authority behind it, nor gives more.
    #[test]
    fn no_grant_widens(wanted in permissions(), held in permissions(), ttl in ttl()) {
        let expires = Expiry::after(NOW, ttl);
        let Ok(link) = founder().delegate(key(10).node_id(), held, expires) else { return Ok(()) };
        let issuer = extend(&founder(), link, 10);
        match issuer.sign_grant(key(20).node_id(), name("node"), wanted, None, NOW) {
            Ok(signed) => {
                let grant = signed.verify(&founding().root.id(), NOW, &crate::fixture::nothing_revoked());
                let grant = grant.expect("what was signed verifies");
                prop_assert!(grant.permissions.is_within(held));
                prop_assert!(Expiry::at(grant.expires_at).is_within(expires));
                if let Some(own) = Authority::from_grant(key(20), &signed) {
                    prop_assert!(own.permissions().is_within(held) && own.chain().expires().is_within(expires));
                }
            }
            Err(_) => prop_assert!(!wanted.is_within(held) || (wanted.admin && wanted.role == Role::Client)),
        }
    }
}

/// An invite made of an honest one's bytes with another permissions byte, signed again by its own issuer: what a member
/// with a changed program can make.
fn forged(issuer_seed: u8, token: &InviteToken, change: impl Fn(&mut Vec<u8>)) -> InviteToken {
    let mut bytes = token.encode();
    let end = bytes.len() - 64;
    bytes.truncate(end);
    change(&mut bytes);
    let domain = mesh_identity::Domain::new("qmt-mesh/invite/v1");
    let signature = key(issuer_seed).sign(domain, &token.scope(), &bytes);
    bytes.extend_from_slice(signature.as_bytes());
    InviteToken::decode(&bytes).expect("well formed")
}

/// Where the permissions stand in a token with one link that never ends.
const PERMISSIONS_AT: usize = 1 + 1 + 48 + (32 + 1 + 1 + 64) + 16;

#[test]
fn a_widened_invite_with_a_right_signature_is_refused() {
    let clients_only = Permissions { role: Role::Client, can_invite: true, admin: false };
    let issuer = below(&founder(), 10, clients_only);
    let options = InviteOptions { permissions: Permissions::CLIENT, ttl: None, ..InviteOptions::default() };
    let token = issuer.issue_invite(&options, NOW).expect("may");
    assert!(forged(10, &token, |_| {}).verify(NOW).is_ok());
    for wider in [0u8, 2, 6] {
        let forged = forged(10, &token, |bytes| {
            assert_eq!(bytes[PERMISSIONS_AT], 1);
            bytes[PERMISSIONS_AT] = wider;
        });
        assert_eq!(forged.verify(NOW), Err(InviteError::Widened), "{wider}");
    }
}

#[test]
fn an_admin_appoints_no_admin_and_signs_no_such_invite() {
    let admin =
        extend(&founder(), founder().appoint_admin(key(10).node_id(), Expiry::NEVER).expect("root"), 10);
    let refused = admin.appoint_admin(key(11).node_id(), Expiry::NEVER);
    assert!(matches!(refused, Err(IssueError::Widened { .. })));
    let options = InviteOptions { permissions: Permissions::INVITER, ttl: None, ..InviteOptions::default() };
    let token = admin.issue_invite(&options, NOW).expect("may");
    let forged = forged(10, &token, |bytes| bytes[PERMISSIONS_AT] = 6);
    assert_eq!(forged.verify(NOW), Err(InviteError::Widened));
}

#[test]
fn a_chain_signed_by_the_wrong_key_or_for_another_scope_gives_nothing() {
    let issuer = below(&founder(), 10, Permissions::INVITER);
    let mut chain = issuer.chain().clone();
    chain.root = mesh_identity::Founding::with_recovery(&key(1), key(3)).root;
    assert_eq!(chain.verify(NOW), Err(ChainError::BadSignature));
    let mut chain = issuer.chain().clone();
    chain.root = mesh_identity::Founding::with_recovery(&key(4), key(2)).root;
    assert_eq!(chain.verify(NOW), Err(ChainError::BadSignature));
    let mut chain = issuer.chain().clone();
    chain.recovery = Some(key(4).node_id());
    assert_eq!(chain.verify(NOW), Err(ChainError::BadSignature));
    assert!(matches!(Authority::delegated(key(11), issuer.chain().clone()), Err(IssueError::WrongKey)));
    assert!(matches!(Authority::founder(key(3), founding().root), Err(IssueError::WrongKey)));
}

#[test]
fn a_chain_has_at_most_four_links() {
    let mut authority = founder();
    for seed in 10..14 {
        authority = below(&authority, seed, Permissions::INVITER);
    }
    let fifth = authority.delegate(key(14).node_id(), Permissions::INVITER, Expiry::NEVER);
    assert_eq!(fifth, Err(IssueError::ChainFull));
    let options = InviteOptions { permissions: Permissions::INVITER, ..InviteOptions::default() };
    assert_eq!(authority.issue_invite(&options, NOW), Err(IssueError::ChainFull));
    assert!(authority.issue_invite(&InviteOptions::default(), NOW).is_ok());
    let mut chain = authority.chain().clone();
    chain.links.push(chain.links[3].clone());
    assert_eq!(chain.verify(NOW), Err(ChainError::TooLong));
}

#[test]
fn an_issuers_end_ends_its_invites() {
    let end = UnixTime(NOW.0 + 10 * DAY);
    let link = founder().delegate(key(10).node_id(), Permissions::INVITER, Expiry::at(end)).expect("may");
    let issuer = extend(&founder(), link, 10);
    let too_long = InviteOptions { ttl: Some(Duration::from_secs(11 * DAY)), ..InviteOptions::default() };
    assert!(matches!(issuer.issue_invite(&too_long, NOW), Err(IssueError::Outlives { .. })));
    let without_end = InviteOptions { ttl: None, ..InviteOptions::default() };
    assert!(matches!(issuer.issue_invite(&without_end, NOW), Err(IssueError::Outlives { .. })));
    let late = issuer.issue_invite(&InviteOptions::default(), UnixTime(end.0 + 61));
    assert!(matches!(late, Err(IssueError::NoAuthority(ChainError::Expired { at })) if at == end));
}

#[test]
fn the_recovery_key_stands_in_for_the_founder() {
    let token = recovery().issue_invite(&InviteOptions::default(), NOW).expect("may");
    let invite = InviteToken::parse(&token.to_string()).expect("parses").verify(NOW).expect("sound");
    assert_eq!((invite.issuer(), invite.grant().scope), (key(2).node_id(), founding().root.id()));
    assert!(recovery().appoint_admin(key(10).node_id(), Expiry::NEVER).is_ok());
}

#[test]
fn bad_names_and_addresses_are_not_signed() {
    for bad in ["", "a\u{1b}[2Jb", &"x".repeat(65)] {
        let options = InviteOptions { name: Some(bad.to_owned()), ..InviteOptions::default() };
        assert_eq!(founder().issue_invite(&options, NOW), Err(IssueError::Name));
    }
    let mut options = InviteOptions::default();
    options.hints.relay = Some("https://a b".to_owned());
    assert!(matches!(founder().issue_invite(&options, NOW), Err(IssueError::Hints(_))));
}

#[test]
fn the_better_authority_is_alive_then_short_then_lasting() {
    let lasting = |days: u64| {
        let expires = Expiry::at(UnixTime(NOW.0 + days * DAY));
        extend(
            &founder(),
            founder().delegate(key(10).node_id(), Permissions::INVITER, expires).expect("may"),
            10,
        )
    };
    let middle = below(&founder(), 11, Permissions::INVITER);
    let long = below(&middle, 10, Permissions::INVITER);
    let links = |authority: &Authority| (authority.chain().links.len(), authority.chain().expires());
    let (short, shorter) = (lasting(20), lasting(10));
    assert_eq!(links(&shorter.clone().better(short.clone(), NOW)), links(&short));
    assert_eq!(links(&long.clone().better(short.clone(), NOW)), links(&short));
    assert_eq!(links(&short.better(long.clone(), UnixTime(NOW.0 + 30 * DAY))), links(&long));
}
