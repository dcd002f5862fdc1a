//! The registry of the agent channel: `mesh.json`, which all nodes of a folder read and write, and what its nodes tell each other
//! beside it.
//!
//! [`Registry`] is the handle of a running one; [`RegistryFile`] and [`Contents`] are the file alone. A node writes its own entry
//! and carries those of others as they are. Whether another one lives is told by whether its entry moves, by this node's own clock.
//! How nodes are asked is not known here: that is [`Ask`].
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use mesh_gossip::registry::{Config, Facts, Life, Registry};
//!
//! let folder = tempfile::tempdir()?;
//! let facts = |name: &str| Facts {
//!     name: name.parse().expect("a name"), node: None, host: "10.0.0.1".into(), port: 3000, agents: vec!["opus".into()],
//!     providers: Vec::new(), models: Vec::new(), capabilities: Vec::new(), version: "1".into(),
//! };
//! let one = Registry::start(Config::at(folder.path()), facts("ct110"), None, None).await?;
//! let two = Registry::start(Config::at(folder.path()), facts("ct111"), None, None).await?;
//!
//! let mut seen = one.watch();
//! let view = seen.wait_for(|view| view.named(&"ct111".parse().expect("a name")).is_some()).await?.clone();
//! assert!(view.nodes().all(|node| node.life == Life::Online));
//! two.shutdown().await;
//! one.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The file and its rules are in `docs/registry.md`.

mod contents;
mod discovery;
mod driver;
mod file;
pub mod limits;
mod local;
mod lock;
mod node;
mod view;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_identity::NodeName;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::discovery::Rounds;
use self::driver::{Command, Driver};
use self::local::Local;

pub use self::contents::{Contents, ContentsFault};
pub use self::discovery::{Ask, AskError, Asked, Mdns, MdnsError, Place};
pub use self::file::{FileError, Found, RegistryFile};
pub use self::local::Life;
pub use self::node::{Entry, EntryFault, Facts, Status};
pub use self::view::{NodeView, View};

/// Commands that wait for the task: announcements of a whole mesh at once. Whoever comes when it is full waits.
const COMMANDS_MAX: usize = 256;

/// This machine's clock in milliseconds since 1970, as it stands in entries.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How a registry is kept.
#[derive(Clone)]
pub struct Config {
    /// The folder with `mesh.json`.
    pub folder: PathBuf,
    /// How often the node says that it lives. Default 30 s.
    pub heartbeat: Duration,
    /// Silence after which another node is stale. Default 90 s.
    pub stale: Duration,
    /// How often the file is looked at for what others wrote. Default 1 s.
    pub poll: Duration,
    /// Nodes that are asked in every round: a seed, peers.
    pub places: Vec<Place>,
    /// What is written as the time.
    pub clock: Clock,
}

impl Config {
    /// The defaults for a folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            heartbeat: Duration::from_secs(30),
            stale: Duration::from_secs(90),
            poll: Duration::from_secs(1),
            places: Vec::new(),
            clock: Arc::new(|| {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("folder", &self.folder)
            .field("heartbeat", &self.heartbeat)
            .field("stale", &self.stale)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

/// An announcement was not taken. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The value is no entry of a registry.
    #[error(transparent)]
    Entry(#[from] EntryFault),
    /// It speaks for another node than the one that sends it.
    #[error("the entry is that of {said}, and the certificate that of {caller}")]
    Another {
        /// Whose name the entry has.
        said: String,
        /// Whose certificate it came with.
        caller: String,
    },
    /// Its id is neither the node's name nor one that nobody else may have.
    #[error("a node's id is its name or a UUID, and {0:?} is neither")]
    Id(String),
    /// The id belongs to another node.
    #[error("the id {id:?} belongs to {owner}")]
    Taken {
        /// The id.
        id: String,
        /// The node that has it.
        owner: String,
    },
    /// The registry has been shut down.
    #[error("the registry is closed")]
    Closed,
}

/// A running registry. Clones are the same one; it ends with [`Self::shutdown`], and by itself when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Registry {
    commands: mpsc::Sender<Command>,
    views: watch::Receiver<Arc<View>>,
    task: Arc<Task>,
}

#[derive(Debug)]
struct Task {
    cancel: CancellationToken,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Registry {
    /// Starts one and registers this node. `ask` is how other nodes are asked; without it only the file is shared. `mdns` finds
    /// more of them. A folder that cannot be written later on is told of in the log and tried again; what is known stays known.
    ///
    /// # Errors
    /// [`FileError::Folder`] when there is no folder and none can be made. Nothing was started.
    pub async fn start(
        config: Config,
        facts: Facts,
        ask: Option<Arc<dyn Ask>>,
        mdns: Option<Mdns>,
    ) -> Result<Self, FileError> {
        let file = RegistryFile::open(config.folder)?;
        let reading = file.clone();
        let found = tokio::task::spawn_blocking(move || reading.read()).await;
        let before = match found {
            Ok(Ok(Found::Contents(contents))) => contents.nodes().get(facts.name.as_str()).cloned(),
            _ => None, // the first write tells what is wrong
        };
        let local = Local::new(facts, before.as_ref(), config.stale, (config.clock)());
        let (views, seen) = watch::channel(Arc::new(View::of(&local)));
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let mut driver = Driver {
            local,
            file,
            clock: config.clock,
            heartbeat: config.heartbeat,
            poll: config.poll,
            rounds: Rounds::new(config.places),
            ask,
            mdns,
            views,
            stamp: None,
            contested: false,
            fault: None,
            silent: std::collections::BTreeMap::new(),
        };
        driver.write().await;
        let cancel = CancellationToken::new();
        let handle = tokio::spawn(driver.run(received, cancel.clone()));
        let task = Arc::new(Task { cancel, handle: Mutex::new(Some(handle)) });
        Ok(Self { commands, views: seen, task })
    }

    /// The registry as it is now.
    pub fn view(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    /// Every registry from now on; one in a row may be skipped for a later one.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.views.clone()
    }

    /// Says something else of this node. Its name stays what it was. Cancel safe; does nothing after the shutdown.
    pub async fn set(&self, facts: Facts) {
        drop(self.commands.send(Command::Set(facts)).await);
    }

    /// Takes in what a node says of itself. `caller` is whom its certificate proved.
    ///
    /// # Errors
    /// [`JoinError`]. Cancel safe: a call that is dropped may still have its effect.
    pub async fn join(&self, caller: &NodeName, value: Value) -> Result<(), JoinError> {
        let entry = Entry::read_whole(value)?;
        if entry.name() != caller {
            let said = entry.name().to_string();
            return Err(JoinError::Another { said, caller: caller.to_string() });
        }
        if entry.id() != caller.as_str() && !is_uuid(entry.id()) {
            return Err(JoinError::Id(entry.id().to_owned()));
        }
        if let Some(owner) = self.view().get(entry.id()).filter(|known| known.entry.name() != caller) {
            let owner = owner.entry.name().to_string();
            return Err(JoinError::Taken { id: entry.id().to_owned(), owner });
        }
        self.learn(vec![entry]).await
    }

    /// Takes in entries that came another way, such as a bridge's. Returns when they are merged, and written if they are news.
    ///
    /// # Errors
    /// [`JoinError::Closed`].
    pub async fn learn(&self, entries: Vec<Entry>) -> Result<(), JoinError> {
        let (reply, done) = oneshot::channel();
        self.commands.send(Command::Learn(entries, reply)).await.map_err(|_| JoinError::Closed)?;
        done.await.map_err(|_| JoinError::Closed)
    }

    /// Takes in entries whose nodes somebody sees alive right now, and who is to be asked again within a heartbeat. They count
    /// as moved though their nodes did not write. Does nothing after the shutdown.
    pub async fn seen(&self, entries: Vec<Entry>) {
        drop(self.commands.send(Command::Seen(entries)).await);
    }

    /// Writes that this node stops, tells the others, and ends. Idempotent.
    pub async fn shutdown(&self) {
        self.task.cancel.cancel();
        let handle = self.task.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle
            && let Err(error) = handle.await
        {
            tracing::error!(%error, "the registry's task failed");
        }
    }
}

fn is_uuid(id: &str) -> bool {
    let group = |(part, length): (&str, usize)| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = id.split('-').collect();
    parts.len() == 5 && parts.into_iter().zip([8, 4, 4, 4, 12]).all(group)
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
