#![allow(clippy::unwrap_used)]
//! Processes that are killed, logs that are torn, files that are broken.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::tests::{Home, all, append, created, forked, home, id, piece, prompted, session};
use super::*;

const PATH: &str = "QMT_TEST_SESSIONS_DB";
const SESSIONS: u128 = 4;

/// Splitmix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The process that gets killed: several writers, each of which appends groups to a session of its own and prints the last
/// number that was acknowledged. A piece says its own number, so that a reader sees what is lost, doubled or out of order.
#[test]
fn crashing_child() {
    let Ok(path) = std::env::var(PATH) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(Path::new(&path), Config::default()).await.unwrap();
        assert_eq!(store.repair(), None, "a killed process leaves a whole file");
        let writers = (1..=SESSIONS).map(|number| write(store.clone(), number));
        futures_util::future::join_all(writers).await;
    });
}

async fn write(store: Store, number: u128) {
    let mut last = match store.last(id(number)).await {
        Ok(last) => last.0,
        Err(_) => store.create(id(number), 1, vec![created()]).await.unwrap().len() as u64,
    };
    loop {
        let bodies = (1..=1 + last % 5).map(|more| piece((last + more).to_string())).collect();
        let after = Some(EventNumber(last));
        let written = store.append(Append { after, ..append(id(number), bodies) }).await.unwrap();
        last = written.last().unwrap().number.0;
        let _ = writeln!(std::io::stdout(), "\nwritten {number} {last}");
    }
}

fn start(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::crash_tests::crashing_child", "--nocapture"])
        .env(PATH, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Fails unless the session holds the numbers up to its end, each once and in order, and at least up to `acknowledged`.
async fn expect(store: &Store, number: u128, acknowledged: u64, seed: u64) {
    let events = all(store, id(number)).await;
    for (event, expected) in events.iter().zip(1..) {
        let body = if expected == 1 { created() } else { piece(expected.to_string()) };
        assert_eq!((event.number.0, &event.body), (expected, &body), "seed {seed}");
    }
    let last = events.len() as u64;
    assert!(last >= acknowledged, "seed {seed}: event {acknowledged} was acknowledged, {last} is the last");
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_doubled_or_out_of_order_when_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.db");
    let mut acknowledged: BTreeMap<u128, u64> = BTreeMap::new();
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut child = start(&path);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut left = 1 + random.below(60);
        // Lines that are in the pipe already when it is killed count too.
        for line in lines.by_ref() {
            let Some((number, last)) = line.strip_prefix("written ").and_then(|line| line.split_once(' '))
            else {
                continue;
            };
            acknowledged.insert(number.parse().unwrap(), last.parse().unwrap());
            left = left.saturating_sub(1);
            if left == 0 {
                child.kill().unwrap(); // SIGKILL
            }
        }
        child.wait().unwrap();
        if seed % 8 == 7 {
            let store = Store::open(&path, Config::default()).await.unwrap();
            assert_eq!(store.repair(), None);
            for (number, last) in &acknowledged {
                expect(&store, *number, *last, seed).await;
            }
            assert_eq!(store.check().await.unwrap().damages, []);
            store.close().await;
        }
    }
    assert_eq!(acknowledged.len() as u128, SESSIONS);
}

/// Where the last whole transaction of a write-ahead log ends (sqlite.org/fileformat2.html#walformat).
fn end_of_log(log: &[u8]) -> usize {
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    if log.len() < 32 {
        return 0;
    }
    let frame = 24 + number(8) as usize;
    let salts = (number(16), number(20));
    let (mut at, mut end) = (32, 32);
    while at + frame <= log.len() && (number(at + 8), number(at + 12)) == salts {
        let is_commit = number(at + 4) > 0;
        at += frame;
        if is_commit {
            end = at;
        }
    }
    end
}

/// What a power cut does to what was not yet forced to the disk: any of it may be missing, or be something else.
#[tokio::test]
async fn a_torn_last_write_of_the_log_takes_nothing_with_it() {
    let Home { store, folder } = home().await;
    let path = folder.path().join("sessions.db");
    let log = folder.path().join("sessions.db-wal");
    let mut last = 1;
    store.create(id(1), 1, vec![created()]).await.unwrap();
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut more = async |groups: u64| {
            for _ in 0..groups {
                let count = 1 + random.below(20);
                let bodies = (1..=count).map(|more| piece((last + more).to_string())).collect();
                store.append(append(id(1), bodies)).await.unwrap();
                last += count;
            }
            last
        };
        let acknowledged = more(1 + seed % 4).await;
        let safe = end_of_log(&std::fs::read(&log).unwrap());
        let written = more(1).await;
        let mut torn = std::fs::read(&log).unwrap();
        let end = end_of_log(&torn);
        if end <= safe {
            continue; // the log began anew in between
        }
        let mut random = Random(seed ^ 0xff);
        torn.truncate(end);
        let at = safe + usize::try_from(random.below((end - safe) as u64)).unwrap();
        match seed % 3 {
            0 => torn.truncate(at),
            1 => torn[at] ^= 1 << random.below(8),
            _ => torn[at..].fill(0),
        }
        let copy = tempfile::tempdir().unwrap();
        let copied = copy.path().join("sessions.db");
        std::fs::copy(&path, &copied).unwrap();
        std::fs::write(copy.path().join("sessions.db-wal"), &torn).unwrap();
        std::fs::write(copy.path().join("sessions.db.lock"), "open\n").unwrap();
        let opened = Store::open(&copied, Config::default()).await.unwrap();
        assert_eq!(opened.repair(), None, "seed {seed}");
        expect(&opened, 1, acknowledged, seed).await;
        let there = opened.last(id(1)).await.unwrap().0;
        assert!([acknowledged, written].contains(&there), "seed {seed}: {there}, a part of a group");
        opened
            .append(Append { after: Some(EventNumber(there)), ..append(id(1), vec![piece("x")]) })
            .await
            .unwrap();
        opened.close().await;
    }
}

/// A store with two sessions, a fork of the first, prompts and a content; closed.
async fn filled() -> (Home, crate::ids::BlobId) {
    let home = home().await;
    let store = &home.store;
    session(store, 1, 3_000).await;
    let blob = store.put_blob(bytes::Bytes::from(vec![7; 100_000]), 1).await.unwrap();
    let parts = vec![crate::content::Part::Image { media_type: "image/png".into(), blob, bytes: 100_000 }];
    let pictured = Body::Prompted { prompt: "a".parse().unwrap(), by: super::tests::me(), parts };
    store.append(append(id(1), vec![pictured, prompted("b", "blue whale")])).await.unwrap();
    store
        .fork(id(1), EventNumber(2_500), id(3), 9, vec![forked(id(1), 2_500), piece("three")])
        .await
        .unwrap();
    session(store, 2, 3_000).await;
    store.append(append(id(2), vec![Body::Named { name: Some("second".parse().unwrap()) }])).await.unwrap();
    store.close().await;
    (home, blob)
}

#[tokio::test]
async fn a_broken_page_costs_what_stood_on_it_and_what_followed_in_its_session() {
    let (Home { folder, .. }, blob) = filled().await;
    let path = folder.path().join("sessions.db");
    let whole = std::fs::read(&path).unwrap();
    // A page in the middle of session 2: its text tells which.
    let needle = b"\"2.1500\"";
    let at = whole.windows(needle.len()).position(|window| window == needle).unwrap();
    let mut broken = whole.clone();
    broken[at / 4096 * 4096..][..4096].fill(0x5a);
    std::fs::write(&path, &broken).unwrap();
    // Nobody looks for it as long as nothing hints at it.
    let store = Store::open(&path, Config::default()).await.unwrap();
    assert_eq!(store.repair(), None);
    let read = store.read(id(2), EventNumber(1_400), ReadLimit { events: 200, bytes: 1 << 20 }).await;
    assert!(matches!(read, Err(ReadError::Storage(StorageError::Damaged { .. }))), "{read:?}");
    store.close().await;

    let store = Store::open(&path, Config::default()).await.unwrap();
    let repair = store.repair().unwrap().clone();
    assert_eq!(std::fs::read(&repair.broken).unwrap().len(), broken.len());
    let [lost] = repair.lost.as_slice() else { panic!("{repair:?}") };
    assert_eq!((lost.session, lost.last), (id(2), Some(EventNumber(3_002))));
    assert!((1_300..1_502).contains(&lost.kept.0), "{lost:?}");
    assert_eq!((repair.sessions, repair.blobs), (3, vec![]));
    assert_eq!(repair.events, 3_003 + 2 + lost.kept.0);
    assert_eq!(all(&store, id(1)).await.len(), 3_003);
    assert_eq!(all(&store, id(2)).await.len() as u64, lost.kept.0);
    assert_eq!(all(&store, id(3)).await[2_501].body, piece("three"));
    // Everything else was made again from the logs.
    assert_eq!(store.blob(blob).await.unwrap().unwrap().len(), 100_000);
    assert_eq!(store.search("whale", None, 9).await.unwrap().len(), 1);
    let seen = store.append(append(id(1), vec![prompted("b", "blue whale")])).await;
    assert!(matches!(seen, Err(AppendError::PromptSeen { .. })), "{seen:?}");
    let listed = store.list(Filter::default()).await.unwrap();
    assert!(listed.iter().all(|one| one.agent.as_str() == "coder"), "{listed:?}");
    assert_eq!(store.session(id(3)).await.unwrap().parent, Some((id(1), EventNumber(2_500))));
    assert_eq!(store.check().await.unwrap().damages, []);
    store.append(append(id(2), vec![piece("on")])).await.unwrap();
    store.close().await;
    assert_eq!(Store::open(&path, Config::default()).await.unwrap().repair(), None);
}

#[tokio::test]
async fn a_changed_letter_is_found_when_it_is_read_and_a_fork_of_it_is_lost_with_it() {
    let (Home { folder, .. }, _) = filled().await;
    let path = folder.path().join("sessions.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"\"1.2000\"";
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at + 1] = b'9';
    std::fs::write(&path, &bytes).unwrap();
    let store = Store::open(&path, Config::default()).await.unwrap();
    let check = store.check().await.unwrap();
    let [Damage::Event { session, number, .. }, Damage::Parent { .. }] = check.damages.as_slice() else {
        panic!("{check:?}")
    };
    assert_eq!((*session, *number), (id(1), EventNumber(2_002)));
    let read = store.read(id(3), EventNumber(1_990), ReadLimit::default()).await;
    assert!(read.unwrap_err().to_string().contains("event 2002"));
    store.close().await;
    let store = Store::open(&path, Config::default()).await.unwrap();
    let repair = store.repair().unwrap();
    let lost = |number, kept, last| Lost {
        session: id(number),
        kept: EventNumber(kept),
        last: Some(EventNumber(last)),
    };
    assert_eq!(repair.lost, [lost(1, 2_001, 3_003), lost(3, 0, 2_502)]);
    assert_eq!((all(&store, id(1)).await.len(), all(&store, id(2)).await.len()), (2_001, 3_002));
    assert!(matches!(store.last(id(3)).await, Err(ReadError::NoSuchSession(_))));
}

#[tokio::test]
async fn whatever_bytes_are_broken_the_store_opens_with_whole_logs() {
    let (Home { folder, .. }, _) = filled().await;
    let whole = std::fs::read(folder.path().join("sessions.db")).unwrap();
    for seed in 0..12 {
        let mut random = Random(seed);
        let copy = tempfile::tempdir().unwrap();
        let path = copy.path().join("sessions.db");
        let mut broken = whole.clone();
        match seed {
            0 => broken[..4096].fill(0), // the header and the schema
            1 => broken[0] = b'x',
            2 => broken.truncate(broken.len() / 2),
            _ => {
                let at = usize::try_from(random.below(broken.len() as u64 - 5_000)).unwrap();
                let count = usize::try_from(1 + random.below(5_000)).unwrap();
                broken[at..at + count].iter_mut().for_each(|byte| *byte ^= 0xa5);
            }
        }
        std::fs::write(&path, &broken).unwrap();
        std::fs::write(copy.path().join("sessions.db.lock"), "damaged\n").unwrap();
        let store = Store::open(&path, Config::default()).await.unwrap();
        assert_eq!(store.check().await.unwrap().damages, [], "seed {seed}");
        for listed in store.list(Filter::default()).await.unwrap() {
            assert_eq!(all(&store, listed.session).await.len() as u64, listed.last.0, "seed {seed}");
        }
        store.create(id(9), 1, vec![created()]).await.unwrap();
        store.close().await;
    }
}

#[tokio::test]
async fn a_repair_that_was_interrupted_ends_at_the_next_opening() {
    let (Home { folder, .. }, _) = filled().await;
    let path = folder.path().join("sessions.db");
    // All was saved; the exchange was not done, and the old log is still there.
    std::fs::rename(&path, folder.path().join("sessions.db.repaired")).unwrap();
    std::fs::write(&path, "broken").unwrap();
    std::fs::write(folder.path().join("sessions.db-wal"), "broken too").unwrap();
    let store = Store::open(&path, Config::default()).await.unwrap();
    assert_eq!(store.repair(), None);
    assert_eq!(all(&store, id(1)).await.len(), 3_003);
}
