//! How fast this machine is, measured once with a model of its own.

use std::sync::{Mutex, PoisonError};

use mesh_inference::calibrate::Calibration;
use mesh_inference::plan::Speed;

use super::lending::Runtime;
use super::placing::Prepared;
use super::{Node, chain};

/// Smaller models are read from the processor's caches, and say nothing of its memory.
const WEIGHTS_MIN: u64 = 64 << 20;

/// What is known of this machine's speed.
#[derive(Default)]
pub(crate) struct Measured {
    last: Mutex<Option<Speed>>,
    /// Held while a benchmark runs, so that two never disturb each other.
    running: tokio::sync::Mutex<()>,
}

impl Node {
    /// The speed that was measured or read last; `None` before the first model.
    pub(crate) fn measured_speed(&self) -> Option<Speed> {
        *self.inner.measured.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that the speed with a kind of model is known: read from a file, or measured for some seconds by llama-bench,
    /// once a machine, build and kind. Nothing is measured while a model runs here.
    /// `begun` is called before it is measured.
    pub(crate) async fn calibrate(
        &self,
        runtime: &Runtime,
        prepared: &Prepared,
        begun: impl FnOnce() + Send,
    ) {
        if !self.config().inference.calibrate || prepared.needs.weights() < WEIGHTS_MIN {
            return;
        }
        let Some(program) = runtime.llama.server.parent().map(|folder| folder.join("llama-bench")) else {
            return;
        };
        let calibration = Calibration {
            program,
            build: runtime.llama.version.text.clone(),
            device: self.config().inference.device.clone(),
            threads: self.config().inference.threads.and_then(std::num::NonZeroU32::new),
        };
        let measured = &self.inner.measured;
        let _running = measured.running.lock().await;
        let (home, kind) = (self.home().path().to_owned(), prepared.kind.clone());
        let (asked, folder, of) = (calibration.clone(), home.clone(), kind.clone());
        let known = tokio::task::spawn_blocking(move || asked.known(&folder, &of)).await.ok().flatten();
        let speed = match known {
            Some(speed) => speed,
            None if self.inner.lending.ledger().held() > 0 || !calibration.program.is_file() => return,
            None => {
                tracing::info!(kind, "measuring once how fast this machine is");
                begun();
                let model = &prepared.model.path;
                match calibration.measure(&home, model, &prepared.needs, &kind).await {
                    Ok(speed) => speed,
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "plans assume a usual machine");
                        return;
                    }
                }
            }
        };
        *measured.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(speed);
        self.retell_machine();
    }
}
