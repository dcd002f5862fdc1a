//! The side that has files: which ones, their hashes, their chunks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_identity::NodeId;
use mesh_transport::{FrameReader, Handler, Member, SendStream, Stream, handler_fn, write_message};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::wire::{Answer, Ask, FILES_MAX, Has, MESSAGE_BYTES_MAX, NAME_BYTES_MAX};
use crate::catalogue::{Catalogue, Model};
use crate::fetch::config::Config;
use crate::fetch::index::{Index, MAGIC, Stamp, chunk_bytes};
use crate::fetch::stats::Counters;
use crate::gguf::SplitName;

/// Streams served at once, each with one chunk in memory: 24 MiB.
const STREAMS_MAX: usize = 24;
/// Of these, to one member.
const STREAMS_PER_MEMBER: usize = 6;
/// A stream on which nothing is asked for this long ends, and so does one that does not take an answer for as long.
const IDLE: Duration = Duration::from_secs(30);
/// How long a list of the model folders is believed: asking is rare, and one download asks once for each of its files.
const SCAN_TIME: Duration = Duration::from_secs(2);
/// Hashes kept in memory, those of the largest models apart: 40 files of 10 GB each have 13 MB.
const INDEXES_MAX: usize = 64;

/// The files that are given to members. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Blobs {
    shared: Arc<Shared>,
}

struct Shared {
    folders: Vec<PathBuf>,
    cache: Option<PathBuf>,
    counters: Arc<Counters>,
    streams: Arc<Semaphore>,
    by_member: Mutex<BTreeMap<NodeId, usize>>,
    scanned: Mutex<Option<(Instant, Arc<Vec<Model>>)>>,
    known: Mutex<Known>,
    /// One file is hashed at a time: the disk is what takes the time.
    hashing: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct Known {
    indexes: BTreeMap<PathBuf, (Stamp, Arc<Index>)>,
    /// How many bytes of a file have been hashed.
    under_way: BTreeMap<PathBuf, Arc<AtomicU64>>,
}

/// A file that was opened for a stream.
struct Opened {
    root: [u8; 32],
    file: Arc<File>,
    stamp: Stamp,
    index: Arc<Index>,
}

impl Blobs {
    pub(crate) fn new(
        config: &Config,
        counters: Arc<Counters>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let shared = Shared {
            folders: config.folders.clone(),
            cache: config.cache.clone(),
            counters,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            by_member: Mutex::default(),
            scanned: Mutex::default(),
            known: Mutex::default(),
            hashing: tokio::sync::Mutex::default(),
            tasks,
            stop,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves `blob/1` to members.
    pub(crate) fn handler(&self) -> Arc<dyn Handler> {
        let blobs = self.clone();
        handler_fn(move |member: Member, stream| {
            let blobs = blobs.clone();
            async move {
                let stop = blobs.shared.stop.clone();
                tokio::select! {
                    () = blobs.serve(&member, stream) => {}
                    () = stop.cancelled() => {}
                }
            }
        })
    }

    /// Remembers the hashes of a file that has just come.
    pub(crate) fn learn(&self, path: &Path, stamp: Stamp, index: Arc<Index>) {
        let mut known = self.known();
        if known.indexes.len() >= INDEXES_MAX {
            known.indexes.pop_first();
        }
        known.indexes.insert(path.to_owned(), (stamp, index));
    }

    /// The hashes of a file, if they are known or stored. Blocks on the disk.
    pub(crate) fn index(&self, path: &Path, stamp: Stamp) -> Option<Arc<Index>> {
        if let Some((known, index)) = self.known().indexes.get(path)
            && *known == stamp
        {
            return Some(index.clone());
        }
        let index = Arc::new(Index::load(path, stamp, self.shared.cache.as_deref())?);
        self.learn(path, stamp, index.clone());
        Some(index)
    }

    async fn serve(&self, member: &Member, stream: Stream) {
        let (mut send, recv) = stream.split();
        let Some(_place) = self.place(member.id) else {
            if write_message(&mut send, &Answer::Busy, MESSAGE_BYTES_MAX).await.is_ok() {
                let _ = send.shutdown().await;
            }
            return;
        };
        let mut asks = FrameReader::new(recv, MESSAGE_BYTES_MAX);
        let mut opened = None;
        loop {
            let ask = match timeout(IDLE, asks.next_message::<Ask>()).await {
                Ok(Ok(Some(ask))) => ask,
                Ok(Ok(None)) => {
                    let _ = send.shutdown().await; // the asker may be gone already
                    return;
                }
                Ok(Err(error)) => {
                    return tracing::debug!(peer = %member.id.short(), error = &error as &dyn std::error::Error, "a request for a file is not understood");
                }
                Err(_) => return,
            };
            match timeout(IDLE, self.answer(&mut send, ask, &mut opened)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    return tracing::debug!(peer = %member.id.short(), %error, "a file could not be given");
                }
                Err(_) => return,
            }
        }
    }

    /// A place among the streams, until it is dropped.
    fn place(&self, member: NodeId) -> Option<Place> {
        let permit = self.shared.streams.clone().try_acquire_owned().ok()?;
        let mut by_member = self.shared.by_member.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_member.entry(member).or_default();
        if *count >= STREAMS_PER_MEMBER {
            return None;
        }
        *count += 1;
        Some(Place { shared: self.shared.clone(), member, _permit: permit })
    }

    async fn answer(
        &self,
        send: &mut SendStream,
        ask: Ask,
        opened: &mut Option<Arc<Opened>>,
    ) -> io::Result<()> {
        let say = async |send: &mut SendStream, answer: Answer| {
            write_message(send, &answer, MESSAGE_BYTES_MAX).await.map_err(io::Error::other)
        };
        match ask {
            Ask::Have { name, bytes, sha256 } => {
                let answer = self.have(name, bytes, sha256).await?;
                say(send, answer).await
            }
            Ask::Hashes { root } => {
                let Some(file) = self.open(root, opened).await? else { return say(send, Answer::Gone).await };
                let count = u32::try_from(file.index.chunks.len()).map_err(io::Error::other)?;
                say(send, Answer::Hashes { count }).await?;
                send.write_all(file.index.chunks.as_flattened()).await?;
                send.flush().await
            }
            Ask::Chunk { root, index } => {
                let Some(file) = self.open(root, opened).await? else { return say(send, Answer::Gone).await };
                let data = blocking(move || file.chunk(index.into())).await?;
                let Some(data) = data else {
                    *opened = None;
                    return say(send, Answer::Gone).await;
                };
                let bytes = u32::try_from(data.len()).map_err(io::Error::other)?;
                say(send, Answer::Chunk { bytes }).await?;
                send.write_all(&data).await?;
                send.flush().await?;
                Counters::add(&self.shared.counters.to_members, bytes.into());
                Ok(())
            }
        }
    }

    /// The files that fit. One that has no hashes yet gets them in the background.
    async fn have(&self, name: String, bytes: Option<u64>, sha256: Option<[u8; 32]>) -> io::Result<Answer> {
        if name.len() > NAME_BYTES_MAX {
            return Ok(Answer::Have(Vec::new()));
        }
        let blobs = self.clone();
        let files = blocking(move || Ok(blobs.files(&name, bytes))).await?;
        let (mut has, mut unknown) = (Vec::new(), Vec::new());
        for (path, stamp) in files.into_iter().take(FILES_MAX) {
            let blobs = self.clone();
            let of = path.clone();
            match blocking(move || Ok(blobs.index(&of, stamp))).await? {
                Some(index) => has.extend(
                    Has::of(&path, &index).filter(|has| sha256.is_none_or(|hash| hash == has.sha256)),
                ),
                None => unknown.push((path, stamp)),
            }
        }
        // A caller that knows the hash can begin with the files that have it; without one it needs all of them.
        if unknown.is_empty() || (sha256.is_some() && !has.is_empty()) {
            return Ok(Answer::Have(has));
        }
        let total = unknown.iter().map(|(_, stamp)| stamp.bytes).fold(0, u64::saturating_add);
        let done =
            unknown.into_iter().map(|(path, stamp)| self.hash(path, stamp)).fold(0, u64::saturating_add);
        Ok(Answer::Hashing { done_bytes: done, bytes: total })
    }

    /// Files of the catalogue by that name. Blocks on the disk.
    fn files(&self, name: &str, bytes: Option<u64>) -> Vec<(PathBuf, Stamp)> {
        let mut found = Vec::new();
        for model in self.models().iter().filter(|model| model.missing.is_empty()) {
            let is_model = model.name.eq_ignore_ascii_case(name);
            for path in files_of(model) {
                let is_file = path.file_name().is_some_and(|file| file.eq_ignore_ascii_case(name));
                if (is_model || is_file)
                    && let Ok(stamp) = stamp_of_gguf(&path)
                    && bytes.is_none_or(|bytes| bytes == stamp.bytes)
                {
                    found.push((path, stamp));
                }
            }
        }
        found
    }

    fn models(&self) -> Arc<Vec<Model>> {
        let mut scanned = self.shared.scanned.lock().unwrap_or_else(PoisonError::into_inner);
        match &*scanned {
            Some((at, models)) if at.elapsed() < SCAN_TIME => models.clone(),
            _ => {
                let models = Arc::new(Catalogue::scan(&self.shared.folders).models().to_vec());
                *scanned = Some((Instant::now(), models.clone()));
                models
            }
        }
    }

    /// Sees to it that a file gets hashes; how far that is.
    fn hash(&self, path: PathBuf, stamp: Stamp) -> u64 {
        let done = Arc::new(AtomicU64::new(0));
        {
            let mut known = self.known();
            if let Some(under_way) = known.under_way.get(&path) {
                return under_way.load(Relaxed);
            }
            known.under_way.insert(path.clone(), done.clone());
        }
        let blobs = self.clone();
        self.shared.tasks.spawn(async move {
            let _turn = blobs.shared.hashing.lock().await;
            let (stop, cache) = (blobs.shared.stop.clone(), blobs.shared.cache.clone());
            let of = path.clone();
            let index = blocking(move || {
                let file = File::open(&of)?;
                let index = Index::read(&file, stamp.bytes, |at| {
                    done.store(at.min(stamp.bytes), Relaxed);
                    !stop.is_cancelled()
                })?;
                if Stamp::of(&file)? != stamp {
                    return Err(io::Error::other("it changed meanwhile"));
                }
                index.store(&of, stamp, cache.as_deref());
                Ok(index)
            });
            match index.await {
                Ok(index) => blobs.learn(&path, stamp, Arc::new(index)),
                Err(error) => tracing::debug!(file = %path.display(), %error, "a file could not be hashed"),
            }
            blobs.known().under_way.remove(&path);
        });
        0
    }

    /// The file of that root, if it is still the one that was hashed.
    async fn open(
        &self,
        root: [u8; 32],
        opened: &mut Option<Arc<Opened>>,
    ) -> io::Result<Option<Arc<Opened>>> {
        if let Some(file) = opened.as_ref().filter(|file| file.root == root) {
            return Ok(Some(file.clone()));
        }
        let found = {
            let known = self.known();
            let found = known.indexes.iter().find(|(_, (_, index))| index.root == root);
            found.map(|(path, (stamp, index))| (path.clone(), *stamp, index.clone()))
        };
        let Some((path, stamp, index)) = found else { return Ok(None) };
        let file = blocking(move || {
            // The folders were left, or the file was removed or replaced: no longer a model of this node.
            let Ok(file) = File::open(&path) else { return Ok(None) };
            Ok((Stamp::of(&file)? == stamp).then_some(file))
        });
        *opened = file.await?.map(|file| Arc::new(Opened { root, file: Arc::new(file), stamp, index }));
        Ok(opened.clone())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    /// One chunk; `None` when the file has changed or has no such chunk. Blocks.
    fn chunk(&self, index: u64) -> io::Result<Option<Vec<u8>>> {
        let bytes = chunk_bytes(self.stamp.bytes, index);
        if bytes == 0 || Stamp::of(&self.file)? != self.stamp {
            return Ok(None);
        }
        let mut data = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut data, index * crate::fetch::index::CHUNK_BYTES)?;
        Ok(Some(data))
    }
}

impl Has {
    fn of(path: &Path, index: &Index) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_owned();
        Some(Self { name, bytes: index.bytes, sha256: index.sha256.0, root: index.root })
    }
}

struct Place {
    shared: Arc<Shared>,
    member: NodeId,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_member = self.shared.by_member.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_member.get_mut(&self.member) {
            *count -= 1;
            if *count == 0 {
                by_member.remove(&self.member);
            }
        }
    }
}

/// All files of a model.
fn files_of(model: &Model) -> Vec<PathBuf> {
    match (SplitName::of(&model.path), model.path.parent()) {
        (Some(split), Some(folder)) => (1..=split.count).map(|number| split.path(folder, number)).collect(),
        _ => vec![model.path.clone()],
    }
}

/// What a file is now, if it is a GGUF file.
fn stamp_of_gguf(path: &Path) -> io::Result<Stamp> {
    let file = File::open(path)?;
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0)?;
    if magic != *MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no GGUF file"));
    }
    Stamp::of(&file)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}
