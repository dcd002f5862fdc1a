//! Looks for better connections than those in use, such as over the local network to a peer linked through a relay.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use mesh_identity::NodeAddr;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{Inner, dial, links::LinkConn, redial::Key, rule::Class};
use crate::{
    backoff,
    connection::{DialVia, Driver, TransportKind},
};

/// Dials of this kind at once: they are never urgent.
const AT_ONCE: usize = 4;
/// The wait before the first try where nothing new is known; the dial that made the link has just tried everything.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// The longest wait between two tries.
const WAIT_LONGEST: Duration = Duration::from_secs(60);
/// After a look, so long news are gathered for the next.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs until the transport stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut events = inner.events.subscribe();
    let (mut known, mut found) = (inner.book.changes(), inner.book.found());
    let mut network = inner.network.subscribe();
    let mut tries = Tries::default();
    let mut dials = JoinSet::new();
    loop {
        let now = Instant::now();
        if network.has_changed().unwrap_or_default() {
            network.mark_unchanged();
            tries.forget();
        }
        let (due, next) = tries.take_due(wanting(&inner), now, AT_ONCE.saturating_sub(dials.len()));
        for (key, place) in due {
            let inner = inner.clone();
            dials.spawn(async move { (key, improve(&inner, key, &place.addr).await) });
        }
        tokio::select! {
            biased;
            () = inner.stop_accepting.cancelled() => break,
            Some(done) = dials.join_next() => {
                if let Ok((key, improved)) = done {
                    tries.ended(&key, Instant::now());
                    if improved {
                        inner.metrics.links_improved.add();
                    }
                }
            }
            // Lagging is news too.
            _ = events.recv() => {}
            Ok(()) = known.changed() => {}
            Ok(()) = found.changed() => {}
            Ok(()) = network.changed() => network.mark_changed(),
            () = sleep_until(next.unwrap_or(now)), if next.is_some() => continue,
        }
        tokio::time::sleep(PAUSE).await;
    }
    dials.shutdown().await;
}

/// The links for which something better may exist, and where it would be.
fn wanting(inner: &Inner) -> BTreeMap<Key, Place> {
    let links = inner.links.primaries().into_iter().filter(|link| link.class != Class::Local);
    let wanting = links.filter_map(|link| {
        let (scope, node) = (link.peer.scope, link.peer.id);
        let addr = NodeAddr { relay: None, ..inner.book.to_dial(&scope, &node) };
        let is_found = inner.book.is_found(&node);
        (!better(inner, &link, &addr).is_empty()).then_some(((scope, node), Place { addr, is_found }))
    });
    wanting.collect()
}

/// The drivers that may give something better, at these addresses.
fn better(inner: &Inner, link: &LinkConn, addr: &NodeAddr) -> Vec<Arc<dyn Driver>> {
    let node = link.peer.id;
    let may_reach = |driver: &Arc<dyn Driver>| match driver.transport() {
        TransportKind::Lan => inner.book.is_found(&node) || addr.lan.iter().any(|addr| is_near(addr.ip())),
        TransportKind::Internet => !addr.direct.is_empty(),
        TransportKind::Memory => true,
    };
    let drivers = inner.drivers_for(&link.peer.scope).into_iter();
    let drivers = drivers.filter(|driver| Class::best_of(driver.transport()) < link.class);
    drivers.filter(may_reach).collect()
}

/// Whether a machine of the same network may have the address: others' public addresses are not asked again and again.
pub(super) fn is_near(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_link_local() || ip.is_loopback() || is_shared
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

/// Dials straight, by better drivers alone; whether that gave the connection that is used now.
async fn improve(inner: &Arc<Inner>, (scope, node): Key, addr: &NodeAddr) -> bool {
    let Some(link) = inner.links.linked(&scope, &node) else { return false };
    let drivers = better(inner, &link, addr);
    if drivers.is_empty() {
        return false;
    }
    match dial::make_link(inner, &scope, node, addr, drivers, DialVia::direct()).await {
        Ok(now) => {
            tracing::debug!(peer = %node.short(), path = ?now.path(), "a better connection");
            now.class < link.class
        }
        Err(error) => {
            tracing::trace!(peer = %node.short(), error = &error as &dyn std::error::Error, "nothing better");
            false
        }
    }
}

/// What was tried for each link, and when it is tried again.
#[derive(Default)]
struct Tries(BTreeMap<Key, Try>);

/// Where a peer is said to be.
#[derive(Clone, PartialEq)]
struct Place {
    addr: NodeAddr,
    /// A driver has found it.
    is_found: bool,
}

struct Try {
    place: Place,
    count: u32,
    at: Instant,
    is_running: bool,
}

impl Tries {
    /// What is to be dialed now, at most so many, and when to look again. What is new of a place is tried at once.
    fn take_due(
        &mut self,
        wanting: BTreeMap<Key, Place>,
        now: Instant,
        room: usize,
    ) -> (Vec<(Key, Place)>, Option<Instant>) {
        self.0.retain(|key, one| one.is_running || wanting.contains_key(key));
        for (key, place) in wanting {
            let one = self.0.entry(key).or_insert_with(|| {
                let at = now + wait(1);
                Try { place: place.clone(), count: 1, at, is_running: false }
            });
            if one.place != place {
                (one.place, one.count, one.at) = (place, 0, now);
            }
        }
        let mut due: Vec<_> = self.0.iter_mut().filter(|(_, one)| !one.is_running && one.at <= now).collect();
        due.sort_by_key(|(_, one)| one.at);
        let taken: Vec<_> = due
            .into_iter()
            .take(room)
            .map(|(key, one)| {
                one.is_running = true;
                (*key, one.place.clone())
            })
            .collect();
        // With all places taken, the end of a dial is the reason to look again.
        let waiting = self.0.values().filter(|one| !one.is_running && one.at > now);
        (taken, waiting.map(|one| one.at).min())
    }

    fn ended(&mut self, key: &Key, now: Instant) {
        if let Some(one) = self.0.get_mut(key) {
            one.is_running = false;
            one.count += 1;
            one.at = now + wait(one.count);
        }
    }

    /// Everything is worth a try again.
    fn forget(&mut self) {
        self.0.retain(|_, one| one.is_running);
    }
}

fn wait(tries: u32) -> Duration {
    backoff::wait_before(tries, WAIT_FIRST, WAIT_LONGEST, rand::random())
}
