use super::*;

/// Reads, writes, then is done.
fn worker() -> (Script, Vec<TestTool>) {
    let script = Script::new(|call| {
        let since = call.messages.iter().rev().take_while(|message| !matches!(message, Message::User(_)));
        match since.filter(|message| matches!(message, Message::Assistant { .. })).count() {
            0 => wants(&[("r1", "look"), ("r2", "look")]),
            1 => wants(&[("w1", "change"), ("w2", "change")]),
            _ => said("all of it is done now"),
        }
    });
    let nap = |_| async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ran::done("done")
    };
    (script, vec![TestTool::new("look", true, nap), TestTool::new("change", false, nap)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_goes_on_after_a_shutdown_and_nobody_has_to_ask() {
    let (script, mut tools) = worker();
    tools[1] = TestTool::new("change", false, |run: ToolRun| async move {
        run.cancel.cancelled().await;
        Ran { outcome: ToolOutcome::Cancelled, parts: text("ended") }
    });
    let mut host = Host::new(script);
    host.tools = tools;
    let sessions = host.start().await;
    let session = create(&sessions).await;
    prompt(&sessions, session, "work").await;
    until(&sessions, session, |events| {
        kinds(events).iter().filter(|kind| *kind == "tool_started").count() == 3
    })
    .await;
    sessions.shutdown().await;
    sessions.store().close().await;
    host.tools = worker().1;
    let sessions = host.start().await;
    let events = until_turns(&sessions, session, 1).await;
    let kinds = kinds(&events);
    let place = |kind: &str| kinds.iter().position(|known| known == kind).unwrap();
    assert!(place("suspended") < place("resumed"), "{kinds:?}");
    assert_eq!(
        (tool_outcome(&events, "w1"), outcomes(&events)),
        (Some(ToolOutcome::Cancelled), vec![TurnOutcome::Done])
    );
    sessions.shutdown().await;
}

/// Whatever the moment of the crash: what was acknowledged is there, each prompt is answered once, and no change is made
/// twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_at_any_moment_lose_and_double_nothing() {
    for seed in 0..20_u64 {
        let (script, tools) = worker();
        let mut host = Host::new(script);
        host.tools = tools;
        host.config.snapshot_events = 7;
        let sessions = host.start().await;
        let session = create(&sessions).await;
        prompt(&sessions, session, "p0").await;
        let mut acknowledged = Vec::new();
        let mut running = sessions;
        for crash in 1..=3_u64 {
            let id = format!("p{crash}");
            let me = me();
            let sent = running.prompt(session, &me, id.parse().unwrap(), text(&id));
            let dies = tokio::time::sleep(Duration::from_micros((seed * 7_919 + crash * 104_729) % 12_000));
            tokio::select! {
                biased;
                () = dies => {}
                sent = async { let sent = sent.await; tokio::time::sleep(Duration::from_micros(seed * 400)).await; sent } => {
                    acknowledged.push((id, sent.unwrap()));
                }
            }
            host.crash(running).await;
            running = host.start().await;
        }
        let mut prompts = 1;
        for crash in 1..=3_u64 {
            // Whoever heard nothing says it again.
            let number = prompt(&running, session, &format!("p{crash}")).await;
            let known = acknowledged.iter().find(|(id, _)| *id == format!("p{crash}"));
            assert!(known.is_none_or(|(_, known)| *known == number), "seed {seed}: moved");
            prompts += 1;
        }
        let events = until_turns(&running, session, prompts).await;
        assert!(outcomes(&events).iter().all(|outcome| *outcome == TurnOutcome::Done), "seed {seed}");
        let changes = |wanted: fn(ToolOutcome) -> bool| {
            let is = |event: &&Arc<Event>| match &event.body {
                Body::ToolEnded { call, result, .. } => {
                    call.as_str().starts_with('w') && wanted(result.outcome)
                }
                _ => false,
            };
            events.iter().filter(is).count()
        };
        let done = changes(|outcome| outcome == ToolOutcome::Done);
        let unknown = changes(|outcome| outcome == ToolOutcome::Unknown);
        assert_eq!(done + unknown, 2 * prompts, "seed {seed}");
        let runs = host.tools[1].runs();
        assert!((done..=done + unknown).contains(&runs), "seed {seed}: {runs} runs of {done} and {unknown}");
        running.shutdown().await;
        running.store().close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_told_a_session_to_rest_finds_it_resting_after_a_restart() {
    let (script, tools) = worker();
    let mut host = Host::new(script);
    host.tools = tools;
    let sessions = host.start().await;
    let session = create(&sessions).await;
    sessions.command(session, &me(), Command::Suspend { why: "night".to_owned() }).await.unwrap();
    host.crash(sessions).await;
    let sessions = host.start().await;
    assert_eq!(sessions.store().session(session).await.unwrap().state, store::State::Suspended);
    prompt(&sessions, session, "p1").await;
    assert_eq!(outcomes(&until_turns(&sessions, session, 1).await), [TurnOutcome::Done]);
    sessions.shutdown().await;
}
