//! What callers and those who harm know of each other.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::caller::Model;

/// Where the gateways are, and what is under way.
#[derive(Debug, Default)]
pub(super) struct Scene {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By node; none for a node that callers do not ask, or that is not there.
    gateways: Vec<Option<SocketAddr>>,
    killed: Vec<Option<Instant>>,
    open: Vec<(Model, usize)>,
    stops: bool,
}

/// An answer under way, until it is dropped.
pub(super) struct Open {
    scene: Arc<Scene>,
    what: (Model, usize),
}

impl Scene {
    pub(super) fn new(nodes: usize) -> Self {
        let state = State { gateways: vec![None; nodes], killed: vec![None; nodes], ..State::default() };
        Self { state: Mutex::new(state) }
    }

    pub(super) fn set_gateway(&self, node: usize, gateway: Option<SocketAddr>) {
        self.state().gateways[node] = gateway;
    }

    pub(super) fn gateway(&self, node: usize) -> Option<SocketAddr> {
        self.state().gateways[node]
    }

    /// The nodes whose gateways callers ask.
    pub(super) fn gateways(&self) -> impl Iterator<Item = usize> + use<> {
        let there: Vec<usize> = self
            .state()
            .gateways
            .iter()
            .enumerate()
            .filter(|(_, addr)| addr.is_some())
            .map(|(at, _)| at)
            .collect();
        there.into_iter()
    }

    pub(super) fn note_killed(&self, node: usize) {
        let mut state = self.state();
        state.killed[node] = Some(Instant::now());
        state.gateways[node] = None;
    }

    pub(super) fn was_killed(&self, node: usize, since: Instant) -> bool {
        self.state().killed[node].is_some_and(|at| at >= since)
    }

    pub(super) fn open(self: &Arc<Self>, model: Model, gateway: usize) -> Open {
        self.state().open.push((model, gateway));
        Open { scene: self.clone(), what: (model, gateway) }
    }

    /// Answers under way for which this holds.
    pub(super) fn under_way(&self, is: impl Fn(Model, usize) -> bool) -> usize {
        self.state().open.iter().filter(|(model, gateway)| is(*model, *gateway)).count()
    }

    /// From now on callers ask no more.
    pub(super) fn stop(&self) {
        self.state().stops = true;
    }

    pub(super) fn stops(&self) -> bool {
        self.state().stops
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.scene.state();
        if let Some(at) = state.open.iter().position(|what| *what == self.what) {
            state.open.swap_remove(at);
        }
    }
}
