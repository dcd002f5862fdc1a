//! The agent channel.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_identity::NodeName;
use toml::de::DeValue;

use super::{HOUR_SECS, role, unique};
use crate::config::reader::{Document, Section, found};
use crate::config::types::*;

const NAME: &str = "1 to 63 of the characters A-Z a-z 0-9 . _ -, as in the node's certificate";
const HOST: &str = "an IP address or a host name without scheme and port";

pub(super) fn agent_channel(
    document: &Document<'_>,
    home: &Path,
    node_name: &NodeName,
) -> Option<AgentChannel> {
    let table = document.section("agent_channel");
    let enabled = table.bool("enabled").unwrap_or_default();
    let mut channel = AgentChannel::at(home, name(&table, "node_name").unwrap_or_else(|| node_name.clone()));
    channel.listener = listener(&table, channel.listener);
    channel.host = host(&table, "host");
    channel.storage_dir = table.path("storage_dir").unwrap_or(channel.storage_dir);
    times(document, &table, &mut channel);
    channel.role = role(&table);
    if table.text("secret").is_some() {
        document.warn(
            table.line_of("secret"),
            "secret in [agent_channel] is deprecated and unused: certificates say who calls",
        );
    }
    let ca_dir = table.path("ca_dir");
    let folder = ca_dir.clone().unwrap_or_else(|| channel.storage_dir.join("rivet-ca"));
    channel.ca_dir = ca_dir.unwrap_or(channel.ca_dir);
    channel.tls = tls(document, &table, ChannelTls::in_folder(&folder, &channel.node_name), enabled);
    channel.discovery = discovery(document);
    channel.peers = peers(document, &channel.node_name);
    enabled.then_some(channel)
}

fn name(table: &Section<'_>, key: &'static str) -> Option<NodeName> {
    let text = table.word(key)?;
    let name = NodeName::new(text.clone()).ok();
    if name.is_none() {
        table.wrong(key, NAME, format!("{text:?}"));
    }
    name
}

/// A host as it stands in a URL's authority, without port. IPv6 addresses are taken with and without their brackets.
fn host(table: &Section<'_>, key: &'static str) -> Option<String> {
    let text = table.word(key)?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&text);
    let is_name =
        bare.len() <= 253 && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if bare.parse::<IpAddr>().is_err() && !is_name {
        table.wrong(key, HOST, format!("{text:?}"));
        return None;
    }
    Some(bare.to_owned())
}

fn listener(table: &Section<'_>, default: Listener) -> Listener {
    let (port, bind) = (table.port("agent_channel_port"), table.word("bind"));
    let ip = bind.as_deref().map_or(Ok(default.addr.ip()), str::parse).unwrap_or_else(|_| {
        table.wrong("bind", "an IP address", format!("{:?}", bind.as_deref().unwrap_or_default()));
        default.addr.ip()
    });
    Listener { addr: SocketAddr::new(ip, port.unwrap_or(default.addr.port())), asked: port.is_some() }
}

fn times(document: &Document<'_>, table: &Section<'_>, channel: &mut AgentChannel) {
    let millis = |key| table.number(key, 100..=1000 * HOUR_SECS).map(Duration::from_millis);
    channel.heartbeat = millis("heartbeat_interval_ms").unwrap_or(channel.heartbeat);
    channel.stale = millis("stale_threshold_ms").unwrap_or(channel.stale);
    if channel.stale <= channel.heartbeat {
        let key = ["stale_threshold_ms", "heartbeat_interval_ms"].into_iter().find(|key| table.has(key));
        document.problem(
            table.line_of(key.unwrap_or_default()),
            format!(
                "stale_threshold_ms in [agent_channel] is {} and must be longer than heartbeat_interval_ms, which is {}",
                channel.stale.as_millis(),
                channel.heartbeat.as_millis()
            ),
        );
    }
}

fn tls(document: &Document<'_>, table: &Section<'_>, default: ChannelTls, enabled: bool) -> ChannelTls {
    match table.value("tls") {
        Some(DeValue::Boolean(true) | DeValue::Table(_)) => {}
        Some(DeValue::Boolean(false)) => {
            document.problem(
                table.line_of("tls"),
                "tls in [agent_channel] cannot be false: there is no plaintext channel",
            );
        }
        Some(other) => table.wrong("tls", "true or a table [agent_channel.tls]", found(other)),
        None if enabled => {
            document.problem(table.line(), "[agent_channel] needs tls = true or a table [agent_channel.tls]")
        }
        None => {}
    }
    let paths = document.section("agent_channel.tls");
    let given: [Option<PathBuf>; 3] = ["ca_path", "cert_path", "key_path"].map(|key| paths.path(key));
    if paths.has("cert_path") != paths.has("key_path") {
        document.problem(paths.line(), "[agent_channel.tls] needs both cert_path and key_path, or neither");
    }
    let asked = given.iter().any(Option::is_some);
    let [ca, cert, key] = given;
    ChannelTls {
        ca_path: ca.unwrap_or(default.ca_path),
        cert_path: cert.unwrap_or(default.cert_path),
        key_path: key.unwrap_or(default.key_path),
        asked,
    }
}

fn discovery(document: &Document<'_>) -> ChannelDiscovery {
    let table = document.section("agent_channel.discovery");
    let mode = table.choice("mode", &[("seed", "seed"), ("static", "static"), ("mdns", "mdns")]);
    let (host, port) = (host(&table, "seed_host"), table.port("seed_port").unwrap_or(AGENT_CHANNEL_PORT));
    match (mode, host) {
        (Some("seed"), Some(host)) => ChannelDiscovery::Seed { host, port },
        (Some("seed"), None) if !table.has("seed_host") => {
            document.problem(
                table.line_of("mode"),
                "mode = \"seed\" in [agent_channel.discovery] needs seed_host",
            );
            ChannelDiscovery::Static
        }
        (Some("mdns"), _) => ChannelDiscovery::Mdns,
        (None, Some(_)) if !table.has("mode") => {
            document.problem(
                table.line_of("seed_host"),
                "seed_host in [agent_channel.discovery] is asked only with mode = \"seed\"",
            );
            ChannelDiscovery::Static
        }
        _ => ChannelDiscovery::Static,
    }
}

fn peers(document: &Document<'_>, me: &NodeName) -> Vec<ChannelPeer> {
    let peer = |table: &Section<'_>| {
        let (written, port) = (table.needed("name"), table.port("port").unwrap_or(AGENT_CHANNEL_PORT));
        let host = if table.needed("host").is_some() { host(table, "host") } else { None };
        let name = written.and_then(|_| name(table, "name"))?;
        if name == *me {
            document.problem(table.line_of("name"), format!("{} {name} is this node itself", table.head()));
        }
        Some(ChannelPeer { name, host: host?, port })
    };
    unique(document, "agent_channel.discovery.peers", "name");
    document.sections("agent_channel.discovery.peers").iter().filter_map(peer).collect()
}
