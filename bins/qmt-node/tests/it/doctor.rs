//! What `doctor` says of a machine on which something is missing.

use std::process::Stdio;

use mesh_control::{Finding, Verdict};

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
    let mut command = folder.command(&["__doctor"]);
    let output = command.env("PATH", "/nonexistent").stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", folder.written());
    serde_json::from_slice(&output.stdout).unwrap()
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
