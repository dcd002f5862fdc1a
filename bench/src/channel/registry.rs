//! `mesh.json` with fifty processes that write it, beside as many bare writes of the same bytes.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_gossip::registry::{Entry, RegistryFile};
use serde_json::json;

use crate::report::{Goal, Lacking, Report};
use crate::stats::estimate;

/// What the issue asks for.
const WRITERS: usize = 50;

const RATE: &str = "registry writes a second, 50 processes";
const BARE: &str = "as many bare writes in turn: temporary file, fsync, rename, fsync of the folder";
const AT_ONCE: &str = "the same bare writes by 50 processes at once, without a lock";
const WAIT: &str = "longest wait of one of 50 processes for its write";

pub(crate) fn lacking() -> Lacking {
    vec![
        (RATE.to_owned(), "/s", Goal::None),
        (BARE.to_owned(), "/s", Goal::None),
        (AT_ONCE.to_owned(), "/s", Goal::None),
        (WAIT.to_owned(), "ms", Goal::None),
    ]
}

pub(crate) fn measure(report: &mut Report, rounds: usize, time: Duration) -> Result<()> {
    let (mut ours, mut bare, mut at_once, mut waits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let folder = tempfile::tempdir()?;
        let round = writers(folder.path(), Way::Registry, time)?;
        ours.push(round.writes as f64 / round.took.as_secs_f64());
        waits.push(round.wait_ms);
        let bytes = fs::read(folder.path().join("mesh.json")).context("nothing was written")?;
        let entries: serde_json::Value = serde_json::from_slice(&bytes)?;
        let kept = entries["nodes"].as_object().map_or(0, serde_json::Map::len);
        ensure!(kept == WRITERS, "{kept} of {WRITERS} registrations are in the file");
        let begin = Instant::now();
        for number in 0..round.writes {
            plain(folder.path(), &number.to_string(), &bytes)?;
        }
        bare.push(round.writes as f64 / begin.elapsed().as_secs_f64());
        let round = writers(folder.path(), Way::Bare, time)?;
        at_once.push(round.writes as f64 / round.took.as_secs_f64());
    }
    report.row(RATE, "/s", Goal::None, estimate(&ours));
    report.row(BARE, "/s", Goal::None, estimate(&bare));
    report.row(AT_ONCE, "/s", Goal::None, estimate(&at_once));
    report.row(WAIT, "ms", Goal::None, estimate(&waits));
    report.note(format!(
        "registry: {rounds} rounds of {} s; each of {WRITERS} processes puts its own entry into one mesh.json, again and again, under the registry's lock, and every write is on the disk \
         before the next one. The bare writes are of the same bytes, take no lock and read nothing: in turn, by one process, and by all at once, of which the file system puts several into \
         one write of its journal. Files lie in {}.",
        time.as_secs_f64(),
        std::env::temp_dir().display()
    ));
    Ok(())
}

/// What the processes write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Their entries, through the registry.
    Registry,
    /// The registry as it lies there, under another name.
    Bare,
}

struct Round {
    writes: usize,
    took: Duration,
    wait_ms: f64,
}

/// All writers at once, until the time is over.
fn writers(folder: &Path, way: Way, time: Duration) -> Result<Round> {
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        writers.push(Writer::start(folder, number, way, time)?);
    }
    for writer in &mut writers {
        writer.hear("ready")?;
    }
    let begin = Instant::now();
    for writer in &mut writers {
        writeln!(writer.child.stdin.as_mut().context("no stdin")?)?;
    }
    let mut round = Round { writes: 0, took: Duration::ZERO, wait_ms: 0.0 };
    for writer in &mut writers {
        let done = writer.hear("done")?;
        let (writes, wait_ms) = done.split_once(' ').context("no figures")?;
        round.writes += writes.parse::<usize>()?;
        round.wait_ms = round.wait_ms.max(wait_ms.parse()?);
    }
    round.took = begin.elapsed();
    Ok(round)
}

/// A process that writes. It is ended when it is dropped.
struct Writer {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Writer {
    fn start(folder: &Path, number: usize, way: Way, time: Duration) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("registry-writer")
            .arg(folder)
            .args([number.to_string(), time.as_millis().to_string()])
            .args(matches!(way, Way::Bare).then_some("--bare"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let says = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, says })
    }

    /// What follows this word on the next line that it says.
    fn hear(&mut self, word: &str) -> Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        let rest = line.strip_prefix(word).with_context(|| format!("a writer said {line:?}"))?;
        Ok(rest.trim().to_owned())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a writer does.
pub(crate) fn write(folder: &Path, number: usize, time: Duration, way: Way) -> Result<()> {
    let mut one: Box<dyn FnMut(u64) -> Result<()>> = match way {
        Way::Registry => {
            let (file, id) = (RegistryFile::open(folder)?, format!("node-{number}"));
            Box::new(move |counter| {
                let said = json!({
                    "name": id, "role": "agent", "host": "10.0.0.10", "port": 3000, "agents": ["opus"], "models": ["qwen3-8b"],
                    "capabilities": ["gpu"], "status": "online", "qmt": {"counter": counter}
                });
                let entry = Entry::read(&id, said)?;
                file.update(counter, |all| all.merge_entry(entry))?;
                Ok(())
            })
        }
        Way::Bare => {
            let bytes = fs::read(folder.join("mesh.json"))?;
            Box::new(move |counter| plain(folder, &format!("{number}.{counter}"), &bytes))
        }
    };
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let (begin, mut counter, mut longest) = (Instant::now(), 0_u64, Duration::ZERO);
    // At least once: fifty registrations are in the file at the end.
    while counter == 0 || begin.elapsed() < time {
        counter += 1;
        let asked = Instant::now();
        one(counter)?;
        longest = longest.max(asked.elapsed());
    }
    println!("done {counter} {}", longest.as_secs_f64() * 1e3);
    Ok(())
}

/// One write by somebody who asks nobody.
fn plain(folder: &Path, unfinished: &str, bytes: &[u8]) -> Result<()> {
    let unfinished = folder.join(format!(".bare.{unfinished}"));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&unfinished, folder.join("bare.json"))?;
    File::open(folder)?.sync_all()?;
    Ok(())
}
