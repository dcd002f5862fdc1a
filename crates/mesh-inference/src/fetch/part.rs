//! A file that is not whole yet: `NAME.part`, with a journal of the chunks that are in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::digest::{Sha256Hash, from_hex};
use super::index::{CHUNK_BYTES, ChunkHash, Index, chunk_bytes, chunks_of, write_whole};

/// Longest line of a journal that is read, bytes: its head with long names.
const LINE_BYTES_MAX: u64 = 8 * 1024;
const VERSION: u32 = 1;
/// Chunks that one write hashes beyond its own, so that no write waits long for another's.
const CATCH_UP: u64 = 8;

/// Which file it is: what has come belongs to this one and to no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) bytes: u64,
    pub(crate) sha256: Option<Sha256Hash>,
    /// What the server calls this version of the file: a strong ETag, or the time of its last change.
    pub(crate) validator: Option<String>,
}

impl Identity {
    /// Whether bytes of the one are bytes of the other. What nothing but its size is known of is never the same.
    fn is_same(&self, other: &Self) -> bool {
        let same = match (self.sha256, other.sha256) {
            (Some(one), Some(two)) => one == two,
            _ => self.validator.is_some() && self.validator == other.validator,
        };
        same && self.bytes == other.bytes
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    bytes: u64,
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    validator: Option<String>,
}

/// A file that is not whole yet, locked for this process. Every method blocks on the disk.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) identity: Identity,
    target: PathBuf,
    path: PathBuf,
    file: File,
    chunks: Mutex<Chunks>,
    whole: Mutex<Prefix>,
}

#[derive(Debug)]
struct Chunks {
    hashes: Vec<Option<ChunkHash>>,
    missing: u64,
    journal: File,
}

/// SHA-256 of the first chunks.
#[derive(Debug)]
struct Prefix {
    hasher: Sha256,
    next: u64,
}

/// Why there is no [`Part`].
#[derive(Debug)]
pub(crate) enum OpenFault {
    /// Another process downloads the file.
    Busy,
    Io(io::Error),
}

impl From<io::Error> for OpenFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

impl Part {
    /// Opens what there is of `target`, or begins it. What is there is read and checked first: `went` hears how far that is,
    /// and says whether to go on.
    pub(crate) fn open(
        target: &Path,
        identity: Identity,
        mut went: impl FnMut(u64) -> bool,
    ) -> Result<Self, OpenFault> {
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let path = beside(target, ".part");
        let file = lock(&path)?;
        let journal_path = beside(target, ".part.journal");
        let known = read_journal(&journal_path, &identity);
        let kept = verify(&file, &identity, known, &mut went)?;
        let mut bytes = serde_json::to_vec(&Head {
            version: VERSION,
            bytes: identity.bytes,
            sha256: identity.sha256.map(|sha256| sha256.to_string()),
            validator: identity.validator.clone(),
        })
        .map_err(io::Error::other)?;
        bytes.push(b'\n');
        for (index, hash) in (0..).zip(&kept.hashes) {
            if let Some(hash) = hash {
                bytes.extend_from_slice(line(index, hash).as_bytes());
            }
        }
        // The journal first: bytes that no journal names are no loss, names without their bytes are found by their hash.
        write_whole(&journal_path, &bytes)?;
        file.set_len(if kept.missing == kept.hashes.len() as u64 { 0 } else { file.metadata()?.len() })?;
        let journal = OpenOptions::new().append(true).open(&journal_path)?;
        let chunks = Mutex::new(Chunks { hashes: kept.hashes, missing: kept.missing, journal });
        Ok(Self { identity, target: target.to_owned(), path, file, chunks, whole: Mutex::new(kept.prefix) })
    }

    /// Bytes that are here.
    pub(crate) fn bytes(&self) -> u64 {
        let chunks = self.chunks();
        let here = (0..).zip(&chunks.hashes).filter(|(_, hash)| hash.is_some());
        here.map(|(index, _)| chunk_bytes(self.identity.bytes, index)).sum()
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.chunks().missing == 0
    }

    pub(crate) fn has(&self, index: u64) -> bool {
        usize::try_from(index).is_ok_and(|index| matches!(self.chunks().hashes.get(index), Some(Some(_))))
    }

    /// The first run of missing chunks: its first, and the one after its last.
    pub(crate) fn gap(&self) -> Option<(u64, u64)> {
        let chunks = self.chunks();
        let first = chunks.hashes.iter().position(Option::is_none)?;
        let length = chunks.hashes[first..].iter().take_while(|hash| hash.is_none()).count();
        Some((first as u64, (first + length) as u64))
    }

    /// All missing chunks.
    pub(crate) fn missing(&self) -> Vec<u64> {
        let chunks = self.chunks();
        (0..).zip(&chunks.hashes).filter(|(_, hash)| hash.is_none()).map(|(index, _)| index).collect()
    }

    /// Whether what is here could be part of a file of these chunks.
    pub(crate) fn fits(&self, list: &[ChunkHash]) -> bool {
        let chunks = self.chunks();
        chunks.hashes.len() == list.len()
            && chunks.hashes.iter().zip(list).all(|(here, there)| here.is_none_or(|here| here == *there))
    }

    /// Writes one chunk to its place, and names it in the journal.
    pub(crate) fn write(&self, index: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(index).map_err(io::Error::other)?;
        if data.len() as u64 != chunk_bytes(self.identity.bytes, index) || data.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a chunk of another length"));
        }
        let hash = *blake3::hash(data).as_bytes();
        self.file.write_all_at(data, index * CHUNK_BYTES)?;
        {
            let mut chunks = self.chunks();
            if chunks.hashes[at].is_some() {
                return Ok(());
            }
            chunks.journal.write_all(line(index, &hash).as_bytes())?;
            chunks.hashes[at] = Some(hash);
            chunks.missing -= 1;
        }
        // Somebody else at it catches up with this chunk later.
        let Ok(mut prefix) = self.whole.try_lock() else { return Ok(()) };
        if prefix.next == index {
            prefix.hasher.update(data);
            prefix.next += 1;
        }
        self.catch_up(&mut prefix, CATCH_UP)
    }

    fn catch_up(&self, prefix: &mut Prefix, most: u64) -> io::Result<()> {
        for _ in 0..most {
            if !self.has(prefix.next) {
                break;
            }
            let data = self.read(prefix.next)?;
            prefix.hasher.update(&data);
            prefix.next += 1;
        }
        Ok(())
    }

    fn read(&self, index: u64) -> io::Result<Vec<u8>> {
        read_chunk(&self.file, self.identity.bytes, index)
    }

    /// SHA-256 of the whole file. `went` hears how far it is and says whether to go on.
    pub(crate) fn sha256(&self, mut went: impl FnMut(u64) -> bool) -> io::Result<Sha256Hash> {
        let mut prefix = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        while prefix.next < chunks_of(self.identity.bytes) {
            let before = prefix.next;
            self.catch_up(&mut prefix, CATCH_UP)?;
            if prefix.next == before {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk is missing"));
            }
            if !went(prefix.next * CHUNK_BYTES) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(Sha256Hash(prefix.hasher.clone().finalize().into()))
    }

    /// Throws away what has come.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let mut prefix = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let mut chunks = self.chunks();
        let head = {
            let mut reader = BufReader::new(File::open(beside(&self.target, ".part.journal"))?);
            let mut head = Vec::new();
            (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut head)?;
            head
        };
        chunks.journal.set_len(head.len() as u64)?;
        self.file.set_len(0)?;
        chunks.missing = chunks.hashes.len() as u64;
        chunks.hashes.fill(None);
        *prefix = Prefix { hasher: Sha256::new(), next: 0 };
        Ok(())
    }

    /// Puts the whole file into its place, durably, and returns its hashes. Nothing that is there is written over.
    pub(crate) fn finish(&self, sha256: Sha256Hash) -> io::Result<Index> {
        self.file.sync_all()?;
        // A hard link fails where something is; a rename would replace it.
        match std::fs::hard_link(&self.path, &self.target) {
            Ok(()) => std::fs::remove_file(&self.path)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            Err(_) => std::fs::rename(&self.path, &self.target)?, // a file system without hard links
        }
        if let Some(folder) = self.target.parent() {
            File::open(folder)?.sync_all()?;
        }
        let _ = std::fs::remove_file(beside(&self.target, ".part.journal")); // it names a file that is gone
        let hashes = self.chunks().hashes.iter().flatten().copied().collect();
        Ok(Index::new(self.identity.bytes, sha256, hashes))
    }

    /// Removes what has come, and its journal.
    pub(crate) fn discard(&self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(beside(&self.target, ".part.journal"));
    }

    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens and locks the file at `path` itself: one that was renamed or removed while waiting for the lock is not it.
fn lock(path: &Path) -> Result<File, OpenFault> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenFault::Busy),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let mine = file.metadata()?;
        match std::fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (mine.dev(), mine.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn line(index: u64, hash: &ChunkHash) -> String {
    format!("{index} {}\n", blake3::Hash::from_bytes(*hash).to_hex())
}

/// What the journal says; nothing of it is believed before the bytes were read.
fn read_journal(path: &Path, identity: &Identity) -> Vec<Option<ChunkHash>> {
    let count = usize::try_from(chunks_of(identity.bytes)).unwrap_or(usize::MAX);
    let mut hashes = vec![None; count];
    let Ok(file) = File::open(path) else { return hashes };
    let mut reader = BufReader::new(file);
    let mut next = || {
        let mut text = Vec::new();
        let read = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut text).ok()?;
        (read > 0 && text.last() == Some(&b'\n')).then_some(text)
    };
    let head = next().and_then(|text| serde_json::from_slice::<Head>(&text).ok());
    let is_same = head.filter(|head| head.version == VERSION).is_some_and(|head| {
        let sha256 = head.sha256.as_deref().and_then(Sha256Hash::from_hex);
        identity.is_same(&Identity { bytes: head.bytes, sha256, validator: head.validator })
    });
    if !is_same {
        return hashes;
    }
    while let Some(text) = next() {
        let named = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().split_once(' '));
        let Some((index, hash)) = named else { continue };
        if let (Ok(index), Some(hash)) = (index.parse::<usize>(), from_hex(hash))
            && let Some(place) = hashes.get_mut(index)
        {
            *place = Some(hash);
        }
    }
    hashes
}

struct Kept {
    hashes: Vec<Option<ChunkHash>>,
    missing: u64,
    prefix: Prefix,
}

/// Keeps the chunks whose bytes are as the journal says.
fn verify(
    file: &File,
    identity: &Identity,
    mut hashes: Vec<Option<ChunkHash>>,
    went: &mut impl FnMut(u64) -> bool,
) -> io::Result<Kept> {
    let mut prefix = Prefix { hasher: Sha256::new(), next: 0 };
    let (mut missing, mut here) = (0, 0);
    for (index, place) in (0..).zip(&mut hashes) {
        let Some(hash) = *place else {
            missing += 1;
            continue;
        };
        match read_chunk(file, identity.bytes, index) {
            Ok(data) if blake3::hash(&data) == hash => {
                if prefix.next == index {
                    prefix.hasher.update(&data);
                    prefix.next += 1;
                }
                here += data.len() as u64;
            }
            Ok(_) => *place = None,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => *place = None,
            Err(error) => return Err(error),
        }
        missing += u64::from(place.is_none());
        if !went(here) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(Kept { hashes, missing, prefix })
}

fn read_chunk(file: &File, bytes: u64, index: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(chunk_bytes(bytes, index)).map_err(io::Error::other)?;
    let mut data = vec![0; length];
    file.read_exact_at(&mut data, index * CHUNK_BYTES)?;
    Ok(data)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const BYTES: u64 = 2 * CHUNK_BYTES + 100;

    fn identity(sha256: Option<u8>, validator: Option<&str>) -> Identity {
        Identity {
            bytes: BYTES,
            sha256: sha256.map(|byte| Sha256Hash([byte; 32])),
            validator: validator.map(str::to_owned),
        }
    }

    fn chunk(index: u64) -> Vec<u8> {
        let length = usize::try_from(chunk_bytes(BYTES, index)).unwrap();
        vec![u8::try_from(index + 1).unwrap(); length]
    }

    fn open(target: &Path, identity: Identity) -> Part {
        Part::open(target, identity, |_| true).unwrap()
    }

    #[test]
    fn what_came_is_there_after_a_crash_and_what_was_torn_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("org/m.gguf");
        let part = open(&target, identity(Some(1), None));
        part.write(2, &chunk(2)).unwrap();
        part.write(0, &chunk(0)).unwrap();
        drop(part); // as a kill leaves it: nothing is done at the end
        let part = open(&target, identity(Some(1), None));
        assert_eq!((part.bytes(), part.gap(), part.missing()), (CHUNK_BYTES + 100, Some((1, 2)), vec![1]));
        part.file.write_all_at(b"torn", 10).unwrap();
        drop(part);
        let journal = folder.path().join("org/m.gguf.part.journal");
        let mut torn = std::fs::read(&journal).unwrap();
        torn.extend_from_slice(b"1 abc\n99999999999 00\n\xff\xfe\n1 12");
        std::fs::write(&journal, torn).unwrap();
        let part = open(&target, identity(Some(1), None));
        assert_eq!(part.missing(), [0, 1]);
        part.write(0, &chunk(0)).unwrap();
        part.write(1, &chunk(1)).unwrap();
        let sha256 = part.sha256(|_| true).unwrap();
        let whole: Vec<u8> = (0..3).flat_map(chunk).collect();
        assert_eq!(sha256.0[..], Sha256::digest(&whole)[..]);
        let index = part.finish(sha256).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), whole);
        assert_eq!(index.chunks[1], *blake3::hash(&chunk(1)).as_bytes());
        let left: Vec<_> = std::fs::read_dir(target.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn another_version_of_the_file_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("m.gguf");
        let cases = [
            (identity(Some(1), None), identity(Some(2), None), false),
            (identity(Some(1), Some("a")), identity(Some(1), Some("b")), true),
            (identity(None, Some("a")), identity(None, Some("a")), true),
            (identity(None, Some("a")), identity(None, Some("b")), false),
            (identity(None, None), identity(None, None), false),
        ];
        for (before, after, is_kept) in cases {
            let part = open(&target, before);
            part.write(0, &chunk(0)).unwrap();
            drop(part);
            let part = open(&target, after.clone());
            assert_eq!(part.has(0), is_kept, "{after:?}");
            part.discard();
        }
    }

    #[test]
    fn a_file_is_locked_for_one_and_nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("m.gguf");
        let part = open(&target, identity(Some(1), None));
        let second = Part::open(&target, identity(Some(1), None), |_| true);
        assert!(matches!(second, Err(OpenFault::Busy)));
        for index in 0..3 {
            part.write(index, &chunk(index)).unwrap();
        }
        assert!(part.write(0, b"short").is_err());
        std::fs::write(&target, b"somebody else's").unwrap();
        let sha256 = part.sha256(|_| true).unwrap();
        assert_eq!(part.finish(sha256).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&target).unwrap(), b"somebody else's");
    }

    #[test]
    fn a_cleared_file_begins_anew_and_remembers_which_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("m.gguf");
        let part = open(&target, identity(Some(1), None));
        part.write(0, &chunk(0)).unwrap();
        part.clear().unwrap();
        assert_eq!(part.missing(), [0, 1, 2]);
        part.write(1, &chunk(1)).unwrap();
        drop(part);
        assert_eq!(open(&target, identity(Some(1), None)).missing(), [0, 2]);
    }
}
