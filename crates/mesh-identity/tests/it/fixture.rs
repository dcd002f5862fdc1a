//! People and scopes that the tests share.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use mesh_identity::{
    Authority, Chain, Founding, InviteOptions, NodeAddr, NodeKey, NodeName, Permissions, RevocationSet,
    SignedGrant, UnixTime,
};

/// 2026-11-21T04:05:06Z: every test's present.
pub(crate) const NOW: UnixTime = UnixTime(1_795_233_906);
pub(crate) const DAY: u64 = 86_400;

pub(crate) fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

pub(crate) fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("a node name")
}

/// The scope of founder 1 and recovery key 2.
pub(crate) fn founding() -> Founding {
    Founding::with_recovery(&key(1), key(2))
}

pub(crate) fn founder() -> Authority {
    Authority::founder(key(1), founding().root).expect("the founder")
}

pub(crate) fn recovery() -> Authority {
    Authority::founder(key(2), founding().root).expect("the recovery key")
}

pub(crate) fn nothing_revoked() -> RevocationSet {
    RevocationSet::new(founding().root.id())
}

/// The authority that `parent` passes on to node `seed`.
pub(crate) fn below(parent: &Authority, seed: u8, permissions: Permissions) -> Authority {
    let expires = parent.chain().expires();
    let link = parent.delegate(key(seed).node_id(), permissions, expires).expect("within the parent");
    extend(parent, link, seed)
}

pub(crate) fn extend(parent: &Authority, link: mesh_identity::Delegation, seed: u8) -> Authority {
    let mut chain: Chain = parent.chain().clone();
    chain.links.push(link);
    Authority::delegated(key(seed), chain).expect("a sound chain")
}

/// A member's grant, signed by `issuer`.
pub(crate) fn grant(issuer: &Authority, seed: u8, permissions: Permissions) -> SignedGrant {
    issuer.sign_grant(key(seed).node_id(), name("node"), permissions, None, NOW).expect("within the issuer")
}

/// The invite whose size the specification bounds: a name of 20 letters, 30 bytes of hints.
pub(crate) fn sized_options() -> InviteOptions {
    let relay = "https://relay.example.org:8443";
    assert_eq!(relay.len(), 30);
    InviteOptions {
        name: Some("abcdefghijklmnopqrst".to_owned()),
        hints: NodeAddr { direct: Vec::new(), relay: Some(relay.to_owned()), ..NodeAddr::default() },
        ..InviteOptions::default()
    }
}

/// Polls a future that waits for nothing outside itself.
pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}
