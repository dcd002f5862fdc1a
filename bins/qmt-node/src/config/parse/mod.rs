//! From the file to [`Config`]: each table, its checks and what contradicts it.

mod agents;
mod channel;
mod inference;
mod mesh;

use std::net::SocketAddr;
use std::time::Duration;

use mesh_identity::Role;

use self::agents::agents;
use self::channel::agent_channel;
pub(super) use self::inference::{MAX_VRAM, SHARES, gigabytes_to_bytes, is_shares, model_name};
use self::inference::{inference, provider};
use self::mesh::mesh;
use super::addr;
use super::reader::{Document, Section};
use super::types::*;

/// One hour in seconds and milliseconds: no setting of this file sensibly waits for longer.
const HOUR_SECS: u64 = 3600;

pub(super) fn apply(document: &Document<'_>, config: &mut Config) {
    mesh(document, config);
    inference(document, config);
    config.providers =
        document.sections("providers").iter().filter_map(|table| provider(document, table)).collect();
    unique(document, "providers", "name");
    gateway(document, config);
    console(document, config);
    config.relay = relay(document);
    agents(document, config);
    let log = document.section("log");
    config.log_format =
        log.choice("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]).unwrap_or_default();
    config.otlp_endpoint = otlp_endpoint(document);
    config.agent_channel = agent_channel(document, &config.home, &config.node_name);
}

fn gateway(document: &Document<'_>, config: &mut Config) {
    let table = document.section("api");
    let listener = &mut config.gateway.listener;
    if let Some(port) = table.port("port") {
        *listener = Listener { addr: SocketAddr::new(listener.addr.ip(), port), asked: true };
    }
    if let Some(text) = table.word("bind") {
        match text.parse() {
            Ok(ip) => listener.addr.set_ip(ip),
            Err(_) => table.wrong("bind", "an IP address", format!("{text:?}")),
        }
    }
    config.gateway.api_key = table.word("api_key").map(Secret::new);
    if let Some(seconds) = table.number("continue_timeout_secs", 1..=86_400) {
        config.gateway.continue_timeout = Duration::from_secs(seconds);
    }
    config.gateway.make_replicas = table.bool("make_replicas").unwrap_or(true);
    config.gateway.keep_replicas = table.bool("keep_replicas").unwrap_or(true);
    if !config.gateway.listener.addr.ip().is_loopback() && config.gateway.api_key.is_none() {
        document.problem(table.line_of("bind"), "bind in [api] is not loopback, which needs api_key");
    }
}

fn otlp_endpoint(document: &Document<'_>) -> Option<http::Uri> {
    let table = document.section("telemetry");
    let written = table.word("otlp_endpoint")?;
    let url = written.parse::<http::Uri>().ok();
    let url = url
        .filter(|url| url.scheme_str() == Some("http") && url.authority().is_some() && url.query().is_none());
    if url.is_none() {
        table.wrong("otlp_endpoint", "an http URL such as http://127.0.0.1:4318", format!("{written:?}"));
    }
    url
}

fn console(document: &Document<'_>, config: &mut Config) {
    let table = document.section("console");
    let (enabled, port) = (table.bool("enabled"), table.port("port"));
    if table.is_there() && enabled != Some(false) {
        config.console = Some(console_at(port));
    }
}

pub(super) fn console_at(port: Option<u16>) -> Listener {
    Listener {
        addr: (std::net::Ipv4Addr::LOCALHOST, port.unwrap_or(CONSOLE_PORT)).into(),
        asked: port.is_some(),
    }
}

fn relay(document: &Document<'_>) -> Option<RelayServer> {
    let table = document.section("relay");
    let enabled = table.bool("enabled").unwrap_or_default();
    let listen = table.word("listen").unwrap_or_else(|| "0.0.0.0:3340".to_owned());
    let socket: Option<SocketAddr> = listen.parse().ok();
    if socket.is_none() {
        table.wrong("listen", "an address such as 0.0.0.0:3340", format!("{listen:?}"));
    }
    let url = table.word("url");
    if let Some(Err(accepted)) = url.as_deref().map(addr::relay_url) {
        table.wrong("url", &accepted, "that text");
    }
    let tls = match (table.path("tls_cert"), table.path("tls_key")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => {
            document.problem(table.line(), "[relay] needs both tls_cert and tls_key, or neither");
            None
        }
    };
    enabled.then_some(RelayServer { listen: socket?, url, tls })
}

fn labels(table: &Section<'_>, key: &'static str) -> Vec<String> {
    let labels = table.words(key);
    let is_label = |label: &String| {
        label.len() <= 32 && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    if labels.len() > 32 || !labels.iter().all(is_label) {
        table.wrong(key, "at most 32 labels, each 1 to 32 of the characters A-Z a-z 0-9 . _ -", "this list");
    }
    labels
}

fn role(table: &Section<'_>) -> Option<Role> {
    table.choice("role", &[("member", Role::Member), ("client", Role::Client)])
}

fn unique(document: &Document<'_>, path: &str, key: &'static str) {
    let mut seen: Vec<(String, usize)> = Vec::new();
    for table in document.sections(path) {
        let Some(name) = table.has(key).then(|| table.text(key)).flatten() else { continue };
        if let Some((_, line)) = seen.iter().find(|(known, _)| *known == name.value) {
            let message =
                format!("{key} {:?} in {} is taken by the entry of line {line}", name.value, table.head());
            document.problem(name.line, message);
        }
        seen.push((name.value, table.line()));
    }
}
