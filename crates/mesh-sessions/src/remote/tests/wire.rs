use super::*;
use crate::event::Party;
use crate::ids::TurnNumber;
use crate::proto::wire::{HitFacts, SessionFacts};

const NODE: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";

#[test]
fn frames_are_what_they_were() {
    let session: crate::ids::SessionId = "0197a5c2-0000-7000-8000-000000000007".parse().unwrap();
    let golden = |message: &dyn erased::Json, wanted: &str| assert_eq!(message.json(), wanted);
    golden(&Ask::Agents, r#"{"call":"agents"}"#);
    golden(
        &Ask::Attach { session, after: EventNumber(7) },
        r#"{"call":"attach","session":"0197a5c2-0000-7000-8000-000000000007","after":7}"#,
    );
    golden(
        &Ask::Do { session, what: Deed::Cancel { turn: None } },
        r#"{"call":"do","session":"0197a5c2-0000-7000-8000-000000000007","what":{"do":"cancel"}}"#,
    );
    golden(
        &Ask::Take { session, epoch: 2 },
        r#"{"call":"take","session":"0197a5c2-0000-7000-8000-000000000007","epoch":2}"#,
    );
    golden(&Ask::Export { session }, r#"{"call":"export","session":"0197a5c2-0000-7000-8000-000000000007"}"#);
    golden(
        &Ask::Search { words: "blue whale".to_owned(), limit: 9 },
        r#"{"call":"search","words":"blue whale","limit":9}"#,
    );
    golden(&Tell::Log, r#"{"tell":"log"}"#);
    let name = Some("whales".parse().unwrap());
    let hit =
        HitFacts { session, name, number: EventNumber(4), at_ms: 6, excerpt: "a blue whale".to_owned() };
    golden(
        &Tell::Hits { hits: vec![hit] },
        r#"{"tell":"hits","hits":[{"session":"0197a5c2-0000-7000-8000-000000000007","name":"whales","number":4,"at_ms":6,"excerpt":"a blue whale"}]}"#,
    );
    let owner = Party::local(NODE.parse().unwrap());
    let share = Share { with: ShareWith::Node(owner.node), right: Right::Watch };
    let facts = SessionFacts {
        id: session,
        agent: "coder".parse().unwrap(),
        owner,
        name: None,
        labels: BTreeMap::new(),
        state: "waiting".to_owned(),
        turn: Some(TurnNumber(2)),
        waiting: 1,
        right: Some(Right::Own),
        shares: Some(vec![share]),
        parent: None,
        last: EventNumber(9),
        epoch: 3,
        moved_to: None,
        created_ms: 5,
        updated_ms: 6,
    };
    golden(
        &Tell::Sessions { sessions: vec![facts], next: None },
        &r#"{"tell":"sessions","sessions":[{"id":"0197a5c2-0000-7000-8000-000000000007","agent":"coder","owner":{"node":"NODE"},"state":"waiting","turn":2,"waiting":1,"right":"own","shares":[{"with":{"node":"NODE"},"right":"watch"}],"last":9,"epoch":3,"created_ms":5,"updated_ms":6}]}"#
            .replace("NODE", NODE),
    );
    golden(&Beat { read: EventNumber(9) }, r#"{"read":9}"#);
    golden(&Tell::Beat, r#"{"tell":"beat"}"#);
    golden(
        &Tell::Event { event: Event { number: EventNumber(3), at_ms: 5, body: Body::Resumed } },
        r#"{"tell":"event","event":{"number":3,"at_ms":5,"kind":"resumed"}}"#,
    );
    golden(
        &Tell::Refused { code: Code::NoSuchSession, text: "no".to_owned(), to: None },
        r#"{"tell":"refused","code":"no_such_session","text":"no"}"#,
    );
    let later: Tell = serde_json::from_str(r#"{"tell":"refused","code":"new","text":""}"#).unwrap();
    assert_eq!(later, Tell::Refused { code: Code::Unknown, text: String::new(), to: None });
}

mod erased {
    pub(super) trait Json {
        fn json(&self) -> String;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> String {
            serde_json::to_string(self).unwrap()
        }
    }
}
