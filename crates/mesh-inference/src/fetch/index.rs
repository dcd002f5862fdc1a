//! The hashes of a whole file: what members check its chunks against.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::digest::Sha256Hash;

/// Bytes of a chunk, the last one of a file apart: what one stream holds in memory, and what one lie costs.
pub(crate) const CHUNK_BYTES: u64 = 1 << 20;
/// Largest file that is downloaded or given away: its list of hashes has 32 MiB.
pub(crate) const FILE_BYTES_MAX: u64 = CHUNK_BYTES << 20;
/// The first bytes of every GGUF file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

const CACHE_MAGIC: &[u8; 8] = b"QMTBLOB1";
const ROOT_CONTEXT: &str = "qmt-mesh blob/1 root";
/// Magic, size, time of change, SHA-256; the checksum stands at the end.
const CACHE_HEAD_BYTES: usize = 8 + 8 + 16 + 32;

/// BLAKE3 of a chunk.
pub(crate) type ChunkHash = [u8; 32];

/// The hashes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) bytes: u64,
    pub(crate) sha256: Sha256Hash,
    /// Of each chunk, in order.
    pub(crate) chunks: Vec<ChunkHash>,
    /// Stands for size and chunks.
    pub(crate) root: [u8; 32],
}

/// What says that a file is still the one that was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) bytes: u64,
    /// Time of the last change, nanoseconds since 1970.
    changed: i128,
}

impl Stamp {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let facts = file.metadata()?;
        let changed = i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec());
        Ok(Self { bytes: facts.len(), changed })
    }
}

/// Chunks of a file of this size.
pub(crate) fn chunks_of(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK_BYTES)
}

/// Bytes of one chunk.
pub(crate) fn chunk_bytes(bytes: u64, index: u64) -> u64 {
    bytes.saturating_sub(index.saturating_mul(CHUNK_BYTES)).min(CHUNK_BYTES)
}

/// What stands for all chunks of a file: whoever knows it can check a list of hashes, and by that each chunk.
pub(crate) fn root_of(bytes: u64, chunks: &[ChunkHash]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
    hasher.update(&bytes.to_le_bytes());
    hasher.update(chunks.as_flattened());
    *hasher.finalize().as_bytes()
}

impl Index {
    pub(crate) fn new(bytes: u64, sha256: Sha256Hash, chunks: Vec<ChunkHash>) -> Self {
        let root = root_of(bytes, &chunks);
        Self { bytes, sha256, chunks, root }
    }

    /// Reads a file once. `went` hears how far it is and says whether to go on; stopped, this fails with
    /// [`io::ErrorKind::Interrupted`]. Blocks for seconds to minutes.
    pub(crate) fn read(file: &File, bytes: u64, mut went: impl FnMut(u64) -> bool) -> io::Result<Self> {
        if bytes > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than any model"));
        }
        let mut reader = file;
        let mut buffer = vec![0; usize::try_from(CHUNK_BYTES).expect("a chunk fits into memory")];
        let (mut sha256, mut chunks) = (Sha256::new(), Vec::new());
        io::Seek::rewind(&mut reader)?;
        for index in 0..chunks_of(bytes) {
            let length = usize::try_from(chunk_bytes(bytes, index)).expect("a chunk fits into memory");
            let chunk = &mut buffer[..length];
            reader.read_exact(chunk)?;
            sha256.update(&*chunk);
            chunks.push(*blake3::hash(chunk).as_bytes());
            if !went((index + 1) * CHUNK_BYTES) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(Self::new(bytes, Sha256Hash(sha256.finalize().into()), chunks))
    }

    /// The index of a file as it was written beside it or into `cache`; `None` when there is none that fits. Blocks.
    pub(crate) fn load(path: &Path, stamp: Stamp, cache: Option<&Path>) -> Option<Self> {
        places(path, cache).into_iter().find_map(|place| Self::parse(&read_bounded(&place, stamp)?, stamp))
    }

    /// Writes the index where it is found again; a failure costs one more reading of the file. Blocks.
    pub(crate) fn store(&self, path: &Path, stamp: Stamp, cache: Option<&Path>) {
        let bytes = self.encode(stamp);
        for place in places(path, cache) {
            if write_whole(&place, &bytes).is_ok() {
                return;
            }
        }
        tracing::debug!(file = %path.display(), "the hashes of a file could not be stored");
    }

    fn encode(&self, stamp: Stamp) -> Vec<u8> {
        let mut out = Vec::with_capacity(CACHE_HEAD_BYTES + 32 * (self.chunks.len() + 1));
        out.extend_from_slice(CACHE_MAGIC);
        out.extend_from_slice(&stamp.bytes.to_le_bytes());
        out.extend_from_slice(&stamp.changed.to_le_bytes());
        out.extend_from_slice(&self.sha256.0);
        out.extend_from_slice(self.chunks.as_flattened());
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        out
    }

    fn parse(bytes: &[u8], stamp: Stamp) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<32>()?;
        let head = body.get(..CACHE_HEAD_BYTES)?;
        let is_this = head[..8] == *CACHE_MAGIC
            && head[8..16] == stamp.bytes.to_le_bytes()
            && head[16..32] == stamp.changed.to_le_bytes()
            && blake3::hash(body) == *sum;
        let (chunks, rest) = body[CACHE_HEAD_BYTES..].as_chunks::<32>();
        if !is_this || !rest.is_empty() || chunks.len() as u64 != chunks_of(stamp.bytes) {
            return None;
        }
        let sha256 = Sha256Hash(head[32..64].try_into().ok()?);
        Some(Self::new(stamp.bytes, sha256, chunks.to_vec()))
    }
}

/// Beside the file, then in the cache.
fn places(path: &Path, cache: Option<&Path>) -> Vec<PathBuf> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".blob");
    let named = cache.map(|cache| {
        let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
        cache.join(format!("{}.blob", &name[..32]))
    });
    std::iter::once(beside.into()).chain(named).collect()
}

/// A file that is exactly as long as the index must be.
fn read_bounded(place: &Path, stamp: Stamp) -> Option<Vec<u8>> {
    let mut file = File::open(place).ok()?;
    let wanted = CACHE_HEAD_BYTES as u64 + 32 * (chunks_of(stamp.bytes) + 1);
    if stamp.bytes > FILE_BYTES_MAX || file.metadata().ok()?.len() != wanted {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(wanted).ok()?];
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Writes a file so that it is either the old or the new one, whatever dies.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new); // it may not even have been made
    }
    written
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn model(bytes: usize) -> (tempfile::TempDir, PathBuf, File, Stamp) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let body: Vec<u8> = (0..bytes).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        std::fs::write(&path, body).unwrap();
        let file = File::open(&path).unwrap();
        let stamp = Stamp::of(&file).unwrap();
        (folder, path, file, stamp)
    }

    #[test]
    fn an_index_is_found_again_until_its_file_changes() {
        let (folder, path, file, stamp) = model(2 * (1 << 20) + 5);
        let index = Index::read(&file, stamp.bytes, |_| true).unwrap();
        assert_eq!(index.chunks.len(), 3);
        index.store(&path, stamp, None);
        assert_eq!(Index::load(&path, stamp, None), Some(index.clone()));
        let later = Stamp { changed: stamp.changed + 1, ..stamp };
        assert_eq!(Index::load(&path, later, None), None);
        let stored = folder.path().join("m.gguf.blob");
        let mut bytes = std::fs::read(&stored).unwrap();
        for at in [0, 70, bytes.len() - 1] {
            bytes[at] ^= 1;
            std::fs::write(&stored, &bytes).unwrap();
            assert_eq!(Index::load(&path, stamp, None), None, "byte {at}");
            bytes[at] ^= 1;
        }
        bytes.truncate(90);
        std::fs::write(&stored, &bytes).unwrap();
        assert_eq!(Index::load(&path, stamp, None), None);
        assert_eq!(Index::parse(&[], stamp), None);
    }

    #[test]
    fn a_folder_that_cannot_be_written_has_its_index_in_the_cache() {
        let (folder, path, file, stamp) = model(10);
        std::fs::create_dir(folder.path().join("m.gguf.blob")).unwrap(); // where the index would stand
        let cache = tempfile::tempdir().unwrap();
        let index = Index::read(&file, stamp.bytes, |_| true).unwrap();
        index.store(&path, stamp, Some(cache.path()));
        assert_eq!(Index::load(&path, stamp, Some(cache.path())), Some(index));
    }

    #[test]
    fn reading_stops_when_told() {
        let (_folder, _, file, stamp) = model(3 << 20);
        let stopped = Index::read(&file, stamp.bytes, |at| at < 2 << 20).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn the_root_stands_for_size_and_chunks() {
        let chunks = [[1; 32], [2; 32]];
        let root = root_of(5, &chunks);
        assert_ne!(root, root_of(6, &chunks));
        assert_ne!(root, root_of(5, &chunks[..1]));
        let hex: String = root.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex, "a1bac5518acab5c4054bff8c5171954a2755eea1b75755b11f31195c8b39985d",
            "what is on the wire"
        );
    }
}
