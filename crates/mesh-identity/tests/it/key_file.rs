//! The key file: made once, kept to its owner, never guessed at.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_identity::key_file::{self, KeyFileError};

use crate::fixture::key;

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("home/.qmt/mesh_identity.key");
    (folder, path)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn the_first_run_makes_a_key_and_later_runs_find_it() {
    let (_keep, path) = folder();
    let made = key_file::load_or_create(&path).expect("made");
    assert_eq!(key_file::load_or_create(&path).expect("found").node_id(), made.node_id());
    assert_eq!(key_file::load(&path).expect("found").node_id(), made.node_id());
    assert_eq!(names(path.parent().expect("a folder")), ["mesh_identity.key"], "no draft stays behind");
}

#[test]
fn many_at_once_agree_on_one_key() {
    let (_keep, path) = folder();
    let ids: std::collections::BTreeSet<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| key_file::load_or_create(&path))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic").expect("a key").node_id()).collect()
    });
    assert_eq!(ids.len(), 1);
    assert_eq!(names(path.parent().expect("a folder")).len(), 1);
}

#[test]
fn an_existing_file_is_never_overwritten() {
    let (_keep, path) = folder();
    key_file::create(&path, &key(1)).expect("made");
    assert!(matches!(key_file::create(&path, &key(2)), Err(KeyFileError::Exists { .. })));
    assert_eq!(key_file::load(&path).expect("found").node_id(), key(1).node_id());
}

#[test]
fn anything_but_one_line_of_ours_is_refused() {
    let (_keep, path) = folder();
    key_file::create(&path, &key(1)).expect("made");
    let line = fs::read_to_string(&path).expect("text");
    assert_eq!(line.len(), 81);
    let spoiled = [
        String::new(),
        "\n".to_owned(),
        line[..line.len() - 2].to_owned(),
        format!("{}0\n", line.trim()),
        format!("{line}{line}"),
        line.replace("v1", "v2"),
        "x".repeat(100_000),
    ];
    for content in spoiled {
        fs::write(&path, &content).expect("written");
        let error = key_file::load_or_create(&path).expect_err("spoiled");
        assert!(matches!(error, KeyFileError::Malformed { .. }), "{content:?}");
        assert_eq!(fs::read_to_string(&path).expect("text"), content, "left as it was");
        assert!(error.to_string().contains("mesh_identity.key") && error.mend().contains("backup"));
    }
    fs::write(&path, [0xff; 40]).expect("written");
    assert!(matches!(key_file::load(&path), Err(KeyFileError::Malformed { .. })));
}

#[test]
fn the_printed_line_is_the_key() {
    let text = key_file::to_text(&key(9));
    assert_eq!(
        key_file::from_text(&format!("  {}\n", text.trim())).expect("a key").node_id(),
        key(9).node_id()
    );
    assert!(key_file::from_text("qmt-node-key-v1 abc").is_none());
}

#[cfg(unix)]
#[test]
fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_keep, path) = folder();
    key_file::create(&path, &key(1)).expect("made");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().expect("a folder")), 0o700);
    for exposed in [0o640, 0o604, 0o620, 0o777] {
        fs::set_permissions(&path, fs::Permissions::from_mode(exposed)).expect("changed");
        let error = key_file::load_or_create(&path).expect_err("exposed");
        assert!(matches!(&error, KeyFileError::Exposed { mode, .. } if *mode == exposed));
        assert!(error.mend().contains(&format!("chmod 600 {}", path.display())), "{}", error.mend());
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
    assert!(key_file::load_or_create(&path).is_ok());
}
