//! The targets of one request one after another, and what became of each.

use std::collections::VecDeque;
use std::fmt;

use thiserror::Error;

use crate::{Provider, Route, Target};

/// One target that was tried and why it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Where.
    pub target: Target,
    /// Why it failed, in one line.
    pub error: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.target, self.error)
    }
}

/// Every target failed. Lists what was tried, in order.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no provider could answer; tried {}", tried.iter().map(Attempt::to_string).collect::<Vec<_>>().join("; "))]
pub struct Exhausted {
    /// What was tried.
    pub tried: Vec<Attempt>,
}

/// The order in which one request tries its targets.
///
/// Without `auto_fallback` there is only the route's target. With it, after a primary peer come the other providers in the
/// mesh and at last this node. [`Provider::Local`] never leaves this node.
#[derive(Debug, Clone)]
pub struct FallbackChain {
    next: VecDeque<Target>,
    tried: Vec<Attempt>,
}

impl FallbackChain {
    /// The chain for a request whose provider is any: the route's target, then (with `auto_fallback`) its fallbacks.
    pub fn new(route: &Route, auto_fallback: bool) -> Self {
        Self::of(Some(route.target), &route.fallbacks, auto_fallback)
    }

    /// The chain for a request that has a primary peer: the peer first whether or not a route to it was found, then (with
    /// `auto_fallback`) the targets of `elsewhere`, the route for [`Provider::Any`], with this node last.
    ///
    /// For [`Provider::Any`] and [`Provider::Local`] the primary is the first of the given routes.
    pub fn with_primary(
        provider: Provider,
        primary: Option<&Route>,
        elsewhere: Option<&Route>,
        auto_fallback: bool,
    ) -> Self {
        let first = primary.map(|route| route.target);
        let others: Vec<_> = elsewhere
            .into_iter()
            .flat_map(|route| std::iter::once(&route.target).chain(&route.fallbacks))
            .copied()
            .collect();
        match provider {
            Provider::Local => Self::of(first.filter(|target| *target == Target::Local), &[], false),
            Provider::Any => Self::of(first.or_else(|| others.first().copied()), &others, auto_fallback),
            Provider::Node(_) => {
                let (local, peers): (Vec<_>, Vec<_>) =
                    others.into_iter().partition(|target| *target == Target::Local);
                Self::of(first, &[peers, local].concat(), auto_fallback)
            }
        }
    }

    fn of(first: Option<Target>, others: &[Target], auto_fallback: bool) -> Self {
        let mut next: VecDeque<_> = first.into_iter().collect();
        for target in others.iter().filter(|_| auto_fallback) {
            if !next.iter().any(|known| known.node() == target.node()) {
                next.push_back(*target);
            }
        }
        Self { next, tried: Vec::new() }
    }

    /// Notes why a target could not even be tried, such as the [`NoRoute`](crate::NoRoute) of the primary.
    pub fn failed(&mut self, target: Target, error: impl fmt::Display) {
        self.tried.push(Attempt { target, error: error.to_string() });
    }

    /// What was tried so far.
    pub fn tried(&self) -> &[Attempt] {
        &self.tried
    }

    /// The end of the chain: the error that lists what was tried.
    pub fn into_error(self) -> Exhausted {
        Exhausted { tried: self.tried }
    }
}

/// The next target to try; `None` when all were.
impl Iterator for FallbackChain {
    type Item = Target;

    fn next(&mut self) -> Option<Target> {
        self.next.pop_front()
    }
}
