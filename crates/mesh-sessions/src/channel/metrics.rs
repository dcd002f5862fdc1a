//! Counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::fault::{Code, Fault};
use super::handshake::Refusal;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    handshakes: AtomicU64,
    handshakes_refused: [AtomicU64; Refusal::ALL.len()],
    accepted: AtomicU64,
    refused: [AtomicU64; Code::ALL.len()],
    delegations: [AtomicU64; Ending::ALL.len()],
    cut: AtomicU64,
}

/// The counters of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Handshakes that ended well (`mesh_channel_handshakes_total`).
    pub handshakes: u64,
    handshakes_refused: [u64; Refusal::ALL.len()],
    /// Requests that were admitted (`mesh_channel_requests_total`).
    pub accepted: u64,
    refused: [u64; Code::ALL.len()],
    delegations_ended: [u64; Ending::ALL.len()],
    /// Connections that were closed since their certificates were accepted no more
    /// (`mesh_channel_connections_cut_total`).
    pub cut: u64,
    /// Connections that others hold open now (`mesh_channel_connections`).
    pub connections: usize,
    /// Delegations under way now (`mesh_channel_delegations`).
    pub delegations: usize,
}

/// How a delegation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With the agent's answer.
    Done,
    /// The agent could not do it, or was not to be had.
    Failed,
    /// The agent was not done in time.
    TimedOut,
    /// Nobody waited for it any more, or somebody ended it.
    Cancelled,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Done, Self::Failed, Self::TimedOut, Self::Cancelled];

    pub(crate) fn of<T>(outcome: &Result<T, Fault>) -> Self {
        match outcome {
            Ok(_) => Self::Done,
            Err(Fault { code: Code::TimedOut, .. }) => Self::TimedOut,
            Err(Fault { code: Code::Conflict, .. }) => Self::Cancelled,
            Err(_) => Self::Failed,
        }
    }
}

impl Stats {
    /// Handshakes that failed for this reason (`mesh_channel_handshakes_refused_total`).
    pub fn handshakes_refused(&self, why: Refusal) -> u64 {
        self.handshakes_refused[why as usize]
    }

    /// Requests that were answered with this error (`mesh_channel_refused_total`). What another build says is none of ours.
    pub fn refused(&self, code: Code) -> u64 {
        self.refused.get(code as usize).copied().unwrap_or_default()
    }

    /// Delegations that ended so (`mesh_channel_delegations_total`).
    pub fn delegations_ended(&self, how: Ending) -> u64 {
        self.delegations_ended[how as usize]
    }
}

impl Counters {
    pub(crate) fn shaken(&self) {
        self.handshakes.fetch_add(1, Relaxed);
    }

    pub(crate) fn not_shaken(&self, why: Refusal) {
        self.handshakes_refused[why as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(crate) fn refused(&self, code: Code) {
        if let Some(counter) = self.refused.get(code as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn delegated(&self, how: Ending) {
        self.delegations[how as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn cut(&self) {
        self.cut.fetch_add(1, Relaxed);
    }

    pub(crate) fn stats(&self, connections: usize, delegations: usize) -> Stats {
        Stats {
            handshakes: self.handshakes.load(Relaxed),
            handshakes_refused: now(&self.handshakes_refused),
            accepted: self.accepted.load(Relaxed),
            refused: now(&self.refused),
            delegations_ended: now(&self.delegations),
            cut: self.cut.load(Relaxed),
            connections,
            delegations,
        }
    }
}

fn now<const N: usize>(counters: &[AtomicU64; N]) -> [u64; N] {
    counters.each_ref().map(|counter| counter.load(Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_counter() {
        let counters = Counters::default();
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index, "{code:?} stands where it is declared");
            counters.refused(code);
            assert_eq!(counters.stats(0, 0).refused(code), 1, "{code:?}");
        }
        for (index, why) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, index, "{why:?} stands where it is declared");
            counters.not_shaken(why);
            assert_eq!(counters.stats(0, 0).handshakes_refused(why), 1, "{why:?}");
        }
        for (index, how) in Ending::ALL.into_iter().enumerate() {
            assert_eq!(how as usize, index, "{how:?} stands where it is declared");
        }
        counters.refused(Code::Other);
        assert_eq!(counters.stats(0, 0).refused(Code::Other), 0);
    }
}
