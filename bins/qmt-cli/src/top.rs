//! `top`: the mesh in a terminal, as it is now.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use mesh_control::{Client, ClientError, ModelView, NodeState, NodeView, Status};
use mesh_identity::UnixTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::nodes::path;
use crate::screen::Screen;
use crate::table::Table;
use crate::units;

/// Between two looks: what moves faster nobody reads.
const EVERY: Duration = Duration::from_secs(1);
/// Rows where the terminal does not say how many it has.
const ROWS_DEFAULT: usize = 24;
/// The second screen, so that what stood in the terminal is there again at the end; its cursor is not shown.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the first place; then each line clears its rest, and the end all below.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST: &str = "\x1b[J";

/// What is shown at one moment.
struct Seen {
    at: Instant,
    status: Status,
    nodes: Vec<NodeView>,
    models: Vec<ModelView>,
}

pub(crate) async fn top(client: &Client, screen: &Screen) -> Result<(), Failure> {
    let first = look(client).await?;
    if screen.is_json() || !io::stdout().is_terminal() {
        let all = serde_json::json!({ "status": first.status, "nodes": first.nodes, "models": first.models });
        return screen.show(&all, |_| described(&first, None, usize::MAX));
    }
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::new("signal", error.to_string()))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| Failure::new("signal", error.to_string()))?;
    let _second = SecondScreen::enter()?;
    tokio::select! {
        ended = watch(client, first) => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

async fn watch(client: &Client, first: Seen) -> Result<(), Failure> {
    let mut shown = first;
    let mut before = None;
    let mut lost = None;
    loop {
        draw(&described(&shown, before.as_ref(), rows()), lost.as_deref())?;
        sleep(EVERY).await;
        match look(client).await {
            Ok(seen) => {
                before = Some(std::mem::replace(&mut shown, seen));
                lost = None;
            }
            Err(error) if error.may_pass() => lost = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn look(client: &Client) -> Result<Seen, ClientError> {
    let (status, nodes, models) = tokio::try_join!(client.status(), client.nodes(), client.models())?;
    Ok(Seen { at: Instant::now(), status, nodes, models })
}

fn rows() -> usize {
    rustix::termios::tcgetwinsize(io::stdout()).map_or(ROWS_DEFAULT, |size| usize::from(size.ws_row))
}

fn draw(text: &str, lost: Option<&str>) -> Result<(), Failure> {
    let mut page = HOME.to_owned();
    for line in
        lost.map(|why| format!("-- {why}; waiting for it")).iter().map(String::as_str).chain(text.lines())
    {
        page.push_str(line);
        page.push_str(REST_OF_LINE);
        page.push('\n');
    }
    page.push_str(REST);
    let mut out = io::stdout().lock();
    let drawn = out.write_all(page.as_bytes()).and_then(|()| out.flush());
    drawn.map_err(|_| Failure::unread())
}

/// All of it, in at most so many rows: of the nodes those that need a look come first.
fn described(seen: &Seen, before: Option<&Seen>, rows: usize) -> String {
    let Seen { status, nodes, models, .. } = seen;
    let meshes: Vec<&str> = status.scopes.iter().map(|scope| scope.name.as_str()).collect();
    let up = units::duration(status.uptime_secs);
    let mut text = format!(
        "{}  in {}  up {up}",
        status.node_name,
        if meshes.is_empty() { "no mesh".to_owned() } else { meshes.join(", ") }
    );
    let (sent, received) = (
        rate(seen, before, |status| status.tunnels.sent_bytes),
        rate(seen, before, |status| status.tunnels.received_bytes),
    );
    let count = |state: NodeState| nodes.iter().filter(|node| node.state == state).count();
    text.push_str(&format!(
        "\n{} alive, {} suspect, {} down  links: {} direct, {} relayed  tunnels: {sent} out, {received} in\n",
        count(NodeState::Alive) + count(NodeState::Me),
        count(NodeState::Suspect),
        count(NodeState::Down),
        status.links.direct,
        status.links.relayed,
    ));
    let health: Vec<String> =
        status.health.iter().map(|one| format!("{} {} ({})", one.name, one.text, one.grade)).collect();
    if !health.is_empty() {
        text.push_str(&format!("{}\n", health.join("  ")));
    }
    for warning in &status.warnings {
        text.push_str(&format!("warning: {}\n", crate::screen::harmless(warning)));
    }
    let models = model_table(models);
    let room = rows.saturating_sub(text.lines().count() + models.lines().count() + 4).max(3);
    text.push_str(&format!("\n{}", node_table(nodes, room)));
    text.push_str(&format!("\n{models}"));
    text
}

fn node_table(nodes: &[NodeView], room: usize) -> String {
    let rank = |node: &NodeView| match node.state {
        NodeState::Me => 0,
        NodeState::Suspect => 1,
        NodeState::Down => 2,
        _ => 3,
    };
    let mut all: Vec<&NodeView> = nodes.iter().collect();
    all.sort_by_key(|node| rank(node));
    let now = UnixTime::now().0;
    let mut table = Table::new(&["NODE", "STATE", "SINCE", "PATH", "RTT", "MEMORY", "MODELS"]);
    for node in all.iter().take(room) {
        table.row([
            node.name.clone(),
            node.state.to_string(),
            if node.since == 0 { String::new() } else { units::duration(now.saturating_sub(node.since)) },
            path(node.transport.as_deref(), node.path),
            node.rtt_ms.map_or_else(String::new, units::milliseconds),
            node.memory.map_or_else(String::new, |memory| {
                let used = memory.total_bytes.saturating_sub(memory.free_bytes);
                format!(
                    "{} {} of {}",
                    bar(used, memory.total_bytes),
                    units::bytes(used),
                    units::bytes(memory.total_bytes)
                )
            }),
            node.models.join(", "),
        ]);
    }
    let hidden = all.len().saturating_sub(room);
    if hidden == 0 { table.to_string() } else { format!("{table}and {hidden} more\n") }
}

fn model_table(models: &[ModelView]) -> String {
    if models.is_empty() {
        return "no model is served\n".to_owned();
    }
    let mut table = Table::new(&["MODEL", "STATE", "NODES"]);
    for model in models {
        let at: Vec<String> =
            model.providers.iter().map(|one| format!("{} ({})", one.node_name, one.state)).collect();
        table.row([model.name.clone(), model.state.to_string(), at.join(", ")]);
    }
    table.to_string()
}

/// Ten places, as many filled as the share.
fn bar(part: u64, whole: u64) -> String {
    let filled =
        usize::try_from((part.saturating_mul(10)).checked_div(whole).unwrap_or(0)).unwrap_or(10).min(10);
    format!("[{}{}]", "#".repeat(filled), ".".repeat(10 - filled))
}

/// A counter's growth between two looks.
fn rate(seen: &Seen, before: Option<&Seen>, counter: impl Fn(&Status) -> u64) -> String {
    let grown = before.map(|before| {
        let millis = u64::try_from(seen.at.duration_since(before.at).as_millis()).unwrap_or(u64::MAX).max(1);
        // A node that was started again begins at 0.
        counter(&seen.status).saturating_sub(counter(&before.status)).saturating_mul(1000) / millis
    });
    grown.map_or_else(|| units::bytes(counter(&seen.status)), |each| format!("{}/s", units::bytes(each)))
}

/// Left when it is dropped.
struct SecondScreen;

impl SecondScreen {
    fn enter() -> Result<Self, Failure> {
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes()).and_then(|()| out.flush()).map_err(|_| Failure::unread())?;
        Ok(Self)
    }
}

impl Drop for SecondScreen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_control::{MemoryView, TunnelCounts};

    fn seen(at: Instant, sent_bytes: u64) -> Seen {
        let node = |name: &str, state| NodeView {
            name: name.to_owned(),
            state,
            memory: Some(MemoryView {
                total_bytes: 10_000_000_000,
                free_bytes: 2_500_000_000,
                cap_bytes: None,
            }),
            ..NodeView::default()
        };
        let others = (0..30).map(|at| node(&format!("other{at}"), NodeState::Alive));
        let nodes = std::iter::once(node("me", NodeState::Me))
            .chain(others)
            .chain([node("gone", NodeState::Down)])
            .collect();
        let status = Status {
            node_name: "me".to_owned(),
            tunnels: TunnelCounts { sent_bytes, ..TunnelCounts::default() },
            ..Status::default()
        };
        Seen { at, status, nodes, models: Vec::new() }
    }

    #[test]
    fn it_fits_its_rows_and_shows_first_what_needs_a_look() {
        let text = described(&seen(Instant::now(), 0), None, 24);
        assert!(text.lines().count() <= 24, "{text}");
        let place = |name: &str| text.find(name).unwrap_or(usize::MAX);
        assert!(
            place("gone") < place("other0")
                && text.contains("and 1")
                && text.contains("[#######...] 7.5 GB of 10 GB"),
            "{text}"
        );
        assert!(described(&seen(Instant::now(), 0), None, usize::MAX).contains("other29"));
    }

    #[test]
    fn a_rate_is_what_came_since_the_last_look() {
        let first = Instant::now();
        let (before, after) = (seen(first, 1_000), seen(first + Duration::from_secs(2), 9_000));
        assert!(described(&after, Some(&before), 24).contains("tunnels: 4.0 kB/s out, 0 B/s in"));
        assert!(
            described(&before, Some(&after), 24).contains("0 B/s out"),
            "a node that began anew has sent nothing"
        );
    }
}
