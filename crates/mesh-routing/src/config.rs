//! The numbers behind the decisions.

use std::num::NonZeroU32;
use std::time::Duration;

/// Parameters of a [`Router`](crate::Router).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Consecutive failures after which a target gets no more requests. 3: one may be an accident, two a restart.
    pub failures_to_open: NonZeroU32,
    /// How long a failing target rests before one request tries it again; doubles with every failed try. 2 s: a
    /// llama-server that was restarted is often back by then.
    pub cool_down: Duration,
    /// The longest rest. 60 s.
    pub cool_down_max: Duration,
    /// After this time an old latency counts half. 30 s.
    pub latency_half_life: Duration,
    /// How long a target's word on its load counts, as its last answer told it. 10 s: few answers take longer, and by then
    /// what was under way has ended.
    pub load_fresh: Duration,
    /// What [`NoRoute::NotReady`](crate::NoRoute) asks the caller to wait when nobody knows better. 5 s.
    pub retry_after_loading: Duration,
    /// What [`NoRoute::Full`](crate::NoRoute) asks the caller to wait. 1 s.
    pub retry_after_full: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            failures_to_open: NonZeroU32::MIN.saturating_add(2),
            cool_down: Duration::from_secs(2),
            cool_down_max: Duration::from_secs(60),
            latency_half_life: Duration::from_secs(30),
            load_fresh: Duration::from_secs(10),
            retry_after_loading: Duration::from_secs(5),
            retry_after_full: Duration::from_secs(1),
        }
    }
}
