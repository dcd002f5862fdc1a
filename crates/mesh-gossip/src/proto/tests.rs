#![allow(clippy::unwrap_used)]
mod alone;
mod many;
mod model;
mod uninvited;
mod verdicts;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_identity::{NodeAddr, NodeId, NodeKey, Role, UnixTime};
use proptest::prelude::*;

use super::sim::{Double, Sim, Weather, for_seeds};
use super::wire::{
    Accusation, BucketSet, Card, Course, DigestItem, Entry, Evidence, Message, NodeRecord, Summary,
};
use super::{Command, Input, Me, Membership, Output, Signature};
use crate::config::Config;
use crate::event::{DownWhy, Event, UpWhy};
use crate::member::{Audience, Incarnation, Members, State};
use crate::{PeerFault, SetError, limits};

const SECOND: Duration = Duration::from_secs(1);

fn alive_everywhere(sim: &mut Sim, count: usize) -> bool {
    (0..count).all(|a| (0..count).all(|b| a == b || sim.state(a, b) == Some(State::Alive)))
}

type Words = (NodeId, Incarnation, Vec<(String, Bytes)>);

/// Records only: what must be equal everywhere, opinions left out.
fn words(members: &Members) -> Vec<Words> {
    let all = members.iter().chain(members.me());
    let mut words: Vec<_> = all
        .map(|member| {
            let values =
                member.values.iter().map(|(key, value)| (key.clone(), value.bytes.clone())).collect();
            (member.id, member.incarnation, values)
        })
        .collect();
    words.sort();
    words
}

fn line(seed: u64, count: usize, weather: Weather) -> Sim {
    let mut sim = Sim::new(seed, count, weather, &Config::default());
    for index in 1..count {
        sim.introduce(index - 1, index);
    }
    sim
}

#[test]
fn nodes_that_know_one_neighbour_find_all_and_see_every_value() {
    for_seeds(0..5, |seed| {
        let mut sim = line(seed, 8, Weather::default());
        sim.set(3, "models", "llama");
        sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 8));
        sim.until("value everywhere", 5 * SECOND, |sim| {
            let id = sim.id(3);
            (0..8).filter(|index| *index != 3).all(|index| {
                sim.core(index).members().get(&id).is_some_and(|member| member.value("models").is_some())
            })
        });
    });
}

#[test]
fn a_change_is_pushed_well_before_the_next_round() {
    let mut sim = line(1, 3, Weather::default());
    sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 3));
    sim.run(5 * SECOND);
    sim.set(0, "load", "7");
    let id = sim.id(0);
    let took =
        sim.until("pushed", SECOND, |sim| sim.core(2).members().get(&id).unwrap().value("load").is_some());
    assert!(took <= Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_node_that_falls_silent_is_suspect_soon_and_down_by_the_word_of_most_of_its_neighbours() {
    for_seeds(0..5, |seed| {
        let mut sim = line(seed, 4, Weather { idle_timeout: 60 * SECOND, ..Weather::default() });
        sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 4));
        sim.run(3 * SECOND);
        sim.take_events(0);
        sim.crash(3);
        sim.until("suspect", SECOND, |sim| sim.state(0, 3) == Some(State::Suspect));
        sim.until("down everywhere", 2 * SECOND, |sim| {
            (0..3).all(|index| sim.state(index, 3) == Some(State::Down))
        });
        let node = sim.id(3);
        let downs: Vec<_> = sim
            .take_events(0)
            .into_iter()
            .filter(|event| matches!(event, Event::MemberDown { .. }))
            .collect();
        let [Event::MemberDown { node: which, why, witnesses, .. }] = downs.as_slice() else {
            panic!("{downs:?}")
        };
        assert_eq!((*which, *why), (node, DownWhy::Silent));
        assert!(witnesses.len() >= 2, "{witnesses:?}");
        assert!(alive_everywhere(&mut sim, 3));
    });
}

#[test]
fn a_silent_link_is_suspected_by_unanswered_pings_and_closed() {
    let weather = Weather { idle_timeout: 60 * SECOND, ..Weather::default() };
    let mut sim = line(2, 2, weather);
    sim.until("alive", 5 * SECOND, |sim| alive_everywhere(sim, 2));
    sim.crash(1);
    sim.until("suspect", 4 * SECOND, |sim| sim.state(0, 1) == Some(State::Suspect));
    sim.take_events(0);
    sim.until("down", 6 * SECOND, |sim| sim.state(0, 1) == Some(State::Down));
    let is_silent = |event: &Event| matches!(event, Event::MemberDown { why: DownWhy::Silent, .. });
    assert!(sim.take_events(0).iter().any(is_silent));
}

#[test]
fn a_restarted_node_replaces_its_earlier_life_at_once() {
    for_seeds(0..5, |seed| {
        let mut sim = line(seed, 4, Weather::default());
        sim.set(3, "old", "1");
        sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 4));
        sim.run(2 * SECOND);
        sim.crash(3);
        sim.run(2 * SECOND);
        sim.start(3, 0);
        sim.introduce(2, 3);
        sim.set(3, "new", "2");
        let id = sim.id(3);
        sim.until("back with new values only", 3 * SECOND, |sim| {
            (0..3).all(|index| {
                let members = sim.core(index).members();
                members
                    .get(&id)
                    .is_some_and(|m| m.is_alive() && m.value("new").is_some() && m.value("old").is_none())
            })
        });
    });
}

#[test]
fn a_clock_that_went_back_is_healed_by_the_node_itself() {
    for skew in [-3600, 0] {
        let mut sim = line(3, 3, Weather::default());
        sim.set(2, "old", "1");
        sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 3));
        sim.crash(2);
        sim.start(2, skew);
        sim.set(2, "new", "2");
        sim.introduce(0, 2);
        let id = sim.id(2);
        sim.until("the new life counts", 5 * SECOND, |sim| {
            (0..2).all(|index| {
                let members = sim.core(index).members();
                members
                    .get(&id)
                    .is_some_and(|m| m.is_alive() && m.value("new").is_some() && m.value("old").is_none())
            })
        });
    }
}

#[test]
fn a_partition_heals_by_refutation_and_everybody_agrees() {
    for_seeds(0..5, |seed| {
        let mut sim = line(seed, 6, Weather { loss: 0.05, duplication: 0.05, ..Weather::default() });
        sim.until("all alive", 15 * SECOND, |sim| alive_everywhere(sim, 6));
        sim.cut(&[0, 1, 2], &[3, 4, 5]);
        sim.until("both sides see the others down", 20 * SECOND, |sim| {
            (0..3).all(|a| {
                (3..6).all(|b| sim.state(a, b) == Some(State::Down) && sim.state(b, a) == Some(State::Down))
            })
        });
        sim.set(0, "side", "left");
        sim.set(5, "side", "right");
        let before = sim.core(0).members().me().unwrap().incarnation;
        sim.heal();
        sim.until("all alive again", 90 * SECOND, |sim| alive_everywhere(sim, 6));
        assert!(sim.core(0).members().me().unwrap().incarnation > before, "refuted");
        sim.until("same words everywhere", 20 * SECOND, |sim| {
            let first = words(&sim.core(0).members());
            (1..6).all(|index| words(&sim.core(index).members()) == first)
        });
    });
}

#[test]
fn a_lost_direct_way_does_not_kill_whom_others_hear() {
    let mut sim = line(4, 3, Weather::default());
    sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 3));
    sim.run(3 * SECOND);
    sim.cut(&[0], &[2]);
    sim.take_events(0);
    sim.run(60 * SECOND);
    assert_eq!(sim.state(0, 2), Some(State::Alive));
    let events = sim.take_events(0);
    assert!(!events.iter().any(|event| matches!(event, Event::MemberDown { .. })), "{events:?}");
}

#[test]
fn a_node_that_leaves_is_gone_at_once_and_returns_only_as_a_new_life() {
    let mut sim = line(5, 3, Weather::default());
    sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 3));
    sim.command(2, Command::Leave);
    sim.until("gone", SECOND, |sim| sim.state(0, 2).is_none() && sim.state(1, 2).is_none());
    assert!(sim.take_events(0).iter().any(|event| matches!(event, Event::MemberLeft { .. })));
    sim.run(30 * SECOND);
    assert_eq!(sim.state(0, 2), None);
    sim.crash(2);
    sim.start(2, 0);
    sim.introduce(1, 2);
    sim.until("back", 5 * SECOND, |sim| alive_everywhere(sim, 3));
}

#[test]
fn a_replayed_record_of_a_dead_node_never_shows_as_alive() {
    let mut sim = line(6, 3, Weather::default());
    sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 3));
    sim.crash(2);
    sim.until("down", 10 * SECOND, |sim| (0..2).all(|index| sim.state(index, 2) == Some(State::Down)));
    let newcomer = sim.add(Role::Member, Config::default());
    sim.introduce(0, newcomer);
    sim.run(30 * SECOND);
    let dead = sim.id(2);
    let is_up = |event: &Event| matches!(event, Event::MemberUp { node, .. } if *node == dead);
    assert!(!sim.take_events(newcomer).iter().any(is_up));
    assert_eq!(sim.state(newcomer, 2), Some(State::Down));
    assert_eq!(sim.state(0, 2), Some(State::Down));
}

#[test]
fn a_passive_client_sees_what_is_for_everyone_and_leaves_no_trace() {
    let mut sim = line(7, 2, Weather::default());
    let client = sim.add(Role::Client, Config::passive());
    sim.introduce(0, client);
    let value = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
    let set = |key: &str, audience| Command::Set { id: 1, key: key.into(), value: value("v"), audience };
    sim.command(1, set("models", Audience::Everyone));
    sim.command(1, set("memory", Audience::Members));
    let host = sim.id(1);
    sim.until("the client sees the models", 5 * SECOND, |sim| {
        sim.core(client).members().get(&host).is_some_and(|m| m.is_alive() && m.value("models").is_some())
    });
    sim.run(10 * SECOND);
    assert!(sim.core(client).members().get(&host).unwrap().value("memory").is_none());
    assert_eq!((sim.state(0, client), sim.state(1, client)), (None, None));
    sim.take_replies(client);
    sim.set(client, "x", "y");
    assert_eq!(sim.take_replies(client), [Err(SetError::Passive)]);
}

#[test]
fn a_revocation_reaches_everybody_and_ends_the_membership() {
    let mut sim = line(8, 4, Weather::default());
    sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 4));
    let revocation = Double::revocation(&sim.id(3));
    sim.command(0, Command::Revoke(revocation.clone()));
    sim.until("down", 3 * SECOND, |sim| (0..3).all(|index| sim.state(index, 3) == Some(State::Down)));
    let is_told = |event: &Event| matches!(event, Event::Revoked { revocation: told } if *told == revocation);
    assert!((1..3).all(|index| sim.take_events(index).iter().any(is_told)));
    let late = sim.add(Role::Member, Config::default());
    sim.introduce(1, late);
    sim.until("the late one hears of it", 3 * SECOND, |sim| sim.take_events(late).iter().any(is_told));
    sim.run(60 * SECOND);
    assert!((0..3).all(|index| sim.state(index, 3) == Some(State::Down)));
}

#[test]
fn an_idle_scope_says_little() {
    let mut sim = line(9, 10, Weather::default());
    sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 10));
    sim.run(10 * SECOND);
    let before = sim.sent(0);
    sim.run(60 * SECOND);
    let per_second = (sim.sent(0) - before) / 60;
    // 9 pings, 9 pongs, 3 roots and 3 lists of 9 ids a second.
    assert!(per_second < 1500, "{per_second} bytes a second");
}

#[test]
fn a_seed_fixes_the_run() {
    let run = || {
        let mut sim = line(10, 5, Weather { loss: 0.1, ..Weather::default() });
        sim.run(20 * SECOND);
        (0..5).map(|index| (sim.sent(index), sim.take_events(index))).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
