//! One attempt at one target: counted while it runs, its outcome told to routing.

use std::time::{Duration, Instant};

use mesh_routing::{InFlight, Load, Outcome, Target};

use super::gauge::Entered;
use super::routes::PeerRoutes;

/// Counts an attempt until it is dropped. Dropped without an outcome (the caller left, or the target refused for now), it
/// says nothing of the target.
pub(crate) struct Ticket {
    in_flight: Option<InFlight>,
    started: Instant,
    first_byte: Option<Duration>,
    told: bool,
    entered: Option<Entered<u64>>,
}

impl Ticket {
    pub(crate) fn new(
        routes: &dyn PeerRoutes,
        target: &Target,
        model: &str,
        entered: Option<Entered<u64>>,
    ) -> Self {
        let in_flight = routes.begin(target, model);
        Self { in_flight, started: Instant::now(), first_byte: None, told: false, entered }
    }

    /// The target's own word on its load.
    pub(crate) fn note_load(&self, load: Load) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.note_load(load, Instant::now());
        }
    }

    pub(crate) fn note_piece(&mut self) {
        self.first_byte.get_or_insert_with(|| self.started.elapsed());
    }

    /// The whole answer went through: it counts no more, though its connection may not have ended. Whoever hears the end
    /// asks for the next answer at once.
    pub(crate) fn complete(&mut self) {
        self.tell(true);
        self.in_flight = None;
        self.entered = None;
    }

    /// The target, or the way to it, failed.
    pub(crate) fn failed(&mut self) {
        self.tell(false);
    }

    /// Only the first word counts.
    fn tell(&mut self, ok: bool) {
        if !std::mem::replace(&mut self.told, true)
            && let Some(in_flight) = &self.in_flight
        {
            let now = Instant::now();
            let latency = self.first_byte.unwrap_or(now - self.started);
            in_flight.observe(Outcome { latency, ok }, now);
        }
    }
}
