//! llama.cpp on this machine, and the memory that this node lends to hosts with it.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_control::{ApiError, ErrorCode};
use mesh_inference::instance::GuardCommand;
use mesh_inference::lease::{LeaseConfig, Lender, LenderConfig, WeightsOf};
use mesh_inference::llama::{Device, LlamaCpp, devices};
use mesh_inference::memory::Ledger;
use mesh_inference::weights::WeightIndex;
use mesh_tunnel::Weights;
use tokio::sync::{Mutex, OnceCell};

use super::{Node, chain};

/// Hosts that one node lends to at a time: more would leave each too little.
const LEASES_MAX: usize = 16;

/// What this node's memory is promised to, and who has borrowed of it.
pub(crate) struct Lending {
    ledger: Ledger,
    /// As soon as it was found; looked for again until then.
    llama: OnceCell<Arc<Runtime>>,
    lender: Mutex<Option<Lender>>,
}

/// llama.cpp on this machine.
pub(crate) struct Runtime {
    pub(crate) llama: LlamaCpp,
    /// What it computes on beside the processor.
    pub(crate) devices: Vec<Device>,
}

impl Lending {
    pub(crate) fn new(cap: Option<u64>) -> Self {
        Self { ledger: Ledger::new(cap), llama: OnceCell::new(), lender: Mutex::default() }
    }

    /// What this node's memory is promised to.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// llama.cpp, if it was found already.
    pub(crate) fn known(&self) -> Option<&Arc<Runtime>> {
        self.llama.get()
    }

    pub(crate) async fn shutdown(&self) {
        if let Some(lender) = self.lender.lock().await.take() {
            lender.shutdown().await;
        }
    }
}

/// `--device` as rpc-server takes it; `none` means the processor there.
fn lent_devices(device: Option<&str>) -> Vec<String> {
    let named = device.unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
    named.map(|name| if name == "none" { "CPU".to_owned() } else { name.to_owned() }).collect()
}

impl Node {
    /// The llama.cpp of this machine, looked for until it was found once; from then on members may borrow by it.
    pub(crate) async fn llama(&self) -> Result<Arc<Runtime>, ApiError> {
        let lending = &self.inner.lending;
        let found = lending.llama.get_or_try_init(|| async {
            let path = std::env::var_os("PATH");
            let bin_dir = self.config().inference.bin_dir.as_deref();
            let found = LlamaCpp::find(bin_dir, path.as_deref(), self.home().path()).await;
            let found = found.map_err(|error| {
                ApiError::new(ErrorCode::Missing, chain(&error)).with_mend(
                    "run `qmt-cli setup` (`scripts/setup` in a checkout), or name the folder with --bin-dir",
                )
            })?;
            let devices = devices(&found.server).await.unwrap_or_else(|error| {
                tracing::warn!(
                    error,
                    "llama.cpp does not list its devices: this node counts as one without a GPU"
                );
                Vec::new()
            });
            self.lend(&found).await?;
            self.refresh();
            Ok::<_, ApiError>(Arc::new(Runtime { llama: found, devices }))
        });
        let found = found.await.cloned()?;
        // Placement goes by what the mesh was told: without a build there, nothing would run until the next look.
        if self.told_machine().build.is_empty() {
            self.retell_machine();
        }
        Ok(found)
    }

    /// How a child's guard is started.
    pub(crate) fn guard(&self) -> Result<GuardCommand, ApiError> {
        GuardCommand::own().map_err(|error| {
            let message = format!("this program cannot start itself as a guard: {error}");
            ApiError::new(ErrorCode::Internal, message)
        })
    }

    /// Finds the weights of a model on this disk for a host that loads the same one.
    fn weights_of(&self) -> WeightsOf {
        let node = Arc::downgrade(&self.inner);
        Arc::new(move |model| {
            let node = node.upgrade().map(|inner| Node { inner, _last_handle: None });
            Box::pin(async move {
                let node = node?;
                let models = node.on_disk();
                let found = models.iter().find(|found| found.name == model && found.missing.is_empty())?;
                node.weights(vec![found.path.clone()]).await
            })
        })
    }

    /// The weights of these models by their bytes. Reads each of them whole the first time.
    pub(crate) async fn weights(&self, models: Vec<PathBuf>) -> Option<Arc<dyn Weights>> {
        let fallback = self.home().path().join("cache");
        let cancel = self.stopping();
        let indexed =
            tokio::task::spawn_blocking(move || WeightIndex::open(&models, &fallback, &cancel)).await.ok()?;
        match indexed {
            Ok(index) => Some(index as Arc<dyn Weights>),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "weights are sent, since they cannot be named");
                None
            }
        }
    }

    async fn lend(&self, llama: &LlamaCpp) -> Result<(), ApiError> {
        let inference = &self.config().inference;
        if self.config().client || !inference.lend || self.stopping().is_cancelled() {
            return Ok(());
        }
        let config = LenderConfig {
            rpc_server: llama.rpc_server.clone(),
            build: llama.version.text.clone(),
            home: self.home().path().to_owned(),
            guard: self.guard()?,
            devices: lent_devices(inference.device.as_deref()),
            threads: inference.threads.and_then(NonZeroU32::new),
            leases_max: LEASES_MAX,
            weights: self.weights_of(),
            times: LeaseConfig::default(),
        };
        let inner = &self.inner;
        let lender =
            Lender::start(&inner.transport, inner.tunnels.clone(), inner.lending.ledger.clone(), config);
        *inner.lending.lender.lock().await = Some(lender);
        Ok(())
    }
}
