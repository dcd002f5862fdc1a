//! Models served here: loaded, dropped, and dropped at others on a member's word.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_control::{ApiError, DropRequest, Dropped, ErrorCode, LoadRequest, ModelView};
use mesh_identity::{NodeId, ScopeId};
use mesh_inference::catalogue::{Catalogue, ResolveError};
use mesh_inference::instance::{Config as InstanceConfig, GuardCommand, Instance, Launch};
use mesh_inference::llama::{Arguments, LlamaCpp};
use mesh_transport::{Call, CallError, CallFault, Member, Protocol, Transport, serve_call};
use serde::{Deserialize, Serialize};

use super::pulls::Coming;
use super::{Node, chain};

const DROP_DEADLINE: Duration = Duration::from_secs(20);
/// Longest model name taken from a peer, bytes.
const NAME_BYTES_MAX: usize = 512;

/// The instances of this node, by model name.
#[derive(Default)]
pub(crate) struct Models {
    /// Held while a model is started, so that two requests for one model start it once.
    starting: tokio::sync::Mutex<()>,
    instances: Mutex<BTreeMap<String, Served>>,
    /// Models that are downloaded to be served.
    pub(crate) coming: Coming,
}

/// A model that runs here.
struct Served {
    instance: Arc<Instance>,
    size: ModelSize,
}

/// How large a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModelSize {
    pub(crate) file_bytes: u64,
    /// Of one request.
    pub(crate) context_tokens: u64,
}

impl Models {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops an instance and waits until its process is gone; false when the model does not run here.
    async fn stop(&self, name: &str) -> bool {
        let was_coming = self.coming.stop(name);
        let served = self.lock().remove(name);
        match served {
            Some(served) => {
                served.instance.stop().await;
                true
            }
            None => was_coming,
        }
    }

    pub(crate) async fn shutdown(&self) {
        let all: Vec<Served> = std::mem::take(&mut *self.lock()).into_values().collect();
        futures_util::future::join_all(all.iter().map(|served| served.instance.stop())).await;
    }

    /// How large a model is that runs here.
    pub(crate) fn size(&self, name: &str) -> Option<ModelSize> {
        self.lock().get(name).map(|served| served.size)
    }
}

/// Asks a node to stop serving a model. For members only.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DropModel {
    model: String,
}

impl Call for DropModel {
    const PROTOCOL: Protocol = Protocol::new("drop/1");
    type Reply = bool;
}

pub(crate) fn serve(transport: &Transport, models: Arc<Models>) {
    serve_call::<DropModel, _, _>(transport, move |member: Member, call| {
        let models = models.clone();
        async move {
            if call.model.len() > NAME_BYTES_MAX {
                return Err(CallFault::new(CallFault::BAD_REQUEST, "the model's name is too long"));
            }
            tracing::info!(peer = %member.id.short(), model = call.model, "a member drops a model here");
            Ok(models.stop(&call.model).await)
        }
    });
}

impl Node {
    /// Starts to serve a model from this machine's disk. One that is served or loading already stays as it is.
    pub(crate) async fn load(&self, request: LoadRequest) -> Result<ModelView, ApiError> {
        let inference = self.config().inference.clone();
        let wanted = request.model.clone();
        let resolved =
            tokio::task::spawn_blocking(move || Catalogue::scan(&inference.model_dirs).resolve(&wanted))
                .await
                .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
        let model = match resolved {
            Err(ResolveError::NotHere(_)) => return self.load_when_here(&request.model),
            resolved => resolved,
        };
        let model = model.map_err(|error| ApiError::new(ErrorCode::UnknownModel, chain(&error)))?;
        let _starting = self.inner.models.starting.lock().await;
        let running =
            self.inner.models.lock().get(&model.name).is_some_and(|served| !served.instance.is_finished());
        if !running {
            let inference = &self.config().inference;
            let path = std::env::var_os("PATH");
            let llama = LlamaCpp::find(inference.bin_dir.as_deref(), path.as_deref(), self.home().path())
                .await
                .map_err(|error| {
                    ApiError::new(ErrorCode::Missing, chain(&error))
                        .with_mend("run `scripts/setup`, or name the folder with --bin-dir")
                })?;
            let guard = GuardCommand::own().map_err(|error| {
                ApiError::new(
                    ErrorCode::Internal,
                    format!("this program cannot start itself as a guard: {error}"),
                )
            })?;
            let mut arguments = Arguments::new(model.path.clone());
            if let Some(context) = inference.ctx_size.and_then(std::num::NonZeroU32::new) {
                arguments.context_tokens = context;
            }
            if let Some(slots) = inference.slots.and_then(std::num::NonZeroU32::new) {
                arguments.slots = slots;
            }
            let pairs = [("--device", &inference.device), ("--tensor-split", &inference.tensor_split)];
            for (flag, value) in pairs.into_iter().filter_map(|(flag, value)| Some((flag, value.as_ref()?))) {
                arguments.extra.extend([flag.into(), value.into()]);
            }
            let mut config = InstanceConfig::new(self.home().path().to_owned(), guard, model.name.clone());
            config.share = inference.share;
            let size = ModelSize {
                file_bytes: model.file_bytes,
                context_tokens: arguments.context_tokens.get().into(),
            };
            let launch = Launch { program: llama.server, arguments, file_bytes: model.file_bytes };
            let instance = Arc::new(Instance::start(launch, config, self.backends().clone()));
            self.inner.models.lock().insert(model.name.clone(), Served { instance, size });
            self.refresh();
        }
        self.inner.models.coming.end(&model.name);
        self.model(&model.name).ok_or_else(|| {
            ApiError::new(ErrorCode::Internal, format!("{} did not start to load", model.name))
        })
    }

    /// Stops the serving of a model at every node that offers it, or at one.
    pub(crate) async fn drop_model(&self, request: DropRequest) -> Result<Dropped, ApiError> {
        let only = match &request.node {
            // Also in no mesh, where no name leads here.
            Some(text) if *text == self.id().to_string() => Some(self.id()),
            Some(text) => Some(self.resolve_node(text, None)?.1),
            None => None,
        };
        let mut dropped = Dropped { model: request.model.clone(), ..Dropped::default() };
        if only.is_none_or(|node| node == self.id()) && self.inner.models.stop(&request.model).await {
            dropped.nodes.push(self.id().to_string());
        }
        let mut is_refused = false;
        for (scope, node) in self.offering(&request.model) {
            if only.is_some_and(|only| only != node) {
                continue;
            }
            let call = DropModel { model: request.model.clone() };
            match self.transport().call(&scope, &node, &call, DROP_DEADLINE).await {
                Ok(true) => dropped.nodes.push(node.to_string()),
                Ok(false) => {}
                Err(CallError::Fault(fault)) if fault.code == CallFault::NOT_ALLOWED => is_refused = true,
                Err(error) => {
                    tracing::warn!(node = %node.short(), error = %chain(&error), "a model could not be dropped there");
                    dropped.unreached.push(node.to_string());
                }
            }
        }
        if is_refused && dropped.nodes.is_empty() {
            return Err(ApiError::new(
                ErrorCode::NotAllowed,
                format!("this node is a client there, and only members may drop {:?}", request.model),
            )
            .with_mend("drop it at a member of the mesh, or join with an invite for members"));
        }
        if dropped.nodes.is_empty() && dropped.unreached.is_empty() {
            return Err(ApiError::new(
                ErrorCode::UnknownModel,
                format!("no node runs a model called {:?}", request.model),
            )
            .with_mend(
                "`qmt-cli models` lists what is served; a provider's model ends with its configuration",
            ));
        }
        self.refresh();
        Ok(dropped)
    }

    /// The other nodes that offer a model, each once.
    fn offering(&self, model: &str) -> Vec<(ScopeId, NodeId)> {
        let mut nodes: BTreeMap<NodeId, ScopeId> = BTreeMap::new();
        for (scope, member, offer) in self.visible_offers() {
            if offer.model == model {
                nodes.entry(member.id).or_insert(scope);
            }
        }
        nodes.into_iter().map(|(node, scope)| (scope, node)).collect()
    }
}
