//! Whether a log is what it must be, whatever was done to the nodes.

use std::collections::BTreeMap;

use mesh_control::SessionEvent;
use serde_json::Value;

use super::plan::{Kind, Plan, Wish};
use crate::stand_in;

/// What there is to judge of one run.
pub(super) struct Seen {
    /// Prompts that were acknowledged, in order, with the numbers that they were said to have.
    pub(super) acknowledged: Vec<(String, u64)>,
    /// What was read while it happened, at the host and at the client.
    pub(super) live: [Vec<SessionEvent>; 2],
    /// The log at the end, read at both.
    pub(super) logs: [Vec<SessionEvent>; 2],
    /// What the tools left.
    pub(super) effects: String,
}

/// What came of a number of runs.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many.
    pub runs: usize,
    /// What was done, and how often.
    pub blows: BTreeMap<Kind, usize>,
    /// Prompts acknowledged.
    pub prompts: usize,
    /// Events in the logs.
    pub events: usize,
    /// Model calls that were made anew.
    pub called_again: usize,
    /// Tools of which nobody knows whether they ran to their end.
    pub unknown_tools: usize,
    /// Events that were acknowledged or read, and are not in the log, or other ones.
    pub lost: usize,
    /// Prompts, pieces of answers and runs of tools that there are twice.
    pub doubled: usize,
    /// Events out of their order.
    pub reordered: usize,
    /// Turns without exactly one end that says that they are done.
    pub wrong_ends: usize,
    /// Runs that did not come to their end.
    pub unfinished: usize,
    /// What is wrong, with the seed of the run.
    pub faults: Vec<String>,
}

enum Fault {
    Lost,
    Doubled,
    Reordered,
    WrongEnd,
}

impl Tally {
    /// Whether all is as it must be.
    pub fn is_clean(&self) -> bool {
        self.faults.is_empty()
    }

    pub(super) fn add(&mut self, seed: u64, plan: &Plan, run: anyhow::Result<Seen>) {
        self.runs += 1;
        for blow in &plan.blows {
            *self.blows.entry(blow.kind).or_default() += 1;
        }
        match run {
            Ok(seen) => self.judge(seed, plan, &seen),
            Err(error) => {
                self.unfinished += 1;
                self.faults.push(format!("seed {seed}: {error:#}"));
            }
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.runs += other.runs;
        for (kind, count) in other.blows {
            *self.blows.entry(kind).or_default() += count;
        }
        self.prompts += other.prompts;
        self.events += other.events;
        self.called_again += other.called_again;
        self.unknown_tools += other.unknown_tools;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.wrong_ends += other.wrong_ends;
        self.unfinished += other.unfinished;
        self.faults.extend(other.faults);
    }

    fn judge(&mut self, seed: u64, plan: &Plan, seen: &Seen) {
        let log = &seen.logs[0];
        self.prompts += seen.acknowledged.len();
        self.events += log.len();
        let mut faults = numbers(log);
        if seen.logs[1] != *log {
            faults.push((Fault::Lost, "the client reads another log than the host has".to_owned()));
        }
        for (who, live) in ["host", "client"].into_iter().zip(&seen.live) {
            faults.extend(read(who, live, log));
        }
        faults.extend(acknowledged(&seen.acknowledged, log));
        for wish in &plan.wishes {
            faults.extend(self.turn(wish, log, &seen.effects));
        }
        for (fault, text) in faults {
            *match fault {
                Fault::Lost => &mut self.lost,
                Fault::Doubled => &mut self.doubled,
                Fault::Reordered => &mut self.reordered,
                Fault::WrongEnd => &mut self.wrong_ends,
            } += 1;
            self.faults.push(format!("seed {seed}: {text}"));
        }
    }

    /// A prompt and all that follows from it.
    fn turn(&mut self, wish: &Wish, log: &[SessionEvent], effects: &str) -> Vec<(Fault, String)> {
        let name = &wish.name;
        let mut faults = Vec::new();
        let begun: Vec<&Value> = log
            .iter()
            .filter(|event| event.kind() == "turn_started" && said(event, "prompt") == name)
            .filter_map(|event| event.fields.get("turn"))
            .collect();
        let [turn] = begun[..] else {
            return vec![(Fault::WrongEnd, format!("{name} has {} turns", begun.len()))];
        };
        let events: Vec<&SessionEvent> =
            log.iter().filter(|event| event.fields.get("turn") == Some(turn)).collect();
        let of = |kind: &str| events.iter().filter(|event| event.kind() == kind).count();
        if of("turn_ended") != 1 || events.last().is_none_or(|last| last.kind() != "turn_ended") {
            faults.push((Fault::WrongEnd, format!("{name} has {} ends", of("turn_ended"))));
        }
        if events
            .iter()
            .any(|event| event.kind() == "turn_ended" && event.fields["outcome"]["type"] != "done")
        {
            faults.push((Fault::WrongEnd, format!("{name} did not end well: {:?}", events.last())));
        }
        self.called_again += of("model_called").saturating_sub(of("answered"));
        faults.extend(words(wish, &events));
        let ran = effects.lines().filter(|line| line == name).count();
        let outcomes: Vec<&Value> = events
            .iter()
            .filter(|event| event.kind() == "tool_ended")
            .map(|event| &event.fields["result"]["outcome"])
            .collect();
        self.unknown_tools += outcomes.iter().filter(|outcome| **outcome == "unknown").count();
        match (wish.has_tool, &outcomes[..], of("tool_started"), ran) {
            (false, [], 0, 0) => {}
            (true, [outcome], 1, 1) if *outcome == "done" || *outcome == "unknown" => {}
            (true, [outcome], 1, 0) if *outcome == "unknown" => {}
            (_, _, _, 2..) => faults.push((Fault::Doubled, format!("the tool of {name} ran {ran} times"))),
            (_, outcomes, started, _) => faults.push((
                Fault::Lost,
                format!(
                    "the tool of {name} was started {started} times, ran {ran} times, ended {outcomes:?}"
                ),
            )),
        }
        faults
    }
}

/// The pieces of each answer are the answer, and the last one is what was asked for.
fn words(wish: &Wish, events: &[&SessionEvent]) -> Vec<(Fault, String)> {
    let (mut pieces, mut answers, mut faults) = (String::new(), Vec::new(), Vec::new());
    for event in events {
        match event.kind() {
            "model_called" => pieces.clear(),
            "text_added" => pieces.push_str(said(event, "text")),
            "answered" => {
                if pieces != said(event, "text") {
                    faults.push((Fault::Lost, format!("the pieces {pieces:?} are not the answer {event:?}")));
                }
                answers.push(said(event, "text"));
            }
            _ => {}
        }
    }
    let whole = stand_in::text(&wish.name, wish.tokens);
    let expected: &[&str] = if wish.has_tool { &["", &whole] } else { &[&whole] };
    if answers != expected {
        let fault = if answers.len() > expected.len() { Fault::Doubled } else { Fault::Lost };
        faults.push((fault, format!("{} was answered {answers:?} instead of {expected:?}", wish.name)));
    }
    faults
}

fn numbers(log: &[SessionEvent]) -> Vec<(Fault, String)> {
    let wrong = log.iter().zip(1..).find(|(event, number)| event.number != *number);
    wrong
        .map(|(event, number)| (Fault::Reordered, format!("the log has {event:?} at {number}")))
        .into_iter()
        .collect()
}

/// What was read while it happened stands in the log, each event once.
fn read(who: &str, live: &[SessionEvent], log: &[SessionEvent]) -> Vec<(Fault, String)> {
    let mut faults = Vec::new();
    for (event, number) in live.iter().zip(1_u64..) {
        let wrong = match usize::try_from(event.number).ok().and_then(|at| log.get(at.wrapping_sub(1))) {
            _ if event.number < number => Fault::Doubled,
            _ if event.number > number => Fault::Reordered,
            Some(written) if written == event => continue,
            _ => Fault::Lost,
        };
        faults.push((wrong, format!("the {who} read {event:?} as its {number}. event")));
        break;
    }
    faults
}

fn acknowledged(prompts: &[(String, u64)], log: &[SessionEvent]) -> Vec<(Fault, String)> {
    let mut faults = Vec::new();
    for (name, number) in prompts {
        let written: Vec<u64> = log
            .iter()
            .filter(|event| event.kind() == "prompted" && said(event, "prompt") == name)
            .map(|event| event.number)
            .collect();
        match written[..] {
            [one] if one == *number => {}
            [one] => {
                faults.push((Fault::Reordered, format!("{name} is event {one}, not {number} as was said")))
            }
            [] => {
                faults.push((Fault::Lost, format!("{name} was acknowledged as event {number} and is gone")))
            }
            _ => faults.push((Fault::Doubled, format!("{name} is in the events {written:?}"))),
        }
    }
    if !prompts.is_sorted_by_key(|(_, number)| number) {
        faults.push((Fault::Reordered, format!("prompts change their order: {prompts:?}")));
    }
    faults
}

fn said<'a>(event: &'a SessionEvent, field: &str) -> &'a str {
    event.fields.get(field).and_then(Value::as_str).unwrap_or_default()
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blows: Vec<String> =
            self.blows.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
        writeln!(f, "{} runs: {}", self.runs, blows.join(", "))?;
        writeln!(
            f,
            "{} prompts, {} events, {} model calls made anew, {} tools with an unknown end",
            self.prompts, self.events, self.called_again, self.unknown_tools
        )?;
        write!(
            f,
            "lost {}, doubled {}, reordered {}, without exactly one end {}, unfinished runs {}",
            self.lost, self.doubled, self.reordered, self.wrong_ends, self.unfinished
        )?;
        for fault in &self.faults {
            write!(f, "\n{fault}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    /// A run in which all went well, and its plan of one prompt with a tool.
    fn well() -> (Plan, Seen) {
        let plan = (0..).map(|seed| Plan::new(seed, false)).find(|plan| plan.wishes[0].has_tool).unwrap();
        let plan = Plan { wishes: plan.wishes[..1].to_vec(), ..plan };
        let (name, text) =
            (&plan.wishes[0].name, stand_in::text(&plan.wishes[0].name, plan.wishes[0].tokens));
        let log = [
            json!({"kind": "created"}),
            json!({"kind": "prompted", "prompt": name}),
            json!({"kind": "turn_started", "turn": 1, "prompt": name}),
            json!({"kind": "model_called", "turn": 1}),
            json!({"kind": "answered", "turn": 1, "text": ""}),
            json!({"kind": "tool_started", "turn": 1}),
            json!({"kind": "tool_ended", "turn": 1, "result": {"outcome": "done"}}),
            json!({"kind": "model_called", "turn": 1}),
            json!({"kind": "text_added", "turn": 1, "text": text}),
            json!({"kind": "answered", "turn": 1, "text": text}),
            json!({"kind": "turn_ended", "turn": 1, "outcome": {"type": "done"}}),
        ];
        let log: Vec<SessionEvent> = log
            .into_iter()
            .zip(1..)
            .map(|(mut event, number)| {
                event["number"] = json!(number);
                serde_json::from_value(event).unwrap()
            })
            .collect();
        let seen = Seen {
            acknowledged: vec![(name.clone(), 2)],
            live: [log.clone(), log.clone()],
            logs: [log.clone(), log],
            effects: format!("{name}\n"),
        };
        (plan, seen)
    }

    fn tally(change: impl FnOnce(&mut Seen)) -> Tally {
        let (plan, mut seen) = well();
        change(&mut seen);
        let mut tally = Tally::default();
        tally.add(0, &plan, Ok(seen));
        tally
    }

    /// In the log, and so everywhere.
    fn change_log(change: impl Fn(&mut Vec<SessionEvent>)) -> Tally {
        tally(|seen| seen.live.iter_mut().chain(&mut seen.logs).for_each(&change))
    }

    #[test]
    fn what_went_well_is_clean() {
        let tally = tally(|_| {});
        assert!(tally.is_clean() && tally.events == 11 && tally.prompts == 1, "{tally}");
    }

    #[test]
    fn each_way_to_go_wrong_is_counted() {
        assert_eq!(tally(|seen| drop(seen.logs[1].pop())).lost, 1);
        assert_eq!(tally(|seen| drop(seen.live[1].remove(3))).reordered, 1);
        assert_eq!(tally(|seen| seen.live[0][4].number = 4).doubled, 1);
        assert_eq!(tally(|seen| seen.live[0][4].at_ms = 4).lost, 1);
        assert_eq!(tally(|seen| seen.acknowledged[0].1 = 3).reordered, 1);
        assert_eq!(tally(|seen| seen.acknowledged.push(("other".to_owned(), 9))).lost, 1);
        assert_eq!(tally(|seen| seen.effects = seen.effects.repeat(2)).doubled, 1);
        assert_eq!(tally(|seen| seen.effects.clear()).lost, 1);
        let tally = change_log(|log| drop(log.pop()));
        assert_eq!((tally.wrong_ends, tally.faults.len()), (1, 1), "{tally}");
        let tally = change_log(|log| {
            let end = log.last().unwrap().clone();
            log.push(SessionEvent { number: end.number + 1, ..end });
        });
        assert_eq!((tally.wrong_ends, tally.faults.len()), (1, 1), "{tally}");
        let tally = change_log(|log| log[8].fields["text"] = json!("x"));
        assert_eq!((tally.lost, tally.faults.len()), (1, 1), "{tally}");
    }
}
