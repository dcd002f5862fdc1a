//! Agents and sessions in lists, and a session by itself.

use std::time::SystemTime;

use mesh_control::{
    AgentView, Client, EventsQuery, SearchQuery, SessionItem, SessionPage, SessionQuery, SessionState,
    SessionView, ShareView,
};
use serde::Serialize;

use super::args::ListArgs;
use super::seen::{Asked, asked_in, line};
use super::turn::address;
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;
use crate::units::{count, duration};

/// Events at the end of a log among which a question about a tool is looked for: nothing follows a question but what other
/// tools, which run beside it, print.
pub(super) const TAIL_EVENTS: u64 = 5_000;

pub(crate) async fn agents(client: &Client, screen: &Screen) -> Result<(), Failure> {
    let agents = client.agents().await?;
    if agents.is_empty() {
        screen.note("no agent is known");
    }
    screen.show(&agents, |agents| if agents.is_empty() { String::new() } else { agents_table(agents) })
}

fn agents_table(agents: &[AgentView]) -> String {
    let mut table = Table::new(&["AGENT", "NODE", "STATE", "MODEL", "TOOLS", "FOR"]);
    for agent in agents {
        let node = if agent.node_name.is_empty() { &agent.node } else { &agent.node_name };
        table.row([
            agent.name.clone(),
            if agent.local { format!("{node} (this)") } else { node.clone() },
            agent.state.to_string(),
            agent.model.clone().unwrap_or_default(),
            agent.tools.join(","),
            agent.description.clone(),
        ]);
    }
    table.to_string()
}

pub(super) async fn list(client: &Client, screen: &Screen, args: ListArgs) -> Result<(), Failure> {
    let state = args.state.as_deref().map(|word| match word {
        "created" => SessionState::Created,
        "forked" => SessionState::Forked,
        "active" => SessionState::Active,
        "suspended" => SessionState::Suspended,
        _ => SessionState::Archived,
    });
    let query = SessionQuery {
        agent: args.agent,
        name: args.name,
        label: args.label,
        state,
        unfinished: args.unfinished,
        node: args.node,
        all: args.all,
        before: args.before,
        limit: Some(args.limit),
    };
    let page = client.sessions(&query).await?;
    if page.sessions.is_empty() {
        screen.note("no such session; `qmt-cli session create AGENT` begins one");
    }
    for node in &page.unreached {
        let name = if node.node_name.is_empty() { &node.node } else { &node.node_name };
        screen.note(&crate::screen::harmless(&format!("{name} did not answer: {}", node.why)));
    }
    if let Some(next) = page.next.as_ref().filter(|_| page.sessions.len() >= args.limit as usize) {
        screen.note(&format!("there may be more: --before {next}"));
    }
    screen.show(&page, sessions_table)
}

fn sessions_table(page: &SessionPage) -> String {
    if page.sessions.is_empty() {
        return String::new();
    }
    let now = now_ms();
    let mut table = Table::new(&["SESSION", "NAME", "AGENT", "NODE", "STATE", "EVENTS", "LAST", "LABELS"]);
    for session in &page.sessions {
        let labels = session.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
        table.row([
            session.id.clone(),
            session.name.clone().unwrap_or_default(),
            session.agent.clone(),
            if session.node_name.is_empty() { session.node.clone() } else { session.node_name.clone() },
            session.state.to_string(),
            session.last.to_string(),
            ago(session.updated_ms, now),
            labels.join(","),
        ]);
    }
    table.to_string()
}

pub(super) async fn search(
    client: &Client,
    screen: &Screen,
    words: String,
    node: Option<String>,
    limit: u32,
) -> Result<(), Failure> {
    let hits = client.search_sessions(&SearchQuery { words, node, limit: Some(limit) }).await?;
    if hits.is_empty() {
        screen.note("nobody said so");
    }
    let now = now_ms();
    screen.show(&hits, |hits| {
        if hits.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&["SESSION", "NAME", "EVENT", "WHEN", "WORDS"]);
        for hit in hits {
            table.row([
                hit.session.clone(),
                hit.name.clone().unwrap_or_default(),
                hit.number.to_string(),
                ago(hit.at_ms, now),
                hit.excerpt.clone(),
            ]);
        }
        table.to_string()
    })
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    session: SessionView,
    /// Calls of tools that wait for a decision.
    asked: Vec<Asked>,
}

pub(super) async fn show(client: &Client, screen: &Screen, session: &str) -> Result<(), Failure> {
    let session = client.session(session).await?;
    let is_idle =
        matches!(session.state, SessionState::Created | SessionState::Forked | SessionState::Archived);
    let asked = if is_idle { Vec::new() } else { asked(client, &session).await? };
    screen.show(&Shown { session, asked }, shown)
}

/// The calls of tools of a session that wait for a decision.
pub(super) async fn asked(client: &Client, session: &SessionView) -> Result<Vec<Asked>, Failure> {
    let query = EventsQuery {
        session: address(&session.id, &session.node),
        after: session.last.saturating_sub(TAIL_EVENTS),
        past: true,
    };
    let mut events = client.session_events(&query).await?;
    let mut tail = Vec::new();
    while let Some(SessionItem::Event(event)) = events.next().await? {
        tail.push(event);
    }
    Ok(asked_in(&tail))
}

fn shown(shown: &Shown) -> String {
    let Shown { session, asked } = shown;
    let now = now_ms();
    let mut table = Table::without_head();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    row("session", session.id.clone());
    row("name", session.name.clone().unwrap_or_default());
    row("agent", session.agent.clone());
    row("node", format!("{} {}", session.node_name, session.node));
    row("state", session.state.to_string());
    if let Some(turn) = session.turn {
        row("turn", turn.to_string());
    }
    if session.waiting > 0 {
        row("waiting", count(session.waiting as usize, "prompt"));
    }
    row("events", format!("{}, the last {}", session.last, ago(session.updated_ms, now)));
    if let Some(parent) = &session.parent {
        row("fork of", format!("{} at event {}", parent.session, parent.at));
    }
    for (key, value) in &session.labels {
        row("label", format!("{key}={value}"));
    }
    row("owner", session.owner.node.clone());
    for share in session.shares.iter().flatten() {
        row("shared", shared(share));
    }
    if let Some(right) = session.right {
        row("your right", right.to_string());
    }
    for asked in asked {
        row("to allow", format!("{} {}", asked.call, line(&asked.name, &asked.arguments)));
    }
    table.to_string()
}

fn shared(share: &ShareView) -> String {
    let with = match (&share.node, &share.scope, share.role) {
        (Some(node), ..) => node.clone(),
        (None, scope, role) => {
            let role = role.map(|role| role.to_string()).unwrap_or_default();
            format!("{role}s of {}", scope.as_deref().unwrap_or_default())
        }
    };
    format!("{}: {with}", share.right)
}

pub(crate) fn ago(at_ms: u64, now_ms: u64) -> String {
    if at_ms == 0 {
        return String::new();
    }
    format!("{} ago", duration(now_ms.saturating_sub(at_ms) / 1000))
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
