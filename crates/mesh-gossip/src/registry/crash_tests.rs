//! Processes that write to one folder at once, and are killed while they do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

/// Set in the processes that write; the number of each.
const NUMBER: &str = "QMT_TEST_REGISTRY_WRITER";
const WRITERS: usize = 50;
const ROUNDS: usize = 20;
/// Processes killed in a round, each while it has the lock.
const KILLS: usize = 8;
/// Only against hanging for ever.
const PATIENCE: Duration = Duration::from_secs(120);

fn entry(number: usize, round: usize) -> Entry {
    let id = format!("node-{number}");
    Entry::read(&id, json!({"name": id, "agents": ["a"], "qmt": {"counter": round + 1}})).expect("an entry")
}

/// The process that gets killed: it registers in each folder that it is told, once, and says so when it is done.
#[test]
fn writing_child() {
    let Ok(number) = std::env::var(NUMBER) else { return };
    let number: usize = number.parse().expect("a number");
    for line in std::io::stdin().lines() {
        let line = line.expect("reads");
        let (round, folder) = line.split_once(' ').expect("a round and a folder");
        let round: usize = round.parse().expect("a round");
        let file = RegistryFile::open(folder).expect("opens");
        file.update(0, |all| all.merge_entry(entry(number, round))).expect("registers");
        writeln!(std::io::stdout(), "\nregistered {number} {round}").expect("writes");
    }
}

struct Writer {
    child: Child,
    stdin: ChildStdin,
}

/// Starts a writer; what it says goes to `said`, with its number, and its end too.
fn start(number: usize, said: &mpsc::Sender<Said>) -> Writer {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "registry::crash_tests::writing_child", "--nocapture"])
        .env(NUMBER, number.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let said = said.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(round) = line.strip_prefix("registered ").and_then(|rest| rest.split(' ').nth(1)) {
                drop(said.send(Said::Registered(number, round.parse().expect("a round"))));
            }
        }
        drop(said.send(Said::Ended(number))); // the test may be over
    });
    Writer { child, stdin }
}

enum Said {
    Registered(usize, usize),
    Ended(usize),
}

#[test]
fn fifty_processes_register_at_once_and_nothing_is_lost_when_some_are_killed_in_mid_write() {
    let (said, heard) = mpsc::channel();
    let mut writers: Vec<Writer> = (0..WRITERS).map(|number| start(number, &said)).collect();
    let mut killed_in_all = 0;
    for round in 0..ROUNDS {
        let folder = tempfile::tempdir().expect("a folder");
        let over = AtomicBool::new(false);
        let killed = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_until(folder.path(), &over));
            for writer in &mut writers {
                writeln!(writer.stdin, "{round} {}", folder.path().display()).expect("tells");
            }
            let killed = kill_holders(folder.path(), &mut writers, &heard, round);
            over.store(true, Ordering::Relaxed);
            assert!(reader.join().expect("reads") > 0, "nobody read the file while it was written");
            killed
        });
        killed_in_all += killed.dead.len();
        let file = RegistryFile::open(folder.path()).expect("opens");
        let contents = file.update(0, |_| false).expect("the lock is free or taken over");
        for number in &killed.registered {
            let kept = contents.nodes().get(&format!("node-{number}"));
            assert_eq!(
                kept,
                Some(&entry(*number, round)),
                "round {round}: {number} was registered and is lost"
            );
        }
        let alive: BTreeSet<usize> = (0..WRITERS).filter(|number| !killed.dead.contains(number)).collect();
        assert!(alive.is_subset(&killed.registered), "round {round}: somebody alive did not register");
        for number in killed.dead {
            drop(writers[number].child.wait()); // it was killed
            writers[number] = start(number, &said);
        }
    }
    assert!(killed_in_all >= ROUNDS, "only {killed_in_all} were killed with the lock in their hands");
    for mut writer in writers {
        drop(writer.stdin);
        drop(writer.child.wait()); // reaped
    }
}

struct Round {
    registered: BTreeSet<usize>,
    dead: BTreeSet<usize>,
}

/// Kills whoever has the lock, a few times, until everybody has registered or is dead.
fn kill_holders(folder: &Path, writers: &mut [Writer], heard: &mpsc::Receiver<Said>, round: usize) -> Round {
    let by_pid: BTreeMap<u32, usize> =
        writers.iter().enumerate().map(|(number, writer)| (writer.child.id(), number)).collect();
    let (mut registered, mut dead, mut ended) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let began = Instant::now();
    while (0..WRITERS).any(|number| !registered.contains(&number) && !ended.contains(&number))
        || ended.len() < dead.len()
    {
        assert!(began.elapsed() < PATIENCE, "round {round}: {registered:?} registered, {dead:?} are dead");
        let owner = std::fs::read_to_string(folder.join("mesh.json.lock")).unwrap_or_default();
        let holder = owner.split(' ').nth(1).and_then(|pid| by_pid.get(&pid.parse().ok()?));
        if let Some(&number) = holder.filter(|_| dead.len() < KILLS)
            && dead.insert(number)
        {
            writers[number].child.kill().expect("kills");
        }
        match heard.recv_timeout(Duration::from_millis(1)) {
            Ok(Said::Registered(number, of)) if of == round => drop(registered.insert(number)),
            Ok(Said::Ended(number)) => {
                assert!(dead.contains(&number), "round {round}: writer {number} failed by itself");
                ended.insert(number);
            }
            Ok(Said::Registered(..)) | Err(_) => {}
        }
    }
    Round { registered, dead }
}

/// Reads the file over and over; it is not there yet, or whole. Returns how often it was.
fn read_until(folder: &Path, over: &AtomicBool) -> usize {
    let file = RegistryFile::open(folder).expect("opens");
    let mut whole = 0;
    loop {
        let last = over.load(Ordering::Relaxed);
        match file.read().expect("reads") {
            Found::Contents(_) => whole += 1,
            Found::Nothing => {}
            Found::Torn(why) => panic!("the file is torn: {why}"),
        }
        if last {
            return whole;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
