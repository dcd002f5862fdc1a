//! Downloads of models: asked for by themselves, or by the loading of a model that is not here yet.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_control::{ApiError, ErrorCode, LoadRequest, ModelView, PullRequest, PullState, PullView};
use mesh_inference::backend::{Backend, BackendId, BackendKind, BackendState, Backends, First, Loading};
use mesh_inference::fetch::{Checked, Config as FetchConfig, Fetch, FetchError, FetchStats, Pull, Stage};
use mesh_transport::Transport;
use tokio::sync::watch;

use super::start::StartError;
use super::{Node, chain};
use crate::config::Config;

/// Downloads that are listed, the oldest that ended leaving first.
const LISTED_MAX: usize = 32;
/// How often the mesh hears of a download's progress.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The downloads of this node.
pub(crate) struct Pulls {
    fetch: Fetch,
    /// By the text that was asked for, in order of asking.
    listed: Mutex<VecDeque<Listed>>,
}

impl Pulls {
    /// What has been downloaded and given away.
    pub(super) fn stats(&self) -> FetchStats {
        self.fetch.stats()
    }
}

struct Listed {
    name: String,
    /// None once it was stopped.
    pull: Option<Pull>,
}

/// Models that are downloaded to be served, each with its place among the backends.
#[derive(Default)]
pub(crate) struct Coming(Mutex<BTreeMap<String, OnItsWay>>);

struct OnItsWay {
    pull: Pull,
    /// Dropped, it ends the task that follows the download.
    state: Arc<watch::Sender<BackendState>>,
    backend: BackendId,
    backends: Backends,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.state.send_replace(BackendState::Stopped);
        self.backends.remove(self.backend);
    }
}

impl Coming {
    /// Stops the download of a model that was to be served; false when there is none.
    pub(crate) fn stop(&self, model: &str) -> bool {
        let ended = self.lock().remove(model);
        ended.is_some()
    }

    /// The model has an instance of its own now.
    pub(crate) fn end(&self, model: &str) {
        self.stop(model);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, OnItsWay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulls {
    /// Ready to download, and serves files to members.
    pub(crate) fn start(config: &Config, transport: &Transport) -> Result<Self, StartError> {
        let mut fetch = FetchConfig::new(config.inference.model_dirs.clone());
        if let Some(hub) = &config.hub.endpoint {
            fetch = fetch.with_endpoint(hub).map_err(|error| StartError::Fetch(error.to_string()))?;
        }
        fetch.token = config.hub.token.clone();
        fetch.proxies = config.hub.proxies.clone();
        fetch.cache = Some(config.home.join("cache"));
        let fetch = Fetch::new(fetch, Some(transport.clone()))
            .map_err(|error| StartError::Fetch(format!("downloads cannot be set up: {error}")))?;
        transport.serve(Fetch::PROTOCOL, fetch.handler());
        Ok(Self { fetch, listed: Mutex::default() })
    }

    pub(crate) async fn shutdown(&self) {
        self.fetch.shutdown().await;
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Listed>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Begins to download a model, or joins the download of it.
    pub(crate) fn pull(&self, request: PullRequest) -> Result<PullView, ApiError> {
        let pulls = &self.inner.pulls;
        let name = self.pulled_name(&request.model)?;
        let pull = pulls.fetch.pull(&request.model).map_err(|error| api_error(&error))?;
        let mut listed = pulls.lock();
        listed.retain(|one| one.name != name);
        if listed.len() >= LISTED_MAX {
            let ended = |one: &Listed| one.pull.as_ref().is_none_or(|pull| pull.outcome().is_some());
            let Some(oldest) = listed.iter().position(ended) else {
                let message = format!("{LISTED_MAX} downloads are under way already");
                return Err(ApiError::new(ErrorCode::Unavailable, message).with_mend("wait for one of them"));
            };
            listed.remove(oldest);
        }
        let one = Listed { name, pull: Some(pull) };
        let view = view(&one);
        listed.push_back(one);
        Ok(view)
    }

    /// Stops a download; what has come is kept.
    pub(crate) fn stop_pull(&self, request: PullRequest) -> Result<PullView, ApiError> {
        let name = self.pulled_name(&request.model)?;
        let mut listed = self.inner.pulls.lock();
        let Some(one) = listed.iter_mut().find(|one| one.name == name) else {
            return Err(ApiError::new(ErrorCode::UnknownModel, format!("{name} is not being downloaded")));
        };
        let before = view(one);
        if matches!(before.state, PullState::Done | PullState::Failed) {
            return Ok(before);
        }
        one.pull = None;
        Ok(PullView { state: PullState::Stopped, ..before })
    }

    /// The downloads under way, and those that ended lately.
    pub(crate) fn pulls(&self) -> Vec<PullView> {
        self.inner.pulls.lock().iter().map(view).collect()
    }

    fn pulled_name(&self, text: &str) -> Result<String, ApiError> {
        let source = self.inner.pulls.fetch.source(text);
        source.map(|source| source.to_string()).map_err(|error| api_error(&error.into()))
    }

    /// Downloads a model and serves it then. Until that it is listed as loading, with what has come of it.
    pub(crate) fn load_when_here(&self, text: &str) -> Result<ModelView, ApiError> {
        let fetch = &self.inner.pulls.fetch;
        let source = fetch.source(text).map_err(|error| api_error(&error.into()))?;
        let name = source.model_name();
        {
            let mut coming = self.inner.coming.lock();
            let is_under_way = coming.get(&name).is_some_and(|one| one.pull.outcome().is_none());
            if !is_under_way {
                let pull = fetch.pull(text).map_err(|error| api_error(&error))?;
                let (state, told) = watch::channel(BackendState::Loading(Loading::default()));
                let backend = self.backends().insert(Backend {
                    model: name.clone(),
                    // Never asked: a backend that is not ready gets no request.
                    url: http::Uri::from_static("http://127.0.0.1:9"),
                    upstream_model: None,
                    auth: None,
                    share: self.config().inference.share,
                    state: told,
                    slots: None,
                    kind: BackendKind::Local,
                    terms: None,
                });
                let state = Arc::new(state);
                let one = OnItsWay {
                    pull: pull.clone(),
                    state: state.clone(),
                    backend,
                    backends: self.backends().clone(),
                };
                coming.insert(name.clone(), one);
                let node = self.clone();
                self.inner.tasks.spawn(async move { node.follow_download(pull, state).await });
            }
        }
        self.refresh();
        self.model(&name)
            .ok_or_else(|| ApiError::new(ErrorCode::Internal, format!("{name} did not begin to download")))
    }

    async fn follow_download(self, pull: Pull, state: Arc<watch::Sender<BackendState>>) {
        let (progress, begin) = (pull.progress(), Instant::now());
        let ended = loop {
            let told = progress.borrow().to_string();
            state.send_if_modified(|state| {
                let BackendState::Loading(loading) = state else { return false };
                let told = Some(First::Downloading(told));
                let is_news = loading.first != told;
                loading.first = told;
                loading.elapsed = begin.elapsed();
                is_news
            });
            tokio::select! {
                ended = pull.done() => break ended,
                () = tokio::time::sleep(TELL_EVERY) => {}
                // Dropped: the place among the backends is gone, and with it this download's purpose.
                _ = stopped(&state) => return,
                () = self.stopping().cancelled_owned() => return,
            }
        };
        let loaded = match ended {
            Ok(pulled) => {
                let path = pulled.files.first().map(|path| path.display().to_string()).unwrap_or_default();
                self.inner.disk.look();
                Box::pin(self.load(LoadRequest { model: path, ..LoadRequest::default() })).await
            }
            Err(error) => Err(api_error(&error)),
        };
        if let Err(error) = loaded {
            let mend = error.mend.as_deref().map(|mend| format!("; {mend}")).unwrap_or_default();
            state.send_replace(BackendState::Failed { reason: format!("{}{mend}", error.message) });
        }
    }
}

/// Resolves when the model was dropped.
async fn stopped(state: &watch::Sender<BackendState>) {
    let mut states = state.subscribe();
    // The sender is borrowed here, so the channel is open.
    let _ = states.wait_for(|state| *state == BackendState::Stopped).await;
}

fn view(one: &Listed) -> PullView {
    let mut view = PullView { model: one.name.clone(), state: PullState::Stopped, ..PullView::default() };
    let Some(pull) = &one.pull else { return view };
    let progress = pull.progress().borrow().clone();
    view.bytes = progress.bytes;
    view.total_bytes = progress.total;
    view.bytes_per_second = progress.bytes_per_second;
    view.detail = progress.to_string();
    view.state = match progress.stage {
        Stage::Asking => PullState::Asking,
        Stage::Checking => PullState::Checking,
        Stage::Downloading => PullState::Downloading,
        Stage::Waiting(_) => PullState::Waiting,
        // Done only with the files in the answer.
        Stage::Done => PullState::Checking,
        _ => PullState::Unknown,
    };
    match pull.outcome() {
        None => {}
        Some(Ok(pulled)) => {
            view.state = PullState::Done;
            view.bytes = pulled.bytes;
            view.total_bytes = Some(pulled.bytes);
            view.bytes_per_second = 0;
            view.files = pulled.files.iter().map(|path| path.display().to_string()).collect();
            let word = match pulled.checked {
                Checked::Sha256 => "sha256",
                Checked::Members => "members",
                Checked::Here => "here",
                _ => "not",
            };
            view.checked = Some(word.to_owned());
        }
        Some(Err(error)) => {
            view.state =
                if matches!(error, FetchError::Cancelled) { PullState::Stopped } else { PullState::Failed };
            view.bytes_per_second = 0;
            view.error = Some(api_error(&error));
        }
    }
    view
}

fn api_error(error: &FetchError) -> ApiError {
    let code = match error {
        FetchError::Source(_) => ErrorCode::BadRequest,
        FetchError::NotFound { .. } | FetchError::NoMember(_) => ErrorCode::UnknownModel,
        FetchError::Denied { .. } => ErrorCode::NotAllowed,
        FetchError::Differs { .. } => ErrorCode::Ambiguous,
        FetchError::Occupied { .. } => ErrorCode::Conflict,
        FetchError::DiskFull { .. } | FetchError::Io { .. } => ErrorCode::Storage,
        FetchError::NoFolder => ErrorCode::Missing,
        FetchError::Cancelled => ErrorCode::Unavailable,
        _ => ErrorCode::Download,
    };
    let mut answer = ApiError::new(code, chain(error));
    answer.mend = error.mend();
    answer
}
