//! `setup`: llama.cpp and a first model, by the script of the repository that this program carries with it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde::Serialize;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::SetupArgs;
use crate::failure::{self, Failure};
use crate::screen::Screen;

// Links to scripts/ of the repository; a package holds the files themselves.
const SCRIPT: &str = include_str!("../setup/setup");
const LIBRARY: &str = include_str!("../setup/lib.sh");

/// What set-up did or found, with `--json`.
#[derive(Serialize)]
struct Done {
    /// What was asked for is there, and has answered with a token.
    ready: bool,
    /// The script's words, line by line.
    lines: Vec<String>,
}

pub(crate) async fn setup(screen: &Screen, args: SetupArgs) -> Result<(), Failure> {
    // Ctrl-C reaches the script too, which cleans up and ends; this program waits for it and removes its copy.
    let _interrupts =
        signal(SignalKind::interrupt()).map_err(|error| Failure::new("signal", error.to_string()))?;
    let unpacked = Unpacked::new().map_err(|error| {
        Failure::new("setup", format!("the script cannot be unpacked: {error}"))
            .with_mend("set TMPDIR to a folder of yours")
    })?;
    let mut lines = Vec::new();
    let mut first_bad = None;
    for part in parts(&args) {
        let output = run(screen, &unpacked.script(), part, &args).await?;
        lines.extend(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned));
        if !output.status.success() {
            first_bad = first_bad.or(Some(output));
            if !args.check {
                break; // what is missing for one part is told; the other can wait
            }
        }
    }
    let Some(bad) = first_bad else {
        return if screen.is_json() {
            screen.show(&Done { ready: true, lines }, |_| String::new())
        } else {
            Ok(())
        };
    };
    let code = bad.status.code().and_then(|code| u8::try_from(code).ok());
    let told = String::from_utf8_lossy(&bad.stderr).trim().to_owned();
    Err(match code.unwrap_or(failure::INTERRUPTED) {
        _ if !screen.is_json() => Failure::shown().with_exit(code.unwrap_or(failure::INTERRUPTED)),
        exit if told.is_empty() => Failure::new("setup", lines.join("\n")).with_exit(exit),
        exit => Failure::new("setup", told).with_exit(exit),
    })
}

/// The parts by themselves: together they would ask for cargo, which only those need who build from the repository. The model
/// first, since llama.cpp is proved by it.
fn parts(args: &SetupArgs) -> Vec<&'static str> {
    let model = (!args.runtime_only).then_some("--model-only");
    let runtime = (!args.model_only).then_some("--runtime-only");
    model.into_iter().chain(runtime).collect()
}

async fn run(screen: &Screen, script: &Path, part: &str, args: &SetupArgs) -> Result<Output, Failure> {
    let mut command = Command::new("bash");
    command.arg(script).arg(part).stdin(Stdio::null());
    if let Some(dir) = args.bin_dir.as_ref().filter(|_| part == "--runtime-only") {
        command.arg("--bin-dir").arg(dir);
    }
    if args.check {
        command.arg("--check");
    }
    let piped = screen.is_json();
    command.stdout(if piped { Stdio::piped() } else { Stdio::inherit() });
    command.stderr(if piped { Stdio::piped() } else { Stdio::inherit() });
    let ran = async { command.spawn()?.wait_with_output().await }.await;
    ran.map_err(|error| {
        Failure::new("setup", format!("bash does not run: {error}")).with_mend("put bash on PATH")
    })
}

/// The script in a folder that only this user may enter, removed when dropped.
struct Unpacked(PathBuf);

impl Unpacked {
    fn new() -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("qmt-setup-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&folder)?; // fails when somebody else made one
        let this = Self(folder);
        fs::write(this.script(), as_typed(SCRIPT))?;
        fs::write(this.0.join("lib.sh"), as_typed(LIBRARY))?;
        Ok(this)
    }

    fn script(&self) -> PathBuf {
        self.0.join("setup")
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // a folder for temporary files is cleaned by others too
    }
}

/// The mends name the command that was typed.
fn as_typed(script: &str) -> String {
    script.replace("scripts/setup", "qmt-cli setup").replace("scripts/%s --help", "qmt-cli %s --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_asked_for_one_by_one() {
        let args =
            |runtime_only, model_only| SetupArgs { runtime_only, model_only, bin_dir: None, check: false };
        assert_eq!(parts(&args(false, false)), ["--model-only", "--runtime-only"]);
        assert_eq!(parts(&args(true, false)), ["--runtime-only"]);
        assert_eq!(parts(&args(false, true)), ["--model-only"]);
    }

    #[test]
    fn the_script_takes_these_flags_and_names_this_program() {
        let script = as_typed(SCRIPT);
        for flag in ["--runtime-only)", "--model-only)", "--bin-dir)", "--check)"] {
            assert!(script.contains(flag), "the script does not take {flag}");
        }
        assert!(script.contains("qmt-cli setup") && !script.contains("scripts/setup"));
    }
}
