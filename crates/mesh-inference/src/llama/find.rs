//! Finds the llama.cpp programs and asks them for their build.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// A stock build answers in some 25 ms; a network share or a first start on macOS may take seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The answer is two lines; GPU builds print their devices before.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
const SERVER: &[&str] = &["llama-server"];
/// Older builds call it `rpc-server`.
const RPC_SERVER: &[&str] = &["ggml-rpc-server", "rpc-server"];

/// The llama.cpp programs of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlamaCpp {
    /// `llama-server`.
    pub server: PathBuf,
    /// `ggml-rpc-server` or `rpc-server`; a node without it cannot lend its memory, and can do everything else.
    pub rpc_server: Option<PathBuf>,
    /// What `llama-server --version` says.
    pub version: Version,
}

/// A build of llama.cpp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its number, for example 11434.
    pub build: Option<u32>,
    /// The line that says so, at most 200 characters.
    pub text: String,
}

/// Why there is no usable llama.cpp. Looking changes nothing; look again after mending.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// None of the folders has the program.
    #[error(
        "llama-server was not found in {}; `scripts/setup` or `qmt-cli setup` installs it, `--bin-dir` names another folder",
        folders(.looked)
    )]
    NotFound {
        /// Where it was looked for, in order.
        looked: Vec<PathBuf>,
    },
    /// The program is there and does not run.
    #[error("{} does not run: {why}; `scripts/setup` or `qmt-cli setup` installs one that does", program.display())]
    Broken {
        /// The program.
        program: PathBuf,
        /// What happened.
        why: String,
    },
}

fn folders(looked: &[PathBuf]) -> String {
    looked.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl LlamaCpp {
    /// Looks in `bin_dir` alone when it is given, else in the folders of `path` (the variable `PATH`), then in the builds
    /// below `home/runtime`, highest build number first, and asks the program for its version.
    ///
    /// Cancel safe: a program that was asked is killed.
    ///
    /// # Errors
    /// [`FindError`], which names the command that mends it.
    pub async fn find(bin_dir: Option<&Path>, path: Option<&OsStr>, home: &Path) -> Result<Self, FindError> {
        let looked = match bin_dir {
            Some(folder) => vec![folder.to_owned(), folder.join("bin")],
            None => path.map(std::env::split_paths).into_iter().flatten().chain(builds(home)).collect(),
        };
        let Some(server) = first(&looked, SERVER) else {
            let mut looked = looked;
            if bin_dir.is_none() {
                looked.push(home.join("runtime"));
            }
            return Err(FindError::NotFound { looked });
        };
        let version =
            version(&server).await.map_err(|why| FindError::Broken { program: server.clone(), why })?;
        // The two must be of one build to speak one protocol: beside the server first.
        let beside: Vec<PathBuf> = server.parent().map(Path::to_owned).into_iter().chain(looked).collect();
        Ok(Self { rpc_server: first(&beside, RPC_SERVER), server, version })
    }
}

/// `runtime/llama.cpp-b11434/bin` and the like, highest build first.
fn builds(home: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(home.join("runtime")) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.to_owned();
            // A dot marks an installation under way.
            let build = name.strip_prefix("llama.cpp-b").map_or(Ok(0), str::parse);
            (!name.starts_with('.')).then_some((build.unwrap_or(0), path))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().flat_map(|(_, path)| [path.join("bin"), path]).collect()
}

fn first(folders: &[PathBuf], names: &[&str]) -> Option<PathBuf> {
    folders
        .iter()
        .flat_map(|folder| names.iter().map(|name| folder.join(name)))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

async fn version(program: &Path) -> Result<Version, String> {
    Ok(parse_version(&ask(program, "--version").await?))
}

/// What a program says to one flag, on both of its outputs.
pub(super) async fn ask(program: &Path, flag: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.arg(flag).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let asked = async {
        let (mut text, mut errors) = (Vec::new(), Vec::new());
        let read = async {
            if let Some(stdout) = stdout {
                let _ = stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut text).await;
            }
        };
        let read_errors = async {
            if let Some(stderr) = stderr {
                let _ = stderr.take(ANSWER_BYTES_MAX).read_to_end(&mut errors).await;
            }
        };
        tokio::join!(read, read_errors);
        text.extend(errors);
        (child.wait().await, text)
    };
    let (status, text) = tokio::time::timeout(ANSWER_WITHIN, asked)
        .await
        .map_err(|_| format!("no answer to {flag} within {} s", ANSWER_WITHIN.as_secs()))?;
    let status = status.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&text).into_owned();
    if !status.success() {
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(format!("{flag} ended with {status} {}", last.chars().take(200).collect::<String>()));
    }
    Ok(text)
}

/// `version: 0.6.0-dev (build 11434, commit sdist)`, or in most builds `version: 5678 (ab12cd3)`.
fn parse_version(text: &str) -> Version {
    let line = text
        .lines()
        .find(|line| line.starts_with("version:"))
        .or_else(|| text.lines().next())
        .unwrap_or_default();
    let after = |word: &str| line.split_once(word).and_then(|(_, rest)| leading_number(rest.trim_start()));
    let build = after("(build").or_else(|| after("version:").filter(|_| !line.contains("(build")));
    Version { build, text: line.chars().take(200).collect() }
}

fn leading_number(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).map_or(text, |end| &text[..end]);
    let after = &text[digits.len()..];
    (!after.starts_with('.')).then(|| digits.parse().ok())?
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_version_are_understood() {
        assert_eq!(
            parse_version("version: 0.6.0-dev (build 11434, commit sdist)\nbuilt with GNU").build,
            Some(11434)
        );
        assert_eq!(parse_version("ggml_cuda: 1 device\nversion: 5678 (ab12cd3)").build, Some(5678));
        assert_eq!(parse_version("version: unknown").build, None);
        assert_eq!(parse_version("").build, None);
    }

    fn install(folder: &Path, name: &str, script: &str) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(name), script).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    const ANSWERS: &str = "#!/bin/sh\necho 'version: 5678 (ab12cd3)' >&2\n";

    #[tokio::test]
    async fn the_highest_build_below_home_is_taken() {
        let home = tempfile::tempdir().unwrap();
        let build = |name: &str| home.path().join("runtime").join(name).join("bin");
        install(&build("llama.cpp-b999"), "llama-server", ANSWERS);
        install(&build("llama.cpp-b11434"), "llama-server", ANSWERS);
        install(&build("llama.cpp-b11434"), "rpc-server", ANSWERS);
        install(&build(".llama.cpp-b20000.new"), "llama-server", ANSWERS);
        let found = LlamaCpp::find(None, None, home.path()).await.unwrap();
        assert_eq!(found.server, build("llama.cpp-b11434").join("llama-server"));
        assert_eq!(found.rpc_server, Some(build("llama.cpp-b11434").join("rpc-server")));
        assert_eq!(found.version.build, Some(5678));
    }

    #[tokio::test]
    async fn a_named_folder_is_the_only_one() {
        let home = tempfile::tempdir().unwrap();
        install(&home.path().join("runtime/x/bin"), "llama-server", ANSWERS);
        let error = LlamaCpp::find(Some(Path::new("/nonexistent")), None, home.path()).await.unwrap_err();
        assert!(matches!(error, FindError::NotFound { .. }));
        let text = error.to_string();
        assert!(text.contains("/nonexistent") && text.contains("scripts/setup"), "{text}");
    }

    #[tokio::test]
    async fn a_program_that_fails_says_how() {
        let home = tempfile::tempdir().unwrap();
        install(home.path(), "llama-server", "#!/bin/sh\necho no such library >&2; exit 3\n");
        let path = home.path().as_os_str().to_owned();
        let error = LlamaCpp::find(None, Some(&path), Path::new("/nonexistent")).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no such library") && text.contains("qmt-cli setup"), "{text}");
    }
}
