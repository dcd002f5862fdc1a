//! The order of ways to a peer: not relayed first, then LAN before internet, then by class of quality: round-trip time and
//! loss.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use mesh_identity::ScopeId;

use crate::{LinkFacts, Network};

/// Upper bounds of the classes of round-trip time in milliseconds: one switch, one site, one country, one continent.
const RTT_CLASSES_MS: [u64; 4] = [2, 10, 50, 150];

/// Bounds of loss per mille, each of which makes a way worse by one class: Wi-Fi on a bad day, hardly usable, broken.
const LOSS_CLASSES: [u64; 3] = [10, 50, 200];

/// How far beyond a bound a figure must lie, in percent, to change the class of a known way: loopback and Wi-Fi jitter stays
/// below that.
const HYSTERESIS_PERCENT: u64 = 25;

/// Rank of a way; the lower is used first. Ways of one rank are equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathRank {
    relayed: bool,
    internet: bool,
    quality: u8,
}

impl PathRank {
    /// The rank of a link, or of none: a peer without a link comes last.
    pub fn of(link: Option<&LinkFacts>) -> Self {
        match link {
            None => Self { relayed: true, internet: true, quality: u8::MAX },
            Some(link) => Self {
                relayed: link.relayed,
                internet: link.network == Network::Internet,
                quality: rtt_class(link.rtt) + loss_class(link.loss),
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

/// By how many classes the loss makes a way worse; none that was not measured.
fn loss_class(loss: Option<u16>) -> u8 {
    let loss = u64::from(loss.unwrap_or(0));
    u8::try_from(LOSS_CLASSES.iter().filter(|bound| loss >= **bound).count()).unwrap_or(u8::MAX)
}

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

/// Why one way stands before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// A link is open.
    Linked,
    /// It goes straight to the peer, and the other through a relay.
    Direct,
    /// It stays in the local network.
    Lan,
    /// Its round trip and its loss are of a better class.
    Quality,
    /// It is in the scope that the request prefers.
    Preferred,
    /// Nothing tells them apart but the order in which the scopes were asked for.
    Order,
}

impl Before {
    /// What puts `first` before `second`, of two ways in the order of [`order_routes`].
    pub fn of(first: &PeerRoute, second: &PeerRoute, preferred_scope: Option<&ScopeId>) -> Self {
        let rank = |route: &PeerRoute| PathRank::of(route.link.as_ref());
        let (better, worse) = (rank(first), rank(second));
        if first.link.is_some() != second.link.is_some() {
            Self::Linked
        } else if better.relayed != worse.relayed {
            Self::Direct
        } else if better.internet != worse.internet {
            Self::Lan
        } else if better.quality != worse.quality {
            Self::Quality
        } else if preferred_scope == Some(&first.scope) {
            Self::Preferred
        } else {
            Self::Order
        }
    }
}

/// As the end of "it ...".
impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Linked => "has an open link",
            Self::Direct => "is not relayed",
            Self::Lan => "stays in the local network",
            Self::Quality => "is faster or loses less",
            Self::Preferred => "is in the preferred mesh",
            Self::Order => "comes first in order, being as good",
        })
    }
}

/// Smooths the facts of the links to one peer over time, so that its ways do not change places without cause.
///
/// A change of carrier (relayed to direct, LAN to internet) counts at once. A round trip or a loss counts when it leaves
/// the class that the way has by more than a quarter; until then the last one that counted stands.
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
            Some(old) if old.relayed == fresh.relayed && old.network == fresh.network => LinkFacts {
                rtt: settle_rtt(old.rtt, fresh.rtt),
                loss: settle_loss(old.loss, fresh.loss),
                ..fresh
            },
            _ => fresh,
        };
        self.settled.insert(scope, settled);
        Some(settled)
    }
}

fn settle_rtt(old: Option<Duration>, fresh: Option<Duration>) -> Option<Duration> {
    let (Some(was), Some(is)) = (old, fresh) else { return fresh.or(old) };
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let bounds = RTT_CLASSES_MS.map(|bound| bound * 1000);
    Some(if leaves_class(&bounds, micros(was), micros(is)) { is } else { was })
}

fn settle_loss(old: Option<u16>, fresh: Option<u16>) -> Option<u16> {
    let (Some(was), Some(is)) = (old, fresh) else { return fresh.or(old) };
    Some(if leaves_class(&LOSS_CLASSES, was.into(), is.into()) { is } else { was })
}

/// Whether a new figure counts: it is in the class that the old one has, or beyond its bounds by more than jitter.
fn leaves_class(bounds: &[u64], was: u64, is: u64) -> bool {
    let class = |figure: u64| bounds.iter().filter(|bound| figure >= **bound).count();
    let (old, new) = (class(was), class(is));
    match old.cmp(&new) {
        std::cmp::Ordering::Equal => true,
        std::cmp::Ordering::Less => is * 100 >= bounds[old] * (100 + HYSTERESIS_PERCENT),
        std::cmp::Ordering::Greater => is * 100 < bounds[old - 1] * (100 - HYSTERESIS_PERCENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(relayed: bool, network: Network, ms: u64) -> Option<LinkFacts> {
        Some(LinkFacts { relayed, network, rtt: Some(Duration::from_millis(ms)), loss: None })
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

    #[test]
    fn loss_makes_a_way_worse_and_jitters_as_little() {
        let lossy =
            |loss| Some(LinkFacts { loss: Some(loss), ..link(false, Network::Internet, 20).expect("one") });
        let mut memory = PathMemory::default();
        let mut rank = |loss| PathRank::of(memory.settle(scope(1), lossy(loss)).as_ref());
        let clean = rank(0);
        assert_eq!(rank(11), clean, "a packet more is no news");
        let worse = rank(20);
        assert!(worse > clean);
        assert_eq!(rank(8), worse);
        assert_eq!(rank(2), clean);
        assert!(PathRank::of(lossy(900).as_ref()) < PathRank::of(link(true, Network::Internet, 1).as_ref()));
    }

    #[test]
    fn each_place_has_a_reason() {
        let way = |byte, link| PeerRoute { scope: scope(byte), link };
        let ways = [
            way(1, link(false, Network::Lan, 1)),
            way(2, link(false, Network::Lan, 1)),
            way(3, link(false, Network::Lan, 20)),
            way(4, link(false, Network::Internet, 1)),
            way(5, link(true, Network::Internet, 1)),
            way(6, None),
        ];
        let asked = [1, 2, 3, 4, 5, 6].map(scope);
        let preferred = scope(1);
        let ordered = order_routes(ways, &asked, Some(&preferred));
        let reasons: Vec<_> =
            ordered.windows(2).map(|pair| Before::of(&pair[0], &pair[1], Some(&preferred))).collect();
        let wanted = [Before::Preferred, Before::Quality, Before::Lan, Before::Direct, Before::Linked];
        assert_eq!(reasons, wanted);
        assert_eq!(Before::of(&ordered[0], &ordered[1], None), Before::Order);
    }
}
