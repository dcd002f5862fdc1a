//! Hashing a model: as fast as a few cores can.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use mesh_tunnel::{Fnv, WeightId};
use tokio_util::sync::CancellationToken;

use super::{Hashes, IndexError, Indexed};
use crate::gguf::{Metadata, Tensor};

/// FNV goes byte by byte, at some 0.8 GB/s a core; four cores outrun most disks, and leave the rest to others.
const THREADS_MAX: usize = 4;
const CHUNK_BYTES: usize = 1 << 20;

/// The hashes of all tensors, in their order.
pub(super) fn all(
    metadata: &Metadata,
    files: &[Indexed],
    cancel: &CancellationToken,
) -> Result<Vec<Hashes>, IndexError> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Hashes)>, IndexError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut done = Vec::new();
        while let number = next.fetch_add(1, Relaxed)
            && let Some(tensor) = metadata.tensors.get(number)
        {
            done.push((number, one(tensor, &files[tensor.file], &mut buffer, cancel)?));
        }
        Ok(done)
    };
    let parts = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>()
    });
    let mut hashes = Vec::with_capacity(metadata.tensors.len());
    for part in parts {
        hashes.extend(part.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
    }
    hashes.sort_unstable_by_key(|(number, _)| *number);
    Ok(hashes.into_iter().map(|(_, hashes)| hashes).collect())
}

fn one(
    tensor: &Tensor,
    indexed: &Indexed,
    buffer: &mut [u8],
    cancel: &CancellationToken,
) -> Result<Hashes, IndexError> {
    let (mut strong, mut fnv, mut done) = (blake3::Hasher::new(), Fnv::default(), 0);
    while done < tensor.bytes {
        if cancel.is_cancelled() {
            return Err(IndexError::Cancelled);
        }
        let length = usize::try_from(tensor.bytes - done).unwrap_or(usize::MAX).min(buffer.len());
        let chunk = &mut buffer[..length];
        let read = indexed.file.read_exact_at(chunk, tensor.offset + done);
        read.map_err(|error| IndexError::Io(indexed.path.clone(), error))?;
        strong.update(chunk);
        fnv.update(chunk);
        done += length as u64;
    }
    Ok(Hashes { id: WeightId(*strong.finalize().as_bytes()), fnv: fnv.finish() })
}
