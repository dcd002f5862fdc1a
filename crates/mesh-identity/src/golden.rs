//! The bytes of every signed form, fixed: a change here is a change of the wire, and bumps the form's version.

use std::time::Duration;

use crate::wire::to_hex;
use crate::{
    Authority, Chain, DeviceDelegation, Expiry, Founding, InviteId, InviteOptions, NodeAddr, NodeKey,
    NodeName, Permissions, Revoked, ScopeId, SignedGrant, SignedRevocation, UnixTime,
};

const NOW: UnixTime = UnixTime(1_795_233_906);

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

fn founder() -> Authority {
    Authority::founder(key(1), Founding::with_recovery(&key(1), key(2)).root).expect("the founder")
}

fn inviter() -> Authority {
    let mut chain: Chain = founder().chain().clone();
    let end = Expiry::at(UnixTime(NOW.0 + 1_000_000));
    chain.links.push(founder().delegate(key(3).node_id(), Permissions::INVITER, end).expect("may"));
    Authority::delegated(key(3), chain).expect("sound")
}

fn invite_id() -> InviteId {
    InviteId::from_parts(NOW, [0xa5; 10])
}

fn options() -> InviteOptions {
    InviteOptions {
        name: Some("home".to_owned()),
        ttl: Some(Duration::from_secs(3600)),
        max_uses: 300,
        permissions: Permissions::CLIENT,
        hints: NodeAddr {
            direct: vec![
                "192.0.2.1:9000".parse().expect("an address"),
                "[2001:db8::1]:9000".parse().expect("one"),
            ],
            relay: Some("https://relay.example.org".to_owned()),
            ..NodeAddr::default()
        },
    }
}

fn grant(authority: &Authority, permissions: Permissions) -> SignedGrant {
    let name = NodeName::new("laptop").expect("a name");
    authority.sign_grant(key(4).node_id(), name, permissions, Some(invite_id()), NOW).expect("may")
}

/// `NAME HEX` for each form.
fn forms() -> Vec<(&'static str, Vec<u8>)> {
    let scope = founder().scope();
    let of_self =
        SignedRevocation::of_self(&key(4), &grant(&founder(), Permissions::MEMBER), NOW).expect("its own");
    let recovery = Authority::founder(key(2), founder().chain().root).expect("the recovery key");
    vec![
        ("scope-id", scope.as_bytes().to_vec()),
        ("scope-id-lan", ScopeId::lan(None).as_bytes().to_vec()),
        ("scope-id-lan-psk", ScopeId::lan(Some(b"secret")).as_bytes().to_vec()),
        ("node-id-text", key(1).node_id().to_string().into_bytes()),
        ("delegation", inviter().chain().links[0].encode()),
        ("invite-founder", founder().issue_invite_as(invite_id(), &options(), NOW).expect("may").encode()),
        ("invite-inviter", inviter().issue_invite_as(invite_id(), &options(), NOW).expect("may").encode()),
        ("grant-founder", grant(&founder(), Permissions::MEMBER).encode()),
        ("grant-inviter", grant(&inviter(), Permissions::INVITER).encode()),
        ("revocation-node", founder().revoke(Revoked::Node(key(4).node_id()), NOW).expect("may").encode()),
        ("revocation-invite", inviter().revoke(Revoked::Invite(invite_id()), NOW).expect("may").encode()),
        ("revocation-founder", recovery.revoke(Revoked::Node(key(1).node_id()), NOW).expect("may").encode()),
        ("revocation-self", of_self.encode()),
        ("device", DeviceDelegation::sign(&key(5), &key(6).node_id(), &scope, Expiry::at(NOW)).encode()),
    ]
}

#[test]
fn every_form_keeps_its_bytes() {
    let now: String = forms().iter().map(|(name, bytes)| format!("{name} {}\n", to_hex(bytes))).collect();
    let golden = include_str!("golden.txt");
    for (was, is) in golden.lines().zip(now.lines()) {
        assert_eq!(was, is);
    }
    assert_eq!(golden.lines().count(), forms().len(), "all forms are now:\n{now}");
}

#[test]
fn what_is_derived_from_a_token_keeps_its_bytes() {
    let token = founder().issue_invite_as(invite_id(), &options(), NOW).expect("may");
    let invite = token.verify(NOW).expect("sound");
    assert_eq!(invite.relay_token(), "72f7752772aab01001d6112c1e2b73b4a807a2a6f5269642cfce9f1be0746e80");
}
