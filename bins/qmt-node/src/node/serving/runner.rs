//! What runs for one model here: one thing after the other, never two at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::Uri;
use mesh_identity::{NodeId, ScopeId};
use mesh_inference::backend::{Backend, BackendId, BackendKind, BackendState, Backends, First, Loading};
use mesh_inference::hosting::{HostError, Hosted};
use mesh_inference::lease::LeaseError;
use mesh_inference::plan::Plan;
use tokio::sync::{mpsc, watch};

use crate::node::launch::Alone;
use crate::node::placing::Prepared;
use crate::node::{Node, chain};

/// What is to run for a model.
#[derive(Debug, Clone, Default)]
pub(super) enum Desired {
    #[default]
    Nothing,
    /// Nothing runs, and this is what callers are told.
    Told(String),
    /// With this machine's memory alone.
    Alone(Arc<Prepared>),
    /// Over the memory of others.
    Split { prepared: Arc<Prepared>, scope: ScopeId, epoch: u64, plan: Arc<Plan> },
}

impl Desired {
    /// Whether what runs for one is what the other asks for.
    fn is_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nothing, Self::Nothing) | (Self::Alone(_), Self::Alone(_)) => true,
            (Self::Told(one), Self::Told(other)) => one == other,
            (Self::Split { epoch: one, .. }, Self::Split { epoch: other, .. }) => one == other,
            _ => false,
        }
    }

    fn is_to_run(&self) -> bool {
        matches!(self, Self::Alone(_) | Self::Split { .. })
    }

    fn epoch(&self) -> u64 {
        match self {
            Self::Split { epoch, .. } => *epoch,
            _ => 0,
        }
    }
}

/// What a runner tells of what it was to run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) model: String,
    /// 0 for a model run alone.
    pub(super) epoch: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// A share is not to be had, or is lost.
    Share { worker: NodeId, held_by_epoch: Option<u64>, why: String },
    /// It has ended for good.
    Failed(String),
}

/// One model's place.
pub(super) struct Runner {
    desired: watch::Sender<Desired>,
    /// Whether nothing runs, and nothing is about to.
    idle: watch::Receiver<bool>,
    place: SharedPlace,
    node: Node,
    model: String,
}

/// The model's place in the registry while nothing of it runs.
type SharedPlace = Arc<Mutex<Option<Place>>>;

impl Runner {
    /// Starts its task among the node's own, with what is to run.
    pub(super) fn start(node: &Node, model: String, reports: mpsc::Sender<Report>, first: Desired) -> Self {
        let place = SharedPlace::default();
        if first.is_to_run() {
            tell(&place, node, &model, loading(&first));
        }
        let (desired, wanted) = watch::channel(first);
        let (told, idle) = watch::channel(false);
        let task = Task {
            node: node.clone(),
            model: model.clone(),
            wanted,
            idle: told,
            reports,
            place: place.clone(),
        };
        node.inner.serving.tasks.spawn(task.run());
        Self { desired, idle, place, node: node.clone(), model }
    }

    /// What is to run from now on. What runs already and is asked for again stays.
    pub(super) fn set(&self, desired: Desired) {
        // At once, so that whoever asked for the model finds it there. An idle task has left its place already, and touches it
        // no more before it hears of this.
        if *self.idle.borrow() && desired.is_to_run() {
            tell(&self.place, &self.node, &self.model, loading(&desired));
        }
        self.desired.send_if_modified(|now| {
            let is_other = !now.is_as(&desired);
            if is_other {
                *now = desired;
            }
            is_other
        });
    }

    /// Whether something runs, or is about to.
    pub(super) fn is_busy(&self) -> bool {
        self.desired.borrow().is_to_run() || !*self.idle.borrow()
    }

    /// Resolves, once nothing runs, for as long as nothing is asked for.
    pub(super) fn idle(&self) -> watch::Receiver<bool> {
        self.idle.clone()
    }
}

struct Task {
    node: Node,
    model: String,
    wanted: watch::Receiver<Desired>,
    idle: watch::Sender<bool>,
    reports: mpsc::Sender<Report>,
    place: SharedPlace,
}

enum Running {
    Alone(Box<Alone>),
    Split(Box<Hosted>),
}

impl Task {
    async fn run(mut self) {
        loop {
            let desired = self.wanted.borrow_and_update().clone();
            match &desired {
                Desired::Nothing => self.leave(),
                Desired::Told(why) => {
                    self.tell(BackendState::Failed { reason: why.clone() });
                }
                Desired::Alone(_) | Desired::Split { .. } => {
                    self.idle.send_replace(false);
                    self.tell(loading(&desired));
                    let (place, node, model) = (&self.place, &self.node, &self.model);
                    let show = |state| tell(place, node, model, state);
                    let begun = tokio::select! {
                        biased;
                        asked = changed(&mut self.wanted) => Err(asked),
                        running = begin(node, &desired, show) => Ok(running),
                    };
                    match begun {
                        Err(Asked::Else) => continue,
                        Err(Asked::NoMore) => return,
                        Ok(Ok(running)) => {
                            // Its own entry is in the registry by now.
                            self.leave();
                            let asked = self.attend(&running, &desired).await;
                            if asked == Asked::Else && !matches!(*self.wanted.borrow(), Desired::Nothing) {
                                self.tell(BackendState::Loading(Loading {
                                    attempt: 1,
                                    ..Loading::default()
                                }));
                            }
                            running.stop().await;
                            match asked {
                                Asked::Else => continue,
                                Asked::NoMore => return,
                            }
                        }
                        Ok(Err(what)) => self.report(&desired, what).await,
                    }
                }
            }
            self.idle.send_replace(true);
            if changed(&mut self.wanted).await == Asked::NoMore {
                return;
            }
        }
    }

    /// Watches what runs until something else is asked for. What goes wrong is reported, and answered by asking for something else.
    async fn attend(&mut self, running: &Running, desired: &Desired) -> Asked {
        let mut state = running.state();
        let what = tokio::select! {
            biased;
            asked = changed(&mut self.wanted) => return asked,
            (worker, why) = running.lost() => What::Share { worker, held_by_epoch: None, why },
            why = failed(&mut state) => What::Failed(why),
        };
        self.report(desired, what).await;
        changed(&mut self.wanted).await
    }

    async fn report(&self, desired: &Desired, what: What) {
        tracing::info!(
            model = self.model,
            epoch = desired.epoch(),
            ?what,
            "a model does not run as it was to"
        );
        let report = Report { model: self.model.clone(), epoch: desired.epoch(), what };
        // The actor reads its reports before all else; it is gone only when the node stops.
        let _ = self.reports.send(report).await;
    }

    fn tell(&self, state: BackendState) {
        tell(&self.place, &self.node, &self.model, state);
    }

    fn leave(&self) {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn tell(place: &SharedPlace, node: &Node, model: &str, state: BackendState) {
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    let new = || Place::new(node.backends().clone(), model, node.config().inference.share);
    place.get_or_insert_with(new).tell(state);
}

/// Starts what is to run; `tell` shows what comes before that.
async fn begin(
    node: &Node,
    desired: &Desired,
    tell: impl Fn(BackendState) + Send + Sync,
) -> Result<Running, What> {
    let runtime = node.llama().await.map_err(|error| What::Failed(error.message))?;
    if let Desired::Alone(prepared) | Desired::Split { prepared, .. } = desired {
        let measuring = || {
            tell(BackendState::Loading(Loading { first: Some(First::Measuring), ..Loading::default() }));
        };
        node.calibrate(&runtime, prepared, measuring).await;
        tell(loading(desired));
    }
    match desired {
        Desired::Alone(prepared) => {
            let started =
                node.start_alone(&runtime, prepared).map_err(|error| What::Failed(error.message))?;
            started
                .map(|alone| Running::Alone(Box::new(alone)))
                .map_err(|error| What::Failed(error.to_string()))
        }
        Desired::Split { prepared, scope, epoch, plan } => {
            let started = Box::pin(node.start_split(&runtime, prepared, *scope, *epoch, plan)).await;
            let started = started.map_err(|error| What::Failed(error.message))?;
            started.map(|hosted| Running::Split(Box::new(hosted))).map_err(|error| not_had(&error))
        }
        Desired::Nothing | Desired::Told(_) => std::future::pending().await,
    }
}

/// What follows for a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Something else is to run.
    Else,
    /// Nobody asks any more.
    NoMore,
}

async fn changed(wanted: &mut watch::Receiver<Desired>) -> Asked {
    match wanted.changed().await {
        Ok(()) => Asked::Else,
        Err(_) => Asked::NoMore,
    }
}

async fn failed(state: &mut watch::Receiver<BackendState>) -> String {
    loop {
        if let BackendState::Failed { reason } = &*state.borrow_and_update() {
            return reason.clone();
        }
        if state.changed().await.is_err() {
            // Stopped: whoever stopped it asks for something else.
            return std::future::pending().await;
        }
    }
}

fn loading(desired: &Desired) -> BackendState {
    let (Desired::Alone(prepared) | Desired::Split { prepared, .. }) = desired else {
        return BackendState::Stopped;
    };
    let total_bytes = prepared.model.file_bytes;
    BackendState::Loading(Loading { total_bytes, attempt: 1, ..Loading::default() })
}

fn not_had(error: &HostError) -> What {
    let why = chain(error);
    match error {
        HostError::Lease { node, error } => {
            let held_by_epoch = match error {
                LeaseError::Refused { holder: Some((_, epoch)), .. } => Some(*epoch),
                _ => None,
            };
            What::Share { worker: *node, held_by_epoch, why }
        }
        _ => What::Failed(why),
    }
}

impl Running {
    fn state(&self) -> watch::Receiver<BackendState> {
        match self {
            Self::Alone(alone) => alone.instance.state(),
            Self::Split(hosted) => hosted.state(),
        }
    }

    async fn lost(&self) -> (NodeId, String) {
        match self {
            Self::Alone(_) => std::future::pending().await,
            Self::Split(hosted) => hosted.lost().await,
        }
    }

    async fn stop(self) {
        match self {
            Self::Alone(alone) => alone.instance.stop().await,
            Self::Split(hosted) => hosted.stop().await,
        }
    }
}

/// A model's place in the registry while nothing of it runs, so that callers read why and wait.
struct Place {
    backends: Backends,
    id: BackendId,
    state: watch::Sender<BackendState>,
    since: Instant,
}

impl Place {
    fn new(backends: Backends, model: &str, share: mesh_inference::backend::Share) -> Self {
        let (state, watched) =
            watch::channel(BackendState::Loading(Loading { attempt: 1, ..Loading::default() }));
        let id = backends.insert(Backend {
            model: model.to_owned(),
            // Nobody is sent there: it is never ready.
            url: Uri::from_static("http://127.0.0.1:0/"),
            upstream_model: None,
            auth: None,
            share,
            state: watched,
            slots: None,
            kind: BackendKind::Local,
            terms: None,
        });
        Self { backends, id, state, since: Instant::now() }
    }

    fn tell(&self, state: BackendState) {
        let state = match state {
            BackendState::Loading(loading) => {
                BackendState::Loading(Loading { elapsed: self.since.elapsed(), ..loading })
            }
            state => state,
        };
        self.state.send_replace(state);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.backends.remove(self.id);
    }
}
