//! Counters of one transport.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Metrics { $(pub(crate) $name: Counter),* }

        /// A reading of the counters since start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct MetricsSnapshot { $($(#[$doc])* pub $name: u64),* }

        impl Metrics {
            pub(crate) fn snapshot(&self) -> MetricsSnapshot {
                MetricsSnapshot { $($name: self.$name.value()),* }
            }
        }
    };
}

counters! {
    /// `mesh_transport_dials_total{outcome="linked"}`: dials that became links.
    dials_linked,
    /// `mesh_transport_dials_total{outcome="failed"}`: dials that did not.
    dials_failed,
    /// `mesh_transport_links_improved_total`: links that a better connection was dialed for.
    links_improved,
    /// `mesh_transport_network_changes_total`: changes of the machine's network that were noticed.
    network_changes,
    /// `mesh_transport_hellos_total{outcome="welcomed"}`: inbound hellos that were answered with welcome.
    hellos_welcomed,
    /// `mesh_transport_hellos_total{outcome="refused"}`: inbound hellos answered with a refusal.
    hellos_refused,
    /// `mesh_transport_hellos_total{outcome="faulty"}`: inbound connections that broke the protocol in hello.
    hellos_faulty,
    /// `mesh_transport_hellos_total{outcome="silent"}`: inbound connections whose hello took too long.
    hellos_silent,
    /// `mesh_transport_connections_refused_total`: inbound connections turned away at a limit.
    connections_refused,
    /// `mesh_transport_streams_total{side="opened"}`: streams opened here.
    streams_opened,
    /// `mesh_transport_streams_total{side="served"}`: inbound streams handed to a handler.
    streams_served,
    /// `mesh_transport_streams_total{side="refused"}`: inbound streams without a good header or
    /// handler, or of a caller who may not.
    streams_refused,
    /// `mesh_transport_grants_refused_total`: later grants that peers have shown on standing links, and that were not taken.
    grants_refused,
    /// `mesh_transport_pulses_total`: pulses to peers nearby that were made or renewed.
    pulses_made,
    /// `mesh_transport_processes_gone_total`: peers whose machine said that their process has ended.
    processes_gone,
    /// `mesh_transport_handler_panics_total`: handlers that panicked; the stream was reset.
    handler_panics,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
