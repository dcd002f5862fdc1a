//! Whether the nodes agree on who is there, with what.

use mesh_control::{NodeState, NodeView};

use super::sight::Book;
use super::{Node, View};

/// All that is not as it should be once all is quiet, a line each.
pub(super) fn disagreements(nodes: &[Node], book: &Book) -> Vec<String> {
    let mut found = Vec::new();
    for (number, observer) in nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
        let view = book.view(number);
        if !view.is_followed {
            found.push(format!("{} is not followed", observer.name()));
            continue;
        }
        found.extend(misjudged(nodes, observer, view));
        found.extend(strangers(nodes, observer, view));
        found.extend(misread(nodes, observer, view, book));
    }
    found
}

/// Running nodes that it does not see alive, others that it does.
fn misjudged(nodes: &[Node], observer: &Node, view: &View) -> Vec<String> {
    let mut found = Vec::new();
    for subject in nodes.iter().filter(|subject| subject.id() != observer.id()) {
        let state = view.state_of(subject.id());
        let fits = match subject.is_running() {
            true => state == Some(NodeState::Alive),
            false => matches!(state, None | Some(NodeState::Down)),
        };
        if !fits {
            let is = if subject.is_running() { "runs" } else { "is dead" };
            let seen = state.map_or_else(|| "unknown".to_owned(), |state| state.to_string());
            found.push(format!("{} sees {} as {seen}, which {is}", observer.name(), subject.name()));
        }
    }
    found
}

/// Nodes that it sees as there and that are none of ours, such as those that were replaced.
fn strangers(nodes: &[Node], observer: &Node, view: &View) -> Vec<String> {
    let is_ours = |id: &str| nodes.iter().any(|node| node.id() == id);
    let ghosts = view.nodes.values().filter(|seen| !is_ours(&seen.id) && seen.state != NodeState::Down);
    ghosts.map(|seen| format!("{} sees a ghost {} as {}", observer.name(), seen.id, seen.state)).collect()
}

/// Running nodes of which it holds another record than they do themselves, or other models than others do.
fn misread(nodes: &[Node], observer: &Node, view: &View, book: &Book) -> Vec<String> {
    let mut found = Vec::new();
    for (number, subject) in nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
        let Some(read) = view.nodes.get(subject.id()).filter(|_| observer.id() != subject.id()) else {
            continue;
        };
        if let Some(own) = book.view(number).nodes.get(subject.id()).map(record)
            && own != record(read)
        {
            found.push(format!("{} reads {} of one that says {own}", observer.name(), record(read)));
        }
        let others = nodes.iter().enumerate().filter(|(other, node)| *other != number && node.is_running());
        let mut readings = others.filter_map(|(other, _)| book.view(other).nodes.get(subject.id()));
        if let Some(first) = readings.next().filter(|first| first.models != read.models) {
            let (name, here, there) = (observer.name(), &read.models, &first.models);
            found.push(format!("{name} reads {here:?} at {}, another {there:?}", subject.name()));
        }
    }
    found
}

/// What a node says of itself for all of its life.
fn record(node: &NodeView) -> String {
    let NodeView { name, capabilities, version, .. } = node;
    format!("{name} {capabilities:?} {}", version.as_deref().unwrap_or("no version"))
}
