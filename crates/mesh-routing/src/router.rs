//! The handle that decisions are asked of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::gauge::Gauge;
use crate::{Config, Health, Load, Model, NoRoute, Outcome, Query, Route, Snapshot, Table, Target};

/// Decides where requests go, from facts fed to it. Cheap to clone; all clones share one table.
///
/// Deciding takes no lock and never waits; feeding takes a lock that only other feeders want.
#[derive(Debug, Clone)]
pub struct Router(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    started: Instant,
    table: Mutex<Table>,
    current: ArcSwap<Snapshot>,
}

impl Router {
    /// A router that knows nothing yet.
    pub fn new(config: Config, now: Instant) -> Self {
        let config = Arc::new(config);
        let mut table = Table::default();
        let current = ArcSwap::from_pointee(table.snapshot(&config));
        Self(Arc::new(Shared { config, started: now, table: Mutex::new(table), current }))
    }

    /// Changes what is known and publishes it at once. Put several changes into one call: each call builds a snapshot.
    pub fn update<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let mut table = self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut table);
        self.0.current.store(Arc::new(table.snapshot(&self.0.config)));
        answer
    }

    /// The facts of this moment.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.current.load_full()
    }

    /// Decides where the request goes. `draw` is a random number, drawn by the caller for each request.
    ///
    /// # Errors
    /// [`NoRoute`], which says what is known and what stands in the way.
    pub fn route(&self, query: &Query, draw: u64, now: Instant) -> Result<Route, NoRoute> {
        self.0.current.load().route(query, draw, self.at(now))
    }

    /// The models that the query's caller may ask for (the query's own `model` is not looked at), sorted by name.
    pub fn models(&self, query: &Query, now: Instant) -> Vec<Model> {
        self.0.current.load().models(query, self.at(now))
    }

    /// Counts a request in at a target, until the returned guard is dropped. Call it when the request is sent.
    ///
    /// A target that rests after failures and is due for a try is closed to other requests by this call until the outcome
    /// is known, or for one cool-down.
    pub fn begin(&self, target: &Target, model: &str, now: Instant) -> InFlight {
        let gauge = self.0.current.load().gauge(target, model).cloned();
        if let Some(gauge) = &gauge {
            gauge.begin(self.at(now), &self.0.config);
        }
        InFlight { gauge, shared: Arc::clone(&self.0) }
    }

    /// Notes the outcome of a request at a target. Nothing happens when the target has gone.
    pub fn observe(&self, target: &Target, model: &str, outcome: Outcome, now: Instant) {
        if let Some(gauge) = self.0.current.load().gauge(target, model) {
            gauge.observe(outcome, self.at(now), &self.0.config);
        }
    }

    /// The health of a model at a target; `None` when it is not known there.
    pub fn health(&self, target: &Target, model: &str, now: Instant) -> Option<Health> {
        self.0.current.load().gauge(target, model).map(|gauge| gauge.health(self.at(now)))
    }

    fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.0.started)
    }
}

/// A request under way. Dropping it counts the request out; without [`InFlight::observe`] it tells nothing of the target's
/// health (the caller went away).
#[derive(Debug)]
#[must_use = "dropping it counts the request out"]
pub struct InFlight {
    gauge: Option<Arc<Gauge>>,
    shared: Arc<Shared>,
}

impl InFlight {
    /// Notes the outcome, once it is known; the request goes on counting until the guard is dropped.
    pub fn observe(&self, outcome: Outcome, now: Instant) {
        if let Some(gauge) = &self.gauge {
            gauge.observe(outcome, now.saturating_duration_since(self.shared.started), &self.shared.config);
        }
    }
}

impl InFlight {
    /// Notes what the target says of its load in its answer.
    pub fn note_load(&self, load: Load, now: Instant) {
        if let Some(gauge) = &self.gauge {
            gauge.note_load(load, now.saturating_duration_since(self.shared.started));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(gauge) = &self.gauge {
            gauge.end();
        }
    }
}
