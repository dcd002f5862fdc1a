//! The shapes on the wire, which scripts outside this workspace rely on.

use mesh_control::*;

#[test]
fn event_has_its_type_beside_its_number() {
    let event = Event {
        number: 7,
        at_ms: 1_700_000_000_123,
        kind: EventKind::Link {
            id: "12D3".into(),
            scope: "ab".into(),
            path: PathKind::Relayed,
            rtt_ms: Some(1.5),
        },
    };
    assert_eq!(
        event.to_sse(),
        "id: 7\nevent: link\ndata: {\"number\":7,\"at_ms\":1700000000123,\"type\":\"link\",\"id\":\"12D3\",\"scope\":\"ab\",\"path\":\"relayed\",\"rtt_ms\":1.5}\n\n"
    );
}

#[test]
fn newer_words_and_fields_are_read_as_unknown_and_skipped() {
    let node: NodeView = serde_json::from_str(
        r#"{"id":"12D3","name":"n","scope":"ab","role":"emperor","state":"dreaming","path":"pigeon","mood":"good"}"#,
    )
    .expect("reads a newer node's answer");
    assert_eq!((node.role, node.state, node.path), (Role::Unknown, NodeState::Unknown, PathKind::Unknown));
    let event: Event = serde_json::from_str(r#"{"number":1,"at_ms":2,"type":"eclipse","of":"moon"}"#)
        .expect("reads a newer event");
    assert_eq!(event.kind, EventKind::Unknown);
    let target: RouteTarget = serde_json::from_str(r#"{"type":"cloud"}"#).expect("reads a newer target");
    assert_eq!(target, RouteTarget::Unknown);
}

#[test]
fn words_are_those_of_the_documentation() {
    let word = |value: serde_json::Value| value.as_str().map(str::to_owned).expect("a word");
    for (state, text) in [
        (NodeState::Me, "self"),
        (NodeState::Alive, "alive"),
        (NodeState::Suspect, "suspect"),
        (NodeState::Down, "down"),
    ] {
        assert_eq!(word(serde_json::to_value(state).expect("serializes")), text);
        assert_eq!(state.to_string(), text);
    }
    let finding = Finding { check: "x".into(), verdict: Verdict::Warn, detail: "d".into(), mend: None };
    assert_eq!(
        serde_json::to_string(&finding).expect("serializes"),
        r#"{"check":"x","state":"warn","detail":"d"}"#
    );
    assert_eq!(serde_json::to_string(&InviteRequest::default()).expect("serializes"), "{}");
}

#[test]
fn tokens_do_not_reach_debug_output() {
    let created = InviteCreated {
        token: "SECRET".into(),
        url: "qmt://mesh/join/SECRET".into(),
        ..InviteCreated::default()
    };
    assert!(!format!("{created:?}").contains("SECRET"));
    assert!(!format!("{:?}", JoinRequest { token: "SECRET".into() }).contains("SECRET"));
}
