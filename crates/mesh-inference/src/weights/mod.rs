//! The tensors of a model's files by their bytes, so that a tunnel can name them instead of carrying them.
//!
//! Hashing reads the model once; the hashes are kept in a file beside it. What is read later is read from the files that were
//! indexed: one that has changed is listed no more.

mod cache;
mod hash;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use mesh_tunnel::{Weight, WeightId, Weights};
use tokio_util::sync::CancellationToken;

use crate::gguf::{GgufError, Metadata, read_metadata};

/// The weights of one model, or of a model and its draft model.
#[derive(Debug)]
pub struct WeightIndex {
    name: String,
    files: Vec<Indexed>,
    places: HashMap<WeightId, Place>,
    listed: RwLock<Arc<[Weight]>>,
}

/// Why there is no index. Nothing was changed; try again once the file is mended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// It is no readable model.
    #[error("no weights can be indexed")]
    Gguf(#[from] GgufError),
    /// The operating system could not read it.
    #[error("{} cannot be read", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// It was written to while it was indexed.
    #[error("{} changed while it was indexed: index it again when it is whole", .0.display())]
    Changed(PathBuf),
    /// The caller gave up.
    #[error("indexing was cancelled")]
    Cancelled,
}

#[derive(Debug)]
struct Indexed {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

/// What shows that a file has been written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    seconds: i64,
    nanoseconds: i64,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
    bytes: u64,
}

/// A tensor's bytes, hashed both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hashes {
    id: WeightId,
    fnv: u64,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let facts = file.metadata()?;
        Ok(Self { bytes: facts.len(), seconds: facts.mtime(), nanoseconds: facts.mtime_nsec() })
    }
}

impl WeightIndex {
    /// The index of these models; a part of a split model stands for all of it. Hashes are taken from the file
    /// `NAME.gguf.weights` beside each, which is written when it is not there or is of another version of the model, or from
    /// `fallback` where the model's folder cannot be written to.
    ///
    /// Blocks for as long as reading the models takes the first time, and for milliseconds after that: call it from a
    /// blocking thread.
    ///
    /// # Errors
    /// [`IndexError`]. A cache that cannot be written is none: the models are read again the next time.
    pub fn open(
        models: &[PathBuf],
        fallback: &Path,
        cancel: &CancellationToken,
    ) -> Result<Arc<Self>, IndexError> {
        let names = models.iter().filter_map(|path| path.file_name()?.to_str()).collect::<Vec<_>>();
        let mut index = Self {
            name: names.join(", "),
            files: Vec::new(),
            places: HashMap::new(),
            listed: RwLock::new(Arc::from([])),
        };
        let mut listed = Vec::new();
        for model in models {
            index.add(model, fallback, cancel, &mut listed)?;
        }
        index.listed = RwLock::new(listed.into());
        Ok(Arc::new(index))
    }

    fn add(
        &mut self,
        model: &Path,
        fallback: &Path,
        cancel: &CancellationToken,
        listed: &mut Vec<Weight>,
    ) -> Result<(), IndexError> {
        let metadata = read_metadata(model)?;
        let files = open_files(&metadata)?;
        let cache = cache::Cache::of(&metadata.files[0], fallback);
        let stamps: Vec<_> = files.iter().map(|indexed| indexed.stamp).collect();
        let hashes = match cache.read(&stamps, metadata.tensors.len()) {
            Some(hashes) => hashes,
            None => {
                let hashes = hash::all(&metadata, &files, cancel)?;
                if let Some(changed) = files.iter().find(|indexed| indexed.has_changed()) {
                    return Err(IndexError::Changed(changed.path.clone()));
                }
                cache.write(&stamps, &hashes);
                hashes
            }
        };
        let first = self.files.len();
        for (tensor, hashes) in metadata.tensors.into_iter().zip(hashes) {
            let place = Place { file: first + tensor.file, offset: tensor.offset, bytes: tensor.bytes };
            self.places.entry(hashes.id).or_insert(place);
            listed.push(Weight { id: hashes.id, fnv: hashes.fnv, bytes: tensor.bytes, name: tensor.name });
        }
        self.files.extend(files);
        Ok(())
    }

    /// Lists the weights no more that lie in files for which this holds.
    fn drop_files(&self, gone: impl Fn(usize) -> bool) {
        self.drop_weights(|weight| self.places.get(&weight.id).is_none_or(|place| gone(place.file)));
    }

    fn drop_weights(&self, gone: impl Fn(&Weight) -> bool) {
        let mut listed = self.listed.write().unwrap_or_else(PoisonError::into_inner);
        if listed.iter().any(&gone) {
            *listed = listed.iter().filter(|weight| !gone(weight)).cloned().collect();
        }
    }
}

impl Weights for WeightIndex {
    fn file(&self) -> String {
        self.name.clone()
    }

    fn list(&self) -> Arc<[Weight]> {
        let changed: Vec<_> = self.files.iter().map(Indexed::has_changed).collect();
        if changed.contains(&true) {
            self.drop_files(|file| changed[file]);
        }
        Arc::clone(&self.listed.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn read(&self, weight: &WeightId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let place = self.places.get(weight).ok_or(io::ErrorKind::NotFound)?;
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= place.bytes);
        if end.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the weight's end"));
        }
        let indexed = &self.files[place.file];
        let read = indexed.file.read_exact_at(buffer, place.offset + offset);
        if read.is_err() || indexed.has_changed() {
            self.drop_files(|file| file == place.file);
            let changed = format!("{} has changed since it was indexed", indexed.path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, changed));
        }
        Ok(())
    }

    fn forget(&self, weight: &WeightId) {
        self.drop_weights(|listed| listed.id == *weight);
    }
}

impl Indexed {
    fn has_changed(&self) -> bool {
        !Stamp::of(&self.file).is_ok_and(|stamp| stamp == self.stamp)
    }
}

fn open_files(metadata: &Metadata) -> Result<Vec<Indexed>, IndexError> {
    let open = |path: &PathBuf| {
        let file = File::open(path)?;
        Ok(Indexed { path: path.clone(), stamp: Stamp::of(&file)?, file })
    };
    let files = metadata.files.iter();
    files.map(|path| open(path).map_err(|error| IndexError::Io(path.clone(), error))).collect()
}
