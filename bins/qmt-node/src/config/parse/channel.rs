//! The agent channel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::{HOUR_SECS, role};
use crate::config::reader::{Document, Section, found};
use crate::config::types::*;

pub(super) fn agent_channel(document: &Document<'_>, node_name: &str) -> Option<AgentChannel> {
    let table = document.section("agent_channel");
    let enabled = table.bool("enabled").unwrap_or_default();
    let node_name = table.word("node_name").unwrap_or_else(|| node_name.to_owned());
    let port = table.port("agent_channel_port");
    let storage_dir = table.path("storage_dir").unwrap_or_else(|| PathBuf::from("/rivet-shared"));
    let millis =
        |key, default| Duration::from_millis(table.number(key, 100..=1000 * HOUR_SECS).unwrap_or(default));
    let (heartbeat, stale) = (millis("heartbeat_interval_ms", 30_000), millis("stale_threshold_ms", 90_000));
    if stale <= heartbeat {
        document.problem(
            table.line_of("stale_threshold_ms"),
            "stale_threshold_ms in [agent_channel] must be longer than heartbeat_interval_ms",
        );
    }
    let role = role(&table);
    if table.text("secret").is_some() {
        document.warn(
            table.line_of("secret"),
            "secret in [agent_channel] is deprecated and unused: certificates say who calls",
        );
    }
    let (ca_path, cert_path, key_path) = channel_tls(document, &table, &storage_dir, &node_name, enabled);
    let port_asked = port.is_some();
    let port = port.unwrap_or(AGENT_CHANNEL_PORT);
    let discovery = channel_discovery(document, port);
    let channel = AgentChannel {
        node_name,
        ca_path,
        cert_path,
        key_path,
        port,
        port_asked,
        storage_dir,
        heartbeat,
        stale,
        discovery,
        role,
    };
    enabled.then_some(channel)
}

fn channel_tls(
    document: &Document<'_>,
    table: &Section<'_>,
    storage_dir: &Path,
    node_name: &str,
    enabled: bool,
) -> (PathBuf, PathBuf, PathBuf) {
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
    let tls = document.section("agent_channel.tls");
    let ca = storage_dir.join("rivet-ca");
    let issued = |extension: &str| ca.join("issued").join(format!("{node_name}.{extension}"));
    (
        tls.path("ca_path").unwrap_or_else(|| ca.join("intermediate").join("ca-chain.pem")),
        tls.path("cert_path").unwrap_or_else(|| issued("crt")),
        tls.path("key_path").unwrap_or_else(|| issued("key")),
    )
}

fn channel_discovery(document: &Document<'_>, channel_port: u16) -> ChannelDiscovery {
    let table = document.section("agent_channel.discovery");
    let mode = table.choice("mode", &[("seed", "seed"), ("static", "static"), ("mdns", "mdns")]);
    let (host, port) = (table.word("seed_host"), table.port("seed_port").unwrap_or(channel_port));
    match (mode, host) {
        (Some("seed"), Some(host)) => ChannelDiscovery::Seed { host, port },
        (Some("seed"), None) => {
            document.problem(
                table.line_of("mode"),
                "mode = \"seed\" in [agent_channel.discovery] needs seed_host",
            );
            ChannelDiscovery::Static
        }
        (Some("mdns"), _) => ChannelDiscovery::Mdns,
        _ => ChannelDiscovery::Static,
    }
}
