//! Sessions over nodes that are killed and cut off at random moments: what was acknowledged must be in the log, once and in order,
//! and every turn must end once.
//!
//! A pair of nodes: one hosts an agent whose model is known beforehand, the other prompts and reads it. Each run is a session of
//! its own with a plan that follows from its seed; pairs take runs from one queue.

mod plan;
mod provider;
mod verdict;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_control::{
    Client, ClientError, CreateSession, EndReason, EventsQuery, Followed, PromptPart, PromptSession,
    SessionEvent, SessionItem,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::fleet::{Fleet, Setup};
use crate::lab::{Cut, Host, Lab};
pub use plan::Kind;
use plan::{Blow, Plan, Wish};
use provider::EFFECTS;
pub use provider::Provider;
use verdict::Seen;
pub use verdict::Tally;

const HOST: usize = 0;
const CLIENT: usize = 1;
/// Longest wait for the end of a run, from its beginning: three cuts, and as often the time until nodes find each other again.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(50);

/// A number of runs.
#[derive(Debug)]
pub struct Runs<'a> {
    /// The program `qmt-node`.
    pub node: &'a Path,
    /// The seed of the first; the others' follow.
    pub seed: u64,
    /// How many.
    pub count: u64,
    /// How many pairs share them.
    pub pairs: usize,
}

impl Runs<'_> {
    /// Starts the nodes, does all of it, and judges. Where this machine has no network namespaces, no link is cut, which is
    /// printed.
    ///
    /// # Errors
    /// When nodes do not start, or do not find each other at the beginning. What goes wrong later is in the [`Tally`].
    pub async fn perform(&self) -> Result<Tally> {
        let mut lab = Lab::new().map_err(|reason| println!("no link is cut: {reason}")).ok();
        let next = Arc::new(AtomicU64::new(0));
        let mut pairs = JoinSet::new();
        for _ in 0..self.pairs {
            let hosts = lab.as_mut().map(|lab| {
                let lan = lab.lan();
                [Arc::new(lab.host(&lan)), Arc::new(lab.host(&lan))]
            });
            let (node, next, seed, count) = (self.node.to_owned(), next.clone(), self.seed, self.count);
            pairs.spawn(async move {
                let mut pair = Pair::start(node, hosts).await?;
                let mut tally = Tally::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(tally);
                    }
                    pair.run(seed.wrapping_add(number), &mut tally).await?;
                }
            });
        }
        let mut tally = Tally::default();
        while let Some(done) = pairs.join_next().await {
            tally.merge(done??);
        }
        drop(lab);
        Ok(tally)
    }
}

struct Pair {
    fleet: Fleet,
    hosts: Option<[Arc<Host>; 2]>,
    workspace: PathBuf,
    configs: [String; 2],
    _provider: Provider,
    _folder: tempfile::TempDir,
}

impl Pair {
    async fn start(program: PathBuf, hosts: Option<[Arc<Host>; 2]>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let workspace = folder.path().join("project");
        std::fs::create_dir(&workspace)?;
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = match &hosts {
            Some([host, _]) => host.inside(listen)?,
            None => listen()?,
        };
        let provider = Provider::start(listener)?;
        let configs = [provider.agent("worker", &workspace), String::new()];
        let configure = |number: usize| configs[number].clone();
        let setup = Setup {
            program: &program,
            nodes: 2,
            hosts: hosts.iter().flatten().cloned().collect(),
            configure: &configure,
        };
        let fleet = Fleet::start(setup).await?;
        Ok(Self { fleet, hosts, workspace, configs, _provider: provider, _folder: folder })
    }

    /// # Errors
    /// When a node does not come back, which is the end of the pair.
    async fn run(&mut self, seed: u64, tally: &mut Tally) -> Result<()> {
        let plan = Plan::new(seed, self.hosts.is_some());
        let id = Uuid::now_v7().to_string();
        let host = self.fleet.node(HOST).id().to_owned();
        let clients = [self.fleet.node(HOST).client().clone(), self.fleet.node(CLIENT).client().clone()];
        let use_it = timeout(PATIENCE, used(clients, id, host, plan.wishes.clone()));
        let begun = tokio::time::Instant::now();
        let (used, harmed) = tokio::join!(use_it, self.harm(&plan.blows));
        let took = begun.elapsed().as_secs_f64();
        let blows: Vec<&str> = plan.blows.iter().map(|blow| blow.kind.name()).collect();
        println!("{took:5.1} s: seed {seed}: {}", blows.join(", "));
        harmed.with_context(|| format!("seed {seed}"))?;
        let seen = match used {
            Ok(seen) => seen,
            Err(_) => Err(anyhow::anyhow!("not done after {PATIENCE:?}")),
        };
        let effects = std::fs::read_to_string(self.workspace.join(EFFECTS)).unwrap_or_default();
        tally.add(seed, &plan, seen.map(|seen| Seen { effects, ..seen }));
        Ok(())
    }

    async fn harm(&mut self, blows: &[Blow]) -> Result<()> {
        for blow in blows {
            sleep(blow.after).await;
            let victims: &[usize] = match blow.kind {
                Kind::Host => &[HOST],
                Kind::Client => &[CLIENT],
                Kind::Both => &[HOST, CLIENT],
                Kind::Unplugged => {
                    self.cut(Cut::Unplugged, blow.lasts).await;
                    continue;
                }
                Kind::Silent => {
                    self.cut(Cut::Silent, blow.lasts).await;
                    continue;
                }
            };
            for victim in victims {
                self.fleet.kill(*victim);
            }
            sleep(blow.lasts).await;
            for victim in victims {
                self.fleet.restart(*victim, &self.configs[*victim]).await?;
            }
        }
        Ok(())
    }

    async fn cut(&self, cut: Cut, lasts: Duration) {
        let Some([host, _]) = &self.hosts else { return };
        host.plug().cut(cut);
        sleep(lasts).await;
        host.plug().mend();
    }
}

/// Begins a session, says all that is wished, and reads at both nodes until all is done.
async fn used(clients: [Client; 2], id: String, host: String, wishes: Vec<Wish>) -> Result<Seen> {
    let client = &clients[CLIENT];
    let new = CreateSession { id: id.clone(), agent: format!("worker@{host}"), ..CreateSession::default() };
    persist(|| client.create_session(&new)).await.context("create")?;
    let addresses = [id.clone(), format!("{id}@{host}")];
    let read =
        async |node: usize, who| follow(&clients[node], &addresses[node], wishes.len()).await.context(who);
    let (acknowledged, here, there) = tokio::try_join!(
        speak(client, &addresses[CLIENT], &wishes),
        read(HOST, "the reader at the host"),
        read(CLIENT, "the reader at the client"),
    )?;
    let logs = [
        past(&clients[HOST], &addresses[HOST]).await.context("the log at the host")?,
        past(&clients[CLIENT], &addresses[CLIENT]).await.context("the log at the client")?,
    ];
    Ok(Seen { acknowledged, live: [here, there], logs, effects: String::new() })
}

/// What a program does that is told that something may pass: the same again.
async fn persist<T, F: Future<Output = Result<T, ClientError>>>(
    ask: impl Fn() -> F,
) -> Result<T, ClientError> {
    loop {
        match ask().await {
            Err(error) if error.may_pass() => sleep(AGAIN).await,
            done => return done,
        }
    }
}

async fn speak(client: &Client, session: &str, wishes: &[Wish]) -> Result<Vec<(String, u64)>> {
    let mut acknowledged = Vec::new();
    for wish in wishes {
        sleep(wish.after).await;
        let parts = vec![PromptPart::Text { text: wish.text() }];
        let prompt = PromptSession { session: session.to_owned(), prompt: wish.name.clone(), parts };
        let written = persist(|| client.prompt(&prompt)).await.context("prompt")?;
        if wish.is_repeated {
            let again = persist(|| client.prompt(&prompt)).await.context("the same prompt again")?;
            if again != written {
                bail!("the same prompt again is another one: {again:?} after {written:?}");
            }
        }
        acknowledged.push((wish.name.clone(), written.number));
    }
    Ok(acknowledged)
}

/// Reads until so many turns have ended.
async fn follow(client: &Client, session: &str, turns: usize) -> Result<Vec<SessionEvent>> {
    let (mut events, mut ended) = (Vec::new(), 0);
    let mut reader = client.follow_session(session, 0);
    while ended < turns {
        match reader.next().await? {
            Followed::Event(event) => {
                ended += usize::from(event.kind() == "turn_ended");
                events.push(event);
            }
            Followed::Lost(_) => {}
            Followed::End(end) => bail!("the stream ended after {} events: {end:?}", events.len()),
        }
    }
    Ok(events)
}

/// The whole log; reads it again while it breaks off.
async fn past(client: &Client, session: &str) -> Result<Vec<SessionEvent>, ClientError> {
    let query = EventsQuery { session: session.to_owned(), after: 0, past: true };
    loop {
        let mut stream = persist(|| client.session_events(&query)).await?;
        let mut events = Vec::new();
        loop {
            match stream.next().await {
                Ok(Some(SessionItem::Event(event))) => events.push(event),
                Ok(Some(SessionItem::End(end))) if end.end == EndReason::Past => return Ok(events),
                Ok(_) => break,
                Err(error) if error.may_pass() => break,
                Err(error) => return Err(error),
            }
        }
        sleep(AGAIN).await;
    }
}
