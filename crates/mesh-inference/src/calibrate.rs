//! How fast this machine is, measured once by a short run of `llama-bench`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::plan::{Needs, Speed};

/// The whole run. A model of 8 GB on a slow disk takes a minute to load.
const BENCH_WITHIN: Duration = Duration::from_secs(180);
/// One object for each of two tests, of some 1.5 kB.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// The cache of a machine that saw many builds and models.
const CACHE_BYTES_MAX: u64 = 1 << 20;
/// Enough to be steady, and done in seconds.
const PROMPT_TOKENS: u32 = 64;
const GENERATED_TOKENS: u32 = 16;
const REPETITIONS: u32 = 2;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// `llama-bench`, beside `llama-server`.
    pub program: PathBuf,
    /// The build of llama.cpp.
    pub build: String,
    /// llama.cpp's name of the device; `None` for what it takes by itself.
    pub device: Option<String>,
    /// Threads; `None` is one a core.
    pub threads: Option<std::num::NonZeroU32>,
}

/// Why there is no figure. Plans go on with [`Speed::UNKNOWN`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// The program does not run.
    #[error("{} does not run", program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It takes too long.
    #[error("llama-bench gave no answer within {} s", BENCH_WITHIN.as_secs())]
    Timeout,
    /// It failed.
    #[error("llama-bench failed: {0}")]
    Failed(String),
    /// Its answer has no two rates above zero.
    #[error("llama-bench gave no rates")]
    NoRates,
}

impl Calibration {
    /// The speed known for this build, device and kind of model, from the cache below `home`. Blocks on the disk.
    pub fn known(&self, home: &Path, kind: &str) -> Option<Speed> {
        read(&cache_path(home)).get(&self.key(kind)).map(|known| known.speed())
    }

    /// Measures with a model, whose `needs` say what a token reads, and keeps the figure below `home` for others of its `kind`
    /// (architecture and quantization). Takes some seconds of all cores: not while a model is in use.
    ///
    /// Cancel safe: the program is killed, and nothing is kept.
    ///
    /// # Errors
    /// [`CalibrateError`]. That the figure cannot be kept is none: it is logged.
    pub async fn measure(
        &self,
        home: &Path,
        model: &Path,
        needs: &Needs,
        kind: &str,
    ) -> Result<Speed, CalibrateError> {
        let answer = tokio::time::timeout(BENCH_WITHIN, self.run(model))
            .await
            .map_err(|_| CalibrateError::Timeout)??;
        let speed = speed(&answer, needs)?;
        let (path, key) = (cache_path(home), self.key(kind));
        let kept = tokio::task::spawn_blocking(move || keep(&path, key, speed)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(%error, "the measured speed of this machine cannot be kept");
        }
        Ok(speed)
    }

    async fn run(&self, model: &Path) -> Result<Vec<u8>, CalibrateError> {
        let failed = |error| CalibrateError::Run { program: self.program.clone(), error };
        let mut child = Command::new(&self.program)
            .args(self.arguments(model))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (mut answer, mut errors) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let read = async {
            if let Some(stdout) = stdout {
                stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
            }
            io::Result::Ok(())
        };
        let read_errors = async {
            if let Some(stderr) = stderr {
                stderr.take(ANSWER_BYTES_MAX).read_to_end(&mut errors).await?;
            }
            io::Result::Ok(())
        };
        tokio::try_join!(read, read_errors).map_err(failed)?;
        let status = child.wait().await.map_err(failed)?;
        if status.success() {
            return Ok(answer);
        }
        let errors = String::from_utf8_lossy(&errors);
        let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Err(CalibrateError::Failed(format!("{status} {}", last.chars().take(200).collect::<String>())))
    }

    fn arguments(&self, model: &Path) -> Vec<std::ffi::OsString> {
        let mut list: Vec<std::ffi::OsString> = vec!["-m".into(), model.into(), "-o".into(), "json".into()];
        let mut pair = |name: &str, value: String| list.extend([name.into(), value.into()]);
        pair("-p", PROMPT_TOKENS.to_string());
        pair("-n", GENERATED_TOKENS.to_string());
        pair("-r", REPETITIONS.to_string());
        if let Some(threads) = self.threads {
            pair("-t", threads.to_string());
        }
        if let Some(device) = &self.device {
            pair("-dev", device.clone());
        }
        list
    }

    fn key(&self, kind: &str) -> String {
        let threads = self.threads.map_or_else(|| "all".to_owned(), |threads| threads.to_string());
        format!("{}/{}/{threads}/{kind}", self.build, self.device.as_deref().unwrap_or("default"))
    }
}

/// One test of llama-bench: either a prompt or generated tokens, and the mean rate.
#[derive(Debug, Deserialize)]
struct Test {
    n_prompt: u64,
    n_gen: u64,
    avg_ts: f64,
}

/// The speed that an answer means for a model whose tokens read so much.
fn speed(answer: &[u8], needs: &Needs) -> Result<Speed, CalibrateError> {
    let tests: Vec<Test> = serde_json::from_slice(answer)
        .map_err(|error| CalibrateError::Failed(format!("no answer in JSON: {error}")))?;
    let rate = |is_wanted: &dyn Fn(&Test) -> bool| {
        let test = tests.iter().find(|test| is_wanted(test));
        test.map(|test| test.avg_ts)
            .filter(|rate| rate.is_finite() && *rate > 0.0)
            .ok_or(CalibrateError::NoRates)
    };
    let generated = rate(&|test| test.n_gen > 0 && test.n_prompt == 0)?;
    let prompt = rate(&|test| test.n_prompt > 0 && test.n_gen == 0)?;
    // Whole numbers come back from the cache as they were.
    let bytes_per_second = (needs.read() as f64 * generated).round();
    Ok(Speed { bytes_per_second, flops: (needs.operations() as f64 * prompt).round() })
}

/// A figure as it is kept.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Known {
    bytes_per_second: f64,
    flops: f64,
}

impl Known {
    fn speed(self) -> Speed {
        Speed { bytes_per_second: self.bytes_per_second, flops: self.flops }
    }
}

fn cache_path(home: &Path) -> PathBuf {
    home.join("speed.json")
}

/// What is kept; nothing when the file is not there, too long or damaged, since it can be measured again.
fn read(path: &Path) -> BTreeMap<String, Known> {
    if path.metadata().is_ok_and(|facts| facts.len() > CACHE_BYTES_MAX) {
        return BTreeMap::new();
    }
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Written aside and renamed, so that a reader never sees half of it.
fn keep(path: &Path, key: String, speed: Speed) -> io::Result<()> {
    let mut all = read(path);
    all.insert(key, Known { bytes_per_second: speed.bytes_per_second, flops: speed.flops });
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let aside = path.with_extension(format!("json.{}", std::process::id()));
    std::fs::write(&aside, serde_json::to_vec_pretty(&all)?)?;
    std::fs::rename(&aside, path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::num::NonZeroU32;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::gguf::{read_metadata, tiny::TinyModel};
    use crate::plan::Context;

    /// Two tests as build b11434 prints them, shortened.
    const ANSWER: &str = r#"[
        {"build_number": 11434, "n_prompt": 64, "n_gen": 0, "avg_ns": 332767396, "avg_ts": 193.470930, "samples_ts": [178.5, 208.3]},
        {"build_number": 11434, "n_prompt": 0, "n_gen": 16, "avg_ns": 447387958, "avg_ts": 35.763381}
    ]"#;

    fn tiny(folder: &Path) -> (PathBuf, Needs) {
        let path = folder.join("tiny.gguf");
        TinyModel::default().write(&path).unwrap();
        let context = Context::new(NonZeroU32::new(512).unwrap(), NonZeroU32::MIN);
        let needs = Needs::of(&read_metadata(&path).unwrap(), &context).unwrap();
        (path, needs)
    }

    fn program(folder: &Path, script: &str) -> Calibration {
        let program = folder.join("llama-bench");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Calibration { program, build: "11434".into(), device: None, threads: NonZeroU32::new(2) }
    }

    #[tokio::test]
    async fn rates_become_speeds_and_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (model, needs) = tiny(folder.path());
        let bench = program(folder.path(), &format!("cat <<'END'\n{ANSWER}\nEND"));
        assert_eq!(bench.known(folder.path(), "llama F32"), None);
        let speed = bench.measure(folder.path(), &model, &needs, "llama F32").await.unwrap();
        assert!((speed.bytes_per_second - needs.read() as f64 * 35.763381).abs() < 1.0);
        assert!((speed.flops - needs.operations() as f64 * 193.470930).abs() < 1.0);
        assert_eq!(bench.known(folder.path(), "llama F32"), Some(speed));
        assert_eq!(bench.known(folder.path(), "llama Q8_0"), None);
        assert_eq!(
            Calibration { build: "9".into(), ..bench.clone() }.known(folder.path(), "llama F32"),
            None
        );
        // A damaged cache is as none, and is written anew.
        std::fs::write(cache_path(folder.path()), "{").unwrap();
        assert_eq!(bench.known(folder.path(), "llama F32"), None);
        bench.measure(folder.path(), &model, &needs, "llama F32").await.unwrap();
        assert_eq!(bench.known(folder.path(), "llama F32"), Some(speed));
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let (model, needs) = tiny(folder.path());
        let error = |script: &'static str| {
            let bench = program(folder.path(), script);
            let (model, needs, home) = (model.clone(), needs.clone(), folder.path().to_owned());
            async move { bench.measure(&home, &model, &needs, "k").await.unwrap_err() }
        };
        let text = error("echo no such device >&2; exit 3").await.to_string();
        assert!(text.contains("no such device"), "{text}");
        assert!(matches!(error("echo '[]'").await, CalibrateError::NoRates));
        assert!(matches!(error("echo 'x'").await, CalibrateError::Failed(_)));
        let zero = r#"echo '[{"n_prompt":1,"n_gen":0,"avg_ts":0},{"n_prompt":0,"n_gen":1,"avg_ts":-1}]'"#;
        assert!(matches!(error(zero).await, CalibrateError::NoRates));
        let missing = Calibration { program: folder.path().join("none"), ..program(folder.path(), "") };
        let error = missing.measure(folder.path(), &model, &needs, "k").await.unwrap_err();
        assert!(matches!(error, CalibrateError::Run { .. }));
        assert!(!cache_path(folder.path()).exists());
    }
}
