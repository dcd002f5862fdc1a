//! Servers that somebody else runs (vLLM, Ollama, LM Studio, a cloud), shared as this node's backends: OpenAI-compatible
//! ones and Anthropic's API.
//!
//! Their keys stay at this node: a backend's key goes to its own URL and nowhere else, and requests cannot change that
//! URL.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::{Scheme, Uri};
use http::{Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::anthropic;
use super::endpoint::below;
use super::pool::Pool;
use super::relay::chain;
use crate::backend::{Backend, BackendId, BackendKind, BackendState, Backends, Loading, Secret, Share};
use crate::terms::{Api, Price, Quota, Terms};

/// Largest list of models read, in bytes: a thousand entries with their descriptions.
const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Models taken from one list.
const MODELS_MAX: usize = 1000;
/// Longest model name taken, in bytes, as for requests.
const NAME_MAX: usize = 512;
/// Failed looks in a row that make a provider unready: one may be a hiccup.
const FAILURES_MAX: u32 = 2;
/// Between two looks at a provider that fails.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// One provider, as configured.
#[derive(Debug, Clone)]
pub struct ProviderConfig {
    /// What the owner calls it.
    pub name: String,
    /// Its API root: `http://127.0.0.1:8000/v1`. Without a path `/v1` is meant.
    pub base_url: Uri,
    /// Its API key, sent as a bearer token, to Anthropic as `x-api-key`.
    pub api_key: Option<Secret>,
    /// Its models; empty: all that its `/models` lists, looked up again at every refresh.
    pub models: Vec<ProviderModel>,
    /// Who may use them.
    pub share: Share,
    /// Between two looks at it. 30 s is a good value.
    pub refresh: Duration,
    /// Longest wait for a connection, and for its list of models. 5 s is a good value.
    pub timeout: Duration,
    /// The API that it speaks.
    pub api: Api,
    /// What each other node may use of it, all its models together.
    pub quota: Quota,
    /// What it costs; with it, usage in its answers tells their cost.
    pub price: Option<Price>,
}

/// One model of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderModel {
    /// The name that callers ask for.
    pub model: String,
    /// Its name at the provider, when it differs.
    pub upstream: Option<String>,
}

impl From<&str> for ProviderModel {
    fn from(model: &str) -> Self {
        Self { model: model.to_owned(), upstream: None }
    }
}

/// Why a provider cannot be used as configured. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The URL is not a plain http or https one.
    #[error(
        "provider {name}: base_url must be http://HOST[:PORT][/PATH] or https://…, without user, query or fragment"
    )]
    BadUrl {
        /// The provider.
        name: String,
    },
    /// The key cannot be sent in a header.
    #[error("provider {name}: its API key has characters that no HTTP header can carry")]
    BadKey {
        /// The provider.
        name: String,
    },
    /// The cryptography behind https could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// A provider in use: its models stand in [`Backends`] until [`Provider::shutdown`] or drop.
#[derive(Debug)]
pub struct Provider {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Provider {
    /// Registers the provider's models and keeps looking at it: whether it answers, and what it serves.
    ///
    /// Configured models are listed at once, as loading until the first look. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ProviderError`] on a configuration that cannot work; a provider that is away is not an error.
    pub fn start(config: ProviderConfig, backends: Backends) -> Result<Self, ProviderError> {
        check(&config)?;
        let pool = Pool::new(config.timeout).map_err(ProviderError::Tls)?;
        let stop = CancellationToken::new();
        let terms = Arc::new(Terms::new(config.api, config.quota, config.price));
        let mut look =
            Look { config, backends, pool, terms, entries: BTreeMap::new(), failures: 0, ever_up: false };
        for model in look.config.models.clone() {
            look.add(model, BackendState::Loading(Loading::default()));
        }
        let until = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = look.run() => {}
                () = until.cancelled() => {}
            }
        });
        Ok(Self { stop, task })
    }

    /// Takes the provider's models out. Idempotent.
    pub async fn shutdown(&mut self) {
        self.stop.cancel();
        if !self.task.is_finished() {
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn check(config: &ProviderConfig) -> Result<(), ProviderError> {
    let url = &config.base_url;
    let plain = url.scheme().is_some_and(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)
        && url
            .authority()
            .is_some_and(|authority| !authority.as_str().contains('@') && !authority.host().is_empty())
        && url.query().is_none();
    if !plain {
        return Err(ProviderError::BadUrl { name: config.name.clone() });
    }
    if let Some(key) = &config.api_key
        && bearer(key).is_none()
    {
        return Err(ProviderError::BadKey { name: config.name.clone() });
    }
    Ok(())
}

fn bearer(key: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What the task owns. Dropping it takes the provider's models out of the registry.
struct Look {
    config: ProviderConfig,
    backends: Backends,
    pool: Pool,
    terms: Arc<Terms>,
    entries: BTreeMap<String, (BackendId, watch::Sender<BackendState>)>,
    failures: u32,
    ever_up: bool,
}

/// Why a look failed.
struct Away {
    why: String,
    /// Waiting does not mend it: the owner must.
    lasting: bool,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
}

impl Look {
    async fn run(&mut self) {
        loop {
            let looked = match tokio::time::timeout(self.config.timeout, self.list()).await {
                Ok(looked) => looked,
                Err(_) => {
                    Err(Away { why: format!("no answer within {:?}", self.config.timeout), lasting: false })
                }
            };
            let pause = match looked {
                Ok(models) => {
                    self.is_up(models);
                    self.config.refresh
                }
                Err(away) => {
                    self.is_away(away);
                    RETRY_EVERY.min(self.config.refresh)
                }
            };
            self.pool.sweep();
            tokio::time::sleep_until(Instant::now() + pause).await;
        }
    }

    /// The models it serves now; the configured ones, when there are any and it answers at all.
    async fn list(&self) -> Result<Vec<ProviderModel>, Away> {
        let away = |why: String| Away { why, lasting: false };
        let (status, body) = self.get_models().await.map_err(away)?;
        let configured = &self.config.models;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Away { why: format!("it refuses this node's key ({})", status.as_u16()), lasting: true })
            }
            _ if status.is_server_error() => Err(away(format!("it answers {}", status.as_u16()))),
            _ if !configured.is_empty() => Ok(configured.clone()),
            _ if !status.is_success() => Err(Away {
                why: format!("it lists no models ({}): name them in `models`", status.as_u16()),
                lasting: true,
            }),
            _ => {
                let list: List = serde_json::from_slice(&body)
                    .map_err(|error| away(format!("its list of models: {error}")))?;
                let names = list.data.into_iter().map(|listed| listed.id);
                let names = names.filter(|name| (1..=NAME_MAX).contains(&name.len())).take(MODELS_MAX);
                Ok(names.map(|model| ProviderModel { model, upstream: None }).collect())
            }
        }
    }

    async fn get_models(&self) -> Result<(StatusCode, Vec<u8>), String> {
        let url = &self.config.base_url;
        let mut request = Request::new(Full::new(Bytes::new()));
        match self.config.api {
            Api::Anthropic => {
                *request.uri_mut() = anthropic::models_at(url);
                *request.headers_mut() = anthropic::headers(self.config.api_key.as_ref())
                    .ok_or("its API key is not a header value")?;
            }
            Api::OpenAi => {
                *request.uri_mut() = below(url, "/models");
                if let Some(value) = self.config.api_key.as_ref().and_then(bearer) {
                    request.headers_mut().insert(header::AUTHORIZATION, value);
                }
            }
        }
        let host = url.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        request.headers_mut().insert(header::HOST, host.ok_or("its URL has no host")?);
        let mut lease = self.pool.fresh(url).await.map_err(|error| chain(&error))?;
        let (head, mut incoming) =
            lease.wire.send(request).await.map_err(|error| chain(&error))?.into_parts();
        let mut body = Vec::new();
        while let Some(frame) = poll_fn(|cx| lease.wire.poll_body(&mut incoming, cx)).await {
            let Ok(piece) = frame.map_err(|error| chain(&error))?.into_data() else { continue };
            if body.len() + piece.len() > LIST_BYTES_MAX {
                return Err(format!("its list of models is larger than {LIST_BYTES_MAX} bytes"));
            }
            body.extend_from_slice(&piece);
        }
        Ok((head.status, body))
    }

    fn is_up(&mut self, models: Vec<ProviderModel>) {
        if self.failures > 0 || !self.ever_up {
            tracing::info!(provider = self.config.name, models = models.len(), "provider answers");
        }
        (self.failures, self.ever_up) = (0, true);
        let gone: Vec<_> = self
            .entries
            .keys()
            .filter(|name| !models.iter().any(|model| model.model == **name))
            .cloned()
            .collect();
        for name in gone {
            self.remove(&name);
        }
        for model in models {
            match self.entries.get(&model.model) {
                Some((_, state)) => {
                    state.send_if_modified(|state| {
                        std::mem::replace(state, BackendState::Ready) != BackendState::Ready
                    });
                }
                None => self.add(model, BackendState::Ready),
            }
        }
    }

    fn is_away(&mut self, away: Away) {
        self.failures = self.failures.saturating_add(1);
        if self.ever_up && self.failures < FAILURES_MAX && !away.lasting {
            return;
        }
        let reason = format!("provider {}: {}", self.config.name, away.why);
        if self.failures == 1 || self.failures == FAILURES_MAX {
            tracing::warn!(provider = self.config.name, why = away.why, "Provider health check failed");
        }
        let state = if away.lasting {
            BackendState::Failed { reason }
        } else {
            let attempt = self.failures.saturating_add(1);
            BackendState::Loading(Loading { attempt, after: Some(reason), ..Loading::default() })
        };
        for (_, sender) in self.entries.values() {
            sender.send_replace(state.clone());
        }
    }

    fn add(&mut self, model: ProviderModel, state: BackendState) {
        if self.entries.contains_key(&model.model) {
            return;
        }
        let (sender, state) = watch::channel(state);
        let config = &self.config;
        let id = self.backends.insert(Backend {
            model: model.model.clone(),
            url: config.base_url.clone(),
            upstream_model: model.upstream,
            auth: config.api_key.clone(),
            share: config.share,
            state,
            slots: None,
            kind: BackendKind::Provider,
            terms: Some(self.terms.clone()),
        });
        self.entries.insert(model.model, (id, sender));
    }

    fn remove(&mut self, name: &str) {
        if let Some((id, state)) = self.entries.remove(name) {
            self.backends.remove(id);
            state.send_replace(BackendState::Stopped);
        }
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        for (id, state) in std::mem::take(&mut self.entries).into_values() {
            self.backends.remove(id);
            state.send_replace(BackendState::Stopped);
        }
    }
}
