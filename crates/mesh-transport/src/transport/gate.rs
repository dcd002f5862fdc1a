//! Limits on connections that are still strangers, and warnings that do not flood.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{config::Config, connection::Origin};

/// Counts inbound connections of strangers, all together and per origin.
#[derive(Debug)]
pub(crate) struct HelloGate {
    counts: Mutex<HashMap<Origin, usize>>,
    total_max: usize,
    per_address_max: usize,
    per_peer_max: usize,
}

/// One place in the gate; dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<HelloGate>,
    origin: Origin,
}

impl HelloGate {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            counts: Mutex::default(),
            total_max: config.hellos_max,
            per_address_max: config.hellos_per_address_max,
            per_peer_max: config.hellos_per_peer_max,
        })
    }

    /// For connections that are counted by address alone.
    pub(crate) fn for_addresses(total_max: usize, per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default(), total_max, per_address_max, per_peer_max: 0 })
    }

    /// A place for a connection from there, if a limit does not forbid it.
    pub(crate) fn enter(self: &Arc<Self>, origin: Origin) -> Option<Place> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= self.total_max {
            return None;
        }
        let origin_max = match origin {
            Origin::Ip(_) => self.per_address_max,
            Origin::Node(_) => self.per_peer_max,
        };
        let here = counts.entry(origin).or_default();
        if *here >= origin_max {
            return None;
        }
        *here += 1;
        Some(Place { gate: self.clone(), origin })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.origin);
            }
        }
    }
}

/// How often one kind of warning is repeated.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Lets a warning through once a minute and counts the rest.
#[derive(Debug, Default)]
pub(crate) struct WarnLimit(Mutex<(Option<Instant>, u64)>);

impl WarnLimit {
    /// `Some(how many were held back since the last)` if the caller should log now.
    pub(crate) fn due(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match state.0 {
            Some(last) if now.duration_since(last) < WARN_EVERY => {
                state.1 += 1;
                None
            }
            _ => {
                let held_back = std::mem::take(&mut state.1);
                state.0 = Some(now);
                Some(held_back)
            }
        }
    }
}
