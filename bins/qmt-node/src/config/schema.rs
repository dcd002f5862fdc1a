//! Every table and key that the configuration file may hold. Reading, the messages about unknown keys, and the test of
//! `docs/configuration.md` all go by this list.

/// One table of the file.
#[derive(Debug)]
pub struct Table {
    /// Dotted path, such as `mesh.peers`; empty for the top of the file.
    pub path: &'static str,
    /// Whether it is a list of tables, written `[[path]]`.
    pub is_list: bool,
    /// Its keys, those of tables below it apart.
    pub keys: &'static [&'static str],
}

impl Table {
    /// How its head is written: `[mesh]`, `[[mesh.peers]]`.
    pub fn head(&self) -> String {
        match (self.path, self.is_list) {
            ("", _) => "the top of the file".to_owned(),
            (path, true) => format!("[[{path}]]"),
            (path, false) => format!("[{path}]"),
        }
    }
}

const fn one(path: &'static str, keys: &'static [&'static str]) -> Table {
    Table { path, is_list: false, keys }
}

const fn list(path: &'static str, keys: &'static [&'static str]) -> Table {
    Table { path, is_list: true, keys }
}

/// The tables, each below its parent.
pub const TABLES: &[Table] = &[
    one("", &[]),
    one(
        "mesh",
        &[
            "enabled",
            "listen",
            "transport",
            "discovery",
            "auto_fallback",
            "node_name",
            "capabilities",
            "external_addrs",
            "identity_file",
            "request_timeout_secs",
            "stream_reconnect_grace_secs",
            "invite",
        ],
    ),
    list("mesh.peers", &["name", "addr", "id", "role"]),
    one("mesh.lan", &["enabled", "listen", "discovery", "trust", "psk"]),
    one("mesh.internet", &["relay_urls", "relay_mode", "bind_port", "port_mapping"]),
    list("mesh.iroh", &["enabled", "name", "invite", "relay_urls", "relay_mode"]),
    list("remote_agents", &["id", "name", "description", "peer", "capabilities"]),
    list("delegates", &["id", "provider", "model", "description", "peer", "tools", "workspace"]),
    one("agent", &["db", "workspace"]),
    list(
        "agents",
        &[
            "id",
            "description",
            "instructions",
            "instructions_file",
            "model",
            "peer",
            "max_tokens",
            "temperature",
            "context_tokens",
            "tools",
            "workspace",
            "confined",
            "read",
            "write",
            "open_to",
            "interrupted",
            "turn_time_secs",
            "turn_tokens",
            "turn_cost",
            "turn_model_calls",
        ],
    ),
    list("agents.policy", &["tools", "arguments", "callers", "then"]),
    list(
        "agents.mcp",
        &[
            "name",
            "command",
            "args",
            "env",
            "pass_env",
            "confined",
            "url",
            "headers",
            "token_env",
            "trust_hints",
        ],
    ),
    list(
        "providers",
        &[
            "name",
            "kind",
            "base_url",
            "api_key_env",
            "models",
            "share",
            "requests_per_minute",
            "tokens_per_day",
            "input_price",
            "output_price",
            "cached_price",
        ],
    ),
    one(
        "inference",
        &[
            "models",
            "model_dirs",
            "max_vram",
            "split",
            "draft",
            "draft_max",
            "device",
            "tensor_split",
            "bin_dir",
            "ctx_size",
            "slots",
            "threads",
            "share",
            "lend",
            "assign",
            "calibrate",
            "debounce_secs",
            "left_out_secs",
            "patience_secs",
        ],
    ),
    one("api", &["port", "bind", "api_key", "continue_timeout_secs", "make_replicas", "keep_replicas"]),
    one("console", &["enabled", "port"]),
    one("relay", &["enabled", "listen", "url", "tls_cert", "tls_key"]),
    one("log", &["format"]),
    one("telemetry", &["otlp_endpoint"]),
    one(
        "agent_channel",
        &[
            "enabled",
            "node_name",
            "tls",
            "agent_channel_port",
            "bind",
            "host",
            "storage_dir",
            "ca_dir",
            "heartbeat_interval_ms",
            "stale_threshold_ms",
            "role",
            "secret",
        ],
    ),
    one("agent_channel.tls", &["ca_path", "cert_path", "key_path"]),
    one("agent_channel.discovery", &["mode", "seed_host", "seed_port"]),
    list("agent_channel.discovery.peers", &["name", "host", "port"]),
];

/// The table at a dotted path.
pub fn table(path: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.path == path)
}

/// Where a key that `at` does not know probably belongs, as the end of a sentence.
pub(super) fn likely_place(key: &str, at: &Table) -> String {
    let homes: Vec<&Table> = TABLES.iter().filter(|table| table.keys.contains(&key)).collect();
    let above = |home: &&&Table| at.path.starts_with(&format!("{}.", home.path));
    if let Some(home) = homes.iter().find(above) {
        return format!("it belongs into {}, above the first {}", home.head(), at.head());
    }
    let near = |known: &&&str| distance(key, known) <= (known.len() / 3).clamp(1, 3);
    if let Some(known) = at.keys.iter().filter(near).min_by_key(|known| distance(key, known)) {
        return format!("did you mean {known:?}?");
    }
    if !homes.is_empty() {
        let heads: Vec<String> = homes.iter().map(|home| home.head()).collect();
        return format!("it belongs into {}", heads.join(" or "));
    }
    let children: Vec<&Table> = TABLES.iter().filter(|table| is_child(table.path, at.path)).collect();
    let name = |table: &Table| table.path.rsplit('.').next().unwrap_or_default().to_owned();
    if let Some(child) = children.iter().find(|child| distance(key, &name(child)) <= 2) {
        return format!("did you mean {}?", child.head());
    }
    let somewhere = TABLES.iter().flat_map(|table| table.keys.iter().map(move |known| (table, *known)));
    if let Some((table, known)) =
        somewhere.filter(|(_, known)| known.len() > 4).find(|(_, known)| distance(key, known) <= 2)
    {
        return format!("did you mean {known:?} in {}?", table.head());
    }
    let mut known: Vec<String> = at.keys.iter().map(|key| (*key).to_owned()).collect();
    known.extend(children.iter().map(|child| child.head()));
    format!("known here: {}", known.join(", "))
}

fn is_child(path: &str, parent: &str) -> bool {
    match path.rsplit_once('.') {
        Some((above, _)) => above == parent,
        None => parent.is_empty() && !path.is_empty(),
    }
}

/// Levenshtein distance; keys are short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let swap = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = swap.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
