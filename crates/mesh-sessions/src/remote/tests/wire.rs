use super::*;

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
