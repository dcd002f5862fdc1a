//! The node, and the nodes around it: `status`, `nodes`.

use mesh_control::{AnswerCounts, Client, NodeState, NodeView, PathKind, Status};
use mesh_identity::{NodeId, UnixTime};

use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;
use crate::units;

const NO_MESH: &str =
    "this node is in no mesh; make one with `qmt-cli invite`, or join one with `qmt-cli join TOKEN`";

pub(crate) async fn status(client: &Client, screen: &Screen) -> Result<(), Failure> {
    let status = client.status().await?;
    screen.show(&status, described)?;
    if status.scopes.is_empty() {
        screen.note(NO_MESH);
    }
    Ok(())
}

fn described(status: &Status) -> String {
    let mut table = Table::without_head();
    let mut line = |name: &str, value: String| table.row([name.to_owned(), value]);
    line("node", format!("{} ({})", status.node_name, status.node_id));
    line(
        "version",
        format!(
            "{}, running for {} as process {}",
            status.version,
            units::duration(status.uptime_secs),
            status.pid
        ),
    );
    line("gateway", status.gateway_url.as_ref().map_or_else(String::new, |url| format!("{url}/v1")));
    if let Some(url) = &status.console_url {
        line("console", url.clone());
    }
    for scope in &status.scopes {
        let others = units::count(scope.members_alive as usize, "node");
        let how = match &scope.trust {
            Some(trust) => format!(", where peers need no invite (trust {trust})"),
            None if scope.founder => format!(" as {}, its founder", scope.role),
            None => format!(" as {}", scope.role),
        };
        line("mesh", format!("{}{how}; {others} alive", scope.name));
    }
    line("models", status.models.join(", "));
    line("links", format!("{} direct, {} relayed", status.links.direct, status.links.relayed));
    let tunnels = &status.tunnels;
    if tunnels.sent_bytes + tunnels.received_bytes > 0 {
        let (sent, received) = (units::bytes(tunnels.sent_bytes), units::bytes(tunnels.received_bytes));
        let (moved, named) =
            (units::bytes(tunnels.weights_sent_bytes), units::bytes(tunnels.weights_by_reference_bytes));
        line(
            "tunnels",
            format!("{sent} sent, {received} received; weights: {moved} sent, {named} by reference"),
        );
    }
    let answers = &status.answers;
    if answers.continued + answers.lost + answers.resumable + answers.resumed > 0 {
        let (continued, lost) = (answers.continued, answers.lost);
        line(
            "answers",
            format!("went on after losing a host {continued} times, {lost} lost; {}", resumable(answers)),
        );
    }
    if !status.health.is_empty() {
        let health = status.health.iter().map(|one| format!("{} {} ({})", one.name, one.text, one.grade));
        line("health", health.collect::<Vec<String>>().join("; "));
    }
    line("addresses", status.addresses.join(", "));
    for warning in &status.warnings {
        line("warning", warning.clone());
    }
    table.to_string()
}

/// What answers that can be resumed have cost.
fn resumable(answers: &AnswerCounts) -> String {
    let each = answers.replication_micros.checked_div(answers.replicated_events).unwrap_or_default();
    format!(
        "{} to be resumable, {} resumed here; their copies cost {each} µs an event, {} copies lost, {} replaced",
        answers.resumable, answers.resumed, answers.copies_lost, answers.copies_replaced
    )
}

pub(crate) async fn list(client: &Client, screen: &Screen) -> Result<(), Failure> {
    let nodes = client.nodes().await?;
    screen.show(&nodes, |nodes| listing(nodes, UnixTime::now().0))?;
    if nodes.is_empty() {
        screen.note(NO_MESH);
    } else if nodes.iter().all(|node| node.state == NodeState::Me) {
        screen.note("nobody else yet; invite another machine with `qmt-cli invite`");
    }
    for node in nodes.iter().filter(|node| node.state == NodeState::Alive) {
        if let Some(why) = &node.unreached {
            screen.note(&format!(
                "{} is alive as others hear it, but is not reached from here: {why}; `qmt-cli doctor` looks for the cause",
                node.name
            ));
        }
    }
    Ok(())
}

fn listing(nodes: &[NodeView], now: u64) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(&["NAME", "ID", "MESH", "ROLE", "STATE", "SINCE", "PATH", "RTT", "FREE", "MODELS"]);
    for node in nodes {
        table.row([
            node.name.clone(),
            short(&node.id),
            node.scope_name.clone(),
            node.role.to_string(),
            node.state.to_string(),
            if node.since == 0 { String::new() } else { units::duration(now.saturating_sub(node.since)) },
            path(node.transport.as_deref(), node.path),
            node.rtt_ms.map_or_else(String::new, units::milliseconds),
            node.memory.map_or_else(String::new, |memory| units::bytes(memory.free_bytes)),
            node.models.join(", "),
        ]);
    }
    table.to_string()
}

/// The form of an id that every command takes and that fits a table.
pub(crate) fn short(id: &str) -> String {
    id.parse::<NodeId>().map_or_else(|_| id.to_owned(), |id| id.short())
}

/// What carries a link and how: `lan direct`, `internet relayed`; nothing while there is none.
pub(crate) fn path(transport: Option<&str>, path: PathKind) -> String {
    match (transport, path) {
        (_, PathKind::None) => String::new(),
        (Some(transport), path) => format!("{transport} {path}"),
        (None, path) => path.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_control::{MemoryView, Role, ScopeStatus};

    #[test]
    fn nodes_are_listed_with_what_is_known_of_them() {
        let me = NodeView {
            id: "12D3KooWA".to_owned(),
            name: "desk".to_owned(),
            scope_name: "home".to_owned(),
            role: Role::Member,
            state: NodeState::Me,
            since: 400,
            memory: Some(MemoryView {
                total_bytes: 16_000_000_000,
                free_bytes: 7_900_000_000,
                cap_bytes: None,
            }),
            models: vec!["gemma".to_owned(), "qwen".to_owned()],
            ..NodeView::default()
        };
        let peer = NodeView {
            name: "lap".to_owned(),
            state: NodeState::Alive,
            path: PathKind::Direct,
            rtt_ms: Some(0.34),
            memory: None,
            models: Vec::new(),
            ..me.clone()
        };
        let expected = "\
NAME  ID         MESH  ROLE    STATE  SINCE   PATH    RTT      FREE    MODELS
desk  12D3KooWA  home  member  self   10 min  -       -        7.9 GB  gemma, qwen
lap   12D3KooWA  home  member  alive  10 min  direct  0.34 ms  -       -
";
        assert_eq!(listing(&[me, peer], 1_000), expected);
        assert_eq!(listing(&[], 1_000), "");
    }

    #[test]
    fn status_names_every_mesh() {
        let status = Status {
            version: "0.1.0".to_owned(),
            node_id: "12D3KooWA".to_owned(),
            node_name: "desk".to_owned(),
            pid: 7,
            uptime_secs: 200,
            gateway_url: Some("http://127.0.0.1:9337".to_owned()),
            scopes: vec![ScopeStatus {
                name: "home".to_owned(),
                role: Role::Member,
                founder: true,
                members_alive: 2,
                ..ScopeStatus::default()
            }],
            warnings: vec!["a setting".to_owned()],
            ..Status::default()
        };
        let expected = "\
node       desk (12D3KooWA)
version    0.1.0, running for 3 min as process 7
gateway    http://127.0.0.1:9337/v1
mesh       home as member, its founder; 2 nodes alive
models     -
links      0 direct, 0 relayed
addresses  -
warning    a setting
";
        assert_eq!(described(&status), expected);
    }
}
