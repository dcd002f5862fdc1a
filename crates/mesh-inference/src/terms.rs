//! On what terms a provider's models are shared: how it is spoken to, how much of it another node may use, what it costs.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_identity::NodeId;

/// Nodes whose use is remembered at a time. Whoever has used nothing lately is forgotten first; a node beyond that is
/// refused, so that strangers cannot fill the memory.
const NODES_MAX: usize = 4096;
/// Bytes of text that stand for one token where a provider does not count: about right for English.
const BYTES_OF_A_TOKEN: u64 = 4;

/// The API that a provider speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Api {
    /// OpenAI's, and every server compatible with it.
    #[default]
    OpenAi,
    /// Anthropic's Messages API, translated to and from OpenAI's chat completions.
    Anthropic,
}

/// What one other node may use of a provider. Default: no bounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests in a minute. As many may come at once, and they come back evenly.
    pub requests_per_minute: Option<NonZeroU64>,
    /// Tokens of questions and answers in a day, likewise. A request that was let in may use more than is left: the next
    /// one waits until that has come back.
    pub tokens_per_day: Option<NonZeroU64>,
}

/// Prices of a million tokens, in the currency of the account.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// Tokens of questions.
    pub input: f64,
    /// Tokens of answers, reasoning included.
    pub output: f64,
    /// Tokens of questions that the provider had in its cache; none for the price of the others.
    pub cached: Option<f64>,
}

/// A provider's terms, and what other nodes have used of it so far.
#[derive(Debug, Default)]
pub struct Terms {
    pub(crate) api: Api,
    pub(crate) price: Option<Price>,
    quota: Quota,
    used: Mutex<HashMap<NodeId, Used>>,
}

/// What a provider counted for one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Cached ones included.
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
}

/// A node has used up what it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UsedUp {
    pub(crate) why: String,
    pub(crate) retry_after: Duration,
}

#[derive(Debug)]
struct Used {
    requests: Level,
    tokens: Level,
}

/// What was used, less what has come back since.
#[derive(Debug, Clone, Copy)]
struct Level {
    used: f64,
    at: Instant,
}

impl Terms {
    /// Nobody has used anything yet.
    pub fn new(api: Api, quota: Quota, price: Option<Price>) -> Self {
        Self { api, price, quota, used: Mutex::default() }
    }

    /// Whether requests and answers pass as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.api == Api::OpenAi && self.price.is_none() && self.quota.tokens_per_day.is_none()
    }

    /// Counts a request of another node, if it may ask now.
    pub(crate) fn admit(&self, node: NodeId, now: Instant) -> Result<(), UsedUp> {
        if self.quota == Quota::default() {
            return Ok(());
        }
        let mut all = self.used();
        if all.len() >= NODES_MAX && !all.contains_key(&node) {
            all.retain(|_, used| !used.is_restored(&self.quota, now));
            if all.len() >= NODES_MAX {
                let why = format!("more than {NODES_MAX} nodes use this provider");
                return Err(UsedUp { why, retry_after: MINUTE });
            }
        }
        let fresh = Level { used: 0.0, at: now };
        let used = all.entry(node).or_insert(Used { requests: fresh, tokens: fresh });
        if let Some(most) = self.quota.tokens_per_day {
            used.tokens.room(1.0, most, DAY, now).map_err(|retry_after| UsedUp {
                why: format!("its quota of {most} tokens a day for each node is used up"),
                retry_after,
            })?;
        }
        if let Some(most) = self.quota.requests_per_minute {
            used.requests.room(1.0, most, MINUTE, now).map_err(|retry_after| UsedUp {
                why: format!("its quota of {most} requests a minute for each node is used up"),
                retry_after,
            })?;
            used.requests.used += 1.0;
        }
        Ok(())
    }

    fn note(&self, node: NodeId, tokens: u64, now: Instant) {
        let Some(most) = self.quota.tokens_per_day else { return };
        if let Some(used) = self.used().get_mut(&node) {
            used.tokens.settle(most, DAY, now);
            used.tokens.used += as_float(tokens);
        }
    }

    /// The map stays whole across a panic of another holder: every change is one call on it.
    fn used(&self) -> MutexGuard<'_, HashMap<NodeId, Used>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Price {
    /// In millionths: a price of a million tokens is one of millionths a token.
    pub(crate) fn cost_micros(&self, counted: Counted) -> u64 {
        let cached = counted.cached.min(counted.input);
        let cost = as_float(counted.input - cached) * self.input
            + as_float(cached) * self.cached.unwrap_or(self.input)
            + as_float(counted.output) * self.output;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a cast of floats saturates"
        )]
        let micros = cost.round() as u64;
        micros
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Used {
    fn is_restored(&mut self, quota: &Quota, now: Instant) -> bool {
        if let Some(most) = quota.requests_per_minute {
            self.requests.settle(most, MINUTE, now);
        }
        if let Some(most) = quota.tokens_per_day {
            self.tokens.settle(most, DAY, now);
        }
        self.requests.used <= 0.0 && self.tokens.used <= 0.0
    }
}

impl Level {
    fn settle(&mut self, most: NonZeroU64, period: Duration, now: Instant) {
        let back = now.saturating_duration_since(self.at).div_duration_f64(period) * as_float(most.get());
        self.used = (self.used - back).max(0.0);
        self.at = now;
    }

    /// How long until `more` fits, if it does not now.
    fn room(&mut self, more: f64, most: NonZeroU64, period: Duration, now: Instant) -> Result<(), Duration> {
        self.settle(most, period, now);
        let over = self.used + more - as_float(most.get());
        // What came back in a time that was told is short of it by rounding alone.
        if over <= 1e-6 { Ok(()) } else { Err(period.mul_f64(over / as_float(most.get()))) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens stay far below 2^53")]
fn as_float(count: u64) -> f64 {
    count as f64
}

/// What one answer uses; told when it is dropped, so that one that was given up counts too.
#[derive(Debug)]
pub(crate) struct Spending {
    terms: Arc<Terms>,
    node: Option<NodeId>,
    begun: bool,
    complete: bool,
    counted: Option<Counted>,
    question_bytes: u64,
    answer_bytes: u64,
}

impl Spending {
    /// `node`: the other node on whose behalf it is, if it is one's.
    pub(crate) fn new(terms: Arc<Terms>, node: Option<NodeId>) -> Self {
        Self { terms, node, begun: false, complete: false, counted: None, question_bytes: 0, answer_bytes: 0 }
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The provider works on a question of this size. Before that nothing is used.
    pub(crate) fn begin(&mut self, question_bytes: usize) {
        self.begun = true;
        self.question_bytes = question_bytes as u64;
    }

    pub(crate) fn note_text(&mut self, bytes: usize) {
        self.answer_bytes += bytes as u64;
    }

    /// The provider's own count, of the whole answer or as far as it is.
    pub(crate) fn count(&mut self, counted: Counted) {
        self.counted = Some(counted);
    }

    /// The count is that of the whole answer.
    pub(crate) fn complete(&mut self, counted: Counted) {
        self.counted = Some(counted);
        self.complete = true;
    }
}

impl Drop for Spending {
    fn drop(&mut self) {
        let Some(node) = self.node.filter(|_| self.begun) else { return };
        let tokens = match self.counted {
            Some(counted) if self.complete => counted.input.saturating_add(counted.output),
            // It was given up, and the tokens of its last part were not counted yet.
            Some(counted) => {
                counted.input.saturating_add(counted.output.max(self.answer_bytes / BYTES_OF_A_TOKEN))
            }
            None => (self.question_bytes + self.answer_bytes) / BYTES_OF_A_TOKEN,
        };
        self.terms.note(node, tokens, Instant::now());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use mesh_identity::NodeKey;

    use super::*;

    fn node(seed: u8) -> NodeId {
        NodeKey::from_seed([seed; 32]).node_id()
    }

    fn terms(requests: u64, tokens: u64) -> Arc<Terms> {
        let quota =
            Quota { requests_per_minute: NonZeroU64::new(requests), tokens_per_day: NonZeroU64::new(tokens) };
        Arc::new(Terms::new(Api::OpenAi, quota, None))
    }

    #[test]
    fn each_node_has_its_own_requests_and_they_come_back() {
        let (terms, start) = (terms(3, 0), Instant::now());
        for _ in 0..3 {
            terms.admit(node(1), start).unwrap();
        }
        let refused = terms.admit(node(1), start).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_secs(20));
        assert_eq!(refused.why, "its quota of 3 requests a minute for each node is used up");
        terms.admit(node(2), start).unwrap();
        let later = start + refused.retry_after;
        terms.admit(node(1), later).unwrap();
        terms.admit(node(1), later).unwrap_err();
        for _ in 0..3 {
            terms.admit(node(1), later + MINUTE).unwrap();
        }
        terms.admit(node(1), later + MINUTE).unwrap_err();
    }

    #[test]
    fn tokens_count_when_they_are_used_and_come_back_over_a_day() {
        let (terms, start) = (terms(0, 1000), Instant::now());
        terms.admit(node(1), start).unwrap();
        terms.note(node(1), 1500, start);
        let refused = terms.admit(node(1), start).unwrap_err();
        assert!(refused.why.contains("1000 tokens a day"));
        assert_eq!(refused.retry_after, DAY.mul_f64(0.501));
        terms.admit(node(2), start).unwrap();
        terms.admit(node(1), start + refused.retry_after).unwrap();
    }

    #[test]
    fn an_answer_that_is_given_up_counts_by_its_size() {
        let terms = terms(0, 1000);
        terms.admit(node(1), Instant::now()).unwrap();
        drop(Spending::new(terms.clone(), Some(node(1))));
        terms.admit(node(1), Instant::now()).unwrap();
        let mut spending = Spending::new(terms.clone(), Some(node(1)));
        spending.begin(3000);
        spending.note_text(1000);
        drop(spending);
        terms.admit(node(1), Instant::now()).unwrap_err();
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let (terms, start) = (terms(1, 0), Instant::now());
        let many = |number: u16| {
            let mut seed = [0; 32];
            seed[..2].copy_from_slice(&number.to_le_bytes());
            NodeKey::from_seed(seed).node_id()
        };
        for number in 0..u16::try_from(NODES_MAX).unwrap() {
            terms.admit(many(number), start).unwrap();
        }
        assert!(terms.admit(many(5000), start).unwrap_err().why.contains("nodes use this provider"));
        terms.admit(many(5000), start + MINUTE).unwrap();
        assert_eq!(terms.used().len(), 1);
    }

    #[test]
    fn prices_are_of_a_million_tokens() {
        let price = Price { input: 3.0, output: 15.0, cached: Some(0.3) };
        assert_eq!(price.cost_micros(Counted { input: 1_000_000, cached: 0, output: 0 }), 3_000_000);
        assert_eq!(price.cost_micros(Counted { input: 1000, cached: 400, output: 10 }), 1800 + 120 + 150);
        let flat = Price { cached: None, ..price };
        assert_eq!(flat.cost_micros(Counted { input: 1000, cached: 400, output: 10 }), 3000 + 150);
    }
}
