//! The models on this machine's disk, looked at every so often.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_inference::catalogue::{Catalogue, Model};
use tokio::sync::Notify;

use super::Node;

/// A scan of some hundred files takes a millisecond; what a person copies there shows within this time.
const SCAN_EVERY: Duration = Duration::from_secs(30);

/// What the last scan found.
#[derive(Default)]
pub(crate) struct Disk {
    models: ArcSwap<Vec<Model>>,
    usable: ArcSwap<Vec<Model>>,
    /// Keeps the facts of files that did not change.
    catalogue: ArcSwapOption<Catalogue>,
    /// Files that turned out to be no model that can be run, as they were then.
    aside: Mutex<BTreeMap<PathBuf, Option<SystemTime>>>,
    changed: Notify,
}

impl Disk {
    /// Something was put there or taken away: look again soon.
    pub(crate) fn look(&self) {
        self.changed.notify_one();
    }

    /// As the last look of [`Node::keep_disk`] found them.
    pub(crate) fn models(&self) -> Arc<Vec<Model>> {
        self.models.load_full()
    }

    /// Looks now. Blocks on the disk.
    pub(crate) fn scan(&self, folders: &[PathBuf]) -> Arc<Catalogue> {
        let before = self.catalogue.load_full();
        let now = Arc::new(before.map_or_else(|| Catalogue::scan(folders), |before| before.rescan()));
        self.catalogue.store(Some(now.clone()));
        now
    }

    /// Whole models, but for those that turned out to be none. Blocks on the disk.
    fn usable(&self, models: &[Model]) -> Vec<Model> {
        let mut aside = self.aside();
        aside.retain(|path, modified| modified_at(path) == *modified);
        let usable = |model: &&Model| model.missing.is_empty() && !aside.contains_key(&model.path);
        models.iter().filter(usable).cloned().collect()
    }

    fn aside(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Option<SystemTime>>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn modified_at(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|facts| facts.modified()).ok()
}

impl Node {
    /// The models on disk, as the last scan found them; whole ones and others.
    pub(crate) fn on_disk(&self) -> Arc<Vec<Model>> {
        self.inner.disk.models()
    }

    /// Those of them that the mesh may count on.
    pub(crate) fn usable_on_disk(&self) -> Arc<Vec<Model>> {
        self.inner.disk.usable.load_full()
    }

    /// Counts a model as not on this disk, until its file is another one.
    pub(crate) fn set_aside(&self, name: &str) {
        if let Some(model) = self.on_disk().iter().find(|model| model.name == name) {
            self.inner.disk.aside().insert(model.path.clone(), modified_at(&model.path));
        }
        self.inner.disk.look();
    }

    /// Looks at the disk for as long as the node runs.
    pub(crate) async fn keep_disk(self) {
        loop {
            let inner = self.inner.clone();
            let scanned = tokio::task::spawn_blocking(move || {
                let models = inner.disk.scan(&inner.config.inference.model_dirs).models().to_vec();
                let usable = inner.disk.usable(&models);
                (models, usable)
            });
            if let Ok((models, usable)) = scanned.await
                && (*self.on_disk() != models || *self.usable_on_disk() != usable)
            {
                self.inner.disk.models.store(Arc::new(models));
                self.inner.disk.usable.store(Arc::new(usable));
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
