//! How a model is started here: alone, or with the memory of others as a plan says.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_control::ApiError;
use mesh_identity::ScopeId;
use mesh_inference::hosting::{HostError, HostLaunch, HostParts, Hosted, Share};
use mesh_inference::instance::{Config as InstanceConfig, Instance, Launch, RpcLaunch};
use mesh_inference::lease::LeaseConfig;
use mesh_inference::llama::{Arguments, DraftArguments};
use mesh_inference::memory::{NotEnough, Reservation};
use mesh_inference::plan::{Plan, Wishes, plan};

use super::Node;
use super::lending::Runtime;
use super::placing::Prepared;

const MIB: u64 = 1 << 20;

/// A model that runs here with this machine's memory alone. It is given back when this is dropped.
pub(crate) struct Alone {
    pub(crate) instance: Instance,
    _held: Reservation,
}

impl Node {
    /// Starts a model with this machine's memory alone.
    pub(crate) fn start_alone(
        &self,
        runtime: &Runtime,
        prepared: &Prepared,
    ) -> Result<Result<Alone, NotEnough>, ApiError> {
        let bytes = self.alone_bytes(prepared);
        let held = match self.inner.lending.ledger().reserve(&*prepared.model.name, bytes) {
            Ok(held) => held,
            Err(error) => return Ok(Err(error)),
        };
        let inference = &self.config().inference;
        let mut arguments = self.arguments(prepared);
        if let Some(shares) = &inference.tensor_split {
            arguments.extra.extend(["--tensor-split".into(), shares.into()]);
        }
        let launch = self.llama_server(runtime, prepared, arguments);
        let instance = Instance::start(launch, self.instance(prepared)?, self.backends().clone());
        Ok(Ok(Alone { instance, _held: held }))
    }

    /// Starts a model as a plan splits it.
    pub(crate) async fn start_split(
        &self,
        runtime: &Arc<Runtime>,
        prepared: &Prepared,
        scope: ScopeId,
        epoch: u64,
        plan: &Plan,
    ) -> Result<Result<Hosted, HostError>, ApiError> {
        let Some(split) = plan.split() else {
            let message = format!("the plan for {} is no split", prepared.model.name);
            return Err(ApiError::new(mesh_control::ErrorCode::Internal, message));
        };
        let home = self.home().path().to_owned();
        let guard = self.guard()?;
        let threads = self.config().inference.threads.and_then(NonZeroU32::new);
        let own = |program: PathBuf| RpcLaunch { threads, ..RpcLaunch::new(program, "rpc", home, guard) };
        let parts = HostParts {
            transport: self.transport().clone(),
            tunnels: self.inner.tunnels.clone(),
            ledger: self.inner.lending.ledger().clone(),
            backends: self.backends().clone(),
            rpc: runtime.llama.rpc_server.clone().map(own),
            times: LeaseConfig::default(),
        };
        let host = HostLaunch {
            scope,
            epoch,
            build: runtime.llama.version.text.clone(),
            shares: split
                .workers
                .iter()
                .map(|node| Share { node: *node, bytes: plan.lent_by(node) })
                .collect(),
            tensor_split: split.tensor_split.clone(),
            gpu_layers: split.gpu_layers,
            weights: self.weights(vec![prepared.model.path.clone()]).await,
            own_bytes: plan.taken_by_host(),
            launch: self.llama_server(runtime, prepared, self.arguments(prepared)),
            instance: self.instance(prepared)?,
        };
        Ok(Hosted::start(&parts, host).await)
    }

    /// What it takes here, by the arithmetic that placed it.
    fn alone_bytes(&self, prepared: &Prepared) -> u64 {
        let wishes = Wishes { split: false, ..self.standing_wishes() };
        let me = self.own_machine(&prepared.model);
        // Whether it fits is the ledger's to say: what ran meanwhile may have taken the room.
        plan(&prepared.model.name, &prepared.needs, &me, &[], &wishes).needed_alone()
    }

    fn llama_server(&self, runtime: &Runtime, prepared: &Prepared, arguments: Arguments) -> Launch {
        Launch { program: runtime.llama.server.clone(), arguments, file_bytes: prepared.model.file_bytes }
    }

    fn instance(&self, prepared: &Prepared) -> Result<InstanceConfig, ApiError> {
        let home = self.home().path().to_owned();
        let mut config = InstanceConfig::new(home, self.guard()?, prepared.model.name.clone());
        config.share = self.config().inference.share;
        Ok(config)
    }

    /// What was counted is what llama-server is told.
    fn arguments(&self, prepared: &Prepared) -> Arguments {
        let inference = &self.config().inference;
        let context = &prepared.needs.context;
        let mut arguments = Arguments::new(prepared.model.path.clone());
        arguments.context_tokens = context.tokens;
        arguments.slots = context.slots;
        arguments.kv = context.kv;
        arguments.threads = inference.threads.and_then(NonZeroU32::new);
        arguments.prompt_cache_mib = u32::try_from(context.prompt_cache_bytes / MIB).ok();
        arguments.draft = prepared.draft.as_ref().map(|draft| DraftArguments {
            model: draft.path.clone(),
            tokens_max: inference.draft_max.and_then(NonZeroU32::new),
        });
        if let Some(device) = &inference.device {
            arguments.extra.extend([OsString::from("--device"), device.into()]);
        }
        arguments
    }
}
