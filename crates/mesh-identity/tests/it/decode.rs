//! Arbitrary bytes and texts never panic, and whatever is accepted has one encoding.

use mesh_identity::{
    AdmissionRequest, Chain, Delegation, DeviceDelegation, InviteToken, NodeAddr, NodeId, Permissions,
    Revoked, ScopeId, SignedGrant, SignedRevocation, ttl,
};
use proptest::prelude::*;

use crate::fixture::{NOW, below, founder, founding, grant, key, name, nothing_revoked, sized_options};

/// Decodes `bytes` as every form; each that accepts them must give them back.
fn decode_all(bytes: &[u8]) {
    macro_rules! canonical {
        ($($form:ty),*) => {$(
            if let Ok(value) = <$form>::decode(bytes) {
                assert_eq!(value.encode(), bytes, stringify!($form));
            }
        )*};
    }
    canonical!(InviteToken, SignedGrant, SignedRevocation, Delegation, Chain, DeviceDelegation);
    if let Ok(addr) = NodeAddr::decode(bytes) {
        assert_eq!(addr.encode().as_deref(), Ok(bytes));
    }
    if let Ok(token) = InviteToken::decode(bytes) {
        let _ = token.verify(NOW);
    }
    if let Ok(grant) = SignedGrant::decode(bytes) {
        let _ = grant.verify(&founding().root.id(), NOW, &nothing_revoked());
    }
    if let Ok(revocation) = SignedRevocation::decode(bytes) {
        let _ = revocation.verify(&founding().root.id(), NOW);
    }
    let _ = postcard::from_bytes::<AdmissionRequest>(bytes);
}

/// One sound message of every form.
fn sound() -> Vec<Vec<u8>> {
    let issuer = below(&founder(), 10, Permissions::INVITER);
    let token = issuer.issue_invite(&sized_options(), NOW).expect("may");
    let request = AdmissionRequest { token: token.clone(), node_name: name("node"), device: None };
    vec![
        token.encode(),
        grant(&issuer, 20, Permissions::INVITER).encode(),
        issuer.revoke(Revoked::Node(key(20).node_id()), NOW).expect("may").encode(),
        issuer.chain().encode(),
        issuer.chain().links[0].encode(),
        sized_options().hints.encode().expect("sound"),
        postcard::to_allocvec(&request).expect("serializes"),
    ]
}

#[test]
fn sound_messages_decode_to_themselves() {
    sound().iter().for_each(|bytes| decode_all(bytes));
}

#[test]
fn admission_requests_round_trip_in_frames_and_in_json() {
    let token = founder().issue_invite(&sized_options(), NOW).expect("may");
    let scope = founding().root.id();
    let device = DeviceDelegation::sign(&key(31), &key(30).node_id(), &scope, mesh_identity::Expiry::NEVER);
    let request = AdmissionRequest { token, node_name: name("laptop"), device: Some(device) };
    let frame = postcard::to_allocvec(&request).expect("serializes");
    assert_eq!(postcard::from_bytes::<AdmissionRequest>(&frame).expect("parses"), request);
    let json = serde_json::to_string(&request).expect("serializes");
    assert!(json.contains(&request.token.to_string()));
    assert_eq!(serde_json::from_str::<AdmissionRequest>(&json).expect("parses"), request);
}

#[test]
fn longer_than_their_bound_is_refused_before_it_is_read() {
    let huge = vec![1; 100_000];
    assert!(InviteToken::decode(&huge).is_err() && SignedGrant::decode(&huge).is_err());
    assert!(SignedRevocation::decode(&huge).is_err() && Chain::decode(&huge).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        decode_all(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        which in 0usize..7,
        cut in any::<proptest::sample::Index>(),
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        tail in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = sound().swap_remove(which);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut.index(3) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(tail);
        decode_all(&bytes);
    }

    #[test]
    fn arbitrary_texts_never_panic(text in "\\PC{0,300}") {
        let _ = InviteToken::parse(&text);
        let _ = InviteToken::parse(&format!("qmt://mesh/join/{text}"));
        let _ = (text.parse::<NodeId>(), text.parse::<ScopeId>(), ttl::parse(&text));
        let _ = mesh_identity::key_file::from_text(&text);
    }

    #[test]
    fn arbitrary_base64_never_panics(text in "[A-Za-z0-9_-]{0,300}") {
        let _ = InviteToken::parse(&text).map(|token| token.verify(NOW));
        let _ = InviteToken::parse(&format!("AQ{text}")).map(|token| token.verify(NOW));
    }
}
