//! Sessions at random: whatever people, models, tools and crashes do, the log keeps its promises.

use proptest::prelude::*;

use super::*;
use crate::event::{Right, Share, ShareWith};

#[derive(Clone, Debug)]
enum Step {
    Prompt {
        by_client: bool,
    },
    Steer {
        by_client: bool,
    },
    Cancel,
    CancelTurn,
    Decide(bool),
    Suspend,
    Resume,
    Archive,
    Say,
    Answer(Vec<(u8, u8)>),
    Fail,
    Refuse,
    EndTool(u8),
    Print(u8),
    Pass,
    Hours,
    Shutdown,
    /// The host dies when so many more outputs were performed.
    Die(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let calls = proptest::collection::vec((0..6_u8, 0..4_u8), 0..4);
    let step = prop_oneof![
        4 => any::<bool>().prop_map(|by_client| Step::Prompt { by_client }),
        2 => any::<bool>().prop_map(|by_client| Step::Steer { by_client }),
        1 => Just(Step::Cancel),
        1 => Just(Step::CancelTurn),
        4 => any::<bool>().prop_map(Step::Decide),
        1 => Just(Step::Suspend),
        2 => Just(Step::Resume),
        4 => Just(Step::Say),
        10 => calls.prop_map(Step::Answer),
        2 => Just(Step::Fail),
        1 => Just(Step::Refuse),
        10 => any::<u8>().prop_map(Step::EndTool),
        2 => any::<u8>().prop_map(Step::Print),
        3 => Just(Step::Pass),
        1 => Just(Step::Hours),
        1 => Just(Step::Shutdown),
        4 => (0..6_u8).prop_map(Step::Die),
    ];
    let archive = prop_oneof![9 => Just(None), 1 => Just(Some(Step::Archive))];
    (proptest::collection::vec(step, 0..60), archive).prop_map(|(steps, archive)| {
        let mut steps = steps;
        steps.extend(archive);
        steps
    })
}

const TOOLS: [&str; 6] = ["read", "write", "ask", "ask_read", "deny", "unheard_of"];

fn take(sim: &mut Sim, step: Step, number: usize) {
    let by = |by_client| if by_client { client() } else { me() };
    match step {
        Step::Prompt { by_client } => {
            let prompt = format!("p{number}").parse().unwrap();
            sim.command(by(by_client), Command::Prompt { prompt, parts: text("do") });
        }
        Step::Steer { by_client } => {
            sim.command(by(by_client), Command::Steer { turn: None, parts: text("but") });
        }
        Step::Cancel => drop(sim.command(me(), Command::Cancel { turn: None })),
        Step::CancelTurn => {
            let turn = sim.core.session().turn().map(|turn| turn.number);
            sim.command(me(), Command::Cancel { turn });
        }
        Step::Decide(allowed) => drop(decide(sim, allowed)),
        Step::Suspend => drop(sim.command(me(), Command::Suspend { why: "rest".to_owned() })),
        Step::Resume => drop(sim.command(me(), Command::Resume)),
        Step::Archive => drop(sim.command(me(), Command::Archive)),
        Step::Say if sim.asked.is_some() => {
            sim.say(ModelSaid::Piece(ModelPiece::Text(format!("word {number} "))));
        }
        Step::Answer(calls) if sim.asked.is_some() => {
            let call = |(name, id): (u8, u8)| call(&format!("c{id}"), TOOLS[usize::from(name)]);
            sim.answer("well", calls.into_iter().map(call).collect());
        }
        Step::Fail if sim.asked.is_some() => sim.fail("no luck"),
        Step::Refuse if sim.asked.is_some() => {
            sim.say(ModelSaid::Failed(ModelError::Refused("never".into())))
        }
        Step::EndTool(which) if !sim.tools.is_empty() => {
            let id = nth(sim, which);
            sim.end_tool(id.as_str());
        }
        Step::Print(which) if !sim.tools.is_empty() => {
            let call = nth(sim, which);
            sim.input(Input::Printed { call, text: format!("line {number}\n") });
        }
        Step::Pass if sim.core.next_deadline().is_some() => sim.pass_to_deadline(),
        Step::Hours => sim.pass(Duration::from_secs(3 * 3600)),
        Step::Shutdown => {
            sim.commands += 1;
            let id = sim.commands;
            sim.input(Input::Shutdown { id });
            while let Some(call) = sim.tools.keys().next().cloned() {
                sim.end_tool(call.as_str());
            }
            sim.restart();
        }
        Step::Die(after) => sim.dies_after = Some(after.into()),
        _ => {}
    }
}

fn nth(sim: &Sim, which: u8) -> ToolCallId {
    sim.tools.keys().nth(usize::from(which) % sim.tools.len()).cloned().unwrap()
}

fn decide(sim: &mut Sim, allowed: bool) -> bool {
    let Some(turn) = sim.core.session().turn() else { return false };
    let asked = turn.calls.iter().find(|call| matches!(call.state, CallState::Asked { .. }));
    let Some(call) = asked.map(|call| call.call.id.clone()) else { return false };
    let turn = turn.number;
    sim.command(me(), Command::Decide { turn, call, allowed });
    true
}

/// Lets everything come to its end; fails when it does not.
fn settle(sim: &mut Sim) {
    sim.dies_after = None;
    if sim.core.session().rest() != &Rest::Archived {
        sim.command(me(), Command::Resume);
    }
    for _ in 0..10_000 {
        if sim.asked.is_some() {
            sim.answer("done", vec![]);
        } else if let Some(call) = sim.tools.keys().next().cloned() {
            sim.end_tool(call.as_str());
        } else if decide(sim, true) {
        } else if sim.core.next_deadline().is_some() {
            sim.pass_to_deadline();
        } else if matches!(sim.core.session().rest(), Rest::Suspended { .. }) {
            // It was still coming to rest when it was told to go on.
            sim.command(me(), Command::Resume);
        } else {
            assert!(sim.core.is_idle(), "nothing to wait for, and not idle: {:?}", sim.kinds());
            return;
        }
    }
    panic!("it never ends: {:?}", sim.kinds());
}

/// What every log promises.
fn check(log: &[Event], settled: bool) {
    let (mut turn, mut turns) = (None, 0);
    let mut prompts: BTreeMap<_, usize> = BTreeMap::new();
    let mut archived = false;
    // Of the turn: each call with whether it reads, how often it may still start, and whether it has ended.
    let mut calls: BTreeMap<ToolCallId, (bool, u32, bool)> = BTreeMap::new();
    for event in log {
        assert!(!archived, "after the end: {event:?}");
        match &event.body {
            Body::Prompted { prompt, .. } => assert_eq!(prompts.insert(prompt.clone(), 0), None),
            Body::TurnStarted { turn: number, prompt } => {
                assert_eq!((turn, number.0), (None, turns + 1));
                (turn, turns) = (Some(*number), number.0);
                *prompts.get_mut(prompt).expect("somebody prompted") += 1;
                calls.clear();
            }
            Body::TurnEnded { turn: number, .. } => {
                assert_eq!(turn.take(), Some(*number));
                assert!(calls.values().all(|call| call.2), "a call without its end: {calls:?}");
            }
            Body::Answered { turn: number, tool_calls, .. } => {
                assert_eq!(turn, Some(*number));
                assert!(calls.values().all(|call| call.2));
                for call in tool_calls {
                    let known = calls.insert(call.id.clone(), (call.name.ends_with("read"), 1, false));
                    assert_eq!(known, None, "two calls of one id");
                }
            }
            Body::ToolDecided { call, allowed: true, .. } => calls.get_mut(call).expect("asked for").1 += 1,
            Body::ToolStarted { call, .. } => {
                let call = calls.get_mut(call).expect("asked for");
                assert!(!call.2 && (call.0 || call.1 > 0), "started twice, or after its end");
                call.1 = call.1.saturating_sub(1);
            }
            Body::ToolEnded { call, .. } => {
                let call = calls.get_mut(call).expect("asked for");
                assert!(!std::mem::replace(&mut call.2, true), "ended twice");
            }
            Body::Archived { .. } => archived = true,
            _ => {}
        }
    }
    if settled {
        assert_eq!(turn, None);
        assert!(prompts.values().all(|turns| *turns == 1), "each prompt has one turn: {prompts:?}");
    }
}

/// A result for every call, and no result without its call: providers refuse the whole conversation else.
fn check_context(session: &Session) {
    let mut open = BTreeSet::new();
    for entry in session.context().entries() {
        match &entry.said {
            Said::Assistant { tool_calls, .. } => {
                assert!(open.is_empty(), "no result of {open:?}");
                open = tool_calls.iter().map(|call| call.id.clone()).collect();
            }
            Said::Tool { call, .. } => assert!(open.remove(call), "a result without a call"),
            Said::User(_) => assert!(open.is_empty(), "no result of {open:?}"),
            Said::Summary(_) => {}
        }
    }
    assert!(open.is_empty() || session.turn().is_some());
}

fn run(steps: Vec<Step>, playbook: Playbook) {
    let mut sim = Sim::with(playbook);
    let shares = vec![Share { with: ShareWith::Role(scope(), Role::Client), right: Right::Prompt }];
    sim.ask(me(), Command::Share { shares }).unwrap();
    for (number, step) in steps.into_iter().enumerate() {
        take(&mut sim, step, number);
        check(&sim.log, false);
        check_context(sim.core.session());
    }
    settle(&mut sim);
    check(&sim.log, true);
    check_context(sim.core.session());
    let state = sim.core.session().state();
    assert!(matches!(state, State::Waiting | State::Created | State::Archived), "{state}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn logs_keep_their_promises(steps in steps(), asks in any::<bool>(), compacts in any::<bool>()) {
        let interrupted = if asks { Interrupted::Ask } else { Interrupted::Tell };
        let compaction = compacts.then_some(Compaction { at_tokens: 25, keep_tokens: 3 });
        run(steps, Playbook { interrupted, compaction, ..playbook() });
    }
}

/// One session from its first prompt to its last answer; the host dies once, after so many outputs.
fn told_session(dies_after: Option<usize>) -> (Sim, usize) {
    let mut sim = Sim::new();
    sim.dies_after = dies_after;
    let budget = 1_000;
    if dies_after.is_none() {
        sim.dies_after = Some(budget);
    }
    let prompt = Command::Prompt { prompt: "p1".parse().unwrap(), parts: text("do") };
    sim.command(me(), prompt.clone());
    let said = |sim: &Sim| sim.log.iter().any(|event| matches!(event.body, Body::Prompted { .. }));
    if !said(&sim) {
        // Nobody has told the caller that it was heard, so it says it again.
        sim.command(me(), prompt);
    }
    for _ in 0..100 {
        let answers = sim.log.iter().filter(|event| matches!(event.body, Body::Answered { .. })).count();
        match (sim.asked.is_some(), answers) {
            (true, 0) => sim.answer("look", vec![call("r1", "read"), call("r2", "read")]),
            (true, 1) => sim.answer("change", vec![call("w1", "write"), call("w2", "write")]),
            (true, _) => sim.answer("done", vec![]),
            (false, _) => match sim.tools.keys().next().cloned() {
                Some(call) => sim.end_tool(call.as_str()),
                None => break,
            },
        }
    }
    let performed = budget - sim.dies_after.unwrap_or(budget);
    sim.dies_after = None;
    (sim, performed)
}

#[test]
fn a_crash_between_any_two_outputs_changes_nothing_or_is_declared() {
    let (whole, outputs) = told_session(None);
    assert!(outputs > 20, "{outputs}");
    let ran = |sim: &Sim, id: &str| sim.ran.iter().filter(|ran| ran.as_str() == id).count();
    for dies_after in 0..outputs {
        let (sim, _) = told_session(Some(dies_after));
        check(&sim.log, true);
        assert_eq!(sim.outcomes(), whole.outcomes(), "after {dies_after}");
        for id in ["w1", "w2"] {
            match sim.tool_outcome(id) {
                Some(ToolOutcome::Done) => assert_eq!(ran(&sim, id), 1, "{id} after {dies_after}"),
                Some(ToolOutcome::Unknown) => assert!(ran(&sim, id) <= 1, "{id} after {dies_after}"),
                other => panic!("{id} after {dies_after}: {other:?}"),
            }
        }
        for id in ["r1", "r2"] {
            assert_eq!(sim.tool_outcome(id), Some(ToolOutcome::Done), "{id} after {dies_after}");
        }
    }
}
