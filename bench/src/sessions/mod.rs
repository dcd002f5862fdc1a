//! `sessions`: their store, beside bare SQLite in the same run; real nodes that hold them for each other, also while they are killed.

mod appends;
mod bare;
#[cfg(target_os = "linux")]
mod chaos;
mod forks;
#[cfg(target_os = "linux")]
mod remote;
mod resume;
mod watchers;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use mesh_identity::NodeKey;
use mesh_sessions::event::{Body, Party};
use mesh_sessions::ids::{SessionId, TurnNumber};
use mesh_sessions::store::{Append, Config, Store};
use tempfile::TempDir;

use crate::machine;
use crate::report::{Lacking, Report, lack};

pub(crate) struct Options {
    pub(crate) quick: bool,
    /// None: all.
    pub(crate) parts: Vec<Part>,
    /// With qmt-node, for the parts with real nodes.
    pub(crate) bin_dir: Option<PathBuf>,
    /// Of the part `chaos`; none for the usual number.
    pub(crate) runs: Option<u64>,
    pub(crate) report: Option<PathBuf>,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Events appended and acknowledged durable, beside bare inserts.
    Appends,
    /// Forks of a long session: time and space.
    Forks,
    /// Opening a store with a very long session and going on in it.
    Resume,
    /// A thousand watchers of one session: memory and delay.
    Watchers,
    /// Agents of another node beside own ones, and a very long session there.
    #[cfg(target_os = "linux")]
    Remote,
    /// Nodes that are killed and cut off while they hold sessions.
    #[cfg(target_os = "linux")]
    Chaos,
}

impl Part {
    async fn measure(self, report: &mut Report, options: &Options) -> Result<()> {
        let quick = options.quick;
        #[cfg(target_os = "linux")]
        let node = || {
            let folder = options.bin_dir.as_ref().context("--bin-dir says where qmt-node is")?;
            anyhow::Ok(folder.join("qmt-node"))
        };
        match self {
            Self::Appends => appends::measure(report, quick).await,
            Self::Forks => forks::measure(report, quick).await,
            Self::Resume => resume::measure(report, quick).await,
            Self::Watchers => watchers::measure(report, quick).await,
            #[cfg(target_os = "linux")]
            Self::Remote => remote::measure(report, &node()?, quick).await,
            #[cfg(target_os = "linux")]
            Self::Chaos => chaos::measure(report, &node()?, options.runs, quick).await,
        }
    }

    /// What a run without it lacks.
    fn figures(self) -> Lacking {
        match self {
            Self::Appends => appends::lacking(),
            Self::Forks => forks::lacking(),
            Self::Resume => resume::lacking(),
            Self::Watchers => watchers::lacking(),
            #[cfg(target_os = "linux")]
            Self::Remote => remote::lacking(),
            #[cfg(target_os = "linux")]
            Self::Chaos => chaos::lacking(),
        }
    }
}

/// Runs the benchmark; says whether all goals are met.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let facts = machine::facts(None)?;
    let mut report = Report::new("sessions");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for part in Part::value_variants() {
        let measured = if options.parts.is_empty() || options.parts.contains(part) {
            runtime.block_on(part.measure(&mut report, options))
        } else {
            Err(anyhow!("left out by --part"))
        };
        if let Err(error) = measured {
            lack(&mut report, part.figures(), &error);
        }
    }
    report.note("bare inserts: one connection of sqlx, a prepared INSERT of as many rows as our commits had events on average, the same table, WAL, synchronous=FULL, each waited for; by turns with ours.");
    report.note(format!("all files lie in {}.", std::env::temp_dir().display()));
    for fact in facts {
        report.note(fact);
    }
    report.finish(options.report.as_deref(), "scripts/bench sessions")
}

/// A store in a folder of its own.
struct Home {
    store: Store,
    folder: TempDir,
}

impl Home {
    async fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = open(folder.path()).await?;
        Ok(Self { store, folder })
    }
}

async fn open(folder: &Path) -> Result<Store> {
    Ok(Store::open(&folder.join("sessions.db"), Config::default()).await?)
}

fn id(number: usize) -> Result<SessionId> {
    format!("00000000-0000-7000-8000-{number:012x}").parse().context("an id")
}

fn owner() -> Party {
    Party::local(NodeKey::from_seed([1; 32]).node_id())
}

/// A piece of an answer as a fast model says it: about 200 bytes in the file.
fn piece(number: usize) -> Body {
    let said =
        "and so the little boat went on, past the lighthouse and out to where no one had been before, ";
    Body::TextAdded { turn: TurnNumber(1), text: format!("{said}{said:.40}{number:09}") }
}

async fn create(store: &Store, number: usize) -> Result<SessionId> {
    let session = id(number)?;
    let created = Body::Created { agent: "bench".parse()?, owner: owner() };
    store.create(session, 1, vec![created]).await?;
    Ok(session)
}

fn append(session: SessionId, bodies: Vec<Body>) -> Append {
    Append { session, epoch: 1, after: None, at_ms: 1_700_000_000_000, bodies }
}

/// A session of so many events.
async fn long(store: &Store, number: usize, events: usize) -> Result<SessionId> {
    let session = create(store, number).await?;
    let mut written = 1;
    while written < events {
        let count = (events - written).min(1_000);
        let bodies = (0..count).map(|more| piece(written + more)).collect();
        store.append(append(session, bodies)).await?;
        written += count;
    }
    Ok(session)
}
