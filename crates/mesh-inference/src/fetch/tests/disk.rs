//! A full disk: a file system of some megabytes, for the test alone.

use std::process::Command;

use super::server::{Server, file};
use super::*;

const MIB: usize = 1 << 20;

/// A file system in memory of so many MiB; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None without root, which mounting takes.
    fn mount(mib: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path());
        match mount.output() {
            Ok(done) if done.status.success() => Some(Self(folder)),
            _ => {
                println!("skipped: mounting a small file system takes root");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_disk_without_room_is_told_before_the_first_byte() {
    let Some(disk) = SmallDisk::mount(4) else { return };
    let body = model(6 * MIB);
    let server = Server::start(move |seen, _| file(seen, &body, "\"a\"")).await;
    let fetch = Fetch::new(config(disk.0.path()), None).unwrap();
    let error = done(&fetch.pull(&server.url("/m.gguf")).unwrap()).await.unwrap_err();
    let FetchError::DiskFull { needed, free, kept: 0, .. } = error else { panic!("{error:?}") };
    assert!(needed == 6 * MIB as u64 && free <= 4 * MIB as u64, "{error:?}");
    assert_eq!(fetch.stats().from_servers_bytes, 0);
    assert!(error.mend().unwrap().contains("free 3 MB") || error.mend().unwrap().contains("free 2 MB"));
    fetch.shutdown().await;
}

#[tokio::test]
async fn a_disk_that_fills_up_meanwhile_keeps_what_came_and_goes_on_once_there_is_room() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let body = model(6 * MIB);
    let filler = disk.0.path().join("filler");
    let (given, fill) = (body.clone(), filler.clone());
    let server = Server::start(move |seen, number| {
        if number == 1 {
            // Somebody else takes the room between the check and the bytes.
            std::fs::write(&fill, vec![0; 5 * MIB]).unwrap();
        }
        file(seen, &given, "\"a\"")
    })
    .await;
    let fetch = Fetch::new(config(disk.0.path()), None).unwrap();
    let error = done(&fetch.pull(&server.url("/m.gguf")).unwrap()).await.unwrap_err();
    let FetchError::DiskFull { kept, needed, .. } = error else { panic!("{error:?}") };
    assert!(kept > 0 && kept + needed == 6 * MIB as u64, "{error:?}");
    let text = format!("{error}; {}", error.mend().unwrap());
    assert!(text.contains("is full") && text.contains(&disk.0.path().display().to_string()), "{text}");
    std::fs::remove_file(&filler).unwrap();
    done(&fetch.pull(&server.url("/m.gguf")).unwrap()).await.unwrap();
    assert_eq!(std::fs::read(disk.0.path().join("m.gguf")).unwrap(), body);
    assert_eq!(fetch.stats().from_servers_bytes, 6 * MIB as u64, "no byte twice");
    fetch.shutdown().await;
}
