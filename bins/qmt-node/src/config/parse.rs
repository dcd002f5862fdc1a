//! From the file to [`Config`]: each table, its checks and what contradicts it.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_identity::{InviteToken, NodeId, NodeName, Role};
use multiaddr::Multiaddr;
use toml::de::DeValue;

use super::addr;
use super::reader::{Document, Section, Text, found};
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
    config.agent_channel = agent_channel(document, config.node_name.as_str());
}

impl Section<'_> {
    /// Whether `enabled = false` is written here; tables without that key are never off.
    pub(super) fn is_off(&self) -> bool {
        let schema_has = super::schema::TABLES
            .iter()
            .any(|table| table.head() == self.head() && table.keys.contains(&"enabled"));
        schema_has && self.bool("enabled") == Some(false)
    }
}

fn mesh(document: &Document<'_>, config: &mut Config) {
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

pub(super) fn default_listen() -> Multiaddr {
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

fn role(table: &Section<'_>) -> Option<Role> {
    table.choice("role", &[("member", Role::Member), ("client", Role::Client)])
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

fn inference(document: &Document<'_>, config: &mut Config) {
    let table = document.section("inference");
    let inference = &mut config.inference;
    inference.models = table
        .words("models")
        .into_iter()
        .map(|model| model_name(&model, |path| document.resolve(path)))
        .collect();
    let dirs = table.words("model_dirs");
    if table.has("model_dirs") {
        inference.model_dirs = dirs.iter().map(|dir| document.resolve(dir)).collect();
    }
    if let Some(gigabytes) = table.float("max_vram") {
        inference.max_vram_bytes = gigabytes_to_bytes(gigabytes);
        if inference.max_vram_bytes.is_none() {
            table.wrong("max_vram", MAX_VRAM, gigabytes);
        }
    }
    inference.ctx_size = table.u32("ctx_size", 1..=16_777_216);
    inference.slots = table.u32("slots", 1..=64);
    inference.threads = table.u32("threads", 1..=1024);
    inference.split = table.bool("split").unwrap_or_default();
    inference.draft = match table.value("draft") {
        Some(DeValue::Boolean(true)) | None => Draft::Auto,
        Some(DeValue::Boolean(false)) => Draft::Off,
        Some(DeValue::String(_)) => table.path("draft").map_or(Draft::Auto, Draft::Path),
        Some(other) => {
            table.wrong("draft", "a path, true or false", found(other));
            Draft::Auto
        }
    };
    inference.draft_max = table.u32("draft_max", 1..=1024);
    inference.device = table.word("device");
    inference.tensor_split = table.word("tensor_split");
    if inference.tensor_split.as_deref().is_some_and(|shares| !is_shares(shares)) {
        table.wrong("tensor_split", SHARES, "that text");
    }
    inference.bin_dir = table.path("bin_dir");
    inference.share = share(&table);
    inference.lend = table.bool("lend").unwrap_or(true);
    inference.assign = table.bool("assign").unwrap_or(true);
    inference.calibrate = table.bool("calibrate").unwrap_or(true);
    let times = &mut inference.election;
    for (key, time) in [
        ("debounce_secs", &mut times.debounce),
        ("left_out_secs", &mut times.left_out_for),
        ("patience_secs", &mut times.patience),
    ] {
        let Some(seconds) = table.float(key) else { continue };
        match Duration::try_from_secs_f64(seconds) {
            Ok(read) if read <= ELECTION_TIME_MAX => *time = read,
            _ => table.wrong(key, "a number of seconds from 0 to 3600", seconds),
        }
    }
}

/// Longer than any patience of people.
const ELECTION_TIME_MAX: Duration = Duration::from_secs(3600);
pub(super) const MAX_VRAM: &str = "a number of GB (10^9 bytes) above 0";
pub(super) const SHARES: &str = "shares such as \"3,1\"";

pub(super) fn gigabytes_to_bytes(gigabytes: f64) -> Option<u64> {
    let bytes = gigabytes * 1e9;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    (1.0..1e18).contains(&bytes).then_some(bytes as u64)
}

pub(super) fn is_shares(text: &str) -> bool {
    let is_share =
        |share: &str| share.trim().parse::<f64>().is_ok_and(|share| share.is_finite() && share >= 0.0);
    text.split(',').all(is_share)
}

/// Paths are made absolute; names, `org/repo/file.gguf` and URLs stay as they are.
pub(super) fn model_name(model: &str, resolve: impl Fn(&str) -> PathBuf) -> String {
    let is_path = ["/", "./", "../"].iter().any(|start| model.starts_with(start));
    if is_path { resolve(model).display().to_string() } else { model.to_owned() }
}

fn share(table: &Section<'_>) -> Share {
    let choices = [("none", Share::None), ("members", Share::Members), ("clients", Share::Clients)];
    table.choice("share", &choices).unwrap_or(Share::Members)
}

fn provider(document: &Document<'_>, table: &Section<'_>) -> Option<Provider> {
    let name = table.needed("name");
    let kinds = [("openai", ProviderKind::OpenAi), ("anthropic", ProviderKind::Anthropic)];
    let kind = table.choice("kind", &kinds).unwrap_or(ProviderKind::OpenAi);
    let public = match kind {
        ProviderKind::OpenAi => "https://api.openai.com/v1",
        ProviderKind::Anthropic => "https://api.anthropic.com/v1",
    };
    let written = table.word("base_url");
    let url: Option<http::Uri> = written.as_deref().unwrap_or(public).parse().ok();
    let url = url.filter(|url| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
    });
    if url.is_none() {
        table.wrong("base_url", "an http or https URL such as http://127.0.0.1:8000/v1", "that text");
    }
    let api_key = table.word("api_key_env").and_then(|variable| {
        let value = document.variable(&variable);
        if value.is_none() {
            let message = format!("api_key_env in [[providers]]: the variable {variable} is not set");
            document.problem(table.line_of("api_key_env"), message);
        }
        value.map(Secret::new)
    });
    let (models, share) = (table.words("models"), share(table));
    let count = |key| table.number(key, 1..=COUNT_MAX).and_then(NonZeroU64::new);
    let quota =
        Quota { requests_per_minute: count("requests_per_minute"), tokens_per_day: count("tokens_per_day") };
    let price = price(document, table);
    Some(Provider { name: name?, kind, base_url: url?, api_key, models, share, quota, price })
}

/// Above what any provider sells in a day; beyond it counting in floats would lose single tokens.
const COUNT_MAX: u64 = 1_000_000_000_000;

fn price(document: &Document<'_>, table: &Section<'_>) -> Option<Price> {
    let one = |key: &'static str| {
        let price = table.float(key)?;
        let is_price = price.is_finite() && price >= 0.0;
        if !is_price {
            table.wrong(key, "a price of a million tokens, 0 or more", price);
        }
        is_price.then_some(price)
    };
    let (input, output, cached) = (one("input_price"), one("output_price"), one("cached_price"));
    for (key, other) in
        [("input_price", "output_price"), ("output_price", "input_price"), ("cached_price", "input_price")]
    {
        if table.has(key) && !table.has(other) {
            let message = format!("{key} in {} needs {other} beside it", table.head());
            document.problem(table.line_of(key), message);
        }
    }
    Some(Price { input: input?, output: output?, cached })
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

fn agents(document: &Document<'_>, config: &mut Config) {
    for table in document.sections("remote_agents") {
        let (id, peer) = (table.needed("id"), table.needed("peer"));
        let (name, description) = (table.word("name"), table.word("description"));
        let capabilities = labels(&table, "capabilities");
        if let (Some(id), Some(peer)) = (id, peer) {
            config.remote_agents.push(RemoteAgent { id, name, description, peer, capabilities });
        }
    }
    for table in document.sections("delegates") {
        let id = table.needed("id");
        let (provider, model) = (table.word("provider"), table.word("model"));
        let (description, peer, tools) =
            (table.word("description"), table.word("peer"), table.words("tools"));
        if let Some(id) = id {
            config.delegates.push(Delegate { id, provider, model, description, peer, tools });
        }
    }
    unique(document, "remote_agents", "id");
    unique(document, "delegates", "id");
    if let Some(path) = document.section("agent").path("db") {
        config.sessions_db = path;
    }
}

fn agent_channel(document: &Document<'_>, node_name: &str) -> Option<AgentChannel> {
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
