//! What answers requests for a model on this node: the shared registry between instances, providers and the gateway.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Uri;
/// Who may use a backend.
pub use mesh_routing::Share;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::terms::Terms;

/// Something that answers OpenAI requests for one model.
///
/// A value of facts: it changes by being replaced in [`Backends`], apart from `state`, which its owner drives.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The name that callers ask for.
    pub model: String,
    /// Base URL, for example `http://127.0.0.1:41234`; request paths are appended to its path.
    pub url: Uri,
    /// The model's name at the backend, when it differs from `model`.
    pub upstream_model: Option<String>,
    /// Bearer token for the backend. Never sent anywhere but to `url`.
    pub auth: Option<Secret>,
    /// Who may use it.
    pub share: Share,
    /// What it is doing now.
    pub state: watch::Receiver<BackendState>,
    /// Requests that it works on at a time; `None` when it sets no bound.
    pub slots: Option<usize>,
    /// Where it comes from.
    pub kind: BackendKind,
    /// How a provider is spoken to, and on what terms it is shared; none for servers that take requests as they are.
    pub terms: Option<Arc<Terms>>,
}

impl Backend {
    /// Whether it answers requests now.
    pub fn is_ready(&self) -> bool {
        matches!(*self.state.borrow(), BackendState::Ready)
    }

    /// Resolves once it was ended on purpose, and never for one that is lost. Cancel safe.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.state.clone();
        async move {
            if state.wait_for(|state| matches!(state, BackendState::Stopped)).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Whether it goes on with an answer that another one began: only llama-server is known to.
    pub(crate) fn continues(&self) -> bool {
        self.kind == BackendKind::Local
    }
}

/// Where a backend comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BackendKind {
    /// A `llama-server` that this node runs.
    Local,
    /// A server that somebody else runs.
    Provider,
}

/// What a backend is doing. Display is a phrase for people: "loading (2.1 of 4.0 GB read, 12 s)".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
#[non_exhaustive]
pub enum BackendState {
    /// Coming up: the first start, or a restart after a failure.
    Loading(Loading),
    /// Answers requests.
    Ready,
    /// Does not run, and nobody tries again by itself.
    Failed {
        /// What went wrong and, where known, what mends it.
        reason: String,
    },
    /// Ended on purpose.
    Stopped,
}

/// How far a backend has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loading {
    /// Bytes of the model read so far, where the platform tells; never above `total_bytes`.
    pub read_bytes: Option<u64>,
    /// Size of the model in bytes; 0 when unknown.
    pub total_bytes: u64,
    /// Time since this attempt began.
    pub elapsed: Duration,
    /// Which attempt it is, from 1. Above 1 the previous one failed for `after`.
    pub attempt: u32,
    /// Why the previous attempt ended.
    pub after: Option<String>,
    /// What has to be done before it is read.
    #[serde(default)]
    pub first: Option<First>,
}

/// What comes before a model is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum First {
    /// Its files are not here yet: how far their download is, as a phrase.
    Downloading(String),
    /// The machine's speed is measured, once for models of this kind.
    Measuring,
}

impl fmt::Display for First {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Downloading(how_far) => write!(f, "downloading: {how_far}"),
            Self::Measuring => f.write_str("measuring how fast this machine is, once"),
        }
    }
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading(loading) => write!(f, "{loading}"),
            Self::Ready => f.write_str("ready"),
            Self::Failed { reason } => write!(f, "failed: {reason}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

impl fmt::Display for Loading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("loading (")?;
        if let Some(first) = &self.first {
            return write!(f, "{first})");
        }
        if let Some(read) = self.read_bytes.filter(|_| self.total_bytes > 0) {
            write!(f, "{} of {} MB read, ", read / 1_000_000, self.total_bytes / 1_000_000)?;
        }
        write!(f, "{} s", self.elapsed.as_secs())?;
        if self.attempt > 1 {
            write!(f, ", attempt {}", self.attempt)?;
        }
        if let Some(after) = &self.after {
            write!(f, " after: {after}")?;
        }
        f.write_str(")")
    }
}

/// A text that is never printed and is wiped when the last copy goes.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(text.into())))
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Names one entry of [`Backends`]; never used again after its removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(u64);

/// The backends of this node, shared by everybody who has a clone.
///
/// Several backends may serve one model; they are listed in order of insertion.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: BTreeMap<BackendId, Arc<Backend>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { table: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Backends {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a backend. It stays until [`Backends::remove`].
    pub fn insert(&self, backend: Backend) -> BackendId {
        let id = {
            let mut table = self.table();
            let id = BackendId(table.next);
            table.next += 1;
            table.entries.insert(id, Arc::new(backend));
            id
        };
        self.tell();
        id
    }

    /// Puts a backend in the place of another one; false, without change, when that one is gone.
    pub fn replace(&self, id: BackendId, backend: Backend) -> bool {
        let replaced = match self.table().entries.get_mut(&id) {
            Some(entry) => {
                *entry = Arc::new(backend);
                true
            }
            None => false,
        };
        if replaced {
            self.tell();
        }
        replaced
    }

    /// Takes a backend out; `None` when it is gone already. Requests under way are not touched.
    pub fn remove(&self, id: BackendId) -> Option<Arc<Backend>> {
        let removed = self.table().entries.remove(&id);
        if removed.is_some() {
            self.tell();
        }
        removed
    }

    /// The backends of a model, in any state; empty when the model is unknown here.
    pub fn get(&self, model: &str) -> Vec<Arc<Backend>> {
        self.table().entries.values().filter(|backend| backend.model == model).cloned().collect()
    }

    /// All backends, in order of insertion.
    pub fn list(&self) -> Vec<Arc<Backend>> {
        self.table().entries.values().cloned().collect()
    }

    /// Signals insertions, replacements and removals (a counter). Changes of state show in each backend's own `state`.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    fn tell(&self) {
        self.shared.changed.send_modify(|version| *version += 1);
    }

    /// The table stays whole across a panic of another holder: every change is one call on the map.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn backend(model: &str, port: u16) -> (watch::Sender<BackendState>, Backend) {
        let (sender, state) = watch::channel(BackendState::Ready);
        let url = format!("http://127.0.0.1:{port}").parse().unwrap();
        let kind = BackendKind::Local;
        let backend = Backend {
            model: model.into(),
            url,
            upstream_model: None,
            auth: None,
            share: Share::Members,
            state,
            slots: None,
            kind,
            terms: None,
        };
        (sender, backend)
    }

    #[test]
    fn several_backends_serve_one_model_and_go_one_by_one() {
        let backends = Backends::new();
        let changes = backends.watch();
        let (_a, first) = backend("m", 1);
        let (_b, second) = backend("m", 2);
        let first = backends.insert(first);
        let second = backends.insert(second);
        assert_eq!(backends.get("m").len(), 2);
        assert!(backends.get("n").is_empty());
        assert!(backends.remove(first).is_some());
        assert!(backends.remove(first).is_none());
        assert_eq!(backends.get("m")[0].url.port_u16(), Some(2));
        assert_eq!(*changes.borrow(), 3);
        let (_c, third) = backend("m", 3);
        assert!(backends.replace(second, third.clone()));
        assert!(!backends.replace(first, third));
        assert_eq!(backends.list()[0].url.port_u16(), Some(3));
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn states_read_as_phrases() {
        let loading = Loading {
            read_bytes: Some(2_000_000),
            total_bytes: 4_000_000,
            elapsed: Duration::from_secs(3),
            attempt: 2,
            after: Some("exit 1".into()),
            first: None,
        };
        assert_eq!(
            BackendState::Loading(loading).to_string(),
            "loading (2 of 4 MB read, 3 s, attempt 2 after: exit 1)"
        );
        let at_first = |first| BackendState::Loading(Loading { first: Some(first), ..Loading::default() });
        assert_eq!(
            at_first(First::Downloading("2 of 4 MB".into())).to_string(),
            "loading (downloading: 2 of 4 MB)"
        );
        let measuring = at_first(First::Measuring).to_string();
        assert_eq!(measuring, "loading (measuring how fast this machine is, once)");
    }
}
