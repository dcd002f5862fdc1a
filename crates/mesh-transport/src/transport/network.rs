//! Notices that the machine's network has changed, or that the machine slept, and has everybody look for what still works.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use iroh::Watcher;
use netwatch::{interfaces::State, netmon::Monitor};
use tokio::time::MissedTickBehavior;

use super::{Inner, LinkEvent, probe, redial};
use crate::{
    connection::Driver,
    error::{self, CloseCode},
};

/// How often this process looks at the clock.
const TICK: Duration = Duration::from_millis(250);
/// So late a look means that the process or the machine stood still: a busy machine is not that late.
const STOOD_STILL: Duration = Duration::from_secs(2);
/// A driver that takes longer to look around goes on by itself.
const LOOK_AROUND: Duration = Duration::from_secs(5);

/// Watches until the transport ends.
pub(super) async fn watch(inner: Arc<Inner>) {
    let monitor = match Monitor::new().await {
        Ok(monitor) => Some(monitor),
        Err(error) => {
            let error = error::chain(&error);
            tracing::warn!(
                error,
                "changes of the network are not noticed; links are dialed again after a wait"
            );
            None
        }
    };
    let mut interfaces = monitor.as_ref().map(|monitor| monitor.interface_state());
    let mut known = interfaces.as_mut().map(|interfaces| usable(&interfaces.get()));
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = SystemTime::now();
    loop {
        let changed = async {
            match &mut interfaces {
                Some(interfaces) => interfaces.updated().await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = inner.cancel.cancelled() => break,
            _ = ticks.tick() => {
                // The wall clock, because others stand still while the machine sleeps.
                let now = SystemTime::now();
                let late = now.duration_since(looked).unwrap_or_default();
                looked = now;
                if late > STOOD_STILL + TICK {
                    react(&inner, "stood still");
                }
            }
            state = changed => match state {
                Some(state) => {
                    let now = usable(&state);
                    if known.as_ref() != Some(&now) {
                        close_unbound(&inner, &now);
                        known = Some(now);
                        react(&inner, "interfaces");
                    }
                }
                None => interfaces = None,
            },
        }
    }
}

/// The addresses of interfaces that are up. Without the link-local ones, which come and go with every container of the
/// machine, and where no peer is dialed.
fn usable(state: &State) -> BTreeSet<IpAddr> {
    let up = state.interfaces.values().filter(|interface| interface.is_up());
    let addrs = up.flat_map(|interface| interface.addrs().map(|net| net.addr()));
    addrs.filter(|ip| !is_link_local(*ip)).collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Ends the connections that cannot live without an address that is gone, so that their users need not wait.
fn close_unbound(inner: &Inner, addrs: &BTreeSet<IpAddr>) {
    let is_unbound = |ip: IpAddr| !ip.is_loopback() && !is_link_local(ip) && !addrs.contains(&ip);
    for conn in inner.links.matching(|conn| conn.conn.bound_to().is_some_and(is_unbound)) {
        conn.close(CloseCode::AddressGone, "its address is gone");
    }
}

/// Has drivers look around, asks every link whether it lives, and dials what was lost.
pub(super) fn react(inner: &Arc<Inner>, why: &'static str) {
    tracing::debug!(why, "the network has changed");
    inner.metrics.network_changes.add();
    let drivers = inner.drivers.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    for driver in drivers {
        inner.tasks.spawn(look_around(inner.clone(), driver));
    }
    inner.network.send_modify(|changes| *changes += 1);
    redial::network_changed(inner);
    for conn in inner.links.matching(|_| true) {
        probe::ask(inner, conn);
    }
    // No subscriber is not an error.
    drop(inner.events.send(LinkEvent::NetworkChanged));
}

async fn look_around(inner: Arc<Inner>, driver: Arc<dyn Driver>) {
    tokio::select! {
        () = inner.cancel.cancelled() => {}
        _ = tokio::time::timeout(LOOK_AROUND, driver.network_changed()) => {}
    }
}
