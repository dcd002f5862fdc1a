//! No single changed bit verifies, in any signed form.

use mesh_identity::{
    DeviceDelegation, Expiry, InviteToken, NodeId, Permissions, Revoked, SignedGrant, SignedRevocation,
};

use crate::fixture::{NOW, below, founder, founding, grant, key, nothing_revoked, sized_options};

/// Every message that differs from `bytes` in one bit.
fn neighbours(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..bytes.len() * 8).map(|bit| {
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    })
}

#[test]
fn of_an_invite() {
    let issuer = below(&founder(), 10, Permissions::INVITER);
    for token in [
        founder().issue_invite(&sized_options(), NOW).expect("may"),
        issuer.issue_invite(&sized_options(), NOW).expect("may"),
    ] {
        let verifies = |bytes: &[u8]| InviteToken::decode(bytes).is_ok_and(|token| token.verify(NOW).is_ok());
        assert!(verifies(&token.encode()));
        assert!(!neighbours(&token.encode()).any(|changed| verifies(&changed)));
    }
}

#[test]
fn of_a_grant() {
    let issuer = below(&founder(), 10, Permissions::INVITER);
    for grant in [grant(&founder(), 20, Permissions::ADMIN), grant(&issuer, 20, Permissions::MEMBER)] {
        let verifies = |bytes: &[u8]| {
            SignedGrant::decode(bytes)
                .is_ok_and(|grant| grant.verify(&founding().root.id(), NOW, &nothing_revoked()).is_ok())
        };
        assert!(verifies(&grant.encode()));
        assert!(!neighbours(&grant.encode()).any(|changed| verifies(&changed)));
    }
}

#[test]
fn of_a_revocation() {
    let issuer = below(&founder(), 10, Permissions::INVITER);
    let of_self = SignedRevocation::of_self(&key(20), &grant(&founder(), 20, Permissions::MEMBER), NOW);
    for revocation in
        [issuer.revoke(Revoked::Node(key(20).node_id()), NOW).expect("may"), of_self.expect("its own grant")]
    {
        let verifies = |bytes: &[u8]| {
            SignedRevocation::decode(bytes)
                .is_ok_and(|revocation| revocation.verify(&founding().root.id(), NOW).is_ok())
        };
        assert!(verifies(&revocation.encode()));
        assert!(!neighbours(&revocation.encode()).any(|changed| verifies(&changed)));
    }
}

#[test]
fn of_a_lasting_keys_statement() {
    let (device, scope): (NodeId, _) = (key(30).node_id(), founding().root.id());
    let statement = DeviceDelegation::sign(&key(31), &device, &scope, Expiry::at(NOW)).encode();
    let verifies = |bytes: &[u8]| {
        DeviceDelegation::decode(bytes).is_ok_and(|statement| statement.verify(&device, &scope, NOW).is_ok())
    };
    assert!(verifies(&statement));
    assert!(!neighbours(&statement).any(|changed| verifies(&changed)));
}

#[test]
fn of_a_tokens_text() {
    let text = founder().issue_invite(&sized_options(), NOW).expect("may").to_string();
    for (at, was) in text.bytes().enumerate() {
        for other in [b'A', b'z', b'-'] {
            let mut changed = text.clone().into_bytes();
            changed[at] = other;
            let changed = String::from_utf8(changed).expect("ASCII");
            let verifies = InviteToken::parse(&changed).is_ok_and(|token| token.verify(NOW).is_ok());
            assert_eq!(verifies, was == other, "character {at}");
        }
    }
}
