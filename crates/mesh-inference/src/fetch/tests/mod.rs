//! Downloads from a server of the test that stands for the hub, and from members over the mesh in memory.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;
mod hub;
mod members;
mod proxy;
mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::*;

/// Longest wait of a test for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file that begins as a GGUF file does and has no two chunks alike.
fn model(bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    blake3::Hasher::new().update(&bytes.to_le_bytes()).finalize_xof().fill(&mut body);
    body[..4].copy_from_slice(b"GGUF");
    body
}

fn sha256(body: &[u8]) -> Sha256Hash {
    Sha256Hash(Sha256::digest(body).into())
}

/// Short waits, and no reserve: a test's disk is small.
fn config(folder: &Path) -> Config {
    let mut config = Config::new(vec![folder.to_owned()]);
    config.backoff = Duration::from_millis(10);
    config.backoff_max = Duration::from_millis(50);
    config.connect_timeout = Duration::from_secs(5);
    config.silence_timeout = Duration::from_secs(5);
    config.member_timeout = Duration::from_secs(5);
    config.faults_max = 3;
    config.disk_reserve_bytes = 0;
    config
}

async fn done(pull: &Pull) -> Result<Pulled, FetchError> {
    tokio::time::timeout(PATIENCE, pull.done()).await.expect("the download ends")
}

/// Waits until the progress is as wanted.
async fn until(pull: &Pull, what: &str, mut holds: impl FnMut(&Progress) -> bool) {
    let mut progress = pull.progress();
    let waited = tokio::time::timeout(PATIENCE, progress.wait_for(|progress| holds(progress))).await;
    assert!(matches!(waited, Ok(Ok(_))), "in vain: {what}; {:?}", pull);
}

/// What is in a folder besides whole models and their hashes.
fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let is_whole = path.extension().is_some_and(|end| end == "gguf" || end == "blob");
        match path.is_dir() {
            true => left.extend(leftovers(&path)),
            false if is_whole => {}
            false => left.push(path),
        }
    }
    left
}
