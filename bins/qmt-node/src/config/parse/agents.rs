//! Agents: this node's own, those that work for them, and those of other nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use mesh_sessions::ids::AgentId;
use mesh_sessions::policy::{CallerPattern, Decision, Policy, Rule};
use mesh_sessions::proto::{Interrupted, Limits};

use super::{HOUR_SECS, labels, unique};
use crate::config::reader::{Document, Section};
use crate::config::types::*;

pub(super) fn agents(document: &Document<'_>, config: &mut Config) {
    let general = document.section("agent");
    if let Some(path) = general.path("db") {
        config.sessions_db = path;
    }
    let folder = general.path("workspace");
    config.agents = document
        .sections("agents")
        .iter()
        .filter_map(|table| agent(document, table, folder.as_ref()))
        .collect();
    for table in document.sections("remote_agents") {
        let (id, peer) = (agent_id(document, &table), table.needed("peer"));
        let (name, description) = (table.word("name"), table.word("description"));
        let capabilities = labels(&table, "capabilities");
        if let (Some(id), Some(peer)) = (id, peer) {
            config.remote_agents.push(RemoteAgent { id, name, description, peer, capabilities });
        }
    }
    for table in document.sections("delegates") {
        config.delegates.extend(delegate(document, &table, folder.as_ref()));
    }
    for path in ["agents", "remote_agents", "delegates"] {
        unique(document, path, "id");
    }
    for table in document.sections("delegates") {
        let taken = |id: &String| config.agents.iter().any(|agent| agent.id.as_str() == id);
        if let Some(id) = table.has("id").then(|| table.word("id")).flatten().filter(taken) {
            let message = format!("id {id:?} in [[delegates]] is taken by an agent of [[agents]]");
            document.problem(table.line_of("id"), message);
        }
    }
}

fn agent(document: &Document<'_>, table: &Section<'_>, folder: Option<&PathBuf>) -> Option<AgentEntry> {
    let (id, model) = (agent_id(document, table), table.needed("model"));
    let instructions = match (table.text("instructions"), table.path("instructions_file")) {
        (Some(_), Some(_)) => {
            let message = "[[agents]] takes instructions or instructions_file, not both";
            document.problem(table.line_of("instructions_file"), message);
            None
        }
        (Some(text), None) => Some(Instructions::Text(text.value)),
        (None, Some(path)) => Some(Instructions::File(path)),
        (None, None) => Some(Instructions::Text(String::new())),
    };
    let opened = [("nobody", OpenTo::Nobody), ("members", OpenTo::Members), ("clients", OpenTo::Clients)];
    let unsure = [("tell", Interrupted::Tell), ("ask", Interrupted::Ask)];
    let temperature = table.float("temperature");
    if temperature.is_some_and(|bold| !(0.0..=2.0).contains(&bold)) {
        table.wrong("temperature", "a number from 0 to 2", "that number");
    }
    let tools = tools(table);
    let rules = table.below("policy").iter().filter_map(|table| rule(document, table)).collect();
    let servers = table.below("mcp").iter().filter_map(|table| server(document, table)).collect();
    unique_names(document, &table.below("mcp"));
    #[expect(clippy::cast_possible_truncation, reason = "it lies between 0 and 2")]
    let temperature = temperature.map(|bold| bold as f32);
    // Everything is read, and so checked, before what is missing ends it.
    let entry = AgentEntry {
        description: table.word("description").unwrap_or_default(),
        peer: table.word("peer"),
        max_tokens: table.u32("max_tokens", 1..=16_777_216),
        temperature,
        context_tokens: table.number("context_tokens", 1024..=16_777_216),
        tools,
        policy: Policy { rules },
        limits: limits(table),
        interrupted: table.choice("interrupted", &unsure).unwrap_or_default(),
        open_to: table.choice("open_to", &opened).unwrap_or_default(),
        workspace: table.path("workspace").or_else(|| folder.cloned()),
        confined: table.bool("confined").unwrap_or(true),
        read: paths(document, table, "read"),
        write: paths(document, table, "write"),
        servers,
        id: id?,
        model: model?,
        instructions: instructions?,
    };
    Some(entry)
}

/// An agent that only this node's agents ask, with the tools that it may use.
fn delegate(document: &Document<'_>, table: &Section<'_>, folder: Option<&PathBuf>) -> Option<AgentEntry> {
    let (id, model) = (agent_id(document, table), table.needed("model"));
    if table.word("provider").is_some() {
        let message = "provider in [[delegates]] is for people: which models there are is said by their names, and where they are \
                       asked by peer";
        document.warn(table.line_of("provider"), message);
    }
    let tools = tools(table);
    let (description, peer) = (table.word("description"), table.word("peer"));
    let workspace = table.path("workspace").or_else(|| folder.cloned());
    let allowed = Rule {
        tools: tools.iter().map(|tool| tool.name().to_owned()).collect(),
        arguments: BTreeMap::new(),
        callers: vec![CallerPattern::Owner],
        then: Decision::Allow,
    };
    let mut entry = AgentEntry::new(id?, model?);
    entry.description = description.unwrap_or_default();
    entry.peer = peer;
    entry.policy = Policy { rules: vec![allowed] };
    entry.open_to = OpenTo::Nobody;
    (entry.tools, entry.workspace) = (tools, workspace);
    Some(entry)
}

fn agent_id(document: &Document<'_>, table: &Section<'_>) -> Option<AgentId> {
    let id = table.needed("id")?;
    let read: Option<AgentId> = id.parse().ok().filter(|_| !id.contains(['@', '/']) && id.trim() == id);
    if read.is_none() {
        let message =
            format!("id in {} must be 1 to 128 characters without @ and /, not that text", table.head());
        document.problem(table.line_of("id"), message);
    }
    read
}

fn tools(table: &Section<'_>) -> Vec<BuiltIn> {
    let mut tools = Vec::new();
    for word in table.words("tools") {
        match BuiltIn::named(&word) {
            Some(tool) if tools.contains(&tool) => {}
            Some(tool) => tools.push(tool),
            None => {
                let known: Vec<&str> = BuiltIn::ALL.iter().map(|tool| tool.name()).collect();
                table.wrong(
                    "tools",
                    &format!("a list of {}", known.join(", ")),
                    format!("one with {word:?}"),
                );
            }
        }
    }
    tools
}

fn limits(table: &Section<'_>) -> Limits {
    let mut limits = Limits::default();
    if let Some(seconds) = table.number("turn_time_secs", 1..=30 * 24 * HOUR_SECS) {
        limits.time = Some(Duration::from_secs(seconds));
    }
    limits.tokens = table.number("turn_tokens", 1..=u64::from(u32::MAX));
    if let Some(cost) = table.float("turn_cost") {
        limits.cost_micros = micros(cost);
        if limits.cost_micros.is_none() {
            table.wrong("turn_cost", "an amount of money above 0", cost);
        }
    }
    if let Some(calls) = table.u32("turn_model_calls", 1..=100_000) {
        limits.model_calls = calls;
    }
    limits
}

fn micros(cost: f64) -> Option<u64> {
    let micros = cost * 1e6;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
    (1.0..1e15).contains(&micros).then_some(micros as u64)
}

fn rule(document: &Document<'_>, table: &Section<'_>) -> Option<Rule> {
    let decisions = [("allow", Decision::Allow), ("ask", Decision::Ask), ("deny", Decision::Deny)];
    for key in ["tools", "then"] {
        if !table.has(key) {
            document.problem(table.line(), format!("{} needs {key}", table.head()));
        }
    }
    let caller = |word: &String| match word.as_str() {
        "owner" => Some(CallerPattern::Owner),
        "member" => Some(CallerPattern::Member),
        "client" => Some(CallerPattern::Client),
        id => match id.parse() {
            Ok(node) => Some(CallerPattern::Node(node)),
            Err(_) => {
                table.wrong(
                    "callers",
                    "a list of owner, member, client and ids of nodes",
                    format!("one with {id:?}"),
                );
                None
            }
        },
    };
    let callers = table.words("callers").iter().filter_map(caller).collect();
    let (tools, arguments) = (table.words("tools"), table.lists("arguments"));
    Some(Rule { tools, arguments, callers, then: table.choice("then", &decisions)? })
}

fn server(document: &Document<'_>, table: &Section<'_>) -> Option<ServerEntry> {
    let name = table.needed("name");
    let is_name = |name: &String| {
        name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    if name.as_ref().is_some_and(|name| !is_name(name)) {
        table.wrong("name", "1 to 32 of the characters A-Z a-z 0-9 _ -", "that text");
    }
    let at = match (program(document, table), web(document, table)) {
        (Some(_), Some(_)) => {
            document
                .problem(table.line_of("url"), format!("{} takes command or url, not both", table.head()));
            None
        }
        (Some(program), None) => {
            only_for(document, table, "url", &["headers", "token_env"]);
            Some(ServerAt::Program(program))
        }
        (None, Some(web)) => {
            only_for(document, table, "command", &["args", "env", "pass_env", "confined"]);
            Some(web)
        }
        (None, None) => {
            if !table.has("command") && !table.has("url") {
                document.problem(table.line(), format!("{} needs command or url", table.head()));
            }
            None
        }
    };
    let trusts_hints = table.bool("trust_hints").unwrap_or_default();
    Some(ServerEntry { name: name?, at: at?, trusts_hints })
}

/// Keys that mean nothing where the server is, are wrong.
fn only_for(document: &Document<'_>, table: &Section<'_>, what: &str, keys: &[&'static str]) {
    for key in keys.iter().filter(|key| table.has(key)) {
        let message = format!("{key} in {} is for a server with {what}", table.head());
        document.problem(table.line_of(key), message);
    }
}

fn web(document: &Document<'_>, table: &Section<'_>) -> Option<ServerAt> {
    let url = table.word("url");
    let is_web = |uri: http::Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    if url.as_ref().is_some_and(|url| !url.parse().is_ok_and(is_web)) {
        table.wrong("url", "an address that begins with http:// or https://", "that text");
    }
    let headers = table.map("headers");
    let is_header = |(name, value): (&String, &String)| {
        http::HeaderName::try_from(name).is_ok() && http::HeaderValue::try_from(value).is_ok()
    };
    if !headers.iter().all(is_header) {
        table.wrong("headers", "a table of HTTP headers", "that");
    }
    let variable = table.word("token_env");
    let token = variable.as_ref().and_then(|variable| document.variable(variable));
    if let (Some(variable), None) = (&variable, &token) {
        let message = format!("token_env in {}: the variable {variable} is not set", table.head());
        document.problem(table.line_of("token_env"), message);
    }
    Some(ServerAt::Web { url: url?, headers, token: token.map(Secret::new) })
}

fn program(document: &Document<'_>, table: &Section<'_>) -> Option<ProgramEntry> {
    // A name is looked for in PATH; what has a slash is a path.
    let program = table.word("command").map(|command| match command.contains('/') {
        true => document.resolve(&command),
        false => PathBuf::from(command),
    });
    let variables = table.words("pass_env");
    for variable in &variables {
        if document.variable(variable).is_none() {
            let message = format!("pass_env in {}: the variable {variable} is not set", table.head());
            document.problem(table.line_of("pass_env"), message);
        }
    }
    Some(ProgramEntry {
        arguments: table.words("args"),
        environment: table.map("env"),
        secrets: variables
            .into_iter()
            .filter_map(|name| Some((name.clone(), Secret::new(document.variable(&name)?))))
            .collect(),
        confined: table.bool("confined").unwrap_or(true),
        program: program?,
    })
}

fn unique_names(document: &Document<'_>, servers: &[Section<'_>]) {
    let mut seen: Vec<String> = Vec::new();
    for table in servers {
        let Some(name) = table.has("name").then(|| table.word("name")).flatten() else { continue };
        if seen.contains(&name) {
            let message =
                format!("name {name:?} in {} is taken by another server of the agent", table.head());
            document.problem(table.line_of("name"), message);
        }
        seen.push(name);
    }
}

fn paths(document: &Document<'_>, table: &Section<'_>, key: &'static str) -> Vec<PathBuf> {
    table.words(key).iter().map(|path| document.resolve(path)).collect()
}
