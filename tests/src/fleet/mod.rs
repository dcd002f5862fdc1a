//! A mesh of real nodes: each a process with a home of its own, all of one scope, all watched over their control sockets.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use qmt_tests::fleet::{Fleet, Setup};
//!
//! let program = std::path::Path::new("target/release/qmt-node");
//! let mut fleet = Fleet::start(Setup::on_loopback(program, 30)).await?;
//! let at = fleet.kill(7);
//! fleet.all_see_the_living().await?;
//! for seen in fleet.sightings_since(at) {
//!     println!("{} ms: node {} sees {} {:?}", seen.at_ms - at, seen.observer, seen.subject, seen.state);
//! }
//! # Ok(()) }
//! ```

mod agreement;
mod node;
mod sight;

pub use node::{Node, now_ms};
pub use sight::{Book, Sighting, View};

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::lab::Host;
use sight::Sights;

/// Longest wait for anything but where a caller says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Processes that start at once: more only wait for each other on a small machine.
const AT_ONCE: usize = 6;

/// What a fleet is made of.
pub struct Setup<'a> {
    /// The program `qmt-node`.
    pub program: &'a Path,
    /// How many nodes.
    pub nodes: usize,
    /// Where each runs; none for all on this machine, where they meet over its loopback.
    pub hosts: Vec<Arc<Host>>,
    /// What a node's configuration has beside what all have, by its number.
    pub configure: &'a (dyn Fn(usize) -> String + Sync),
}

impl<'a> Setup<'a> {
    /// So many nodes on this machine with nothing of their own.
    pub fn on_loopback(program: &'a Path, nodes: usize) -> Self {
        Self { program, nodes, hosts: Vec::new(), configure: &|_| String::new() }
    }
}

/// A program of the same build as the calling test.
///
/// # Errors
/// When it is not built; in words for whoever runs the test.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.ancestors().nth(2).context("this test is not in a target folder")?;
    let program = folder.join(name);
    ensure!(program.is_file(), "{} is not built; run cargo build --release --workspace", program.display());
    Ok(program)
}

/// Nodes of one scope, founded by the first. Dropping it kills them.
pub struct Fleet {
    nodes: Vec<Node>,
    sights: Sights,
    token: String,
    /// Homes made so far.
    homes: usize,
    program: PathBuf,
    folder: TempDir,
}

impl Fleet {
    /// Starts all nodes, lets them join, and waits until all see all.
    ///
    /// # Errors
    /// When a node does not start or join, or they do not find each other; with what is missing.
    pub async fn start(setup: Setup<'_>) -> Result<Self> {
        let Setup { program, nodes: count, hosts, configure } = setup;
        let mut fleet = Self {
            nodes: Vec::new(),
            sights: Sights::new(count),
            token: String::new(),
            homes: 0,
            program: program.to_owned(),
            folder: tempfile::tempdir()?,
        };
        let mut hosts = hosts.into_iter();
        for number in 0..count {
            let home = fleet.next_home();
            let node = Node::new(number, program.to_owned(), home, hosts.next(), &configure(number))?;
            fleet.nodes.push(node);
        }
        fleet.nodes[0].run()?;
        fleet.nodes[0].answers().await?;
        fleet.token = fleet.nodes[0].invite().await?;
        fleet.watch(0);
        for begin in (1..count).step_by(AT_ONCE) {
            let batch = begin..(begin + AT_ONCE).min(count);
            for number in batch.clone() {
                fleet.nodes[number].run()?;
            }
            for number in batch {
                fleet.enter(number).await?;
            }
        }
        fleet.all_see_the_living().await?;
        Ok(fleet)
    }

    async fn enter(&mut self, number: usize) -> Result<()> {
        self.nodes[number].answers().await?;
        self.nodes[number].join(&self.token).await?;
        self.watch(number);
        Ok(())
    }

    fn watch(&mut self, number: usize) {
        self.sights.watch(number, self.nodes[number].client().clone());
    }

    fn next_home(&mut self) -> PathBuf {
        self.homes += 1;
        self.folder.path().join(self.homes.to_string())
    }

    /// One of its nodes.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// How many nodes there are, running or not.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The numbers of the nodes that run, frozen ones included.
    pub fn living(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|number| self.nodes[*number].is_running()).collect()
    }

    /// The number of the node with an id.
    pub fn number_of(&self, id: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.id() == id)
    }

    /// Kills a node so that it can say nothing (`kill -9`). Returns the moment before, Unix milliseconds.
    pub fn kill(&mut self, number: usize) -> u64 {
        let at = now_ms();
        self.nodes[number].kill();
        at
    }

    /// Freezes a node's process or lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn set_frozen(&self, number: usize, is_frozen: bool) -> Result<()> {
        self.nodes[number].signal(if is_frozen { Signal::STOP } else { Signal::CONT })
    }

    /// Starts a node again in its home with this beside what all have in their configuration, and waits until it answers
    /// its owner. It finds the others by itself.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self, number: usize, configuration: &str) -> Result<()> {
        let node = &mut self.nodes[number];
        node.kill();
        node.configure(configuration)?;
        node.run()?;
        node.answers().await
    }

    /// Puts a new node with an empty home and a new key in a node's place; it joins.
    ///
    /// # Errors
    /// When it does not start or join.
    pub async fn replace(&mut self, number: usize, configuration: &str) -> Result<()> {
        let home = self.next_home();
        let node = &mut self.nodes[number];
        node.kill();
        let host = node.take_host();
        *node = Node::new(number, self.program.clone(), home, host, configuration)?;
        node.run()?;
        self.enter(number).await
    }

    /// Waits until every running node sees exactly the running ones as alive and says the same of each.
    ///
    /// # Errors
    /// When the time is over; with all that is otherwise.
    pub async fn all_see_the_living(&self) -> Result<()> {
        let agreed =
            self.until("all see the living", |book| self.disagreements(book).is_empty().then_some(()));
        let Err(error) = agreed.await else { return Ok(()) };
        let found = self.sights.read(|book| self.disagreements(book));
        bail!("{error}: {}", found.join("; "))
    }

    /// All that is not as it should be once all is quiet, a line each: who sees whom how.
    pub fn disagreements(&self, book: &Book) -> Vec<String> {
        agreement::disagreements(&self.nodes, book)
    }

    /// Waits until there is something to see in what the nodes see.
    ///
    /// # Errors
    /// When [`PATIENCE`] is over.
    pub async fn until<T>(&self, what: &str, look: impl FnMut(&Book) -> Option<T>) -> Result<T> {
        tokio::time::timeout(PATIENCE, self.sights.until(look))
            .await
            .with_context(|| format!("waited {PATIENCE:?} in vain: {what}"))
    }

    /// Waits until no node has seen a change of any other for so long.
    ///
    /// # Errors
    /// When that does not come within [`PATIENCE`].
    pub async fn is_quiet_for(&self, time: Duration) -> Result<()> {
        let quiet = async {
            loop {
                let seen = self.read(|book| book.sightings().len());
                tokio::time::sleep(time).await;
                if self.read(|book| book.sightings().len()) == seen {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, quiet).await.context("the nodes never agree for long")
    }

    /// Looks at what the nodes see.
    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        self.sights.read(look)
    }

    /// What was seen from that moment on (Unix milliseconds), in the order in which it was told.
    pub fn sightings_since(&self, at_ms: u64) -> Vec<Sighting> {
        self.read(|book| book.sightings().iter().filter(|seen| seen.at_ms >= at_ms).cloned().collect())
    }

    /// The running nodes that have a link with this one, by what they say themselves.
    pub fn linked_with(&self, number: usize) -> Vec<usize> {
        let id = self.nodes[number].id();
        let linked = |book: &Book| {
            let of = |other: &usize| book.view(*other).links.contains(id);
            self.living().into_iter().filter(|other| *other != number && of(other)).collect()
        };
        self.read(linked)
    }
}
