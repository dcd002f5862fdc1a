use super::*;
use crate::event::{Share, ShareWith};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_answered_and_everybody_who_watches_sees_the_same() {
    let host = Host::new(Script::echo());
    let sessions = host.start().await;
    let session = create(&sessions).await;
    let watching = tokio::spawn({
        let sessions = sessions.clone();
        async move { until_turns(&sessions, session, 2).await }
    });
    prompt(&sessions, session, "one").await;
    prompt(&sessions, session, "two").await;
    let live = watching.await.unwrap();
    assert_eq!(answers(&live), ["you said one", "you said two"]);
    assert_eq!(until_turns(&sessions, session, 2).await, live, "the past is what was live");
    let told = host.script.calls.lock().unwrap()[1].messages.clone();
    let wanted = [
        Message::System("be brief".to_owned()),
        Message::User(text("one")),
        Message::Assistant { text: "you said one".to_owned(), tool_calls: vec![] },
        Message::User(text("two")),
    ];
    assert_eq!(told[..], wanted);
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_comes_twice_is_one_prompt() {
    let host = Host::new(Script::echo());
    let sessions = host.start().await;
    let session = create(&sessions).await;
    let both = tokio::join!(prompt(&sessions, session, "one"), prompt(&sessions, session, "one"));
    assert_eq!(both.0, both.1);
    until_turns(&sessions, session, 1).await;
    assert_eq!(prompt(&sessions, session, "one").await, both.0);
    prompt(&sessions, session, "two").await;
    assert_eq!(answers(&until_turns(&sessions, session, 2).await), ["you said one", "you said two"]);
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_of_ten_megabytes_and_an_image_reach_the_model_whole() {
    let host = Host::new(Script::new(|_| said("seen")));
    let sessions = host.start().await;
    let session = create(&sessions).await;
    let image = Shown::Image { media_type: "image/png".to_owned(), bytes: vec![7; 200_000].into() };
    let parts = vec![Shown::Text("ä".repeat(5 << 20)), image];
    sessions.prompt(session, &me(), "big".parse().unwrap(), parts.clone()).await.unwrap();
    let events = until_turns(&sessions, session, 1).await;
    assert!(events.iter().all(|event| serde_json::to_vec(&**event).unwrap().len() < 256 * 1024));
    assert_eq!(host.script.calls.lock().unwrap()[0].messages[1], Message::User(parts));
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_is_kept_whole() {
    let long = "word ".repeat(40_000);
    let answer = long.clone();
    let host = Host::new(Script::new(move |call| match call.messages.len() {
        2 => said(&answer),
        _ => said(&format!("{:?}", call.messages.len())),
    }));
    let sessions = host.start().await;
    let session = create(&sessions).await;
    prompt(&sessions, session, "one").await;
    until_turns(&sessions, session, 1).await;
    prompt(&sessions, session, "two").await;
    let events = until_turns(&sessions, session, 2).await;
    let pieces = events.iter().filter_map(|event| match &event.body {
        Body::TextAdded { text, turn } if turn.0 == 1 => Some(text.as_str()),
        _ => None,
    });
    assert_eq!(pieces.collect::<String>(), long);
    let told = host.script.calls.lock().unwrap()[1].messages[2].clone();
    assert_eq!(told, Message::Assistant { text: long, tool_calls: vec![] });
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_at_a_message_has_a_history_of_its_own() {
    let host = Host::new(Script::echo());
    let sessions = host.start().await;
    let session = create(&sessions).await;
    prompt(&sessions, session, "one").await;
    let cut = until_turns(&sessions, session, 1).await.last().unwrap().number;
    prompt(&sessions, session, "two").await;
    until_turns(&sessions, session, 2).await;
    let (fork, again) = (new_id(), new_id());
    sessions.fork(session, Some(cut), fork, &me()).await.unwrap();
    sessions.fork(session, Some(cut), fork, &me()).await.unwrap();
    prompt(&sessions, fork, "three").await;
    let of_fork = until_turns(&sessions, fork, 2).await;
    assert_eq!(answers(&of_fork), ["you said one", "you said three"]);
    sessions.fork(fork, None, again, &me()).await.unwrap();
    prompt(&sessions, again, "four").await;
    let of_again = until_turns(&sessions, again, 3).await;
    assert_eq!(answers(&of_again), ["you said one", "you said three", "you said four"]);
    assert_eq!(answers(&until_turns(&sessions, session, 2).await), ["you said one", "you said two"]);
    let late = sessions.fork(session, Some(EventNumber(9_999)), new_id(), &me()).await;
    assert!(matches!(late, Err(CommandError::Refused(Refusal::NoSuchEvent))), "{late:?}");
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_of_a_turn_that_runs_ends_it_in_the_fork_alone() {
    let mut host = Host::new(Script::new(|call| match call.messages.last() {
        Some(Message::Tool { .. }) => said("done"),
        _ => wants(&[("a", "slow")]),
    }));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let waits = gate.clone();
    host.tools.push(TestTool::new("slow", false, move |_| {
        let gate = waits.clone();
        async move {
            let _ = gate.acquire().await;
            Ran::done("at last")
        }
    }));
    let sessions = host.start().await;
    let session = create(&sessions).await;
    prompt(&sessions, session, "one").await;
    until(&sessions, session, |events| has_kind(events, "tool_started")).await;
    let fork = new_id();
    sessions.fork(session, None, fork, &me()).await.unwrap();
    let of_fork = until_turns(&sessions, fork, 1).await;
    assert_eq!(outcomes(&of_fork), [TurnOutcome::Cancelled { by: me() }]);
    assert_eq!(tool_outcome(&of_fork, "a"), Some(ToolOutcome::Unknown));
    gate.add_permits(1);
    let events = until_turns(&sessions, session, 1).await;
    assert_eq!((outcomes(&events), host.tools[0].runs()), (vec![TurnOutcome::Done], 1));
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_run_print_and_are_told_of() {
    let mut host = Host::new(Script::new(|call| match call.messages.last() {
        Some(Message::Tool { .. }) => said("done"),
        _ => wants(&[("a", "loud"), ("b", "broken"), ("c", "none")]),
    }));
    host.tools.push(TestTool::new("loud", false, |run: ToolRun| async move {
        (run.printed)("line one\n");
        Ran::done("x".repeat(100_000))
    }));
    host.tools.push(TestTool::new("broken", true, |_| async { panic!("a bug in a tool") }));
    let sessions = host.start().await;
    let session = create(&sessions).await;
    prompt(&sessions, session, "one").await;
    let events = until_turns(&sessions, session, 1).await;
    let outcome = |id| tool_outcome(&events, id);
    assert_eq!(
        [outcome("a"), outcome("b"), outcome("c")],
        [Some(ToolOutcome::Done), Some(ToolOutcome::Failed), Some(ToolOutcome::Failed)]
    );
    assert!(has_kind(&events, "tool_printed"));
    let calls = host.script.calls.lock().unwrap().clone();
    let names: Vec<_> = calls[0].tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["loud", "broken"]);
    let whole = Message::Tool { call: "a".parse().unwrap(), parts: text(&"x".repeat(100_000)) };
    assert!(calls[1].messages.contains(&whole));
    let models = host.script.calls.lock().unwrap().len() as u64;
    sessions.shutdown().await;
    let stats = sessions.stats();
    assert_eq!((stats.turns, stats.tool_calls), ([1, 0, 0, 0], [1, 2, 0, 0, 0]));
    assert_eq!((stats.model_calls, stats.tokens), ([models, 0], [7 * models, 3 * models]));
    assert!(stats.events == events.len() as u64 && (1..=stats.events).contains(&stats.commits), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_that_does_not_listen_is_dropped_when_the_turn_is_cancelled() {
    let mut host = Host::new(Script::new(|_| wants(&[("a", "deaf")])));
    host.tools.push(TestTool::new("deaf", false, |_| std::future::pending()));
    let sessions = host.start().await;
    let session = create(&sessions).await;
    prompt(&sessions, session, "one").await;
    until(&sessions, session, |events| has_kind(events, "tool_started")).await;
    sessions.command(session, &me(), Command::Cancel { turn: None }).await.unwrap();
    let events = until_turns(&sessions, session, 1).await;
    assert_eq!(outcomes(&events), [TurnOutcome::Cancelled { by: me() }]);
    assert_eq!(tool_outcome(&events, "a"), Some(ToolOutcome::Cancelled));
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_client_that_fails_in_any_way_ends_the_turn() {
    let host = Host::new(Script::new(|call| match call.messages.last() {
        Some(Message::User(parts)) if *parts == text("panic") => panic!("a bug in a client"),
        Some(Message::User(_)) => vec![Ok(ModelPiece::Text("half".to_owned()))],
        _ => vec![],
    }));
    let sessions = host.start().await;
    for word in ["panic", "half"] {
        let session = create(&sessions).await;
        prompt(&sessions, session, word).await;
        let events = until_turns(&sessions, session, 1).await;
        assert!(matches!(outcomes(&events)[0], TurnOutcome::Failed { .. }), "{word}");
        assert_eq!(kinds(&events).iter().filter(|kind| *kind == "model_called").count(), 4, "{word}");
    }
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_right_learns_nothing_and_watches_no_longer_than_allowed() {
    let host = Host::new(Script::echo());
    let sessions = host.start().await;
    let (session, guest) = (create(&sessions).await, guest(Role::Client));
    let name = Command::Name { name: Some("secret".parse().unwrap()) };
    sessions.command(session, &me(), name).await.unwrap();
    let is_hidden = |error: &CommandError| matches!(error, CommandError::Refused(Refusal::NoSuchSession));
    let prompt_id = || "p".parse().unwrap();
    assert!(is_hidden(&sessions.follow(session, &guest, EventNumber::START).await.unwrap_err()));
    assert!(is_hidden(&sessions.prompt(session, &guest, prompt_id(), text("x")).await.unwrap_err()));
    assert!(is_hidden(&sessions.fork(session, None, new_id(), &guest).await.unwrap_err()));
    assert!(is_hidden(&sessions.resolve(&guest, "secret", None).await.unwrap_err()));
    assert!(is_hidden(&sessions.follow(new_id(), &guest, EventNumber::START).await.unwrap_err()));
    assert_eq!(sessions.list(&guest, Filter::default()).await.unwrap().0, []);
    let new =
        NewSession { agent: "coder".parse().unwrap(), name: None, labels: BTreeMap::new(), chain: None };
    let refused = sessions.create(new_id(), &guest, new).await;
    assert!(matches!(refused, Err(CommandError::NoSuchAgent(_))), "not open to clients");

    let watch = vec![Share { with: ShareWith::Node(guest.node), right: Right::Watch }];
    sessions.command(session, &me(), Command::Share { shares: watch }).await.unwrap();
    let mut following = sessions.follow(session, &guest, EventNumber::START).await.unwrap();
    let refused = sessions.prompt(session, &guest, prompt_id(), text("x")).await;
    assert!(matches!(refused, Err(CommandError::Refused(Refusal::NotAllowed { needs: Right::Prompt }))));
    assert_eq!(sessions.resolve(&guest, "secret", None).await.unwrap(), session);
    assert_eq!(sessions.list(&guest, Filter::default()).await.unwrap().0.len(), 1);
    for _ in 0..3 {
        following.next().await.unwrap();
    }
    sessions.command(session, &me(), Command::Share { shares: vec![] }).await.unwrap();
    let mut seen = Vec::new();
    let error = loop {
        match following.next().await {
            Ok(event) => seen.push(event),
            Err(error) => break error,
        }
    };
    assert!(is_hidden(&error) && seen.len() <= 1, "{error}: {seen:?}");
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_fall_asleep_and_wake_without_losing_a_request() {
    let mut host = Host::new(Script::echo());
    host.config.idle = Duration::from_millis(1);
    let sessions = host.start().await;
    let session = create(&sessions).await;
    for turn in 1..=20 {
        prompt(&sessions, session, &format!("p{turn}")).await;
        until_turns(&sessions, session, turn).await;
        tokio::time::sleep(Duration::from_millis(turn as u64 % 4)).await;
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !lock(&sessions.inner.live).sessions.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "it never sleeps");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    sessions.shutdown().await;
    let late = sessions.command(session, &me(), Command::Resume).await;
    assert!(matches!(late, Err(CommandError::Closed)), "{late:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_session_is_opened_from_its_snapshot() {
    let mut host = Host::new(Script::echo());
    host.config.snapshot_events = 20;
    let sessions = host.start().await;
    let session = create(&sessions).await;
    for turn in 1..=12 {
        prompt(&sessions, session, &format!("p{turn}")).await;
        until_turns(&sessions, session, turn).await;
    }
    host.crash(sessions).await;
    let sessions = host.start().await;
    let loaded = load(sessions.store(), session).await.unwrap();
    let last = loaded.session.last();
    assert!(loaded.snapshot_at.0 > 0 && last.0 - loaded.snapshot_at.0 <= 30, "{} {last}", loaded.snapshot_at);
    let events = sessions.store().read(session, EventNumber::START, Default::default()).await.unwrap();
    let mut folded = crate::proto::Session::default();
    events.iter().for_each(|event| folded.apply(event));
    assert_eq!(folded.context(), loaded.session.context());
    assert_eq!(folded.state(), loaded.session.state());
    sessions.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_that_waited_at_the_cut_can_be_said_in_the_fork() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let waits = gate.clone();
    let mut host = Host::new(Script::new(|call| match call.messages.last() {
        Some(Message::Tool { .. }) => said("done"),
        Some(Message::User(parts)) if *parts == text("one") => wants(&[("a", "slow")]),
        other => said(&format!("{}", other.is_some())),
    }));
    host.tools.push(TestTool::new("slow", true, move |_| {
        let gate = waits.clone();
        async move {
            let _ = gate.acquire().await;
            Ran::done("at last")
        }
    }));
    let sessions = host.start().await;
    let session = create(&sessions).await;
    prompt(&sessions, session, "one").await;
    until(&sessions, session, |events| has_kind(events, "tool_started")).await;
    let waiting = prompt(&sessions, session, "two").await;
    let fork = new_id();
    sessions.fork(session, Some(waiting), fork, &me()).await.unwrap();
    assert!(prompt(&sessions, fork, "two").await > waiting, "a prompt of its own");
    assert_eq!(outcomes(&until_turns(&sessions, fork, 2).await)[1], TurnOutcome::Done);
    gate.add_permits(1);
    assert_eq!(outcomes(&until_turns(&sessions, session, 2).await), [TurnOutcome::Done, TurnOutcome::Done]);
    sessions.shutdown().await;
}
