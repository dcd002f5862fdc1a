//! Which models this node runs, and how: election decides, runners do it, the record tells it.
//!
//! One task owns the election and hears of everything that bears on it. It takes part with the members of one scope, the first
//! that this node entered: a claim names the workers, and nobody learns of those of another scope.

mod actor;
mod demand;
mod members;
pub(super) mod record;
mod runner;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::actor::Actor;
pub(crate) use self::demand::CountedRoutes;
use self::record::ServingFacts;
use super::Node;
use super::placing::Prepared;

/// Commands wait for the one before them; each is answered.
const COMMANDS_MAX: usize = 64;

/// The models that this node serves, or was told of.
pub(crate) struct Serving {
    commands: mpsc::Sender<Command>,
    taken: Mutex<Option<mpsc::Receiver<Command>>>,
    sizes: Mutex<BTreeMap<String, ModelSize>>,
    /// What the record tells.
    told: ArcSwap<Vec<ServingFacts>>,
    /// Models that were dropped and that nobody serves, nor would serve once back.
    ended: ArcSwap<BTreeSet<String>>,
    /// Requests for each model that came to the gateway and were not counted yet.
    requests: Mutex<BTreeMap<String, u64>>,
    changed: Notify,
    /// Whether a stopping node waits for its answers.
    held: Arc<AtomicBool>,
    stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// How large a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModelSize {
    pub(crate) file_bytes: u64,
    /// Of one request.
    pub(crate) context_tokens: u64,
}

enum Command {
    /// Serve it, whenever the rules say so.
    Serve { prepared: Box<Prepared>, is_wanted: bool, done: oneshot::Sender<()> },
    /// The owner wants the mesh to have it; it is not on this disk.
    Want { model: String },
    /// It is not held dropped any more, where it was.
    HoldNoMore { model: String },
    /// Serve it no more. Answers, once nothing of it runs, whether something did.
    Drop { model: String, done: oneshot::Sender<bool> },
    /// Serve it no more, unless somebody asked for it; others may take it up. Answers, once nothing of it runs, whether it was so.
    Leave { model: String, done: oneshot::Sender<bool> },
}

/// Names whose requests are counted at most: callers may invent names.
const COUNTED_MAX: usize = 256;

impl Serving {
    pub(crate) fn new() -> Self {
        let (commands, taken) = mpsc::channel(COMMANDS_MAX);
        Self {
            commands,
            taken: Mutex::new(Some(taken)),
            sizes: Mutex::default(),
            told: ArcSwap::default(),
            ended: ArcSwap::default(),
            requests: Mutex::default(),
            changed: Notify::new(),
            held: Arc::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Serves a model from now on. Returns once it has its place among the backends, or another node is known to have it.
    pub(crate) async fn serve(&self, prepared: Prepared, is_wanted: bool) {
        let size = ModelSize {
            file_bytes: prepared.model.file_bytes,
            context_tokens: prepared.needs.context.tokens.get().into(),
        };
        lock(&self.sizes).insert(prepared.model.name.clone(), size);
        let (done, entered) = oneshot::channel();
        let command = Command::Serve { prepared: Box::new(prepared), is_wanted, done };
        if self.commands.send(command).await.is_ok() {
            let _ = entered.await;
        }
    }

    /// Tells the mesh that a model is wanted which is not on this disk.
    pub(crate) async fn want(&self, model: String) {
        let _ = self.commands.send(Command::Want { model }).await;
    }

    /// Serves a model no more, and waits until its processes are gone; false when it was not served here.
    pub(crate) async fn drop_model(&self, model: &str) -> bool {
        let (done, ended) = oneshot::channel();
        let command = Command::Drop { model: model.to_owned(), done };
        self.commands.send(command).await.is_ok() && ended.await.unwrap_or(false)
    }

    /// Others may take a model up by themselves again, where it was dropped here.
    pub(crate) async fn hold_no_more(&self, model: String) {
        let _ = self.commands.send(Command::HoldNoMore { model }).await;
    }

    /// Leaves a model that was taken up by itself, and waits until its processes are gone; false when it stays.
    pub(crate) async fn leave(&self, model: String) -> bool {
        let (done, ended) = oneshot::channel();
        self.commands.send(Command::Leave { model, done }).await.is_ok() && ended.await.unwrap_or(false)
    }

    /// How large a model is that runs here.
    pub(crate) fn size(&self, name: &str) -> Option<ModelSize> {
        lock(&self.sizes).get(name).copied()
    }

    /// What the record tells.
    pub(crate) fn told(&self) -> Arc<Vec<ServingFacts>> {
        self.told.load_full()
    }

    /// Whether a model was dropped, and there is nobody to wait for who serves it.
    pub(crate) fn is_dropped(&self, model: &str) -> bool {
        self.ended.load().contains(model)
    }

    /// Somebody asks for a model here.
    pub(crate) fn note_request(&self, model: &str) {
        let mut requests = lock(&self.requests);
        if let Some(count) = requests.get_mut(model) {
            *count += 1;
        } else if requests.len() < COUNTED_MAX {
            requests.insert(model.to_owned(), 1);
        }
    }

    /// Facts of members or of this machine have changed.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }

    /// The node stops and answers are under way: models go on until [`Serving::shutdown`].
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// Resolves when models are to end: when told so, or when the node's last handle was dropped, which tells nobody.
    fn until_stopped(&self, node: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let (stop, held) = (self.stop.clone(), self.held.clone());
        async move {
            tokio::select! {
                () = stop.cancelled() => return,
                () = node.cancelled() => {}
            }
            if held.load(Ordering::Relaxed) {
                stop.cancelled().await;
            }
        }
    }

    /// Ends all models. Idempotent.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Starts the task that decides what runs here.
    pub(crate) fn start_serving(&self) {
        let serving = &self.inner.serving;
        let Some(commands) = lock(&serving.taken).take() else { return };
        serving.tasks.spawn(Actor::new(self.clone()).run(commands));
    }
}
