//! Whom to ask in one round.

use std::collections::{BTreeMap, BTreeSet};

use super::Place;
use crate::registry::local::{Life, Local};

/// Nodes of the registry asked in one round, beside the places that were written down or found. News so reach a hundred nodes in
/// five rounds; it is also how nodes go on when their seed has died.
const KNOWN_PER_ROUND: usize = 3;
/// Places that mDNS may have told of; the network is not trusted with more memory.
const FOUND_MAX: usize = 256;

/// Places and whose turn it is.
#[derive(Debug)]
pub(in crate::registry) struct Rounds {
    fixed: Vec<Place>,
    found: BTreeMap<String, Place>,
    turn: usize,
}

impl Rounds {
    pub(in crate::registry) fn new(fixed: Vec<Place>) -> Self {
        Self { fixed, found: BTreeMap::new(), turn: 0 }
    }

    /// A place that mDNS told of. True when it is news.
    pub(in crate::registry) fn found(&mut self, instance: String, place: Place) -> bool {
        if self.found.len() >= FOUND_MAX && !self.found.contains_key(&instance) {
            return false;
        }
        self.found.insert(instance, place.clone()) != Some(place)
    }

    /// mDNS says that it is gone.
    pub(in crate::registry) fn lost(&mut self, instance: &str) {
        self.found.remove(instance);
    }

    /// Whom to ask now: everybody who was written down or found, and some of the nodes that are known, each in its turn. Nodes
    /// that said that they stop are left out; they announce themselves when they are back.
    pub(in crate::registry) fn targets(&mut self, local: &Local) -> Vec<Place> {
        let me = local.own();
        let is_me = |place: &Place| {
            place.name.as_ref() == Some(me.name())
                || (me.host(), me.port()) == (Some(place.host.as_str()), Some(place.port))
        };
        let mut seen = BTreeSet::new();
        let mut targets: Vec<Place> = self.fixed.iter().chain(self.found.values()).cloned().collect();
        targets.retain(|place| !is_me(place) && seen.insert((place.host.clone(), place.port)));
        let known: Vec<Place> = local
            .nodes()
            .filter(|(_, life, mine)| !mine && *life != Life::Offline)
            .filter_map(|(entry, ..)| {
                let (host, port) = (entry.host()?.to_owned(), entry.port()?);
                Some(Place { name: Some(entry.name().clone()), host, port })
            })
            .filter(|place| !is_me(place) && !seen.contains(&(place.host.clone(), place.port)))
            .collect();
        let take = KNOWN_PER_ROUND.min(known.len());
        targets.extend(known.iter().cycle().skip(self.turn % known.len().max(1)).take(take).cloned());
        self.turn = self.turn.wrapping_add(take);
        targets
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::registry::node::{Entry, Facts};

    fn local(others: &[(&str, &str)]) -> Local {
        let facts = Facts {
            name: "me".parse().expect("a name"),
            node: None,
            host: "me.host".to_owned(),
            port: 3000,
            agents: Vec::new(),
            providers: Vec::new(),
            models: Vec::new(),
            capabilities: Vec::new(),
            version: String::new(),
        };
        let mut local = Local::new(facts, None, Duration::from_secs(90), 1);
        let entry = |(name, status): &(&str, &str)| {
            let value = json!({"name": name, "host": format!("{name}.host"), "port": 3000, "status": status});
            Entry::read(name, value).expect("an entry")
        };
        local.merge(others.iter().map(entry), Instant::now(), 1);
        local
    }

    fn place(name: Option<&str>, host: &str) -> Place {
        Place { name: name.map(|name| name.parse().expect("a name")), host: host.to_owned(), port: 3000 }
    }

    fn hosts(places: &[Place]) -> Vec<&str> {
        places.iter().map(|place| place.host.as_str()).collect()
    }

    #[test]
    fn a_seed_is_asked_each_round_and_itself_never() {
        let mut rounds =
            Rounds::new(vec![place(None, "seed"), place(None, "me.host"), place(Some("me"), "10.0.0.9")]);
        rounds.found("x".into(), place(Some("me"), "10.0.0.9"));
        rounds.found("seed".into(), place(None, "seed"));
        for _ in 0..3 {
            assert_eq!(hosts(&rounds.targets(&local(&[]))), ["seed"]);
        }
    }

    #[test]
    fn everybody_who_is_not_offline_has_a_turn() {
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        let mut others: Vec<(&str, &str)> = names.iter().map(|name| (*name, "online")).collect();
        others.push(("gone", "offline"));
        let (local, mut rounds) = (local(&others), Rounds::new(Vec::new()));
        let mut asked = BTreeSet::new();
        for _ in 0..3 {
            let targets = rounds.targets(&local);
            assert_eq!(targets.len(), KNOWN_PER_ROUND);
            asked.extend(targets.into_iter().map(|place| place.host));
        }
        assert_eq!(asked, names.iter().map(|name| format!("{name}.host")).collect());
    }

    #[test]
    fn the_network_cannot_fill_the_memory_with_places() {
        let mut rounds = Rounds::new(Vec::new());
        let news =
            (0..2 * FOUND_MAX).filter(|n| rounds.found(n.to_string(), place(None, &n.to_string()))).count();
        assert_eq!(news, FOUND_MAX);
        assert!(!rounds.found("3".into(), place(None, "3")), "known already");
        assert!(rounds.found("3".into(), place(None, "elsewhere")), "it moved");
        rounds.lost("3");
        assert!(rounds.found("new".into(), place(None, "new")));
    }
}
