//! What is wrong, with a node and without one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stub::Stub;
use crate::support::{CLI, Ran, Running, program};

/// The binary alone in a folder, so that what stands beside it is the test's choice.
struct Installed {
    folder: TempDir,
    home: TempDir,
}

impl Installed {
    fn new() -> Self {
        let this = Self {
            folder: tempfile::tempdir().expect("a folder"),
            home: tempfile::tempdir().expect("a folder"),
        };
        std::fs::copy(CLI, this.cli()).expect("copied");
        this
    }

    fn cli(&self) -> PathBuf {
        self.folder.path().join("qmt-cli")
    }

    async fn doctor(&self, path: &Path, args: &[&str]) -> Ran {
        let args: Vec<&str> = ["doctor"].iter().chain(args).copied().collect();
        let path = path.to_str().expect("text");
        program(&self.cli(), self.home.path(), &args).env("PATH", path).run().await
    }
}

/// A `qmt-node` that prints this and says that on standard error.
fn play_node(folder: &Path, prints: &str, says: &str) {
    let script = folder.join("qmt-node");
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo \"qmt-node ${{VERSION:-{}}}\" && exit\n[ \"$1\" = __doctor ] || exit 9\necho '{prints}'\necho '{says}' >&2\n",
        env!("CARGO_PKG_VERSION")
    );
    std::fs::write(&script, text).expect("written");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("executable");
}

fn finding(state: &str) -> String {
    json!([{"check": "disk", "state": state, "detail": "9 MB free", "mend": "free some space"}]).to_string()
}

#[tokio::test]
async fn without_a_node_its_program_looks() {
    let (installed, nowhere) = (Installed::new(), tempfile::tempdir().expect("a folder"));
    play_node(installed.folder.path(), &finding("warn"), "");
    let ran = installed.doctor(nowhere.path(), &[]).await;
    assert_eq!(ran.code, 0, "nothing fails: {ran:?}");
    let home = installed.home.path().display();
    let expected = format!(
        "warn  disk  9 MB free\n            mend: free some space\nwarn  node  no node is running at {home}\n            mend: start one with `qmt-node`\n"
    );
    assert_eq!((ran.out, ran.err.as_str()), (expected, "0 failures, 2 warnings\n"));

    play_node(installed.folder.path(), &finding("fail"), "");
    let ran = installed.doctor(nowhere.path(), &[]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, "1 failure, 1 warning\n"));
    let ran = installed.doctor(nowhere.path(), &["--json"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (1, ""));
    let states: Vec<Value> =
        ran.json().as_array().expect("a list").iter().map(|one| one["state"].clone()).collect();
    assert_eq!(states, ["fail", "warn"]);
}

#[tokio::test]
async fn the_program_is_found_on_path_and_missed_when_nowhere() {
    let (installed, elsewhere) = (Installed::new(), tempfile::tempdir().expect("a folder"));
    let ran = installed.doctor(elsewhere.path(), &[]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("fail  qmt-node  it is neither beside qmt-cli nor on PATH"), "{ran:?}");

    play_node(elsewhere.path(), &finding("ok"), "");
    let ran = installed.doctor(elsewhere.path(), &[]).await;
    assert!(ran.code == 0 && ran.out.starts_with("ok    disk  9 MB free\n"), "{ran:?}");
}

#[tokio::test]
async fn a_program_that_breaks_is_a_failure() {
    let (installed, nowhere) = (Installed::new(), tempfile::tempdir().expect("a folder"));
    play_node(installed.folder.path(), "no json", "thread main panicked");
    let ran = installed.doctor(nowhere.path(), &[]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("thread main panicked"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_says_what_it_finds() {
    let desk = Running::start("desk", "").await;
    let ran = desk.cli(&["doctor"]).run().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("\nok    node ") && ran.out.contains("this node is in no mesh"), "{ran:?}");
    let findings = desk.cli(&["doctor", "--json"]).run().await.ok_json();
    assert!(findings.as_array().is_some_and(|all| all.iter().any(|one| one["check"] == "disk")));
    desk.stop().await;
}

#[tokio::test]
async fn a_node_of_another_version_is_named_whether_or_not_it_runs() {
    let (installed, nowhere) = (Installed::new(), tempfile::tempdir().expect("a folder"));
    play_node(installed.folder.path(), &finding("ok"), "");
    let args = ["doctor", "--json"];
    let path = nowhere.path().to_str().expect("text");
    let ran =
        program(&installed.cli(), installed.home.path(), &args).env("PATH", path).env("VERSION", "0.0.9");
    let ran = ran.run().await;
    let version = |ran: &Ran| {
        ran.json().as_array().expect("a list").iter().find(|one| one["check"] == "version").cloned()
    };
    let found = version(&ran).expect("a finding");
    assert_eq!((ran.code, found["state"].as_str()), (0, Some("warn")), "{ran:?}");
    assert!(found["detail"].as_str().expect("text").contains("0.0.9"), "{found}");

    let _control = Stub::control(installed.home.path(), |asked, _| match asked.what.as_str() {
        "GET /api/doctor" => (200, finding("ok")),
        _ => (
            200,
            json!({"version": "0.0.8", "node_id": "n", "node_name": "n", "pid": 1, "uptime_secs": 1})
                .to_string(),
        ),
    });
    let ran = installed.doctor(nowhere.path(), &["--json"]).await;
    let found = version(&ran).expect("a finding");
    assert!(found["detail"].as_str().expect("text").contains("0.0.8"), "{found}");
}
