//! The scope of uninvited peers, where each node decides for itself what the others are.

use super::*;

const MEMBERS_KEY: &str = "memory";
const EVERYONES_KEY: &str = "models";

/// Nodes in a line that take each other for clients, with a value for members and one for everybody each.
fn strangers(seed: u64, count: usize, weather: Weather) -> Sim {
    let mut sim = Sim::new(seed, count, weather, &Config::default().among_uninvited());
    for a in 0..count {
        for b in (0..count).filter(|b| *b != a) {
            sim.take_for(a, b, Role::Client);
        }
        let value = Some(Bytes::from_static(b"v"));
        for (key, audience) in [(MEMBERS_KEY, Audience::Members), (EVERYONES_KEY, Audience::Everyone)] {
            sim.command(a, Command::Set { id: 1, key: key.into(), value: value.clone(), audience });
        }
    }
    sim
}

fn introduce(sim: &mut Sim, count: usize) {
    for index in 1..count {
        sim.introduce(index - 1, index);
    }
}

fn sees(sim: &mut Sim, who: usize, whose: usize, key: &str) -> bool {
    let id = sim.id(whose);
    sim.core(who).members().get(&id).is_some_and(|member| member.value(key).is_some())
}

fn all_see(sim: &mut Sim, count: usize, key: &str) -> bool {
    (0..count).all(|a| (0..count).all(|b| a == b || sees(sim, a, b, key)))
}

#[test]
fn strangers_see_what_is_for_everyone_and_nothing_else() {
    let mut sim = strangers(1, 5, Weather::default());
    introduce(&mut sim, 5);
    sim.until("everyone's values everywhere", 20 * SECOND, |sim| all_see(sim, 5, EVERYONES_KEY));
    sim.run(10 * SECOND);
    assert!((0..5).all(|a| (0..5).all(|b| a == b || !sees(&mut sim, a, b, MEMBERS_KEY))));
}

#[test]
fn what_is_for_members_goes_to_those_whom_its_owner_takes_for_one_and_no_further() {
    for_seeds(0..5, |seed| {
        let mut sim = strangers(seed, 4, Weather { loss: 0.2, ..Weather::default() });
        // The first takes the second for a member, and the second takes everybody for one.
        sim.take_for(0, 1, Role::Member);
        for other in [0, 2, 3] {
            sim.take_for(1, other, Role::Member);
        }
        introduce(&mut sim, 4);
        sim.until("the raised see it", 60 * SECOND, |sim| {
            sees(sim, 1, 0, MEMBERS_KEY) && [0, 2, 3].iter().all(|other| sees(sim, *other, 1, MEMBERS_KEY))
        });
        sim.run(20 * SECOND);
        for (who, whose) in [(2, 0), (3, 0), (0, 2), (1, 2), (3, 2), (1, 3)] {
            assert!(!sees(&mut sim, who, whose, MEMBERS_KEY), "{who} sees what {whose} has for members");
        }
        // A change and a value that is taken back come through, too.
        sim.command(
            0,
            Command::Set { id: 2, key: MEMBERS_KEY.into(), value: None, audience: Audience::Members },
        );
        sim.until("it is gone", 60 * SECOND, |sim| !sees(sim, 1, 0, MEMBERS_KEY));
    });
}

#[test]
fn nobody_revokes_anybody() {
    let mut sim = strangers(2, 3, Weather::default());
    introduce(&mut sim, 3);
    sim.until("all alive", 10 * SECOND, |sim| alive_everywhere(sim, 3));
    sim.command(0, Command::Revoke(Double::revocation(&sim.id(1))));
    sim.run(5 * SECOND);
    assert!(alive_everywhere(&mut sim, 3));
}
