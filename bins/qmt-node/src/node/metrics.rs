//! What is counted, in Prometheus' text format. Labels come from closed lists: no node, session, model or address is named.

use mesh_gossip::{MetricsSnapshot as Gossip, State};
use mesh_inference::fetch::FetchStats;
use mesh_inference::gateway::GatewayStats;
use mesh_sessions::metrics::Stats as Sessions;
use mesh_transport::{MetricsSnapshot as Transport, PathKind};
use mesh_tunnel::{RpcStats, Stats as Tunnel};

use super::Node;
use super::agents;
use super::channel::{self, metrics::Counted};

/// A metric: its name, what it is, and its samples, each with its labels as they are written.
pub struct Family {
    /// The name, with its unit behind it.
    pub name: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// What increments it, or what it shows.
    pub help: &'static str,
    pub(super) samples: &'static [Sample],
}

/// What a metric's value does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It grows, and begins at 0 with each start of the node.
    Counter,
    /// It goes up and down.
    Gauge,
}

impl Kind {
    /// Prometheus' word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

pub(super) struct Sample {
    pub(super) labels: &'static str,
    pub(super) read: fn(&Facts) -> f64,
}

/// Everything that the metrics are read from, taken at one moment.
pub(super) struct Facts {
    uptime_secs: f64,
    version_is: f64,
    transport: Transport,
    gossip: Gossip,
    gateway: GatewayStats,
    tunnel: Tunnel,
    rpc: RpcStats,
    fetch: FetchStats,
    members: [u64; 3],
    links: [u64; 2],
    backends: [u64; 2],
    scopes: u64,
    pub(super) channel: Counted,
    spans: [u64; 2],
    pub(super) sessions: Sessions,
}

#[expect(clippy::cast_precision_loss, reason = "the format knows no other number, and 2^53 bytes are far")]
pub(super) fn of(count: u64) -> f64 {
    count as f64
}

macro_rules! families {
    ($($kind:ident $name:literal, $help:literal: $($labels:expr => $read:expr),+;)+) => {
        /// Those of one part of the node, in the order in which they are written.
        pub(in crate::node) const FAMILIES: &[Family] = &[$(Family {
            name: $name,
            kind: Kind::$kind,
            help: $help,
            samples: &[$(Sample { labels: $labels, read: $read }),+],
        }),+];
    };
}
pub(super) use families;

/// All of them, in the order in which they are written.
pub fn all() -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().chain(channel::metrics::FAMILIES).chain(agents::metrics::FAMILIES)
}

families! {
    Gauge "mesh_node_uptime_seconds", "Since the node started.": "" => |f| f.uptime_secs;
    Gauge "mesh_node_info", "1; the label is the node's version.": concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"") => |f| f.version_is;
    Gauge "mesh_node_scopes", "Meshes that the node is in.": "" => |f| of(f.scopes);
    Counter "mesh_node_spans_total", "Spans of requests, by whether the collector of `[telemetry]` took them.":
        "outcome=\"sent\"" => |f| of(f.spans[0]),
        "outcome=\"lost\"" => |f| of(f.spans[1]);
    Gauge "mesh_gossip_members", "Other nodes of all its meshes, by what is known of them.":
        "state=\"alive\"" => |f| of(f.members[0]),
        "state=\"suspect\"" => |f| of(f.members[1]),
        "state=\"down\"" => |f| of(f.members[2]);
    Counter "mesh_gossip_frames_total", "Gossip frames: handed to a link, arrived whole, lost because a peer was slow or its link went away.":
        "outcome=\"sent\"" => |f| of(f.gossip.frames_sent),
        "outcome=\"received\"" => |f| of(f.gossip.frames_received),
        "outcome=\"dropped\"" => |f| of(f.gossip.frames_dropped);
    Counter "mesh_gossip_bytes_total", "Bytes of those frames, lengths in front included.":
        "direction=\"sent\"" => |f| of(f.gossip.bytes_sent),
        "direction=\"received\"" => |f| of(f.gossip.bytes_received);
    Counter "mesh_gossip_peer_faults_total", "Frames and streams that broke the protocol.": "" => |f| of(f.gossip.peer_faults);
    Counter "mesh_gossip_records_refused_total", "Records and revocations that were not accepted.": "" => |f| of(f.gossip.records_refused);
    Gauge "mesh_transport_links", "Links open now, by how their bytes travel.":
        "path=\"direct\"" => |f| of(f.links[0]),
        "path=\"relayed\"" => |f| of(f.links[1]);
    Counter "mesh_transport_dials_total", "Dials, by whether they became links.":
        "outcome=\"linked\"" => |f| of(f.transport.dials_linked),
        "outcome=\"failed\"" => |f| of(f.transport.dials_failed);
    Counter "mesh_transport_links_improved_total", "Links that a better connection was dialed for.": "" => |f| of(f.transport.links_improved);
    Counter "mesh_transport_network_changes_total", "Changes of the machine's network that were noticed.": "" => |f| of(f.transport.network_changes);
    Counter "mesh_transport_hellos_total", "Inbound hellos, by how they ended.":
        "outcome=\"welcomed\"" => |f| of(f.transport.hellos_welcomed),
        "outcome=\"refused\"" => |f| of(f.transport.hellos_refused),
        "outcome=\"faulty\"" => |f| of(f.transport.hellos_faulty),
        "outcome=\"silent\"" => |f| of(f.transport.hellos_silent);
    Counter "mesh_transport_connections_refused_total", "Inbound connections turned away at a limit.": "" => |f| of(f.transport.connections_refused);
    Counter "mesh_transport_streams_total", "Streams opened here, inbound ones handed to a handler, and inbound ones without a good header or right.":
        "side=\"opened\"" => |f| of(f.transport.streams_opened),
        "side=\"served\"" => |f| of(f.transport.streams_served),
        "side=\"refused\"" => |f| of(f.transport.streams_refused);
    Counter "mesh_transport_grants_refused_total", "Later grants that peers showed on standing links, and that were not taken.": "" => |f| of(f.transport.grants_refused);
    Counter "mesh_transport_pulses_total", "Pulses to peers nearby that were made or renewed.": "" => |f| of(f.transport.pulses_made);
    Counter "mesh_transport_processes_gone_total", "Peers whose machine said that their process has ended.": "" => |f| of(f.transport.processes_gone);
    Counter "mesh_transport_handler_panics_total", "Handlers that panicked; the stream was reset.": "" => |f| of(f.transport.handler_panics);
    Gauge "mesh_tunnel_connections", "Connections carried through tunnels now.": "" => |f| f64::from(u32::try_from(f.tunnel.open).unwrap_or(u32::MAX));
    Counter "mesh_tunnel_connections_total", "Connections to tunnels, by how they went.":
        "outcome=\"opened\"" => |f| of(f.tunnel.opened),
        "outcome=\"refused\"" => |f| of(f.tunnel.refused),
        "outcome=\"broken\"" => |f| of(f.tunnel.broken);
    Counter "mesh_tunnel_bytes_total", "Bytes carried through tunnels.":
        "direction=\"to_peers\"" => |f| of(f.tunnel.to_peers_bytes),
        "direction=\"from_peers\"" => |f| of(f.tunnel.from_peers_bytes);
    Counter "mesh_tunnel_rpc_frames_total", "Commands to rpc-servers and replies, those that the tunnel gave itself too.":
        "direction=\"request\"" => |f| of(f.rpc.requests),
        "direction=\"reply\"" => |f| of(f.rpc.replies);
    Counter "mesh_tunnel_rpc_references_total", "Weights that went by reference.": "" => |f| of(f.rpc.weights_by_reference);
    Counter "mesh_tunnel_rpc_weight_bytes_total", "Bytes of weights that did not have to cross the link, and of those that did.":
        "by=\"reference\"" => |f| of(f.rpc.weights_by_reference_bytes),
        "by=\"sent\"" => |f| of(f.rpc.weights_sent_bytes);
    Gauge "mesh_inference_backends", "What can answer requests here, by whether it is ready.":
        "state=\"ready\"" => |f| of(f.backends[0]),
        "state=\"other\"" => |f| of(f.backends[1]);
    Gauge "mesh_inference_connections", "Callers' connections to the gateway.": "" => |f| of(f.gateway.connections);
    Counter "mesh_inference_requests_total", "Requests that the gateway took, by who sent them.":
        "from=\"callers\"" => |f| of(f.gateway.requests_total.saturating_sub(f.gateway.peer_requests_total)),
        "from=\"peers\"" => |f| of(f.gateway.peer_requests_total);
    Counter "mesh_inference_refused_total", "Answers made by the gateway because no backend gave one.": "" => |f| of(f.gateway.refused_total);
    Counter "mesh_inference_fallbacks_total", "Attempts that failed and went on to the next target.": "" => |f| of(f.gateway.fallbacks_total);
    Counter "mesh_inference_answers_total", "Answers that lost their backend in the middle, by whether they went on or ended in a declared error.":
        "outcome=\"continued\"" => |f| of(f.gateway.continued_total),
        "outcome=\"lost\"" => |f| of(f.gateway.lost_total);
    Counter "mesh_inference_resumable_total", "Answers that callers asked to be able to resume, and those that were.":
        "outcome=\"asked\"" => |f| of(f.gateway.resumable_total),
        "outcome=\"resumed\"" => |f| of(f.gateway.resumed_total);
    Counter "mesh_inference_replicated_events_total", "Events that waited for their copy at another member.": "" => |f| of(f.gateway.replicated_total);
    Counter "mesh_inference_replication_seconds_total", "What they waited together.": "" => |f| of(f.gateway.replication_micros_total) / 1e6;
    Gauge "mesh_inference_kept_answers", "Answers kept here for resuming, own ones and copies of others.": "" => |f| of(f.gateway.kept_answers);
    Gauge "mesh_inference_kept_bytes", "Bytes of them.": "" => |f| of(f.gateway.kept_bytes);
    Counter "mesh_inference_fetch_bytes_total", "Bytes of model files, by where they came from or went.":
        "from=\"servers\"" => |f| of(f.fetch.from_servers_bytes),
        "from=\"members\"" => |f| of(f.fetch.from_members_bytes),
        "from=\"here\"" => |f| of(f.fetch.to_members_bytes);
    Counter "mesh_inference_fetch_lies_total", "Members dropped from a download since what they sent was not what they said.": "" => |f| of(f.fetch.lies);
}

impl Node {
    /// All metrics at this moment, in Prometheus' text format (version 0.0.4).
    pub(crate) fn metrics_text(&self) -> String {
        let facts = self.counted();
        let mut text = String::with_capacity(16 * 1024);
        for family in all() {
            text.push_str(&format!(
                "# HELP {} {}\n# TYPE {} {}\n",
                family.name,
                family.help,
                family.name,
                family.kind.word()
            ));
            for sample in family.samples {
                let labels =
                    if sample.labels.is_empty() { String::new() } else { format!("{{{}}}", sample.labels) };
                text.push_str(&format!("{}{labels} {}\n", family.name, (sample.read)(&facts)));
            }
        }
        text
    }

    fn counted(&self) -> Facts {
        let links = self.transport().links();
        let with = |kind: PathKind| links.iter().filter(|link| link.path.kind == kind).count() as u64;
        let scopes = self.scopes().list();
        let mut gossip = Gossip::default();
        let mut members = [0; 3];
        for scope in &scopes {
            let Some(one) = self.gossip(&scope.id()) else { continue };
            let more = one.metrics();
            gossip.frames_sent += more.frames_sent;
            gossip.bytes_sent += more.bytes_sent;
            gossip.frames_dropped += more.frames_dropped;
            gossip.frames_received += more.frames_received;
            gossip.bytes_received += more.bytes_received;
            gossip.peer_faults += more.peer_faults;
            gossip.records_refused += more.records_refused;
            for member in one.members().iter() {
                match member.state {
                    State::Alive => members[0] += 1,
                    State::Suspect => members[1] += 1,
                    State::Down => members[2] += 1,
                }
            }
        }
        let backends = self.backends().list();
        let ready = backends.iter().filter(|backend| backend.is_ready()).count() as u64;
        Facts {
            uptime_secs: self.started().elapsed().as_secs_f64(),
            version_is: 1.0,
            transport: self.transport().metrics(),
            gossip,
            gateway: self.inner.gateway.stats(),
            tunnel: self.inner.tunnels.stats(),
            rpc: self.inner.tunnels.rpc_stats(),
            fetch: self.inner.pulls.stats(),
            members,
            links: [with(PathKind::Direct) + with(PathKind::Memory), with(PathKind::Relayed)],
            backends: [ready, backends.len() as u64 - ready],
            scopes: scopes.len() as u64,
            channel: self.channel_counted(),
            spans: self.config().traces.counts(),
            sessions: self.running_sessions().map(|sessions| sessions.stats()).unwrap_or_default(),
        }
    }
}

/// The table of `docs/metrics.md`.
pub fn reference() -> String {
    let mut text = "| metric | kind | what |\n|---|---|---|\n".to_owned();
    for family in all() {
        let labels: Vec<&str> = family
            .samples
            .iter()
            .map(|sample| sample.labels)
            .filter(|labels| !labels.is_empty() && !labels.starts_with("version"))
            .collect();
        let labels = if labels.is_empty() { String::new() } else { format!(" by `{}`", labels.join("`, `")) };
        text.push_str(&format!("| `{}`{labels} | {} | {} |\n", family.name, family.kind.word(), family.help));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_the_code() {
        let page = include_str!("../../../../docs/metrics.md");
        assert!(page.contains(&reference()), "docs/metrics.md should hold this table:\n{}", reference());
    }

    #[test]
    fn the_dashboard_asks_for_what_there_is() {
        let page = include_str!("../../../../docs/grafana-dashboard.json");
        let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let asked: std::collections::BTreeSet<&str> =
            words.filter(|word| word.starts_with("mesh_")).collect();
        assert!(asked.len() > 15, "{asked:?}");
        for name in asked {
            assert!(all().any(|family| family.name == name), "there is no metric {name}");
        }
    }

    #[test]
    fn names_say_their_unit_and_end_as_their_kind_does() {
        for family in all() {
            assert!(family.name.starts_with("mesh_"), "{}", family.name);
            assert_eq!(family.kind == Kind::Counter, family.name.ends_with("_total"), "{}", family.name);
        }
    }
}
