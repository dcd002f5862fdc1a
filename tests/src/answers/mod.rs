//! Streams of answers over a mesh whose nodes are killed and halted all the time: what is said must be said once, whole and in
//! order, and end once.
//!
//! The mesh: one node that nobody harms, gateways, hosts of one model (a stand-in whose text is known), and a host that splits
//! a real model over workers, where llama.cpp is at hand. Plain callers ask the unharmed node and the gateways; callers that can
//! resume ask the gateways and go to another one when theirs is gone.

mod caller;
mod harm;
mod heard;
mod scene;
mod tally;
mod worker_loss;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_control::{DropRequest, ModelState, ModelView};
use mesh_inference::gguf::tiny::TinyModel;
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;

use crate::fleet::{Fleet, PATIENCE, Setup};
use crate::stand_in;
use caller::{Answer, Model, Wish};
pub use harm::Kind;
use harm::{Act, Blow, Plan, Victim};
use scene::Scene;
pub use tally::{Row, Tally};
pub use worker_loss::{WorkerLoss, WorkerLosses};

/// The node that invites the others, keeps a gateway, and is left in peace.
const DOOR: usize = 0;
const GATEWAYS: RangeInclusive<usize> = 1..=3;
const HOSTS: RangeInclusive<usize> = 4..=6;
const SPLIT_HOST: usize = 7;
const LENDERS: RangeInclusive<usize> = 8..=9;
/// Tokens of an answer of the split model: a second or so on a quiet machine, ten times that on a busy one.
const ALPHABET_TOKENS: usize = 200;
const ALPHABET_PROMPT: &str = "say it";
/// Answers of the stand-in take some two seconds when nobody is harmed.
const TALK_TOKENS: usize = 80;
const TALK_GAP_MS: u64 = 25;

/// What a run is made of.
#[derive(Debug)]
pub struct Run<'a> {
    /// The programs `qmt-node` and `qmt-stand-in`.
    pub node: &'a Path,
    /// See [`Run::node`].
    pub stand_in: &'a Path,
    /// The folder of llama-server and rpc-server; none for a run without a split.
    pub llama: Option<&'a Path>,
    /// Fixes what is done to whom.
    pub seed: u64,
    /// How many kills.
    pub kills: usize,
}

impl Run<'_> {
    /// Starts the mesh, harms it, and counts.
    ///
    /// # Errors
    /// When the mesh cannot be started, or a node does not come back. What goes wrong with answers is in the [`Tally`].
    pub async fn perform(&self) -> Result<Tally> {
        let folder = tempfile::tempdir()?;
        let mesh = Mesh::start(self, folder.path()).await?;
        let tally = mesh.harm(self).await;
        drop(folder);
        tally
    }

    /// Kills a gateway under one answer; then drops the model under another one, and returns the error in which that ended.
    ///
    /// # Errors
    /// When the mesh cannot be started, or does not do as it is told.
    pub async fn perform_one_by_one(&self) -> Result<(Tally, String)> {
        let folder = tempfile::tempdir()?;
        let mut mesh = Mesh::start(self, folder.path()).await?;
        let gateway = *GATEWAYS.start();
        let asked = Wish { gateways: vec![gateway], ..mesh.wish(Model::Talks, true) };
        let asked = mesh.asked(asked).await;
        mesh.scene.note_killed(gateway);
        mesh.fleet.kill(gateway);
        let mut tally = Tally::new(None);
        tally.add(&asked.await?);

        let long = Wish { gateways: vec![DOOR], tokens: 2_000, ..mesh.wish(Model::Talks, false) };
        let asked = mesh.asked(long).await;
        let client = mesh.fleet.node(*GATEWAYS.end()).client();
        client.drop_model(&DropRequest { model: "talks".to_owned(), node: None }).await?;
        let dropped = asked.await?;
        ensure!(dropped.heard.terminal == 1, "{dropped:?}");
        let error = dropped.heard.error.context("the answer has no error")?;
        Ok((tally, error))
    }
}

struct Mesh {
    fleet: Fleet,
    scene: Arc<Scene>,
    configs: Vec<String>,
    /// The split model's whole text, if there is one.
    alphabet: Option<Answer>,
    begun: Instant,
}

/// What is to be undone.
struct Undo {
    at: Instant,
    act: Act,
    /// The process that was halted.
    pid: Option<u32>,
}

impl Mesh {
    async fn start(run: &Run<'_>, folder: &Path) -> Result<Self> {
        let begun = Instant::now();
        let configs = configure(run, folder)?;
        let nodes = configs.len();
        let configure = |number: usize| configs[number].clone();
        let fleet =
            Fleet::start(Setup { program: run.node, nodes, hosts: Vec::new(), configure: &configure });
        let fleet = fleet.await?;
        let mut mesh = Self { fleet, scene: Arc::new(Scene::new(nodes)), configs, alphabet: None, begun };
        for node in std::iter::once(DOOR).chain(GATEWAYS) {
            mesh.open_gateway(node).await?;
        }
        mesh.until_ready("talks", |view| ready(view).count() == HOSTS.count()).await?;
        if mesh.has_split() {
            let is_split = |view: &ModelView| ready(view).any(|provider| provider.workers.len() > 1);
            mesh.until_ready("alphabet", is_split).await?;
            let wish = Wish { gateways: vec![DOOR], ..mesh.wish(Model::Alphabet, false) };
            mesh.alphabet = Some(wish.answer(&mesh.scene, ALPHABET_PROMPT, 0).await);
        }
        println!("{:5.1} s: all is ready", begun.elapsed().as_secs_f64());
        Ok(mesh)
    }

    fn has_split(&self) -> bool {
        self.configs.len() > SPLIT_HOST
    }

    async fn open_gateway(&self, node: usize) -> Result<()> {
        self.scene.set_gateway(node, Some(gateway_of(&self.fleet, node).await?));
        Ok(())
    }

    async fn until_ready(&self, model: &str, is: impl Fn(&ModelView) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let models = self.fleet.node(DOOR).client().models().await?;
            if models.iter().any(|view| view.name == model && is(view)) {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "{model} is not ready: {models:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn wish(&self, model: Model, resumable: bool) -> Wish {
        let (tokens, gap_ms) = match model {
            Model::Talks => (TALK_TOKENS, TALK_GAP_MS),
            Model::Alphabet => (ALPHABET_TOKENS, 0),
        };
        Wish { model, resumable, gateways: GATEWAYS.collect(), tokens, gap_ms }
    }

    /// Asks, and returns once the answer has begun.
    async fn asked(&self, wish: Wish) -> tokio::task::JoinHandle<Answer> {
        let scene = self.scene.clone();
        let gateway = wish.gateways[0];
        let asked = tokio::spawn(async move { wish.answer(&scene, "one", 0).await });
        while self.scene.under_way(|_, at| at == gateway) == 0 && !asked.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Some tokens of it are to be there.
        tokio::time::sleep(Duration::from_millis(10 * TALK_GAP_MS)).await;
        asked
    }

    /// Who asks all the time.
    fn wishes(&self) -> Vec<Wish> {
        let (plain, resumable) = (self.wish(Model::Talks, false), self.wish(Model::Talks, true));
        let at_door = Wish { gateways: vec![DOOR], ..plain.clone() };
        let mut wishes = vec![at_door; 4];
        wishes.extend(vec![resumable; 4]);
        wishes.extend(vec![plain; 2]);
        if self.has_split() {
            wishes.push(Wish { gateways: vec![DOOR], ..self.wish(Model::Alphabet, false) });
            wishes.push(self.wish(Model::Alphabet, true));
        }
        wishes
    }

    async fn harm(mut self, run: &Run<'_>) -> Result<Tally> {
        let mut callers = JoinSet::new();
        for (number, wish) in self.wishes().into_iter().enumerate() {
            callers.spawn(keep_asking(self.scene.clone(), wish, number));
        }
        let mut plan = Plan::new(run.seed, self.configs.len(), self.has_split());
        let mut tally = Tally::new(self.alphabet.take());
        let mut undo: VecDeque<Undo> = VecDeque::new();
        let mut next = Instant::now();
        while tally.kills() < run.kills || !undo.is_empty() {
            let now = Instant::now();
            if let Some(at) = undo.iter().position(|undo| undo.at <= now)
                && let Some(due) = undo.remove(at)
            {
                self.undo(&due, &mut plan).await?;
                continue;
            }
            if now >= next && tally.kills() < run.kills {
                if let Some(act) = plan.next(now)
                    && let Some(done) = self.strike(act, &mut tally)
                {
                    plan.note(&act, now);
                    undo.push_back(done);
                }
                next = now + plan.pause();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.scene.stop();
        while let Some(answers) = callers.join_next().await {
            answers?.into_iter().for_each(|answer| tally.add(&answer));
        }
        println!("{:5.1} s: all answers are over", self.begun.elapsed().as_secs_f64());
        Ok(tally)
    }

    /// None when there is nothing to strike.
    fn strike(&mut self, act: Act, tally: &mut Tally) -> Option<Undo> {
        let group = act.kind.group();
        let under_way = self.scene.under_way(|model, gateway| match group {
            harm::Group::Split => model == Model::Alphabet,
            harm::Group::Hosts => model == Model::Talks,
            harm::Group::Gateways => gateway == act.node,
        });
        let pid = match act.kind.victim() {
            Victim::Node => self.fleet.node(act.node).process_id()?,
            Victim::Child(name) => child(self.fleet.node(act.node).process_id()?, name)?,
        };
        println!("{:5.1} s: {} (node {})", self.begun.elapsed().as_secs_f64(), act.kind.name(), act.node);
        let now = Instant::now();
        match (act.kind.victim(), act.kind.blow()) {
            (Victim::Node, Blow::Kill) => {
                self.scene.note_killed(act.node);
                self.fleet.kill(act.node);
            }
            (_, Blow::Kill) => signal(pid, Signal::KILL),
            (_, Blow::Freeze) => signal(pid, Signal::STOP),
        }
        tally.strike(act.kind, now, under_way);
        Some(Undo { at: now + act.lasts, act, pid: (act.kind.blow() == Blow::Freeze).then_some(pid) })
    }

    async fn undo(&mut self, undo: &Undo, plan: &mut Plan) -> Result<()> {
        let node = undo.act.node;
        match (undo.act.kind.victim(), undo.pid) {
            // What was halted for long is killed by its node, and its number may mean another process by then.
            (Victim::Child(name), Some(pid)) => {
                if self.fleet.node(node).process_id().and_then(|parent| child(parent, name)) == Some(pid) {
                    signal(pid, Signal::CONT);
                }
            }
            (Victim::Child(_), None) => return Ok(()),
            (Victim::Node, Some(pid)) => signal(pid, Signal::CONT),
            (Victim::Node, None) => {
                self.fleet.restart(node, &self.configs[node]).await?;
                if GATEWAYS.contains(&node) {
                    self.open_gateway(node).await?;
                }
            }
        }
        plan.note_healed(node);
        Ok(())
    }
}

/// What each node has in its configuration, by its number.
fn configure(run: &Run<'_>, folder: &Path) -> Result<Vec<String>> {
    let model = |name: &str, model: TinyModel| {
        let file = folder.join(format!("{name}.gguf"));
        model.write(&file)?;
        anyhow::Ok(file)
    };
    let talks = model("talks", TinyModel::default())?;
    let stand_in = folder.join("stand-in");
    stand_in::install(&stand_in, run.stand_in)?;
    let all = "inference.calibrate = false\ninference.assign = false\ninference.threads = 1\n\
               inference.debounce_secs = 0.2\ninference.left_out_secs = 1\ninference.patience_secs = 2\n";
    let no_copies = "api.keep_replicas = false\n";
    let gateway = format!("{all}inference.lend = false\n");
    let serves = |bin_dir: &Path, file: &PathBuf| {
        format!("inference.bin_dir = {bin_dir:?}\ninference.models = [{file:?}]\n")
    };
    let host = format!("{gateway}{no_copies}{}inference.slots = 16\n", serves(&stand_in, &talks));
    let mut configs = vec![gateway; 1 + GATEWAYS.count()];
    configs.extend(vec![host; HOSTS.count()]);
    if let Some(llama) = run.llama {
        let alphabet = model("alphabet", TinyModel { alphabet: true, layers: 12, ..TinyModel::default() })?;
        let split = serves(llama, &alphabet);
        configs.push(format!(
            "{all}{no_copies}{split}inference.split = true\ninference.ctx_size = 2048\ninference.slots = 2\n"
        ));
        let lends = format!("{all}{no_copies}inference.bin_dir = {llama:?}\ninference.max_vram = 1\n");
        configs.extend(vec![lends; LENDERS.count()]);
    }
    Ok(configs)
}

async fn gateway_of(fleet: &Fleet, node: usize) -> Result<SocketAddr> {
    let status = fleet.node(node).client().status().await?;
    let url = status.gateway_url.context("no gateway")?;
    Ok(url.trim_start_matches("http://").trim_end_matches('/').parse()?)
}

fn ready(view: &ModelView) -> impl Iterator<Item = &mesh_control::ProviderView> {
    view.providers.iter().filter(|provider| provider.state == ModelState::Ready)
}

async fn keep_asking(scene: Arc<Scene>, wish: Wish, number: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !scene.stops() {
        let name = match wish.model {
            Model::Talks => format!("a{number}-{}", answers.len()),
            Model::Alphabet => ALPHABET_PROMPT.to_owned(),
        };
        answers.push(wish.answer(&scene, &name, number + answers.len()).await);
    }
    answers
}

/// A child of a node, or of the guard between them, by the end of its program's name.
fn child(node: u32, name: &str) -> Option<u32> {
    let guards = children(node);
    guards.into_iter().flat_map(children).find(|pid| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).next().is_some_and(|program| program.ends_with(name.as_bytes()))
    })
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended in this moment, which is no harm.
        let _ = kill_process(pid, signal);
    }
}
