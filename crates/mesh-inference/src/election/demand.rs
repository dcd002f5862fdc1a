//! How much each model is asked for: requests within a window of time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The window moves in so many steps.
const STEPS: u32 = 8;
/// More names than any mesh has; a caller that invents names pushes out none.
const MODELS_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Demand {
    step: Duration,
    models: BTreeMap<String, VecDeque<(Instant, u64)>>,
    told: Vec<(String, u64)>,
    next: Option<Instant>,
}

impl Demand {
    pub(super) fn new(window: Duration) -> Self {
        let step = (window / STEPS).max(Duration::from_millis(1));
        Self { step, models: BTreeMap::new(), told: Vec::new(), next: None }
    }

    pub(super) fn count(&mut self, model: String, requests: u64, now: Instant) {
        if self.models.len() >= MODELS_MAX && !self.models.contains_key(&model) {
            return;
        }
        let steps = self.models.entry(model).or_default();
        match steps.back_mut() {
            Some((since, count)) if now.saturating_duration_since(*since) < self.step => {
                *count = count.saturating_add(requests);
            }
            _ => steps.push_back((now, requests)),
        }
        // The first ones are told soon, later ones with the window's next step.
        self.next.get_or_insert(now + self.step / STEPS);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Drops what is too old. Returns what is to be told, when it has changed.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Vec<(String, u64)>> {
        if self.next.is_none_or(|next| next > now) {
            return None;
        }
        let window = self.step * STEPS;
        self.models.retain(|_, steps| {
            while steps.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= window) {
                steps.pop_front();
            }
            !steps.is_empty()
        });
        self.next = (!self.models.is_empty()).then(|| now + self.step);
        let told = self.counts();
        (told != self.told).then(|| {
            self.told.clone_from(&told);
            told
        })
    }

    fn counts(&self) -> Vec<(String, u64)> {
        let count = |steps: &VecDeque<(Instant, u64)>| {
            steps.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count))
        };
        self.models.iter().map(|(model, steps)| (model.clone(), count(steps))).collect()
    }
}
