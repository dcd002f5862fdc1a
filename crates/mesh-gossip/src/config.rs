//! Parameters of the membership core and of its driver.

use std::time::Duration;

/// How a node watches its peers and exchanges records with them.
///
/// The defaults suit one machine to a few dozen. All members of a scope may run with different values; only the two
/// sizes that say what a record may hold ([`crate::limits`]) are part of the protocol and fixed.
#[derive(Debug, Clone)]
pub struct Config {
    /// A neighbour that was not heard for so long is pinged. Default 650 ms: eight neighbours cost 1.4 kB/s
    /// with all headers. With fewer than eight neighbours it is shorter in
    /// proportion, down to two fifths of it, so that a small scope notices faster for the same traffic.
    pub probe_interval: Duration,
    /// How long a node has to contradict when all its neighbours hold it for dead, before it is down; once more as long for
    /// each neighbour that has not spoken. Default 150 ms: news crosses a scope of thousands and back in twice that time.
    /// Longer on a lossy network, by what this node measures.
    pub grace: Duration,
    /// How long this node waits when the dead node's neighbours do not agree or are missing too. Default 2 s.
    pub disputed: Duration,
    /// The same when this node is the only one that could know: a scope of two. Default 600 ms.
    pub alone: Duration,
    /// Time between two rounds of anti-entropy, give or take a quarter, for some seconds after news; five times as long in
    /// a quiet scope. Default 1 s.
    pub exchange_interval: Duration,
    /// Linked peers asked in one round of anti-entropy. Default 1.
    pub exchange_fanout: usize,
    /// How long changes are collected before they are pushed. Default 20 ms.
    pub push_delay: Duration,
    /// Members known at most, the dead that are remembered included. Default 2048; further ones are refused and counted.
    pub nodes_max: usize,
    /// Links that this node opens by itself at most. Default 48, below the 64 that a transport takes by default.
    pub links_max: usize,
    /// Dials in progress at most. Default 8.
    pub dials_max: usize,
    /// Wait after the first failed dial; it doubles up to `redial_max`, jittered, for ever. Default 0.5 s.
    pub redial_min: Duration,
    /// Longest wait between two dials of one member. Default 30 s.
    pub redial_max: Duration,
    /// How long a dead member's record is still offered to others. Default 1 h. Longer than any two nodes differ in
    /// noticing a death, so that nobody offers what another has just forgotten.
    pub offer_dead: Duration,
    /// How long a dead (node, incarnation) is remembered, so that it cannot return. Default 24 h.
    pub forget_dead: Duration,
    /// A passive node pulls records and publishes none: no other node lists it. Default false; lite clients set it.
    pub passive: bool,
    /// Nobody was invited into this scope (scope `lan`), so no node vouches for another: what is for members goes from its
    /// owner straight to those whom the owner takes for members, and nobody passes it on; revocations are refused, since
    /// anybody could sign one. Default false; all nodes of a scope agree on it.
    pub uninvited: bool,
    /// Frames waiting for one slow peer at most; further ones are dropped and counted, anti-entropy mends. Default 64.
    pub queue_frames: usize,
    /// Events that a subscriber may lag behind before it gets [`crate::Event::Snapshot`] instead. Default 256.
    pub event_backlog: usize,
    /// How long `leave` and `shutdown` wait for goodbyes to be written. Default 500 ms.
    pub goodbye: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(650),
            grace: Duration::from_millis(150),
            disputed: Duration::from_secs(2),
            alone: Duration::from_millis(600),
            exchange_interval: Duration::from_secs(1),
            exchange_fanout: 1,
            push_delay: Duration::from_millis(20),
            nodes_max: 2048,
            links_max: 48,
            dials_max: 8,
            redial_min: Duration::from_millis(500),
            redial_max: Duration::from_secs(30),
            offer_dead: Duration::from_secs(3600),
            forget_dead: Duration::from_secs(24 * 3600),
            passive: false,
            uninvited: false,
            queue_frames: 64,
            event_backlog: 256,
            goodbye: Duration::from_millis(500),
        }
    }
}

impl Config {
    /// A lite client's parameters: passive, and with few links of its own accord.
    #[must_use]
    pub fn passive() -> Self {
        Self { passive: true, links_max: 3, ..Self::default() }
    }

    /// The same parameters for the scope of uninvited peers.
    #[must_use]
    pub fn among_uninvited(self) -> Self {
        Self { uninvited: true, ..self }
    }
}
