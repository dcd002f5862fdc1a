//! What each node sees, as it tells those who follow its events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_control::{Client, Event, EventKind, NodeState, NodeView, PathKind};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Between two tries to follow a node that does not run.
const RETRY: Duration = Duration::from_millis(20);

/// What one node sees now.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Whether its events are followed; what stands here of a node that is not followed is nothing.
    pub is_followed: bool,
    /// The nodes that it knows, itself included, by id.
    pub nodes: BTreeMap<String, NodeView>,
    /// The peers with which it has a link.
    pub links: BTreeSet<String>,
}

impl View {
    /// How it sees another node; none while it does not know it.
    pub fn state_of(&self, id: &str) -> Option<NodeState> {
        self.nodes.get(id).map(|node| node.state)
    }
}

/// A change of how one node sees another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The number of who sees it.
    pub observer: usize,
    /// The id of who is seen.
    pub subject: String,
    /// Its state now; none once it is forgotten.
    pub state: Option<NodeState>,
    /// When, by the observer, Unix milliseconds.
    pub at_ms: u64,
}

/// What all nodes see, and have seen.
#[derive(Debug, Default)]
pub struct Book {
    views: Vec<View>,
    sightings: Vec<Sighting>,
}

impl Book {
    /// What a node sees.
    pub fn view(&self, number: usize) -> &View {
        &self.views[number]
    }

    /// Every change so far, in the order in which it was told.
    pub fn sightings(&self) -> &[Sighting] {
        &self.sightings
    }

    fn take(&mut self, observer: usize, event: Event) {
        let (at_ms, view) = (event.at_ms, &mut self.views[observer]);
        match event.kind {
            EventKind::Snapshot { nodes, .. } => {
                let linked = nodes.iter().filter(|node| node.path != PathKind::None);
                view.links = linked.map(|node| node.id.clone()).collect();
                view.is_followed = true;
                let known = std::mem::take(&mut view.nodes);
                for node in nodes {
                    let was = known.get(&node.id).map(|node| node.state);
                    self.note(observer, &node.id, was, Some(node.state), at_ms);
                    self.views[observer].nodes.insert(node.id.clone(), node);
                }
            }
            EventKind::Node { node } => {
                let (id, state) = (node.id.clone(), node.state);
                let was = view.nodes.insert(id.clone(), *node).map(|node| node.state);
                self.note(observer, &id, was, Some(state), at_ms);
            }
            EventKind::NodeGone { id, .. } => {
                let was = view.nodes.remove(&id).map(|node| node.state);
                self.note(observer, &id, was, None, at_ms);
            }
            EventKind::Link { id, path: PathKind::None, .. } => drop(view.links.remove(&id)),
            EventKind::Link { id, .. } => drop(view.links.insert(id)),
            _ => {}
        }
    }

    fn note(
        &mut self,
        observer: usize,
        subject: &str,
        was: Option<NodeState>,
        state: Option<NodeState>,
        at_ms: u64,
    ) {
        if was != state {
            self.sightings.push(Sighting { observer, subject: subject.to_owned(), state, at_ms });
        }
    }
}

/// Follows the nodes of a fleet for as long as it is there.
pub(super) struct Sights {
    shared: Arc<Shared>,
    followers: Vec<Option<JoinHandle<()>>>,
}

struct Shared {
    book: Mutex<Book>,
    changes: watch::Sender<()>,
}

impl Sights {
    pub(super) fn new(count: usize) -> Self {
        let book = Book { views: vec![View::default(); count], sightings: Vec::new() };
        let shared = Shared { book: Mutex::new(book), changes: watch::Sender::new(()) };
        Self { shared: Arc::new(shared), followers: (0..count).map(|_| None).collect() }
    }

    /// Follows a node from now on, and whoever had its number no more.
    pub(super) fn watch(&mut self, number: usize, client: Client) {
        let shared = self.shared.clone();
        let follower = tokio::spawn(async move { shared.follow(number, &client).await });
        if let Some(before) = self.followers[number].replace(follower) {
            before.abort();
        }
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.shared.lock())
    }

    pub(super) async fn until<T>(&self, mut look: impl FnMut(&Book) -> Option<T>) -> T {
        let mut changes = self.shared.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if let Some(seen) = self.read(&mut look) {
                return seen;
            }
            changes.changed().await.expect("the sender is held here");
        }
    }
}

impl Drop for Sights {
    fn drop(&mut self) {
        for follower in self.followers.iter().flatten() {
            follower.abort();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn follow(&self, number: usize, client: &Client) {
        loop {
            if let Ok(mut events) = client.events().await {
                while let Ok(Some(event)) = events.next().await {
                    self.lock().take(number, event);
                    self.changes.send_replace(());
                }
            }
            self.lock().views[number] = View::default();
            self.changes.send_replace(());
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, state: NodeState) -> NodeView {
        NodeView { id: id.to_owned(), state, ..NodeView::default() }
    }

    fn told(kind: EventKind) -> Event {
        Event { number: 1, at_ms: 5, kind }
    }

    #[test]
    fn a_change_of_state_is_noted_once() {
        let mut book = Book { views: vec![View::default()], sightings: Vec::new() };
        for state in [NodeState::Alive, NodeState::Alive, NodeState::Down] {
            book.take(0, told(EventKind::Node { node: Box::new(node("a", state)) }));
        }
        book.take(0, told(EventKind::NodeGone { id: "a".to_owned(), scope: String::new() }));
        let states: Vec<_> = book.sightings().iter().map(|seen| seen.state).collect();
        assert_eq!(states, [Some(NodeState::Alive), Some(NodeState::Down), None]);
        assert_eq!(book.view(0).state_of("a"), None);
    }

    #[test]
    fn links_come_and_go() {
        let mut book = Book { views: vec![View::default()], sightings: Vec::new() };
        for (path, linked) in [(PathKind::Direct, true), (PathKind::None, false)] {
            let link = EventKind::Link { id: "a".to_owned(), scope: String::new(), path, rtt_ms: None };
            book.take(0, told(link));
            assert_eq!(book.view(0).links.contains("a"), linked);
        }
    }
}
