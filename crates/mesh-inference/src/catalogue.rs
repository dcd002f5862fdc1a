//! The models on this machine's disks, and what a name that a user types means.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::gguf::{GgufError, Metadata, SplitName, read_metadata};

/// Folders below a model folder that are looked into: `org/repo/file.gguf`.
const DEPTH_MAX: u32 = 3;
/// Above any collection seen; a mistaken `/` as a model folder ends here.
const ENTRIES_MAX: usize = 100_000;
/// Names that an error lists.
const NEAREST_MAX: usize = 3;

/// A model on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its name: the file's name without `.gguf` and without the number of a part.
    pub name: String,
    /// Its file; the first one of a split model.
    pub path: PathBuf,
    /// Size of all its files in bytes.
    pub file_bytes: u64,
    /// Parts that should be there and are not; empty for a whole model.
    pub missing: Vec<PathBuf>,
}

/// The models found by a scan. It watches nothing: scan again to see what has changed; facts of unchanged files are kept.
#[derive(Debug, Default)]
pub struct Catalogue {
    folders: Vec<PathBuf>,
    models: Vec<Model>,
    facts: Arc<Mutex<BTreeMap<PathBuf, Known>>>,
}

#[derive(Debug, Clone)]
struct Known {
    file_bytes: u64,
    modified: Option<SystemTime>,
    facts: Arc<Metadata>,
}

/// Why a name means no model. Nothing has changed; look again once there is such a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// No model has this name, nor a name that begins with it.
    #[error("there is no model `{name}` in {}{}", List(.folders), nearest_text(.nearest))]
    NotFound {
        /// What was asked for.
        name: String,
        /// The folders that were scanned.
        folders: Vec<PathBuf>,
        /// Names that look alike, best first.
        nearest: Vec<String>,
    },
    /// Several models fit.
    #[error("`{name}` could be any of {}; give more of the name, or the path", List(.candidates))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The files that fit.
        candidates: Vec<PathBuf>,
    },
    /// A path at which there is no model file.
    #[error("there is no model file at {}", .0.display())]
    NoFile(PathBuf),
    /// Parts of a split model are missing.
    #[error("`{name}` is not whole: {} missing; download the parts again", List(.missing))]
    Incomplete {
        /// The model.
        name: String,
        /// What is missing.
        missing: Vec<PathBuf>,
    },
    /// A URL, or the name of a file at the hub, that is not on this machine's disks.
    #[error("`{0}` is not on this machine yet; `qmt-cli models pull {0}` downloads it")]
    NotHere(String),
}

struct List<'a>(&'a [PathBuf]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no folder (none is configured)");
        }
        for (index, path) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", path.display())?;
        }
        Ok(())
    }
}

fn nearest_text(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; nearest: {}", nearest.join(", ")) }
}

impl Catalogue {
    /// Looks for `*.gguf` in the folders and up to three levels below them. A folder that is not there holds no models;
    /// what cannot be read is left out. Blocks on the disk: call it from a blocking thread.
    pub fn scan(folders: &[PathBuf]) -> Self {
        let mut files = Vec::new();
        for folder in folders {
            collect(folder, DEPTH_MAX, &mut files);
        }
        files.sort();
        files.dedup();
        let models = files.iter().filter_map(|file| model_at(file)).collect();
        Self { folders: folders.to_vec(), models, facts: Arc::default() }
    }

    /// Scans again, and shares the facts that are known of files which are still there. Blocks as [`Catalogue::scan`] does.
    #[must_use]
    pub fn rescan(&self) -> Self {
        let scanned = Self::scan(&self.folders);
        let is_there = |path: &PathBuf| scanned.models.iter().any(|model| model.path == *path);
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).retain(|path, _| is_there(path));
        Self { facts: self.facts.clone(), ..scanned }
    }

    /// All models, by path.
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The model that a user means: by path, by exact name, or by the beginning of a name that only one model has (case
    /// counts in none of these but the path).
    ///
    /// # Errors
    /// [`ResolveError`], in words for that user.
    pub fn resolve(&self, name: &str) -> Result<Model, ResolveError> {
        if name.contains("://") {
            // What was downloaded from a URL has its file name, in a folder that is scanned.
            let file = name.split(['?', '#']).next().and_then(|path| path.rsplit('/').next()).unwrap_or(name);
            let below = self.folders.iter().map(|folder| folder.join(file)).find(|path| path.is_file());
            let model = below.filter(|_| file.ends_with(".gguf")).and_then(|path| model_at_any_part(&path));
            return model.map_or_else(|| Err(ResolveError::NotHere(name.to_owned())), whole);
        }
        let path = Path::new(name);
        if path.is_file() {
            return whole(model_at_any_part(path).ok_or_else(|| ResolveError::NoFile(path.to_owned()))?);
        }
        if path.is_absolute() || name.starts_with("./") || name.starts_with("../") {
            return Err(ResolveError::NoFile(path.to_owned()));
        }
        // `org/repo/file.gguf`, unless a folder of ours has it so.
        if name.contains('/') {
            let below = self.folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
            let model = below.and_then(|path| model_at_any_part(&path));
            return model.map_or_else(|| Err(ResolveError::NotHere(name.to_owned())), whole);
        }
        let wanted = name.strip_suffix(".gguf").unwrap_or(name).to_lowercase();
        let fits = |test: &dyn Fn(&str) -> bool| -> Vec<&Model> {
            self.models.iter().filter(|model| test(&model.name.to_lowercase())).collect()
        };
        let exact = fits(&|name| name == wanted);
        let found = if exact.is_empty() && !wanted.is_empty() {
            fits(&|name| name.starts_with(&wanted))
        } else {
            exact
        };
        match found[..] {
            [model] => whole(model.clone()),
            [] => Err(ResolveError::NotFound {
                name: name.to_owned(),
                folders: self.folders.clone(),
                nearest: self.nearest(&wanted),
            }),
            _ => Err(ResolveError::Ambiguous {
                name: name.to_owned(),
                candidates: found.iter().map(|model| model.path.clone()).collect(),
            }),
        }
    }

    /// The facts of a model, read once as long as its file does not change. Blocks on the disk.
    ///
    /// # Errors
    /// Those of [`read_metadata`].
    pub fn facts(&self, model: &Model) -> Result<Arc<Metadata>, GgufError> {
        let modified = model.path.metadata().and_then(|facts| facts.modified()).ok();
        let known = self.facts.lock().unwrap_or_else(PoisonError::into_inner).get(&model.path).cloned();
        if let Some(known) = known
            && known.modified == modified
            && known.file_bytes == model.file_bytes
        {
            return Ok(known.facts);
        }
        let facts = Arc::new(read_metadata(&model.path)?);
        let known = Known { file_bytes: model.file_bytes, modified, facts: facts.clone() };
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).insert(model.path.clone(), known);
        Ok(facts)
    }

    fn nearest(&self, wanted: &str) -> Vec<String> {
        let mut scored: Vec<(usize, &str)> = self
            .models
            .iter()
            .map(|model| (distance(wanted, &model.name.to_lowercase()), model.name.as_str()))
            .collect();
        scored.sort_unstable();
        scored.dedup();
        scored.into_iter().take(NEAREST_MAX).map(|(_, name)| name.to_owned()).collect()
    }
}

fn whole(model: Model) -> Result<Model, ResolveError> {
    if model.missing.is_empty() {
        return Ok(model);
    }
    Err(ResolveError::Incomplete { name: model.name, missing: model.missing })
}

fn collect(folder: &Path, depth: u32, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if files.len() >= ENTRIES_MAX {
            tracing::warn!(folder = %folder.display(), "too many model files, the rest is left out");
            return;
        }
        let path = entry.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        // Links to files count; links to folders could go in circles.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth > 0 {
                collect(&path, depth - 1, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "gguf") && path.is_file() {
            files.push(path);
        }
    }
}

/// The model whose first file this is; `None` for a further part.
fn model_at(path: &Path) -> Option<Model> {
    let Some(split) = SplitName::of(path) else {
        let name = path.file_name()?.to_str()?;
        return Some(Model {
            name: name.strip_suffix(".gguf").unwrap_or(name).to_owned(),
            path: path.to_owned(),
            file_bytes: path.metadata().ok()?.len(),
            missing: Vec::new(),
        });
    };
    if split.number != 1 {
        return None;
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut model =
        Model { name: split.stem.clone(), path: path.to_owned(), file_bytes: 0, missing: Vec::new() };
    for number in 1..=split.count {
        let part = split.path(folder, number);
        match part.metadata() {
            Ok(facts) => model.file_bytes = model.file_bytes.saturating_add(facts.len()),
            Err(_) => model.missing.push(part),
        }
    }
    Some(model)
}

fn model_at_any_part(path: &Path) -> Option<Model> {
    match SplitName::of(path) {
        Some(split) => model_at(&split.path(path.parent().unwrap_or(Path::new("")), 1)),
        None => model_at(path),
    }
}

/// Edits from one text to the other, over their first 64 characters; less when one contains the other.
fn distance(a: &str, b: &str) -> usize {
    if b.contains(a) || a.contains(b) {
        return 0;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn catalogue(files: &[&str]) -> (tempfile::TempDir, Catalogue) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"12345").unwrap();
        }
        let catalogue = Catalogue::scan(&[folder.path().to_owned(), "/nonexistent".into()]);
        (folder, catalogue)
    }

    #[test]
    fn a_name_a_prefix_and_a_path_mean_the_same_model() {
        let (folder, catalogue) =
            catalogue(&["Gemma-3-270m.gguf", "org/repo/qwen.gguf", "notes.txt", ".hidden.gguf"]);
        assert_eq!(catalogue.models().len(), 2);
        let path = folder.path().join("Gemma-3-270m.gguf");
        for name in ["gemma-3-270m", "Gemma-3-270m.gguf", "gem", path.to_str().unwrap()] {
            assert_eq!(catalogue.resolve(name).unwrap().path, path, "{name}");
        }
        assert_eq!(catalogue.resolve("org/repo/qwen.gguf").unwrap().name, "qwen");
    }

    #[test]
    fn an_exact_name_wins_over_longer_ones_and_others_are_ambiguous() {
        let (_folder, catalogue) =
            catalogue(&["qwen.gguf", "qwen-large.gguf", "a/llama.gguf", "b/llama.gguf"]);
        assert_eq!(catalogue.resolve("qwen").unwrap().name, "qwen");
        let error = catalogue.resolve("qw").unwrap_err().to_string();
        assert!(error.contains("qwen.gguf") && error.contains("qwen-large.gguf"), "{error}");
        assert!(
            matches!(catalogue.resolve("llama"), Err(ResolveError::Ambiguous { candidates, .. }) if candidates.len() == 2)
        );
        assert!(matches!(catalogue.resolve(""), Err(ResolveError::NotFound { .. })));
    }

    #[test]
    fn a_miss_names_folders_and_neighbours() {
        let (folder, catalogue) = catalogue(&["gemma.gguf", "qwen.gguf"]);
        let error = catalogue.resolve("gema").unwrap_err().to_string();
        assert!(
            error.contains(folder.path().to_str().unwrap()) && error.contains("nearest: gemma"),
            "{error}"
        );
        assert!(matches!(catalogue.resolve("/no/such.gguf"), Err(ResolveError::NoFile(_))));
        for name in ["https://example.invalid/x.gguf", "org/repo/other.gguf"] {
            let error = catalogue.resolve(name).unwrap_err();
            assert!(matches!(&error, ResolveError::NotHere(_)) && error.to_string().contains("models pull"));
        }
    }

    #[test]
    fn a_split_model_is_one_and_its_parts_are_counted() {
        let (folder, catalogue) =
            catalogue(&["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "n-00001-of-00002.gguf"]);
        assert_eq!(catalogue.models().len(), 2);
        let model = catalogue.resolve("m").unwrap();
        assert_eq!((model.name.as_str(), model.file_bytes), ("m", 10));
        let second = folder.path().join("m-00002-of-00002.gguf");
        assert_eq!(catalogue.resolve(second.to_str().unwrap()).unwrap(), model);
        let error = catalogue.resolve("n").unwrap_err().to_string();
        assert!(error.contains("n-00002-of-00002.gguf"), "{error}");
        assert_eq!(catalogue.rescan().models().len(), 2);
    }
}
