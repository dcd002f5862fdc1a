//! `[mesh]` and what is below it: transports, scopes, peers, relays.

use std::time::Duration;

use mesh_identity::{InviteToken, NodeId, NodeName};
use multiaddr::Multiaddr;

use super::{HOUR_SECS, labels, role, unique};
use crate::config::addr;
use crate::config::reader::{Document, Section, Text};
use crate::config::types::*;

pub(super) fn mesh(document: &Document<'_>, config: &mut Config) {
    let table = document.section("mesh");
    let mesh = &mut config.mesh;
    mesh.enabled = table.bool("enabled");
    mesh.auto_fallback = table.bool("auto_fallback").unwrap_or_default();
    if let Some(name) = table.word("node_name") {
        match NodeName::new(name) {
            Ok(name) => config.node_name = name,
            Err(_) => table.wrong("node_name", "1 to 63 of the characters A-Z a-z 0-9 . _ -", "that text"),
        }
    }
    if let Some(path) = table.path("identity_file") {
        config.identity = Identity::File(path);
    }
    mesh.labels = labels(&table, "capabilities");
    mesh.external_addrs = addresses(document, &table, "external_addrs");
    let seconds = |key, default| table.number(key, 1..=24 * HOUR_SECS).map_or(default, Duration::from_secs);
    mesh.request_timeout = seconds("request_timeout_secs", mesh.request_timeout);
    mesh.stream_grace = seconds("stream_reconnect_grace_secs", mesh.stream_grace);
    mesh.peers = document.sections("mesh.peers").iter().filter_map(|table| peer(document, table)).collect();
    unique(document, "mesh.peers", "name");
    let internet = document.section("mesh.internet");
    mesh.internet = Internet {
        relays: relays(&internet, document).unwrap_or_default(),
        bind_port: internet.port("bind_port"),
        port_mapping: internet.bool("port_mapping").unwrap_or_default(),
    };
    transports(document, mesh);
}

/// The simple fields (`transport`, `invite`) against the tables that supersede them.
fn transports(document: &Document<'_>, mesh: &mut Mesh) {
    let table = document.section("mesh");
    let lan = document.section("mesh.lan");
    let entries = document.sections("mesh.iroh");
    let transport = table.choice("transport", &[("lan", "lan"), ("iroh", "iroh")]);
    let invite = invite(document, &table);
    let lan_on = lan.bool("enabled") == Some(true);
    let is_on = |entry: &&Section<'_>| entry.bool("enabled") == Some(true);
    let iroh_on = entries.iter().find(is_on);
    let line = table.line_of("transport");
    if transport == Some("iroh") && lan_on {
        let message = "transport = \"iroh\" in [mesh] contradicts enabled = true in [mesh.lan]; drop one of them (with [mesh.lan], internet scopes are [[mesh.iroh]] entries)";
        document.problem(line, message);
    }
    if let Some(entry) = iroh_on {
        if transport == Some("lan") {
            document.problem(line, "transport = \"lan\" in [mesh] contradicts [[mesh.iroh]]; drop transport, and write [mesh.lan] enabled = true for the LAN");
        }
        if table.has("invite") {
            let message = format!(
                "invite in [mesh] is superseded by [[mesh.iroh]] (line {}); move it into a [[mesh.iroh]] entry of its own",
                entry.line()
            );
            document.problem(table.line_of("invite"), message);
        }
    }
    for entry in &entries {
        mesh.scopes.extend(scope(document, entry));
    }
    if let Some((invite, line)) = invite {
        mesh.scopes.push(ScopeEntry {
            name: None,
            invite: Some(invite),
            relays: None,
            origin: format!("{} [mesh]", document.at(line)),
        });
        mesh.enabled = mesh.enabled.or(Some(true));
    }
    if lan_on {
        mesh.enabled = mesh.enabled.or(Some(true));
    }
    let by_tables = lan_on || iroh_on.is_some();
    let simple_lan = !by_tables && mesh.scopes.is_empty() && transport != Some("iroh");
    let listen = lan_listen(document, &lan).or_else(|| lan_listen(document, &table));
    let discovery = discovery(&lan).or_else(|| discovery(&table)).unwrap_or_default();
    let trusts = [
        ("client", Trust::Client),
        ("open", Trust::Open),
        ("invite", Trust::Invite),
        ("peers", Trust::Peers),
    ];
    let (trust, psk) = (lan.choice("trust", &trusts).unwrap_or_default(), lan.word("psk"));
    if psk.as_ref().is_some_and(|psk| psk.len() < PSK_BYTES_MIN) {
        let message = format!(
            "psk in [mesh.lan] is too short to be a secret: write at least {PSK_BYTES_MIN} characters, such as four random words"
        );
        document.problem(lan.line_of("psk"), message);
    }
    if psk.is_some() && trust == Trust::Invite {
        document
            .warn(lan.line_of("psk"), "psk in [mesh.lan] is of no use with trust = \"invite\"".to_owned());
    }
    let also_lan = transport == Some("lan") && !by_tables;
    if mesh.enabled == Some(true) && (lan_on || simple_lan || also_lan) {
        mesh.lan = Some(Lan { listen: listen.unwrap_or_else(default_listen), discovery, trust, psk });
    }
    if mesh.enabled == Some(false) {
        mesh.scopes.clear();
    }
}

/// Shorter secrets are found by guessing.
const PSK_BYTES_MIN: usize = 12;

fn default_listen() -> Multiaddr {
    "/ip4/0.0.0.0/tcp/0".parse().expect("a constant address")
}

fn discovery(table: &Section<'_>) -> Option<Discovery> {
    table.choice(
        "discovery",
        &[("mdns", Discovery::Mdns), ("kademlia", Discovery::Kademlia), ("none", Discovery::None)],
    )
}

fn lan_listen(document: &Document<'_>, table: &Section<'_>) -> Option<Multiaddr> {
    let text = table.text("listen")?;
    let address = addr::listen(&text.value);
    if address.is_none() {
        table.wrong("listen", addr::LISTEN, format!("{:?}", text.value));
    }
    address.map(|address| mended(document, &text, address).0)
}

fn mended(document: &Document<'_>, text: &Text, address: addr::Address) -> (Multiaddr, Option<NodeId>) {
    if let Some(mended) = address.mended {
        document.warn(text.line, format!("{:?} is no valid address; it is read as {mended:?}", text.value));
    }
    (address.addr, address.id)
}

fn addresses(document: &Document<'_>, table: &Section<'_>, key: &'static str) -> Vec<Multiaddr> {
    let one = |text: Text| {
        let address = addr::address(&text.value);
        if address.is_none() {
            table.wrong(
                key,
                &format!("a list of addresses, each {}", addr::PEER),
                format!("{:?}", text.value),
            );
        }
        address.map(|address| mended(document, &text, address).0)
    };
    table.texts(key).into_iter().filter_map(one).collect()
}

fn peer(document: &Document<'_>, table: &Section<'_>) -> Option<StaticPeer> {
    let (name, role) = (table.word("name"), role(table));
    let (mut addr, mut id) = (None, None);
    if let Some(text) = table.text("addr") {
        match addr::address(&text.value) {
            Some(address) => {
                let (multiaddr, named) = mended(document, &text, address);
                (addr, id) = (Some(multiaddr), named);
            }
            None => table.wrong("addr", addr::PEER, format!("{:?}", text.value)),
        }
    }
    if let Some(text) = table.word("id") {
        match text.parse::<NodeId>() {
            Ok(own) if id.is_some_and(|named| named != own) => {
                document
                    .problem(table.line_of("id"), "id in [[mesh.peers]] contradicts the /p2p/ part of addr");
            }
            Ok(own) => id = Some(own),
            Err(_) => table.wrong("id", "a node's id (12D3KooW…)", format!("{text:?}")),
        }
    }
    if !table.has("addr") && !table.has("id") {
        document.problem(table.line(), "[[mesh.peers]] needs addr or id");
        return None;
    }
    if role.is_some() && id.is_none() {
        let message =
            "role in [[mesh.peers]] needs id (or /p2p/ID behind addr): an address alone proves nothing";
        document.problem(table.line_of("role"), message);
    }
    Some(StaticPeer { name, addr, id, role })
}

/// An invite; an empty one, as of `${VAR:-}`, is none.
fn invite(document: &Document<'_>, table: &Section<'_>) -> Option<(InviteToken, usize)> {
    let text = table.text("invite").filter(|text| !text.value.trim().is_empty())?;
    match InviteToken::parse(&text.value) {
        Ok(token) => Some((token, text.line)),
        Err(why) => {
            document.problem(text.line, format!("invite in {}: {why}", table.head()));
            None
        }
    }
}

fn scope(document: &Document<'_>, table: &Section<'_>) -> Option<ScopeEntry> {
    let enabled = table.bool("enabled").unwrap_or_default();
    let (name, invite, relays) = (table.word("name"), invite(document, table), relays(table, document));
    if enabled && name.is_none() && invite.is_none() && !table.has("invite") && !table.has("name") {
        document.problem(
            table.line(),
            "[[mesh.iroh]] needs an invite to join by, or the name of a scope to found",
        );
    }
    if !table.has("enabled") {
        document.warn(
            table.line(),
            "[[mesh.iroh]] is not used: enabled is false unless enabled = true is written",
        );
    }
    let origin = format!("{} [[mesh.iroh]]", document.at(table.line()));
    let scope = ScopeEntry { name, invite: invite.map(|(token, _)| token), relays, origin };
    (enabled && (scope.name.is_some() || scope.invite.is_some())).then_some(scope)
}

/// None when the table says nothing about relays.
fn relays(table: &Section<'_>, document: &Document<'_>) -> Option<Relays> {
    let mode =
        table.choice("relay_mode", &[("default", "default"), ("custom", "custom"), ("disabled", "disabled")]);
    let texts = table.texts("relay_urls");
    let are_written = !texts.is_empty();
    let mut urls = Vec::new();
    for text in texts {
        match addr::relay_url(&text.value) {
            Ok(url) => urls.push(url),
            Err(accepted) => table.wrong(
                "relay_urls",
                &format!("a list, each entry {accepted}"),
                format!("{:?}", text.value),
            ),
        }
    }
    let line = table.line_of("relay_mode");
    match (mode, urls.is_empty()) {
        (Some("default"), true) => Some(Relays::Public),
        (Some("disabled"), true) => Some(Relays::Disabled),
        (Some("custom") | None, false) => Some(Relays::Custom(urls)),
        (None, true) => None,
        (Some(_), true) if are_written => None, // their faults are reported
        (Some(_), true) => {
            document.problem(line, format!("relay_mode = \"custom\" in {} needs relay_urls", table.head()));
            None
        }
        (Some(mode), false) => {
            document.problem(line, format!("relay_mode = {mode:?} in {} contradicts relay_urls; write relay_mode = \"custom\" or drop it", table.head()));
            None
        }
    }
}
