//! The order of ways to a peer: not relayed first, then LAN before internet, then by class of round-trip time.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_identity::ScopeId;

use crate::{LinkFacts, Network};

/// Upper bounds of the classes of round-trip time in milliseconds: one switch, one site, one country, one continent.
const RTT_CLASSES_MS: [u64; 4] = [2, 10, 50, 150];

/// How far beyond a bound a round trip must lie, in percent, to change the class of a known way: loopback and Wi-Fi
/// jitter stays below that.
const HYSTERESIS_PERCENT: u64 = 25;

/// Rank of a way; the lower is used first. Ways of one rank are equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathRank {
    relayed: bool,
    internet: bool,
    rtt_class: u8,
}

impl PathRank {
    /// The rank of a link, or of none: a peer without a link comes last.
    pub fn of(link: Option<&LinkFacts>) -> Self {
        match link {
            None => Self { relayed: true, internet: true, rtt_class: u8::MAX },
            Some(link) => Self {
                relayed: link.relayed,
                internet: link.network == Network::Internet,
                rtt_class: rtt_class(link.rtt),
            },
        }
    }
}

/// The class of a round trip; an unmeasured one comes after all measured ones.
fn rtt_class(rtt: Option<Duration>) -> u8 {
    let Some(rtt) = rtt else { return CLASSES };
    let below = RTT_CLASSES_MS.iter().position(|bound| rtt < Duration::from_millis(*bound));
    below.and_then(|class| u8::try_from(class).ok()).unwrap_or(CLASSES - 1)
}

/// Number of classes of measured round trips.
const CLASSES: u8 = 5;

/// One way to a peer: a scope that both are in, and the link that carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRoute {
    /// The scope.
    pub scope: ScopeId,
    /// The link, if one is open.
    pub link: Option<LinkFacts>,
}

/// The rule of `routes_for_peer` as a function of the facts: only the request's scopes, best rank first, the preferred
/// scope winning ties, and otherwise the order in which the scopes were asked for.
pub fn order_routes(
    routes: impl IntoIterator<Item = PeerRoute>,
    scopes: &[ScopeId],
    preferred_scope: Option<&ScopeId>,
) -> Vec<PeerRoute> {
    let position = |route: &PeerRoute| scopes.iter().position(|scope| *scope == route.scope);
    let mut ranked: Vec<_> =
        routes.into_iter().filter_map(|route| position(&route).map(|position| (position, route))).collect();
    ranked.sort_by_key(|(position, route)| {
        (PathRank::of(route.link.as_ref()), preferred_scope != Some(&route.scope), *position)
    });
    ranked.into_iter().map(|(_, route)| route).collect()
}

/// Smooths the facts of the links to one peer over time, so that its ways do not change places without cause.
///
/// A change of carrier (relayed to direct, LAN to internet) counts at once. A round trip counts when it leaves the class
/// that the way has by more than a quarter; until then the last one that counted stands.
#[derive(Debug, Clone, Default)]
pub struct PathMemory {
    settled: BTreeMap<ScopeId, LinkFacts>,
}

impl PathMemory {
    /// The facts to rank this scope's link by, after `fresh` was seen. `None` (no link) forgets the scope.
    pub fn settle(&mut self, scope: ScopeId, fresh: Option<LinkFacts>) -> Option<LinkFacts> {
        let Some(fresh) = fresh else {
            self.settled.remove(&scope);
            return None;
        };
        let settled = match self.settled.get(&scope) {
            Some(old) if old.relayed == fresh.relayed && old.network == fresh.network => {
                LinkFacts { rtt: settle_rtt(old.rtt, fresh.rtt), ..fresh }
            }
            _ => fresh,
        };
        self.settled.insert(scope, settled);
        Some(settled)
    }
}

fn settle_rtt(old: Option<Duration>, fresh: Option<Duration>) -> Option<Duration> {
    let (Some(was), Some(is)) = (old, fresh) else { return fresh.or(old) };
    let class = usize::from(rtt_class(old));
    let bound = |class: usize| RTT_CLASSES_MS.get(class).copied();
    let leaves = match class.checked_sub(1).and_then(bound) {
        Some(lower) if is < Duration::from_millis(lower * (100 - HYSTERESIS_PERCENT)) / 100 => true,
        _ => bound(class)
            .is_some_and(|upper| is >= Duration::from_millis(upper * (100 + HYSTERESIS_PERCENT)) / 100),
    };
    Some(if leaves || rtt_class(fresh) == rtt_class(old) { is } else { was })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(relayed: bool, network: Network, ms: u64) -> Option<LinkFacts> {
        Some(LinkFacts { relayed, network, rtt: Some(Duration::from_millis(ms)) })
    }

    fn scope(byte: u8) -> ScopeId {
        ScopeId::from_bytes([byte; 32])
    }

    #[test]
    fn direct_before_relayed_before_none_and_lan_before_internet() {
        let order = [
            link(false, Network::Lan, 1),
            link(false, Network::Lan, 5),
            link(false, Network::Internet, 1),
            link(false, Network::Internet, 500),
            link(true, Network::Lan, 1),
            link(true, Network::Internet, 1),
            None,
        ];
        let ranks: Vec<_> = order.iter().map(|link| PathRank::of(link.as_ref())).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
    }

    #[test]
    fn the_preferred_scope_wins_ties_only() {
        let routes = [
            PeerRoute { scope: scope(1), link: link(false, Network::Lan, 1) },
            PeerRoute { scope: scope(2), link: link(false, Network::Lan, 1) },
            PeerRoute { scope: scope(3), link: link(true, Network::Lan, 1) },
            PeerRoute { scope: scope(4), link: link(false, Network::Lan, 1) },
        ];
        let asked = [scope(3), scope(1), scope(2)];
        let order = |preferred: Option<ScopeId>| -> Vec<_> {
            order_routes(routes, &asked, preferred.as_ref()).into_iter().map(|route| route.scope).collect()
        };
        assert_eq!(order(None), [scope(1), scope(2), scope(3)], "scope 4 was not asked for");
        assert_eq!(order(Some(scope(2))), [scope(2), scope(1), scope(3)]);
        assert_eq!(order(Some(scope(3))), [scope(1), scope(2), scope(3)], "a relay is no tie");
    }

    #[test]
    fn jitter_around_a_bound_does_not_change_the_class() {
        let mut memory = PathMemory::default();
        let mut rank = |ms| PathRank::of(memory.settle(scope(1), link(false, Network::Lan, ms)).as_ref());
        let first = rank(9);
        assert_eq!(rank(11), first);
        assert_eq!(rank(9), first);
        let slower = rank(13);
        assert!(slower > first);
        assert_eq!(rank(9), slower);
        assert_eq!(rank(7), first);
    }

    #[test]
    fn a_change_of_carrier_counts_at_once() {
        let mut memory = PathMemory::default();
        let relayed = memory.settle(scope(1), link(true, Network::Internet, 30));
        let direct = memory.settle(scope(1), link(false, Network::Internet, 31));
        assert!(PathRank::of(direct.as_ref()) < PathRank::of(relayed.as_ref()));
        assert_eq!(memory.settle(scope(1), None), None);
    }
}
