use super::*;
use crate::event::{Limit, Right, Share, ShareWith};

const SECOND: Duration = Duration::from_secs(1);

fn decide(sim: &mut Sim, id: &str, allowed: bool) -> Result<EventNumber, Refusal> {
    let turn = sim.core.session().turn().map_or(TurnNumber(0), |turn| turn.number);
    sim.ask(me(), Command::Decide { turn, call: id.parse().unwrap(), allowed })
}

/// What the next model call would be told, in short.
fn told(sim: &Sim) -> Vec<String> {
    let short = |entry: &Entry| match &entry.said {
        Said::Summary(Text::Inline(text)) => format!("summary {text}"),
        Said::User(parts) => format!("user {}", inline(parts)),
        Said::Assistant { text: Text::Inline(text), tool_calls } => {
            format!(
                "assistant {text}{}",
                tool_calls.iter().map(|call| format!(" +{}", call.id)).collect::<String>()
            )
        }
        Said::Tool { call, parts } => format!("tool {call} {}", inline(parts)),
        other => format!("{other:?}"),
    };
    sim.core.session().context().entries().map(short).collect()
}

fn inline(parts: &[Part]) -> String {
    match parts {
        [Part::Text { text: Text::Inline(text) }] => text.clone(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_prompt_is_written_before_the_model_is_asked_and_answered_once() {
    let mut sim = Sim::new();
    assert_eq!(sim.core.session().state(), State::Created);
    sim.prompt("p1");
    assert_eq!(sim.kinds(), ["created", "prompted", "turn_started", "model_called"]);
    assert_eq!(sim.core.session().state(), State::Processing);
    sim.say(ModelSaid::Piece(ModelPiece::Text("hel".to_owned())));
    assert_eq!(sim.core.session().state(), State::Streaming);
    sim.answer("lo", vec![]);
    let after = ["text_added", "text_added", "answered", "turn_ended"];
    assert_eq!(sim.kinds()[4..], after);
    assert_eq!(sim.outcomes(), [(TurnNumber(1), TurnOutcome::Done)]);
    assert_eq!(told(&sim), ["user p1", "assistant hello"]);
    assert_eq!(sim.core.session().state(), State::Waiting);
    assert!(sim.core.is_idle() && sim.core.next_deadline().is_none());
}

#[test]
fn pieces_that_come_while_an_append_is_under_way_become_one_event() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    let (call, _) = sim.asked.unwrap();
    let now = sim.now();
    for piece in ["a", "b", "c"] {
        sim.core
            .handle(Input::Model { call, said: ModelSaid::Piece(ModelPiece::Text(piece.to_owned())) }, now);
    }
    sim.perform();
    assert_eq!(sim.log.last().unwrap().body, Body::TextAdded { turn: TurnNumber(1), text: "abc".to_owned() });
}

#[test]
fn readers_run_together_and_a_writer_alone_in_its_place() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    let calls = vec![call("a", "read"), call("b", "read"), call("c", "write"), call("d", "read")];
    sim.answer("", calls);
    assert_eq!(sim.tools.keys().map(ToolCallId::as_str).collect::<Vec<_>>(), ["a", "b"]);
    sim.end_tool("b");
    assert_eq!(sim.tools.len(), 1);
    sim.end_tool("a");
    assert_eq!(sim.tools.keys().map(ToolCallId::as_str).collect::<Vec<_>>(), ["c"]);
    sim.end_tool("c");
    sim.end_tool("d");
    sim.answer("all done", vec![]);
    let wanted =
        ["user p1", "assistant  +a +b +c +d", "tool b done", "tool a done", "tool c done", "tool d done"];
    assert_eq!(told(&sim)[..6], wanted);
    assert_eq!(sim.outcomes().len(), 1);
}

#[test]
fn a_tool_that_is_asked_about_waits_for_the_owner() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    sim.answer("", vec![call("a", "ask"), call("b", "write"), call("c", "ask")]);
    assert_eq!((sim.core.session().state(), sim.tools.len()), (State::Waiting, 0));
    let command = Command::Decide { turn: TurnNumber(1), call: "a".parse().unwrap(), allowed: true };
    assert_eq!(sim.ask(client(), command.clone()), Err(Refusal::NoSuchSession));
    let shares = vec![Share { with: ShareWith::Role(scope(), Role::Client), right: Right::Prompt }];
    sim.ask(me(), Command::Share { shares }).unwrap();
    assert_eq!(sim.ask(client(), command), Err(Refusal::NotAllowed { needs: Right::Own }));
    assert_eq!(decide(&mut sim, "b", true), Err(Refusal::NoSuchCall));
    decide(&mut sim, "a", true).unwrap();
    sim.end_tool("a");
    sim.end_tool("b");
    decide(&mut sim, "c", false).unwrap();
    assert_eq!(sim.tool_outcome("c"), Some(ToolOutcome::Denied));
    assert_eq!(decide(&mut sim, "a", true), Err(Refusal::NoSuchCall));
    sim.answer("done", vec![]);
    assert_eq!(sim.outcomes().len(), 1);
}

#[test]
fn a_decision_that_never_comes_is_no() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    sim.answer("", vec![call("a", "ask")]);
    sim.pass(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(sim.tool_outcome("a"), None, "and the wait counts not as work: the turn goes on");
    sim.pass_to_deadline();
    assert_eq!(sim.tool_outcome("a"), Some(ToolOutcome::Denied));
    sim.answer("well then", vec![]);
    assert_eq!(sim.outcomes(), [(TurnNumber(1), TurnOutcome::Done)]);
}

#[test]
fn a_client_gets_no_tool_even_in_the_turn_of_another() {
    let mut sim = Sim::new();
    let shares = vec![Share { with: ShareWith::Role(scope(), Role::Client), right: Right::Prompt }];
    sim.ask(me(), Command::Share { shares }).unwrap();
    let prompt = Command::Prompt { prompt: "c1".parse().unwrap(), parts: text("rm -rf") };
    sim.ask(client(), prompt).unwrap();
    sim.answer("", vec![call("a", "read"), call("b", "write"), call("c", "nothing")]);
    for id in ["a", "b"] {
        assert_eq!(sim.tool_outcome(id), Some(ToolOutcome::Denied), "{id}");
    }
    assert_eq!((sim.tool_outcome("c"), sim.ran.len()), (Some(ToolOutcome::Failed), 0));
    sim.answer("no", vec![]);
    sim.prompt("p2");
    sim.ask(client(), Command::Steer { turn: None, parts: text("write it") }).unwrap();
    sim.answer("", vec![call("d", "write")]);
    assert_eq!(sim.tool_outcome("d"), Some(ToolOutcome::Denied));
}

#[test]
fn rights_follow_node_scope_and_role() {
    let mut sim = Sim::new();
    let member = Party { role: Some(Role::Member), ..client() };
    let elsewhere = Party { scope: None, ..client() };
    let right = |sim: &Sim, party: &Party| sim.core.session().right_of(party);
    assert_eq!(right(&sim, &member), None);
    let share = |with, right| Command::Share { shares: vec![Share { with, right }] };
    sim.ask(me(), share(ShareWith::Role(scope(), Role::Member), Right::Prompt)).unwrap();
    assert_eq!((right(&sim, &member), right(&sim, &client())), (Some(Right::Prompt), None));
    sim.ask(me(), share(ShareWith::Role(scope(), Role::Client), Right::Watch)).unwrap();
    assert_eq!((right(&sim, &member), right(&sim, &client())), (Some(Right::Watch), Some(Right::Watch)));
    sim.ask(me(), share(ShareWith::Node(client().node), Right::Own)).unwrap();
    assert_eq!(right(&sim, &client()), Some(Right::Own));
    assert_eq!(right(&sim, &elsewhere), Some(Right::Own), "the host's own user");
}

#[test]
fn a_failing_model_is_asked_again_thrice_ever_later() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    for (failure, base) in [(1, 1.0), (2, 2.0), (3, 4.0)] {
        sim.say(ModelSaid::Piece(ModelPiece::Text("half an ans".to_owned())));
        sim.fail("gone");
        let Body::ModelFailed { retry_ms: Some(wait), .. } = sim.log.last().unwrap().body else {
            panic!("{:?}", sim.log.last())
        };
        let seconds = Duration::from_millis(wait).as_secs_f64();
        assert!((base * 0.74..base * 1.26).contains(&seconds), "failure {failure}: {seconds}");
        assert_eq!(sim.asked, None);
        sim.pass_to_deadline();
    }
    sim.answer("whole", vec![]);
    assert_eq!(told(&sim), ["user p1", "assistant whole"]);
    sim.prompt("p2");
    for _ in 0..3 {
        sim.fail("gone");
        sim.pass_to_deadline();
    }
    sim.fail("gone for good");
    let outcome = TurnOutcome::Failed { why: "the model could not be reached: gone for good".to_owned() };
    assert_eq!(sim.outcomes()[1].1, outcome);
}

#[test]
fn a_refused_call_is_not_repeated_and_a_busy_model_gets_its_time() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    sim.say(ModelSaid::Failed(ModelError::Refused("no such model".to_owned())));
    assert!(matches!(sim.outcomes()[0].1, TurnOutcome::Failed { .. }));
    sim.prompt("p2");
    let busy = |seconds| ModelError::Busy { why: "429".to_owned(), retry_after: Some(seconds * SECOND) };
    sim.say(ModelSaid::Failed(busy(30)));
    assert_eq!(sim.core.next_deadline(), Some(sim.now().instant + 30 * SECOND));
    sim.pass_to_deadline();
    sim.say(ModelSaid::Failed(busy(1_000_000)));
    assert_eq!(sim.core.next_deadline(), Some(sim.now().instant + 120 * SECOND), "within reason");
}

#[test]
fn a_silent_model_is_given_up() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    sim.pass(599 * SECOND);
    assert!(sim.asked.is_some());
    sim.pass(SECOND);
    assert_eq!(sim.asked, None);
    assert!(sim.kinds().ends_with(&["model_failed".to_owned()]));
    sim.pass_to_deadline();
    sim.say(ModelSaid::Piece(ModelPiece::Text("I".to_owned())));
    sim.pass(120 * SECOND);
    assert_eq!(sim.asked, None);
}

#[test]
fn a_turn_of_many_hours_ends_at_its_limit_and_not_before() {
    let mut playbook = playbook();
    playbook.limits.time = Some(Duration::from_secs(3 * 3600));
    let mut sim = Sim::with(playbook);
    sim.prompt("p1");
    for round in 0..60 {
        sim.answer("", vec![call(&format!("c{round}"), "write")]);
        for _ in 0..119 {
            sim.pass(SECOND);
        }
        sim.end_tool(&format!("c{round}"));
        if round == 40 {
            sim.restart();
        }
    }
    assert_eq!(sim.outcomes(), [], "two hours: {:?}", sim.passed);
    sim.answer("", vec![call("last", "write")]);
    while sim.cancelled.is_empty() {
        sim.pass_to_deadline();
    }
    sim.end_tool("last");
    let outcome = TurnOutcome::LimitReached { limit: Limit::Time };
    assert_eq!(sim.outcomes(), [(TurnNumber(1), outcome)]);
    assert!((3 * 3600..3 * 3600 + 60).contains(&sim.passed.as_secs()), "{:?}", sim.passed);
}

#[test]
fn tokens_money_and_calls_have_limits() {
    let limited = |change: fn(&mut Limits)| {
        let mut playbook = playbook();
        change(&mut playbook.limits);
        let mut sim = Sim::with(playbook);
        sim.prompt("p1");
        for round in 0.. {
            if sim.asked.is_none() {
                return (round, sim.outcomes()[0].1.clone());
            }
            sim.answer("", vec![call(&format!("c{round}"), "deny")]);
        }
        unreachable!()
    };
    let reached = |limit| TurnOutcome::LimitReached { limit };
    assert_eq!(limited(|limits| limits.tokens = Some(31)), (3, reached(Limit::Tokens)));
    assert_eq!(limited(|limits| limits.cost_micros = Some(6)), (2, reached(Limit::Cost)));
    assert_eq!(limited(|limits| limits.model_calls = 4), (4, reached(Limit::ModelCalls)));
}

#[test]
fn what_is_said_in_a_turn_is_heard_before_it_ends() {
    let mut sim = Sim::new();
    assert_eq!(sim.ask(me(), Command::Steer { turn: None, parts: text("x") }), Err(Refusal::NoSuchTurn));
    sim.prompt("p1");
    sim.answer("", vec![call("a", "write")]);
    sim.ask(me(), Command::Steer { turn: Some(TurnNumber(1)), parts: text("be quick") }).unwrap();
    sim.end_tool("a");
    assert_eq!(told(&sim), ["user p1", "assistant  +a", "tool a done", "user be quick"]);
    sim.say(ModelSaid::Piece(ModelPiece::Text("done".to_owned())));
    sim.ask(me(), Command::Steer { turn: None, parts: text("and now?") }).unwrap();
    sim.answer("!", vec![]);
    assert_eq!(sim.outcomes(), [], "somebody has said something new");
    sim.answer("now too", vec![]);
    assert_eq!(told(&sim)[4..], ["assistant done!", "user and now?", "assistant now too"]);
    assert_eq!(sim.outcomes().len(), 1);
}

#[test]
fn cancelling_ends_the_model_the_tools_and_all_that_waits() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    sim.prompt("p2");
    sim.answer("", vec![call("a", "write"), call("b", "write")]);
    let id = sim.command(me(), Command::Cancel { turn: None });
    assert_eq!((sim.cancelled.len(), sim.replies.get(&id)), (1, None), "the tool has not ended");
    sim.prompt("p3");
    sim.end_tool("a");
    assert!(sim.replies[&id].is_ok());
    let states = [sim.tool_outcome("a"), sim.tool_outcome("b")];
    assert_eq!(states, [Some(ToolOutcome::Cancelled); 2]);
    let by = || TurnOutcome::Cancelled { by: me() };
    assert_eq!(sim.outcomes(), [(TurnNumber(1), by()), (TurnNumber(2), by())]);
    sim.say(ModelSaid::Piece(ModelPiece::Text("three, the one ".to_owned())));
    sim.ask(me(), Command::Cancel { turn: Some(TurnNumber(3)) }).unwrap();
    assert_eq!((sim.asked, sim.outcomes().len()), (None, 3));
    assert_eq!(told(&sim).last().unwrap(), "assistant three, the one ", "it knows what it had said");
    assert!(!told(&sim).contains(&"user p2".to_owned()), "and not what it was never asked");
    assert_eq!(sim.ask(me(), Command::Cancel { turn: None }), Err(Refusal::NoSuchTurn));
}

#[test]
fn an_archived_session_has_answered_everything_and_says_no_more() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    sim.prompt("p2");
    sim.answer("", vec![call("a", "write")]);
    let id = sim.command(me(), Command::Archive);
    let late = Command::Prompt { prompt: "p3".parse().unwrap(), parts: text("p3") };
    assert_eq!(sim.ask(me(), late.clone()), Err(Refusal::Archived));
    sim.end_tool("a");
    assert!(sim.replies[&id].is_ok());
    assert_eq!(sim.outcomes().len(), 2);
    assert_eq!(
        (sim.kinds().last().unwrap().as_str(), sim.core.session().state()),
        ("archived", State::Archived)
    );
    assert_eq!(sim.ask(me(), late), Err(Refusal::Archived));
    sim.restart();
    assert_eq!(sim.kinds().last().unwrap(), "archived");
}

#[test]
fn a_rested_session_goes_on_when_it_is_told_to_and_a_shut_down_one_by_itself() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    sim.say(ModelSaid::Piece(ModelPiece::Text("half".to_owned())));
    sim.ask(me(), Command::Suspend { why: "lunch".to_owned() }).unwrap();
    assert_eq!((sim.asked, sim.core.session().state()), (None, State::Suspended));
    sim.restart();
    assert_eq!((sim.asked, sim.core.session().state()), (None, State::Suspended), "still at lunch");
    sim.ask(me(), Command::Resume).unwrap();
    assert!(sim.asked.is_some());
    sim.answer("", vec![call("a", "write")]);
    sim.commands += 1;
    let id = sim.commands;
    sim.input(Input::Shutdown { id });
    assert_eq!(sim.replies.get(&id), None, "a tool runs");
    sim.end_tool("a");
    assert!(sim.replies[&id].is_ok());
    assert_eq!(sim.core.session().state(), State::Suspended);
    sim.restart();
    assert_eq!(sim.ran.len(), 1, "it was ended in order, and is not run again");
    sim.answer("done", vec![]);
    assert_eq!(sim.outcomes(), [(TurnNumber(1), TurnOutcome::Done)]);
    sim.ask(me(), Command::Suspend { why: "night".to_owned() }).unwrap();
    sim.prompt("p2");
    assert!(sim.asked.is_some(), "a prompt wakes it");
}

#[test]
fn after_a_crash_readers_run_again_and_writers_are_declared() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    sim.answer("", vec![call("a", "read")]);
    sim.restart();
    assert_eq!(sim.ran.iter().map(ToolCallId::as_str).collect::<Vec<_>>(), ["a", "a"]);
    sim.end_tool("a");
    sim.answer("", vec![call("b", "write"), call("c", "write")]);
    sim.restart();
    assert_eq!(sim.tool_outcome("b"), Some(ToolOutcome::Unknown));
    assert_eq!(sim.ran.last().unwrap().as_str(), "c", "the next one was never started, and is now");
}

#[test]
fn after_a_crash_somebody_may_be_asked_whether_a_writer_runs_again() {
    let asking = Playbook { interrupted: Interrupted::Ask, ..playbook() };
    let mut sim = Sim::with(asking);
    sim.prompt("p1");
    sim.answer("", vec![call("a", "write")]);
    sim.restart();
    sim.restart();
    assert_eq!((sim.ran.len(), sim.core.session().state()), (1, State::Waiting));
    assert_eq!(sim.kinds().iter().filter(|kind| *kind == "tool_asked").count(), 1);
    decide(&mut sim, "a", true).unwrap();
    assert_eq!(sim.ran.len(), 2);
    sim.restart();
    decide(&mut sim, "a", false).unwrap();
    assert_eq!((sim.ran.len(), sim.tool_outcome("a")), (2, Some(ToolOutcome::Unknown)));
}

#[test]
fn a_fork_of_a_running_session_ends_the_turn_it_cut() {
    let mut sim = Sim::new();
    sim.ask(me(), Command::Name { name: Some("mine".parse().unwrap()) }).unwrap();
    sim.prompt("p1");
    sim.answer("thinking", vec![call("a", "write")]);
    sim.prompt("p2");
    let mut log = sim.log.clone();
    let cut = log.last().unwrap().number;
    let body = Body::Forked { parent: session_id(), cut, owner: client() };
    log.push(Event { number: cut.next(), at_ms: START_MS, body });
    assert_eq!(fold(&log).state(), State::Forked);
    let mut fork = Sim::on(log, Some(playbook()));
    assert_eq!((fork.tool_outcome("a"), fork.ran.len()), (Some(ToolOutcome::Unknown), 0));
    assert_eq!(fork.outcomes(), [(TurnNumber(1), TurnOutcome::Cancelled { by: client() })]);
    assert_eq!((fork.core.session().name(), fork.core.session().queue().len()), (None, 0));
    fork.ask(client(), Command::Prompt { prompt: "p1".parse().unwrap(), parts: text("again") }).unwrap();
    fork.answer("yes", vec![]);
    assert_eq!(fork.outcomes()[1], (TurnNumber(2), TurnOutcome::Done));
    sim.end_tool("a");
    assert!(sim.asked.is_some(), "the parent goes on");
}

#[test]
fn a_session_that_was_handed_over_is_left_alone() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    let to = client().node;
    let mut log = sim.log.clone();
    let number = EventNumber(log.len() as u64 + 1);
    log.push(Event { number, at_ms: START_MS, body: Body::HandedOver { epoch: 2, to } });
    let mut old = Sim::on(log, Some(playbook()));
    assert_eq!((old.asked, old.log.len()), (None, 5));
    assert_eq!(old.ask(me(), Command::Cancel { turn: None }), Err(Refusal::Moved { to }));
    assert!(old.ask(me(), Command::Watch).is_ok());
}

#[test]
fn an_agent_that_is_gone_fails_its_turn_and_says_so() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    let mut orphan = Sim::on(sim.log.clone(), None);
    assert!(matches!(orphan.outcomes()[0].1, TurnOutcome::Failed { .. }));
    let prompt = Command::Prompt { prompt: "p2".parse().unwrap(), parts: text("p2") };
    assert_eq!(orphan.ask(me(), prompt), Err(Refusal::NoAgent));
}

#[test]
fn a_long_context_is_summarized_before_the_next_call() {
    let compaction = Some(Compaction { at_tokens: 100, keep_tokens: 20 });
    let mut sim = Sim::with(Playbook { compaction, ..playbook() });
    sim.prompt("p1");
    sim.say(ModelSaid::Piece(ModelPiece::Text("long".to_owned())));
    let usage = Usage { input_tokens: 90, output_tokens: 20, cost_micros: None };
    sim.say(ModelSaid::Piece(ModelPiece::Finished { reason: FinishReason::Length, usage }));
    sim.prompt("p2");
    assert!(matches!(sim.asked, Some((_, Asking::Summary { .. }))), "{:?}", sim.asked);
    sim.fail("not now");
    sim.pass_to_deadline();
    sim.answer("it was long", vec![]);
    assert!(matches!(sim.asked, Some((_, Asking::Answer))));
    assert_eq!(told(&sim), ["summary it was long", "user p2"]);
    assert!(!sim.kinds().contains(&"model_failed".to_owned()));
    sim.answer("fine", vec![]);
    let Body::TurnEnded { usage, .. } = &sim.log.last().unwrap().body else { panic!() };
    assert_eq!(usage.input_tokens, 20, "the summary's own use counts");
}

#[test]
fn without_a_summary_the_model_is_asked_all_the_same() {
    let compaction = Some(Compaction { at_tokens: 1, keep_tokens: 0 });
    let mut sim = Sim::with(Playbook { compaction, ..playbook() });
    sim.prompt("p1");
    sim.answer("one", vec![]);
    sim.prompt("p2");
    for _ in 0..3 {
        sim.fail("no");
        sim.pass_to_deadline();
    }
    assert!(matches!(sim.asked, Some((_, Asking::Summary { .. }))));
    sim.fail("no");
    assert!(matches!(sim.asked, Some((_, Asking::Answer))));
}

#[test]
fn equal_ids_of_calls_are_told_apart() {
    let mut sim = Sim::new();
    sim.prompt("p1");
    let long = "x".repeat(128);
    sim.answer(
        "",
        vec![call("call_0", "deny"), call("call_0", "deny"), call(&long, "deny"), call(&long, "deny")],
    );
    sim.answer("", vec![call("call_0", "deny")]);
    sim.answer("", vec![]);
    let ended = sim.log.iter().filter_map(|event| match &event.body {
        Body::ToolEnded { call, .. } => Some(call.clone()),
        _ => None,
    });
    let ended: Vec<_> = ended.collect();
    assert_eq!(ended.iter().collect::<BTreeSet<_>>().len(), 5, "{ended:?}");
}

#[test]
fn too_much_of_anything_is_refused_or_cut() {
    let mut sim = Sim::new();
    let labels = |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect();
    sim.ask(me(), Command::Label { labels: labels(LABELS_MAX) }).unwrap();
    let refused = sim.ask(me(), Command::Label { labels: labels(LABELS_MAX + 1) });
    assert!(matches!(refused, Err(Refusal::TooMuch { .. })));
    for n in 0..=QUEUE_MAX {
        sim.prompt(&format!("p{n}"));
    }
    let prompt = Command::Prompt { prompt: "more".parse().unwrap(), parts: vec![] };
    assert_eq!(sim.ask(me(), prompt), Err(Refusal::QueueFull));
    sim.answer("", vec![call("a", "write")]);
    let id: ToolCallId = "a".parse().unwrap();
    for _ in 0..100 {
        sim.input(Input::Printed { call: id.clone(), text: "é".repeat(10_000) });
    }
    sim.end_tool("a");
    let printed = sim.log.iter().filter_map(|event| match &event.body {
        Body::ToolPrinted { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let printed: Vec<_> = printed.collect();
    assert!(printed.iter().all(|text| text.len() <= 16 * 1024));
    assert!(printed.concat().len() < 257 * 1024);
    assert!(printed.last().unwrap().ends_with("[1737856 more bytes not shown]\n"), "{:?}", printed.last());
    sim.say(ModelSaid::Piece(ModelPiece::Text("x".repeat(5 << 20))));
    assert!(matches!(sim.outcomes()[0].1, TurnOutcome::Failed { .. }));
}
