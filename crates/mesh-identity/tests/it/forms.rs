//! Every form of a token, its size, and what each fault is called.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_identity::{
    Expiry, InviteError, InviteOptions, InviteToken, LooksLike, NodeAddr, Permissions, UnixTime, qr,
};

use crate::fixture::{DAY, NOW, extend, founder, founding, key, sized_options};

fn token(options: &InviteOptions) -> InviteToken {
    founder().issue_invite(options, NOW).expect("the founder may")
}

fn fault(text: &str) -> InviteError {
    match InviteToken::parse(text).map(|token| token.verify(NOW)) {
        Err(error) | Ok(Err(error)) => error,
        Ok(Ok(_)) => panic!("{text} is a sound invite"),
    }
}

#[test]
fn every_form_reads_as_the_same_token() {
    let token = token(&sized_options());
    let bare = token.to_string();
    assert!(bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    let forms = [
        bare.clone(),
        token.to_url(),
        format!("qmt://mesh/join/{bare}"),
        format!("QMT://mesh/join/{bare}"),
        format!("  {bare}\r\n"),
        format!("\t{}\n", token.to_url()),
    ];
    for form in forms {
        assert_eq!(InviteToken::parse(&form).as_ref(), Ok(&token), "{form:?}");
    }
}

#[test]
fn an_invite_says_what_was_asked_for() {
    let options = InviteOptions {
        max_uses: 7,
        permissions: Permissions { role: mesh_identity::Role::Client, can_invite: true, admin: false },
        ..sized_options()
    };
    let invite = token(&options).verify(NOW).expect("sound");
    let says = invite.grant();
    assert_eq!((says.version, says.max_uses, says.permissions), (1, 7, options.permissions));
    assert_eq!((says.scope, says.inviter_peer_id), (founding().root.id(), key(1).node_id()));
    assert_eq!((&says.mesh_name, &says.hints), (&options.name, &options.hints));
    assert_eq!(says.expires_at.time(), Some(UnixTime(NOW.0 + DAY)));
    assert_eq!(says.invite_id.issued_at(), NOW);
    assert_eq!(says.invite_id.to_string().parse(), Ok(says.invite_id));
}

#[test]
fn an_invite_without_an_end_holds_for_ever() {
    let token = token(&InviteOptions { ttl: None, ..InviteOptions::default() });
    assert!(token.verify(UnixTime(NOW.0 + 5000 * DAY)).is_ok());
}

#[test]
fn sizes_stay_within_what_is_promised() {
    let addr = |text: &str| text.parse().expect("an address");
    let hints = [
        sized_options().hints, // 30 bytes of relay URL
        NodeAddr {
            direct: vec![addr("[2001:db8::1]:9000"), addr("192.0.2.1:9000")],
            relay: None,
            ..NodeAddr::default()
        },
        NodeAddr {
            direct: vec![addr("192.0.2.1:9000")],
            relay: Some("https://relay.example.org".to_owned()),
            ..NodeAddr::default()
        },
    ];
    for hints in hints {
        for (max_uses, ttl) in [(1, sized_options().ttl), (0, None), (u32::MAX, sized_options().ttl)] {
            let token = token(&InviteOptions { hints: hints.clone(), max_uses, ttl, ..sized_options() });
            let (bare, url) = (token.to_string(), token.to_url());
            assert!(bare.len() <= 260, "{} characters", bare.len());
            assert!(qr::version(&bare).expect("fits") <= 11 && qr::version(&url).expect("fits") <= 11);
        }
    }
    let usual = token(&sized_options()).to_string();
    assert_eq!(
        (usual.len(), qr::version(&usual), qr::version(&format!("qmt://mesh/join/{usual}"))),
        (243, Ok(10), Ok(10))
    );
}

#[test]
fn each_further_issuer_adds_at_most_140_characters() {
    // Both ways to write an end: never in one byte, the year 9999 in six.
    for ttl in [None, Some(Duration::from_secs(8000 * 365 * DAY))] {
        let end = Expiry::after(NOW, ttl);
        let mut authority = founder();
        let mut length = token(&sized_options()).to_string().len();
        for seed in 10..14 {
            let link = authority.delegate(key(seed).node_id(), Permissions::INVITER, end).expect("may");
            assert!(link.encode().len() <= 105);
            authority = extend(&authority, link, seed);
            let longer = authority.issue_invite(&sized_options(), NOW).expect("may").to_string();
            assert!(longer.len() - length <= 140, "{} more", longer.len() - length);
            assert!(InviteToken::parse(&longer).expect("parses").verify(NOW).is_ok());
            length = longer.len();
        }
    }
}

#[test]
fn what_is_no_invite_is_named() {
    let scope = founding().root.id().to_string();
    let node = key(1).node_id().to_string();
    for (text, looks_like) in [
        (node.as_str(), LooksLike::NodeId),
        (scope.as_str(), LooksLike::ScopeId),
        ("https://example.org/join/abc", LooksLike::Url),
        ("qmt://mesh/leave/abc", LooksLike::Url),
        ("/ip4/192.0.2.1/tcp/9000", LooksLike::Address),
        ("192.0.2.1:9000", LooksLike::Address),
        ("[2001:db8::1]:9000", LooksLike::Address),
        ("${QMT_INVITE}", LooksLike::Variable),
        ("helloworld", LooksLike::Unknown),
        ("qmt://mesh/join/helloworld", LooksLike::Unknown),
    ] {
        assert_eq!(fault(text), InviteError::NotAnInvite { looks_like }, "{text}");
    }
}

#[test]
fn each_fault_of_a_text_is_told_apart() {
    let bare = token(&sized_options()).to_string();
    assert_eq!(fault(""), InviteError::Empty);
    assert_eq!(fault(" \n"), InviteError::Empty);
    assert_eq!(fault("qmt://mesh/join/"), InviteError::Empty);
    assert_eq!(fault(&"A".repeat(5000)), InviteError::TooLong { chars: 5000 });
    assert_eq!(
        fault(&format!("{}\n{}", &bare[..10], &bare[10..])),
        InviteError::BadCharacter { at: 11, found: '\n' }
    );
    assert_eq!(
        fault(&format!("{}ö{}", &bare[..3], &bare[4..])),
        InviteError::BadCharacter { at: 4, found: 'ö' }
    );
    assert_eq!(fault(&format!("{bare}=")), InviteError::BadCharacter { at: bare.len() + 1, found: '=' });
    let versioned = |version: &str| fault(&format!("{version}{}", &bare[2..]));
    assert_eq!(versioned("Ag"), InviteError::WrongVersion { found: 2 });
    assert!(matches!(fault(&format!("{bare}AAAA")), InviteError::Malformed { .. }));
}

#[test]
fn a_token_cut_anywhere_is_called_cut_off() {
    let bare = token(&sized_options()).to_string();
    for length in 2..bare.len() {
        assert_eq!(fault(&bare[..length]), InviteError::Truncated, "{length}");
    }
}

#[test]
fn time_is_told_with_a_minute_of_skew() {
    let token = token(&InviteOptions::default());
    let end = NOW.0 + DAY;
    assert!(token.verify(UnixTime(end + 60)).is_ok());
    assert_eq!(token.verify(UnixTime(end + 61)), Err(InviteError::Expired { at: UnixTime(end) }));
    assert_eq!(
        token.verify(UnixTime(end + 61)).expect_err("over").to_string(),
        "the invite expired at 2026-11-22T04:05:06Z"
    );
}

/// One of every variant.
fn every_error() -> Vec<InviteError> {
    vec![
        InviteError::Empty,
        InviteError::TooLong { chars: 9000 },
        InviteError::NotAnInvite { looks_like: LooksLike::NodeId },
        InviteError::BadCharacter { at: 3, found: '+' },
        InviteError::Truncated,
        InviteError::Malformed { reason: mesh_identity::DecodeError::NonCanonical },
        InviteError::WrongVersion { found: 9 },
        InviteError::BadSignature,
        InviteError::Widened,
        InviteError::Expired { at: NOW },
        InviteError::IssuerExpired,
        InviteError::UsedUp,
        InviteError::Revoked,
        InviteError::WrongScope,
        InviteError::WrongIssuer,
        InviteError::NotAllowed,
        InviteError::BadDevice,
        InviteError::LedgerUnavailable,
        InviteError::IssuerUnreachable { reason: "no route".to_owned() },
        InviteError::Refused { code: 200 },
    ]
}

#[test]
fn every_error_reads_well_and_keeps_its_code() {
    let errors = every_error();
    let texts: BTreeSet<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), errors.len(), "each has its own words");
    for (error, code) in errors.iter().zip((1..=19).chain([200])) {
        let text = error.to_string();
        assert_eq!(error.code(), code, "{text}");
        assert!(text.starts_with(char::is_lowercase) && !text.ends_with('.'), "{text}");
        assert!(!error.mend().is_empty());
    }
}

#[test]
fn a_refusal_crosses_the_wire_as_a_code() {
    let shown = token(&InviteOptions::default()).verify(NOW).expect("sound");
    for error in every_error().into_iter().filter(|error| (8..=18).contains(&error.code())) {
        let received = InviteError::from_code(error.code(), shown.grant());
        assert_eq!(received.code(), error.code());
        assert!(!matches!(received, InviteError::Refused { .. }), "{error}");
    }
    assert_eq!(InviteError::from_code(200, shown.grant()), InviteError::Refused { code: 200 });
    assert_eq!(InviteError::from_code(3, shown.grant()), InviteError::Refused { code: 3 });
}

#[test]
fn debug_does_not_show_the_token() {
    let token = token(&sized_options());
    let invite = token.verify(NOW).expect("sound");
    for text in [format!("{token:?}"), format!("{invite:?}")] {
        assert!(text.len() < 80, "{text}");
    }
}

#[test]
fn a_relay_token_is_the_invites_own_and_hides_it() {
    let (one, two) = (token(&sized_options()), token(&sized_options()));
    let relay_token = one.verify(NOW).expect("sound").relay_token();
    assert_eq!(relay_token.len(), 64);
    assert_eq!(relay_token, one.verify(NOW).expect("sound").relay_token());
    assert_ne!(relay_token, two.verify(NOW).expect("sound").relay_token());
}
