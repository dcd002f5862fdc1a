//! What is counted of a node's sessions: by what became durable, so that a turn counts once, whoever watches it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::content::ToolOutcome;
use crate::event::{Body, TurnOutcome};

#[derive(Debug, Default)]
pub(crate) struct Counters {
    turns: [AtomicU64; 4],
    tool_calls: [AtomicU64; 5],
    model_calls: [AtomicU64; 2],
    tokens: [AtomicU64; 2],
}

/// The counters of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Sessions alive now (`mesh_sessions_live`).
    pub live: u64,
    /// Followers of sessions now, of this node and of others (`mesh_sessions_watchers`).
    pub watchers: u64,
    /// Events that are on the disk (`mesh_sessions_events_total`).
    pub events: u64,
    /// Groups in which they were written (`mesh_sessions_commits_total`).
    pub commits: u64,
    /// Turns that ended: done, cancelled, at a limit, failed (`mesh_sessions_turns_total`).
    pub turns: [u64; 4],
    /// Calls of tools that ended: done, failed, denied, cancelled, unknown (`mesh_sessions_tool_calls_total`).
    pub tool_calls: [u64; 5],
    /// Calls of models that ended: answered, failed (`mesh_sessions_model_calls_total`).
    pub model_calls: [u64; 2],
    /// Tokens of those that were answered: of prompts, of answers (`mesh_sessions_tokens_total`).
    pub tokens: [u64; 2],
}

impl Counters {
    /// Counts what has become durable.
    pub(crate) fn note(&self, body: &Body) {
        match body {
            Body::TurnEnded { outcome, .. } => one(&self.turns[match outcome {
                TurnOutcome::Done => 0,
                TurnOutcome::Cancelled { .. } => 1,
                TurnOutcome::LimitReached { .. } => 2,
                TurnOutcome::Failed { .. } => 3,
            }]),
            Body::ToolEnded { result, .. } => one(&self.tool_calls[match result.outcome {
                ToolOutcome::Done => 0,
                ToolOutcome::Failed => 1,
                ToolOutcome::Denied => 2,
                ToolOutcome::Cancelled => 3,
                ToolOutcome::Unknown => 4,
            }]),
            Body::Answered { usage, .. } => {
                one(&self.model_calls[0]);
                self.tokens[0].fetch_add(usage.input_tokens, Relaxed);
                self.tokens[1].fetch_add(usage.output_tokens, Relaxed);
            }
            Body::ModelFailed { .. } => one(&self.model_calls[1]),
            _ => {}
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            turns: self.turns.each_ref().map(|count| count.load(Relaxed)),
            tool_calls: self.tool_calls.each_ref().map(|count| count.load(Relaxed)),
            model_calls: self.model_calls.each_ref().map(|count| count.load(Relaxed)),
            tokens: self.tokens.each_ref().map(|count| count.load(Relaxed)),
            ..Stats::default()
        }
    }
}

fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
