//! What a turn is bound by.

use std::time::Duration;

use mesh_identity::UnixTime;

use crate::chain::Budget;
use crate::content::ToolCall;
use crate::event::Party;

/// What is known of tools where a turn runs, and what its owner allows.
pub trait Rules: Send + Sync {
    /// What is to become of a call that was asked for on behalf of somebody.
    fn verdict(&self, call: &ToolCall, by: &Party) -> Verdict;

    /// Whether the call changes nothing, so that it may be repeated and may run beside others.
    fn only_reads(&self, call: &ToolCall) -> bool;
}

/// What is to become of a call of a tool, the mildest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs.
    Allow,
    /// Somebody is to be asked, for this reason.
    Ask(String),
    /// It does not run, for this reason.
    Deny(String),
    /// There is no such tool.
    NoSuchTool,
}

impl Verdict {
    /// The harder of two: a turn in which two people spoke may do what both may.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        let rank = |verdict: &Self| match verdict {
            Self::Allow => 0,
            Self::Ask(_) => 1,
            Self::Deny(_) => 2,
            Self::NoSuchTool => 3,
        };
        if rank(&other) > rank(&self) { other } else { self }
    }
}

/// What becomes of a call that may have run when its node went down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interrupted {
    /// The model is told that nobody knows, and decides what to do.
    #[default]
    Tell,
    /// Somebody is asked whether it may run again; the turn waits.
    Ask,
}

/// Bounds of a turn. Each deadline ends one wait.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Of work on a turn, from its first event to its last; rests and waits for decisions do not count (8 h).
    pub time: Option<Duration>,
    /// Tokens of all model calls of a turn, prompts counted each time (no bound).
    pub tokens: Option<u64>,
    /// Millionths of the account's currency (no bound).
    pub cost_micros: Option<u64>,
    /// Model calls of a turn, repeats counted (500): an agent that goes in circles ends here.
    pub model_calls: u32,
    /// How often a failed model call is repeated before the turn fails (3).
    pub retries: u32,
    /// Before the first repeat; doubled for each further one, and made up to a quarter shorter or longer (1 s).
    pub retry_first: Duration,
    /// The longest wait that a busy model may ask for (2 min).
    pub retry_max: Duration,
    /// From a model call to the first piece of its answer (10 min: a machine without a GPU reads a long prompt as long).
    pub model_first: Duration,
    /// From one piece to the next (2 min).
    pub model_idle: Duration,
    /// How long somebody may take to decide about a call of a tool (24 h).
    pub decision: Duration,
    /// Calls of tools that run at once (8).
    pub tools_max: usize,
}

impl Limits {
    /// These, and not more than a budget allows at this time.
    pub(crate) fn within(mut self, budget: &Budget, now: UnixTime) -> Self {
        let smaller = |own: Option<u64>, other: Option<u64>| match (own, other) {
            (Some(own), Some(other)) => Some(own.min(other)),
            (own, other) => own.or(other),
        };
        self.tokens = smaller(self.tokens, budget.tokens);
        self.cost_micros = smaller(self.cost_micros, budget.cost_micros);
        if let Some(until) = budget.until.time() {
            let left = Duration::from_secs(until.0.saturating_sub(now.0));
            self.time = Some(self.time.map_or(left, |own| own.min(left)));
        }
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Some(Duration::from_secs(8 * 3600)),
            tokens: None,
            cost_micros: None,
            model_calls: 500,
            retries: 3,
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(120),
            model_first: Duration::from_secs(600),
            model_idle: Duration::from_secs(120),
            decision: Duration::from_secs(24 * 3600),
            tools_max: 8,
        }
    }
}

/// When and how far what models are told is made shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// From so many tokens on.
    pub at_tokens: u64,
    /// So many of the last ones stay as they are.
    pub keep_tokens: u64,
}

impl Compaction {
    /// For a model with a window of so many tokens: three quarters full, the last quarter of that stays.
    pub fn for_window(tokens: u64) -> Self {
        Self { at_tokens: tokens / 4 * 3, keep_tokens: tokens / 16 * 3 }
    }
}
