//! Hashes on disk: which files they are of, and nothing that the model's own file says.
//!
//! `QMTW1\n`, the BLAKE3 hash of what follows, the number of files and of tensors (u32 LE each); size, modification time in
//! seconds and nanoseconds of each file (u64, i64, i64 LE); BLAKE3 and FNV-1a 64 (LE) of each tensor.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_tunnel::WeightId;

use super::{Hashes, Stamp};

const MAGIC: &[u8; 6] = b"QMTW1\n";
const STAMP_BYTES: usize = 24;
const HASHES_BYTES: usize = 40;

/// Where the hashes of a model may be.
#[derive(Debug)]
pub(super) struct Cache {
    beside: PathBuf,
    fallback: PathBuf,
}

impl Cache {
    pub(super) fn of(model: &Path, fallback: &Path) -> Self {
        let mut name = model.file_name().unwrap_or_default().to_owned();
        name.push(".weights");
        let whole = fs::canonicalize(model).unwrap_or_else(|_| model.to_owned());
        let mut apart = blake3::hash(whole.as_os_str().as_encoded_bytes()).to_hex()[..16].to_owned();
        apart.push_str(".weights");
        Self { beside: model.with_file_name(name), fallback: fallback.join(apart) }
    }

    /// The hashes of the tensors, if they are of exactly these files.
    pub(super) fn read(&self, stamps: &[Stamp], tensors: usize) -> Option<Vec<Hashes>> {
        let expected = MAGIC.len() + 40 + stamps.len() * STAMP_BYTES + tensors * HASHES_BYTES;
        let read = |path: &PathBuf| {
            // Its size first: a file of any other size is none, and is not read.
            let fits =
                fs::metadata(path).is_ok_and(|facts| facts.is_file() && facts.len() == expected as u64);
            parse(&fits.then(|| fs::read(path).ok())??, stamps, tensors)
        };
        read(&self.beside).or_else(|| read(&self.fallback))
    }

    /// Keeps them where that is possible.
    pub(super) fn write(&self, stamps: &[Stamp], hashes: &[Hashes]) {
        let Some(bytes) = encode(stamps, hashes) else { return };
        let written = replace(&self.beside, &bytes).or_else(|_| {
            if let Some(folder) = self.fallback.parent() {
                fs::create_dir_all(folder)?;
            }
            replace(&self.fallback, &bytes)
        });
        if let Err(error) = written {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, file = %self.fallback.display(), "the weights' hashes cannot be kept");
        }
    }
}

/// A reader sees all of it or what was there before.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn encode(stamps: &[Stamp], hashes: &[Hashes]) -> Option<Vec<u8>> {
    let mut body = u32::try_from(stamps.len()).ok()?.to_le_bytes().to_vec();
    body.extend(u32::try_from(hashes.len()).ok()?.to_le_bytes());
    for stamp in stamps {
        body.extend(stamp.bytes.to_le_bytes());
        body.extend(stamp.seconds.to_le_bytes());
        body.extend(stamp.nanoseconds.to_le_bytes());
    }
    for hashes in hashes {
        body.extend(hashes.id.0);
        body.extend(hashes.fnv.to_le_bytes());
    }
    Some([&MAGIC[..], blake3::hash(&body).as_bytes(), &body].concat())
}

fn parse(bytes: &[u8], stamps: &[Stamp], tensors: usize) -> Option<Vec<Hashes>> {
    let (sum, body) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<32>()?;
    if blake3::hash(body).as_bytes() != sum {
        return None;
    }
    let hashes: Vec<_> =
        body.get(8 + stamps.len() * STAMP_BYTES..)?.chunks_exact(HASHES_BYTES).map(one).collect();
    // Written again from what was understood, it must be the same: of these files, this number, nothing left over.
    let hashes = hashes.into_iter().collect::<Option<Vec<_>>>()?;
    (hashes.len() == tensors && encode(stamps, &hashes)?.get(MAGIC.len() + 32..)? == body).then_some(hashes)
}

fn one(bytes: &[u8]) -> Option<Hashes> {
    let (id, fnv) = bytes.split_first_chunk::<32>()?;
    Some(Hashes { id: WeightId(*id), fnv: u64::from_le_bytes(fnv.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some() -> (Vec<Stamp>, Vec<Hashes>) {
        let stamp = |bytes| Stamp { bytes, seconds: -1, nanoseconds: 5 };
        let hashes = |byte| Hashes { id: WeightId([byte; 32]), fnv: u64::from(byte) };
        (vec![stamp(7), stamp(8)], vec![hashes(1), hashes(2), hashes(3)])
    }

    #[test]
    fn what_was_written_is_read_and_nothing_of_other_files() {
        let (stamps, hashes) = some();
        let bytes = encode(&stamps, &hashes).expect("encodes");
        assert_eq!(bytes.len(), MAGIC.len() + 40 + 2 * STAMP_BYTES + 3 * HASHES_BYTES);
        assert_eq!(parse(&bytes, &stamps, 3), Some(hashes));
        let mut others = stamps.clone();
        others[1].nanoseconds += 1;
        assert_eq!(parse(&bytes, &others, 3), None);
        assert_eq!(parse(&bytes, &stamps[..1], 3), None);
        assert_eq!(parse(&bytes, &stamps, 2), None);
    }

    #[test]
    fn any_flipped_bit_makes_it_none() {
        let (stamps, hashes) = some();
        let bytes = encode(&stamps, &hashes).expect("encodes");
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(parse(&flipped, &stamps, 3), None, "byte {at}");
            assert_eq!(parse(&bytes[..at], &stamps, 3), None, "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bodies_with_a_right_sum_never_panic(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            files in 0..3usize,
            tensors in 0..5usize,
        ) {
            let bytes = [&MAGIC[..], blake3::hash(&body).as_bytes(), &body].concat();
            let stamps = vec![Stamp { bytes: 0, seconds: 0, nanoseconds: 0 }; files];
            let _ = parse(&bytes, &stamps, tensors);
        }
    }
}
