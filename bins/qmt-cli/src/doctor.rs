//! `doctor`: what is missing or wrong, also when no node runs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mesh_control::{Client, ClientError, Finding, Verdict};
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;
use crate::units;

pub(crate) const PROGRAM: &str = "qmt-node";
/// For the checks without a node, of which the longest starts llama-server to ask for its version.
const OFFLINE_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn doctor(client: &Client, home: &Path, screen: &Screen) -> Result<(), Failure> {
    screen.progress("looking ...");
    let findings = match client.doctor().await {
        Ok(mut findings) => {
            let status = client.status().await?;
            findings
                .extend(other_version(&format!("the node that runs at {}", home.display()), &status.version));
            findings
        }
        Err(ClientError::NoNode { .. }) => without_node(home).await,
        Err(error) => return Err(error.into()),
    };
    screen.show(&findings, |findings| described(findings))?;
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (failures, warnings) = (count(Verdict::Fail), count(Verdict::Warn));
    if failures + warnings > 0 {
        screen.note(&format!("{}, {}", units::count(failures, "failure"), units::count(warnings, "warning")));
    }
    if failures > 0 { Err(Failure::shown()) } else { Ok(()) }
}

fn described(findings: &[Finding]) -> String {
    let mut table = Table::without_head();
    for finding in findings {
        table.row([finding.verdict.to_string(), finding.check.clone(), finding.detail.clone()]);
        if let Some(mend) = &finding.mend {
            // Blanks, since an empty cell shows as a dash.
            table.row([" ".to_owned(), " ".to_owned(), format!("mend: {mend}")]);
        }
    }
    table.to_string()
}

/// What `qmt-node` finds without running as a node, and that it does not run.
async fn without_node(home: &Path) -> Vec<Finding> {
    let mut findings = match find_program() {
        Some(program) => {
            let mut findings = ask(&program).await.unwrap_or_else(|why| {
                vec![fail(
                    PROGRAM,
                    format!("{}: {why}", program.display()),
                    "install qmt-node and qmt-cli of one version",
                )]
            });
            let version = version_of(&program).await;
            let what = program.display().to_string();
            findings.extend(version.and_then(|version| other_version(&what, &version)));
            findings
        }
        None => vec![fail(
            PROGRAM,
            "it is neither beside qmt-cli nor on PATH".to_owned(),
            "put qmt-node into a folder that PATH names",
        )],
    };
    findings.push(Finding {
        check: "node".to_owned(),
        verdict: Verdict::Warn,
        detail: format!("no node is running at {}", home.display()),
        mend: Some("start one with `qmt-node`".to_owned()),
    });
    findings
}

/// `qmt-node` beside this program, else on `PATH`.
pub(crate) fn find_program() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    beside.into_iter().chain(on_path).find(|program| program.is_file())
}

/// A finding when a node, or its program, is of another version than this one.
fn other_version(what: &str, version: &str) -> Option<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    (version != own).then(|| Finding {
        check: "version".to_owned(),
        verdict: Verdict::Warn,
        detail: format!("{what} is version {version}, and this qmt-cli is {own}"),
        mend: Some("install qmt-node and qmt-cli of one version, and start the node again".to_owned()),
    })
}

/// What `qmt-node --version` says behind its name; none when it does not say.
async fn version_of(program: &Path) -> Option<String> {
    let asked = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(OFFLINE_DEADLINE, asked).await.ok()?.ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    said.split_whitespace().nth(1).map(str::to_owned)
}

async fn ask(program: &Path) -> Result<Vec<Finding>, String> {
    ask_program(program, &["__doctor"]).await
}

/// What `qmt-node` prints when it is asked for something that needs no running node.
pub(crate) async fn ask_program<T: DeserializeOwned>(
    program: &Path,
    arguments: &[&str],
) -> Result<T, String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = timeout(OFFLINE_DEADLINE, output)
        .await
        .map_err(|_| format!("it did not finish within {} s", OFFLINE_DEADLINE.as_secs()))?
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout).map_err(|error| {
        let said = String::from_utf8_lossy(&output.stderr);
        match said.lines().last() {
            Some(last) => last.to_owned(),
            None => format!("it printed nothing that is understood ({error})"),
        }
    })
}

fn fail(check: &str, detail: String, mend: &str) -> Finding {
    Finding { check: check.to_owned(), verdict: Verdict::Fail, detail, mend: Some(mend.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mend_stands_below_what_it_mends() {
        let ok = Finding {
            check: "clock".to_owned(),
            verdict: Verdict::Ok,
            detail: "fine".to_owned(),
            mend: None,
        };
        let text = described(&[ok, fail("llama.cpp", "not found".to_owned(), "run it")]);
        assert_eq!(
            text,
            "ok    clock      fine\nfail  llama.cpp  not found\n                 mend: run it\n"
        );
    }
}
