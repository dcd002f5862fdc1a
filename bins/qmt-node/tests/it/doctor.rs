//! What `doctor` says of a machine on which something is missing.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use mesh_control::{Finding, InviteRequest, Verdict};

use crate::support::process::Folder;
use crate::support::until;

fn finding<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    findings
        .iter()
        .find(|finding| finding.check == check)
        .unwrap_or_else(|| panic!("no {check}: {findings:?}"))
}

fn mend(finding: &Finding) -> &str {
    finding.mend.as_deref().unwrap_or_else(|| panic!("no advice: {finding:?}"))
}

/// What it finds without a node that runs, with no program on the search path.
fn without_a_node(folder: &Folder) -> Vec<Finding> {
    printed(folder, folder.command(&["__doctor"]).env("PATH", "/nonexistent"))
}

fn printed(folder: &Folder, command: &mut Command) -> Vec<Finding> {
    let output = command.stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", folder.written());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The finding of this check that is worst.
fn worst<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    let all = findings.iter().filter(|finding| finding.check == check);
    all.max_by_key(|finding| finding.verdict).unwrap_or_else(|| panic!("no {check}: {findings:?}"))
}

/// A `llama-server` that says which build it is when it is asked, and does this for everything else.
fn play_llama(folder: &Path, version: &str, otherwise: &str) {
    let script = folder.join("llama-server");
    let text = format!("#!/bin/sh\n[ \"$1\" = --version ] && {{ {version}; exit; }}\n{otherwise}\n");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_missing_runtime_and_a_missing_model_name_what_mends_them() {
    let folder = Folder::new();
    let findings = without_a_node(&folder);
    let (runtime, models) = (finding(&findings, "llama.cpp"), finding(&findings, "models"));
    assert_eq!((runtime.verdict, models.verdict), (Verdict::Warn, Verdict::Warn));
    assert!(mend(runtime).contains("scripts/setup") && mend(runtime).contains("--bin-dir"));
    assert!(mend(models).contains("scripts/setup"));
    assert!(models.detail.contains(&folder.models().display().to_string()), "{models:?}");
    assert!(runtime.detail.contains("llama-server"), "{runtime:?}");
    // Looking changes nothing.
    assert!(!folder.home().exists());
}

#[test]
fn a_model_that_is_asked_for_and_missing_is_a_failure() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.home()).unwrap();
    std::fs::write(folder.home().join("config.toml"), "[inference]\nmodels = [\"nowhere\"]\n").unwrap();
    let findings = without_a_node(&folder);
    let (runtime, models) = (finding(&findings, "llama.cpp"), finding(&findings, "models"));
    assert_eq!((runtime.verdict, models.verdict), (Verdict::Fail, Verdict::Fail));
    assert!(models.detail.contains("nowhere") && mend(models).contains("--model"), "{models:?}");
    assert!(mend(runtime).contains("scripts/setup"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_finds_the_same_and_goes_on() {
    let folder = Folder::new();
    let node = folder.start_by(&["env", "PATH=/nonexistent"], &["--port", "0", "--model", "nowhere"]).await;
    let findings = node.client.doctor().await.unwrap();
    let (runtime, models) = (finding(&findings, "llama.cpp"), finding(&findings, "models"));
    assert_eq!((runtime.verdict, models.verdict), (Verdict::Fail, Verdict::Fail));
    assert!(mend(runtime).contains("scripts/setup") && mend(models).contains("scripts/setup"));
    let mesh = finding(&findings, "mesh");
    assert!(mend(mesh).contains("qmt-cli invite") && mend(mesh).contains("qmt-cli join"));
    assert_eq!(finding(&findings, "identity").detail, node.client.status().await.unwrap().node_id);
    assert!(finding(&findings, "node").detail.contains(&node.pid().to_string()));
    // Said in the background, after the node has begun to answer.
    until("the log says that the model is not served", || async {
        let written = folder.written();
        (written.contains("nowhere") && written.contains("a model is not served here")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_llama_server_that_crashes_is_found_before_and_after_it_is_asked_to_serve() {
    let folder = Folder::new();
    let bin = folder.beside("bin");
    folder.configure(&format!("[inference]\nbin_dir = {bin:?}\n"));
    play_llama(&bin, "kill -SEGV $$", "");
    let runtime = without_a_node(&folder);
    let runtime = finding(&runtime, "llama.cpp");
    assert_eq!(runtime.verdict, Verdict::Warn, "no model is asked for: {runtime:?}");
    assert!(runtime.detail.contains("does not run") && runtime.detail.contains("signal"), "{runtime:?}");
    assert!(mend(runtime).contains("scripts/setup"));

    play_llama(&bin, "echo 'version: 11434 (abc)'", "echo 'the GPU fell off the bus' >&2; exit 7");
    folder.add_model("tiny", 1);
    let node = folder.start(&["--port", "0", "--model", "tiny"]).await;
    let model = until("the doctor says that the model failed", || async {
        let findings = node.client.doctor().await.unwrap();
        findings.into_iter().find(|finding| finding.check == "model")
    })
    .await;
    assert_eq!(model.verdict, Verdict::Fail);
    assert!(model.detail.contains("tiny") && mend(&model).contains("qmt-cli load tiny"), "{model:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_others_can_read_is_a_failure_with_or_without_a_node() {
    let folder = Folder::new();
    let mut node = folder.start(&["--port", "0"]).await;
    let key = folder.home().join("mesh_identity.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let running = node.client.doctor().await.unwrap();
    node.terminate().await;
    for findings in [running, without_a_node(&folder)] {
        let found = finding(&findings, "identity");
        assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
        assert!(mend(found).contains("chmod 600"), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named_with_who_has_it() {
    let folder = Folder::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    folder.configure(&format!("[api]\nport = {port}\n"));
    let findings = without_a_node(&folder);
    let found = worst(&findings, "port");
    assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
    assert!(
        found.detail.contains(&format!(":{port} is taken by process {}", std::process::id())),
        "{found:?}"
    );
    assert!(mend(found).contains("[api] port"), "{found:?}");
    drop(held);
    let found = without_a_node(&folder);
    assert_eq!(worst(&found, "port").verdict, Verdict::Ok, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_and_a_name_that_lead_nowhere_are_found_with_or_without_a_node() {
    let folder = Folder::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    folder.configure(&format!(
        "[mesh.internet]\nrelay_urls = [\"http://{closed}\", \"https://relay.qmt.invalid\"]\n\
         [[providers]]\nname = \"p\"\nbase_url = \"https://api.qmt.invalid/v1\"\nmodels = [\"m\"]\n"
    ));
    let stopped = without_a_node(&folder);
    let relay = stopped.iter().find(|one| one.check == "relay" && one.detail.contains(&closed.to_string()));
    let relay = relay.unwrap_or_else(|| panic!("no relay: {stopped:?}"));
    assert_eq!(relay.verdict, Verdict::Fail, "{relay:?}");
    assert!(mend(relay).contains(&format!("TCP {}", closed.port())), "{relay:?}");

    let node = folder.start(&["--port", "0"]).await;
    node.client.invite(&InviteRequest::default()).await.unwrap();
    let running = node.client.doctor().await.unwrap();
    let relay = worst(&running, "relay");
    assert!(relay.verdict >= Verdict::Warn && relay.mend.is_some(), "{running:?}");
    for findings in [stopped, running] {
        for (name, key) in
            [("relay.qmt.invalid", "relay_urls"), ("api.qmt.invalid", "[[providers]] base_url")]
        {
            let found = findings.iter().find(|one| one.check == "dns" && one.detail.contains(name));
            let found = found.unwrap_or_else(|| panic!("no {name}: {findings:?}"));
            assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
            assert!(
                found.detail.contains(key) && mend(found).contains(&format!("getent hosts {name}")),
                "{found:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_larger_than_the_memory_is_found_with_or_without_a_node() {
    let folder = Folder::new();
    folder.add_model("giant", 1);
    let file = std::fs::File::options().write(true).open(folder.models().join("giant.gguf")).unwrap();
    // Far beyond any memory, and a few kilobytes on the disk.
    file.set_len(1 << 43).unwrap();
    folder.configure("[inference]\nmodels = [\"giant\"]\n");
    let stopped = without_a_node(&folder);
    let node = folder.start_by(&["env", "PATH=/nonexistent"], &["--port", "0"]).await;
    for findings in [stopped, node.client.doctor().await.unwrap()] {
        let found = finding(&findings, "memory");
        assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
        assert!(found.detail.contains("giant takes more than 8796.0 GB"), "{found:?}");
        assert!(mend(found).contains("qmt-cli plan giant"), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_nearly_full_is_found_with_or_without_a_node() {
    let folder = Folder::new();
    std::fs::create_dir(folder.home()).unwrap();
    if !super::full_disk::may_mount(&folder) {
        return;
    }
    let stopped = printed(&folder, &mut folder.command_by(&super::full_disk::ON_A_SMALL_DISK, &["__doctor"]));
    let node = folder.start_inside(&super::full_disk::ON_A_SMALL_DISK, &["--port", "0"]).await;
    for findings in [stopped, node.client.doctor().await.unwrap()] {
        let found = worst(&findings, "disk");
        assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
        assert!(found.detail.ends_with(&format!("MB free at {}", folder.home().display())), "{found:?}");
        assert!(mend(found).contains("du -xh"), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_went_back_is_found() {
    let folder = Folder::new();
    folder.start(&["--port", "0"]).await.terminate().await;
    assert_eq!(finding(&without_a_node(&folder), "clock").verdict, Verdict::Ok);
    let database = std::fs::File::options().write(true).open(folder.home().join("node.db")).unwrap();
    database.set_modified(SystemTime::now() + Duration::from_secs(86_400)).unwrap();
    let findings = without_a_node(&folder);
    let found = finding(&findings, "clock");
    assert_eq!(found.verdict, Verdict::Fail, "{found:?}");
    assert!(found.detail.contains("went back") && mend(found).contains("set-ntp"), "{found:?}");
}
