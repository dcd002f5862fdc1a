//! The models on this machine's disk, looked at every so often.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_inference::catalogue::{Catalogue, Model};
use tokio::sync::Notify;

use super::Node;

/// A scan of some hundred files takes a millisecond; what a person copies there shows within this time.
const SCAN_EVERY: Duration = Duration::from_secs(30);

/// What the last scan found.
#[derive(Default)]
pub(crate) struct Disk {
    models: ArcSwap<Vec<Model>>,
    changed: Notify,
}

impl Disk {
    /// Something was put there or taken away: look again soon.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }
}

impl Node {
    /// The models on disk, as the last scan found them; whole ones and others.
    pub(crate) fn on_disk(&self) -> Arc<Vec<Model>> {
        self.inner.disk.models.load_full()
    }

    /// Looks at the disk for as long as the node runs.
    pub(crate) async fn keep_disk(self) {
        loop {
            let folders = self.config().inference.model_dirs.clone();
            let scanned =
                tokio::task::spawn_blocking(move || Catalogue::scan(&folders).models().to_vec()).await;
            if let Ok(models) = scanned
                && *self.on_disk() != models
            {
                self.inner.disk.models.store(Arc::new(models));
                self.refresh();
            }
            tokio::select! {
                () = self.inner.disk.changed.notified() => {}
                () = tokio::time::sleep(SCAN_EVERY) => {}
                () = self.stopping().cancelled_owned() => return,
            }
        }
    }
}
