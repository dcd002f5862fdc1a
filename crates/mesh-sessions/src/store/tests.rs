#![allow(clippy::unwrap_used)]
//! What the store promises, one promise a test.

use std::collections::BTreeMap;

use mesh_identity::NodeKey;
use sqlx::Row;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::content::{Part, Text, Usage};
use crate::event::Party;
use crate::ids::TurnNumber;

pub(super) struct Home {
    pub(super) store: Store,
    pub(super) folder: TempDir,
}

pub(super) async fn home() -> Home {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("sessions.db"), Config::default()).await.unwrap();
    Home { store, folder }
}

pub(super) fn id(number: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(number))
}

pub(super) fn me() -> Party {
    Party::local(NodeKey::from_seed([1; 32]).node_id())
}

pub(super) fn created() -> Body {
    Body::Created { agent: "coder".parse().unwrap(), owner: me() }
}

pub(super) fn forked(parent: SessionId, cut: u64) -> Body {
    Body::Forked { parent, cut: EventNumber(cut), owner: me() }
}

pub(super) fn piece(text: impl Into<String>) -> Body {
    Body::TextAdded { turn: TurnNumber(1), text: text.into() }
}

pub(super) fn prompted(prompt: &str, text: &str) -> Body {
    let parts = vec![Part::Text { text: Text::Inline(text.to_owned()) }];
    Body::Prompted { prompt: prompt.parse().unwrap(), by: me(), parts }
}

pub(super) fn append(session: SessionId, bodies: Vec<Body>) -> Append {
    Append { session, epoch: 1, after: None, at_ms: 7, bodies }
}

/// A session of so many pieces after its creation.
pub(super) async fn session(store: &Store, number: u128, pieces: usize) -> SessionId {
    let session = id(number);
    store.create(session, 5, vec![created()]).await.unwrap();
    let bodies = (0..pieces).map(|piece_number| piece(format!("{number}.{piece_number}"))).collect();
    store.append(append(session, bodies)).await.unwrap();
    session
}

pub(super) async fn all(store: &Store, session: SessionId) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map_or(EventNumber::START, |event| event.number);
        let page = store.read(session, after, ReadLimit { events: 97, bytes: 1 << 20 }).await.unwrap();
        if page.is_empty() {
            return events;
        }
        events.extend(page);
    }
}

#[tokio::test]
async fn what_was_appended_is_read_in_order_and_after_a_restart() {
    let Home { store, folder } = home().await;
    let session = session(&store, 1, 20).await;
    let events = all(&store, session).await;
    assert_eq!(events.len(), 21);
    assert!(events.iter().zip(1..).all(|(event, number)| event.number.0 == number));
    assert_eq!(events[20].body, piece("1.19"));
    store.close().await;
    let store = Store::open(&folder.path().join("sessions.db"), Config::default()).await.unwrap();
    assert_eq!(all(&store, session).await, events);
    let more = store.append(append(session, vec![piece("more")])).await.unwrap();
    assert_eq!(more[0].number, EventNumber(22));
}

#[tokio::test]
async fn a_page_ends_at_its_bounds() {
    let Home { store, folder: _folder } = home().await;
    let session = session(&store, 1, 20).await;
    let read = |after, events, bytes| store.read(session, EventNumber(after), ReadLimit { events, bytes });
    assert_eq!(read(0, 5, 1 << 20).await.unwrap().len(), 5);
    assert_eq!(read(3, 1, 1 << 20).await.unwrap()[0].number, EventNumber(4));
    assert_eq!(read(3, 100, 1).await.unwrap().len(), 1, "an event that is longer comes alone");
    let long = piece("x".repeat(3000));
    store.append(append(session, vec![long.clone(), long.clone(), long])).await.unwrap();
    assert_eq!(read(21, 100, 7000).await.unwrap().len(), 2);
    assert!(read(24, 100, 7000).await.unwrap().is_empty());
    assert!(matches!(
        store.read(id(9), EventNumber(0), ReadLimit::default()).await,
        Err(ReadError::NoSuchSession(_))
    ));
}

#[tokio::test]
async fn refusals_write_nothing_and_say_why() {
    let Home { store, folder: _folder } = home().await;
    let session = session(&store, 1, 0).await;
    let again = store.create(session, 5, vec![created()]).await;
    assert!(matches!(again, Err(CreateError::Exists(_))), "{again:?}");
    let no = store.create(id(2), 5, vec![piece("x")]).await;
    assert!(matches!(no, Err(CreateError::Events(_))), "{no:?}");
    let unknown = store.append(append(id(2), vec![piece("x")])).await;
    assert!(matches!(unknown, Err(AppendError::NoSuchSession(_))), "{unknown:?}");
    let conflict =
        store.append(Append { after: Some(EventNumber(4)), ..append(session, vec![piece("x")]) }).await;
    assert!(matches!(conflict, Err(AppendError::Conflict { last: EventNumber(1) })), "{conflict:?}");
    let again = store.append(append(session, vec![piece("x"), created()])).await;
    assert!(matches!(again, Err(AppendError::Misplaced(_))), "{again:?}");
    let epoch = store.append(Append { epoch: 2, ..append(session, vec![piece("x")]) }).await;
    assert!(matches!(epoch, Err(AppendError::HandedOver { epoch: 1 })), "{epoch:?}");
    let blob = crate::ids::BlobId::of(b"nowhere");
    let text = Text::Blob { blob, bytes: 7 };
    let missing = Body::Compacted { through: EventNumber(1), summary: text, usage: Usage::default() };
    let missing = store.append(append(session, vec![piece("x"), missing])).await;
    assert!(matches!(missing, Err(AppendError::NoSuchBlob(_))), "{missing:?}");
    let long = store.append(append(session, vec![piece("x".repeat(EVENT_BYTES_MAX))])).await;
    assert!(matches!(long, Err(AppendError::TooLarge { .. })), "{long:?}");
    assert_eq!(all(&store, session).await.len(), 1);

    let by = me();
    store.append(append(session, vec![Body::Archived { by: by.clone() }])).await.unwrap();
    let over = store.append(append(session, vec![piece("x")])).await;
    assert!(matches!(over, Err(AppendError::Archived)), "{over:?}");
    let other = store.create(id(3), 5, vec![created(), Body::Archived { by }, piece("x")]).await;
    assert!(matches!(other, Err(CreateError::Events(_))), "{other:?}");
}

#[tokio::test]
async fn an_epoch_ends_with_its_handing_over() {
    let Home { store, folder: _folder } = home().await;
    let session = session(&store, 1, 0).await;
    let to = NodeKey::from_seed([2; 32]).node_id();
    store.append(append(session, vec![Body::HandedOver { epoch: 2, to }])).await.unwrap();
    let old = store.append(append(session, vec![piece("x")])).await;
    assert!(matches!(old, Err(AppendError::HandedOver { epoch: 2 })), "{old:?}");
    let lower = Append { epoch: 2, ..append(session, vec![Body::HandedOver { epoch: 2, to }]) };
    assert!(matches!(store.append(lower).await, Err(AppendError::Misplaced(_))));
    store.append(Append { epoch: 2, ..append(session, vec![piece("x")]) }).await.unwrap();
}

#[tokio::test]
async fn a_prompt_is_taken_once_whoever_sends_it_again_and_wherever_it_stands() {
    let Home { store, folder } = home().await;
    let session = session(&store, 1, 0).await;
    store.append(append(session, vec![prompted("a", "hello")])).await.unwrap();
    let seen = |result: Result<Vec<Arc<Event>>, AppendError>| match result {
        Err(AppendError::PromptSeen { at, .. }) => at.0,
        other => panic!("{other:?}"),
    };
    assert_eq!(seen(store.append(append(session, vec![prompted("a", "hello")])).await), 2);
    let twice = store.append(append(session, vec![prompted("b", "x"), prompted("b", "x")])).await;
    assert_eq!(seen(twice), 3);
    // Eight at once: they are in one group, and one of them wins.
    let many = (0..8).map(|_| store.append(append(session, vec![prompted("c", "x")])));
    let many = futures_util::future::join_all(many).await;
    assert_eq!(many.iter().filter(|one| one.is_ok()).count(), 1, "{many:?}");
    store.close().await;
    let store = Store::open(&folder.path().join("sessions.db"), Config::default()).await.unwrap();
    assert_eq!(seen(store.append(append(session, vec![prompted("c", "x")])).await), 3);
}

#[tokio::test]
async fn a_fork_of_a_fork_reads_through_its_parents_and_goes_its_own_way() {
    let Home { store, folder } = home().await;
    let one = session(&store, 1, 9).await; // 1..=10
    store.fork(one, EventNumber(6), id(2), 9, vec![forked(one, 6), piece("two")]).await.unwrap(); // 7, 8
    store.fork(id(2), EventNumber(8), id(3), 9, vec![forked(id(2), 8)]).await.unwrap(); // 9
    // Its cut lies in the part that its parent has from its own parent.
    store.fork(id(3), EventNumber(4), id(4), 9, vec![forked(id(3), 4), piece("four")]).await.unwrap();
    store.append(append(one, vec![piece("later")])).await.unwrap();
    store.append(append(id(3), vec![piece("three")])).await.unwrap();
    let expect = async |store: &Store| {
        let [a, b, c, d] = [one, id(2), id(3), id(4)].map(|session| all(store, session));
        let (a, b, c, d) = tokio::join!(a, b, c, d);
        assert_eq!((a.len(), b.len(), c.len(), d.len()), (11, 8, 10, 6));
        for log in [&a, &b, &c, &d] {
            assert!(log.iter().zip(1..).all(|(event, number)| event.number.0 == number));
        }
        assert_eq!((&b[..6], &c[..8], &d[..4]), (&a[..6], &b[..8], &a[..4]));
        assert_eq!((&b[7].body, &c[9].body, &d[5].body), (&piece("two"), &piece("three"), &piece("four")));
        // From the middle of each part, one event at a time.
        for after in 0..10 {
            let page =
                store.read(id(3), EventNumber(after), ReadLimit { events: 1, bytes: 1 }).await.unwrap();
            assert_eq!(page, [c[usize::try_from(after).unwrap()].clone()]);
        }
    };
    expect(&store).await;
    let beyond = store.fork(one, EventNumber(12), id(5), 9, vec![forked(one, 12)]).await;
    assert!(matches!(beyond, Err(ForkError::NoSuchEvent { last: EventNumber(11), .. })), "{beyond:?}");
    let again = store.fork(one, EventNumber(1), id(2), 9, vec![forked(one, 1)]).await;
    assert!(matches!(again, Err(ForkError::Exists(_))), "{again:?}");
    store.close().await;
    expect(&Store::open(&folder.path().join("sessions.db"), Config::default()).await.unwrap()).await;
}

#[tokio::test]
async fn followers_get_past_and_live_without_gap_or_repeat() {
    let Home { store, folder: _folder } = home().await;
    let session = session(&store, 1, 50).await;
    let follow = async |after: u64| {
        let mut follower = store.follow(session, EventNumber(after)).await.unwrap();
        let mut seen = Vec::new();
        while seen.last() != Some(&451) {
            seen.push(follower.next().await.unwrap().number.0);
        }
        assert_eq!(seen, (after + 1..=451).collect::<Vec<_>>());
    };
    let write = async {
        for batch in 0..100 {
            let bodies = (0..4).map(|number| piece(format!("{batch}.{number}"))).collect();
            store.append(append(session, bodies)).await.unwrap();
        }
    };
    tokio::join!(write, follow(0), follow(20), follow(51));
    let ahead = store.follow(session, EventNumber(452)).await;
    assert!(matches!(ahead, Err(ReadError::NoSuchEvent { .. })), "{ahead:?}");
}

#[tokio::test]
async fn a_follower_that_sleeps_holds_nobody_up_and_misses_nothing() {
    let Home { store, folder: _folder } = home().await;
    let session = session(&store, 1, 0).await;
    let mut follower = store.follow(session, EventNumber(0)).await.unwrap();
    assert_eq!(follower.next().await.unwrap().number, EventNumber(1));
    // Far more than followers share in memory.
    for _ in 0..10 {
        let bodies = (0..100).map(|number| piece(number.to_string())).collect();
        store.append(append(session, bodies)).await.unwrap();
    }
    assert!(!follower.is_live());
    for number in 2..=1001 {
        assert_eq!(follower.next().await.unwrap().number, EventNumber(number));
    }
    assert!(follower.is_live());
    store.close().await;
    assert!(matches!(follower.next().await, Err(ReadError::Storage(StorageError::Closed))));
}

#[tokio::test]
async fn one_process_at_a_time() {
    let Home { store, folder } = home().await;
    let path = folder.path().join("sessions.db");
    let second = Store::open(&path, Config::default()).await;
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    store.close().await;
    store.close().await;
    let closed = store.append(append(id(1), vec![piece("x")])).await;
    assert!(matches!(closed, Err(AppendError::Storage(StorageError::Closed))), "{closed:?}");
    Store::open(&path, Config::default()).await.unwrap();
}

#[tokio::test]
async fn contents_are_stored_once_and_read_as_they_were() {
    let Home { store, folder } = home().await;
    let session = session(&store, 1, 0).await;
    let bytes: Vec<u8> = (0..10_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let bytes = bytes::Bytes::from(bytes);
    let blob = store.put_blob(bytes.clone(), 1).await.unwrap();
    assert_eq!(store.put_blob(bytes.clone(), 2).await.unwrap(), blob);
    let text = Text::Blob { blob, bytes: bytes.len() as u64 };
    let said = Body::Compacted { through: EventNumber(1), summary: text, usage: Usage::default() };
    store.append(append(session, vec![said])).await.unwrap();
    store.close().await;
    let store = Store::open(&folder.path().join("sessions.db"), Config::default()).await.unwrap();
    assert_eq!(store.blob(blob).await.unwrap().unwrap(), bytes);
    assert!(store.blob(crate::ids::BlobId::of(b"other")).await.unwrap().is_none());
    let long = bytes::Bytes::from(vec![0; BLOB_BYTES_MAX + 1]);
    assert!(matches!(store.put_blob(long, 1).await, Err(PutError::TooLarge { .. })));
}

#[tokio::test]
async fn a_snapshot_is_found_by_forks_that_came_after_it_and_not_by_those_before() {
    let Home { store, folder: _folder } = home().await;
    let session = session(&store, 1, 99).await;
    for at in [20, 40, 60] {
        store.put_snapshot(session, EventNumber(at), at.to_string().into_bytes()).await.unwrap();
    }
    store.fork(session, EventNumber(50), id(2), 9, vec![forked(session, 50)]).await.unwrap();
    store.fork(id(2), EventNumber(30), id(3), 9, vec![forked(id(2), 30)]).await.unwrap();
    let at = async |session, at| {
        let found = store.snapshot(session, EventNumber(at)).await.unwrap();
        found.map(|(number, bytes)| {
            assert_eq!(bytes, number.0.to_string().into_bytes());
            number.0
        })
    };
    assert_eq!(
        (at(session, 100).await, at(session, 59).await, at(session, 19).await),
        (Some(60), Some(40), None)
    );
    assert_eq!((at(id(2), 100).await, at(id(3), 100).await), (Some(40), Some(20)));
    store.put_snapshot(id(3), EventNumber(31), b"31".to_vec()).await.unwrap();
    assert_eq!((at(id(3), 100).await, at(id(2), 100).await), (Some(31), Some(40)));
    let nowhere = store.put_snapshot(id(9), EventNumber(1), Vec::new()).await;
    assert!(matches!(nowhere, Err(PutError::NoSuchSession(_))), "{nowhere:?}");
}

#[tokio::test]
async fn sessions_are_listed_by_what_their_logs_say_of_them() {
    let Home { store, folder: _folder } = home().await;
    let turn = TurnNumber(1);
    let one = session(&store, 0x1000 << 112, 1).await;
    let two = session(&store, 0x1001 << 112, 0).await;
    store.append(append(one, vec![Body::Named { name: Some("blue whale".parse().unwrap()) }])).await.unwrap();
    let labels = [("team".to_owned(), "red".to_owned())].into();
    store
        .append(append(one, vec![Body::Labelled { labels }, prompted("a", "hi"), prompted("b", "ho")]))
        .await
        .unwrap();
    let start = Body::TurnStarted { turn, prompt: "a".parse().unwrap() };
    store.append(Append { at_ms: 99, ..append(one, vec![start]) }).await.unwrap();
    store.fork(one, EventNumber(2), id(3), 9, vec![forked(one, 2)]).await.unwrap();

    let listed = store.list(Filter::default()).await.unwrap();
    assert_eq!(listed.iter().map(|one| one.session).collect::<Vec<_>>(), [id(3), two, one]);
    assert_eq!(listed[0].parent, Some((one, EventNumber(2))));
    assert_eq!((listed[0].state, listed[0].last, listed[0].waiting), (State::Forked, EventNumber(3), 0));
    assert_eq!((listed[1].state, listed[1].last, &listed[1].owner), (State::Created, EventNumber(1), &me()));
    let busy = &listed[2];
    assert_eq!((busy.state, busy.turn, busy.waiting), (State::Active, Some(turn), 1));
    assert_eq!((busy.created_ms, busy.updated_ms, busy.last), (5, 99, EventNumber(7)));
    assert_eq!((busy.labels["team"].as_str(), busy.agent.as_str()), ("red", "coder"));
    assert_eq!(*busy, store.session(one).await.unwrap());

    let list = async |filter| {
        let listed = store.list(filter).await.unwrap();
        listed.into_iter().map(|one| one.session).collect::<Vec<_>>()
    };
    assert_eq!(list(Filter { unfinished: true, ..Filter::default() }).await, [one]);
    assert_eq!(list(Filter { name: Some("blue whale".parse().unwrap()), ..Filter::default() }).await, [one]);
    let label = |value: &str| Filter { label: Some(("team".into(), value.into())), ..Filter::default() };
    assert_eq!((list(label("red")).await, list(label("blue")).await), (vec![one], vec![]));
    assert_eq!(list(Filter { before: Some(id(3)), limit: Some(1), ..Filter::default() }).await, [two]);
    assert_eq!(list(Filter { state: Some(State::Forked), ..Filter::default() }).await, [id(3)]);
    assert_eq!(list(Filter { agent: Some("other".parse().unwrap()), ..Filter::default() }).await, []);

    let end = Body::TurnEnded { turn, outcome: crate::event::TurnOutcome::Done, usage: Usage::default() };
    store.append(append(one, vec![end])).await.unwrap();
    assert_eq!(store.session(one).await.unwrap().turn, None);
    store.append(append(one, vec![Body::Archived { by: me() }])).await.unwrap();
    let over = store.session(one).await.unwrap();
    assert_eq!((over.state, over.waiting), (State::Archived, 0));

    assert_eq!(store.resolve(&me(), "blue whale", None).await.unwrap(), one);
    assert_eq!(store.resolve(&me(), "1000", None).await.unwrap(), one);
    assert_eq!(store.resolve(&me(), &two.to_string(), None).await.unwrap(), two);
    let several = store.resolve(&me(), "100", None).await;
    assert!(
        matches!(&several, Err(ResolveError::Ambiguous { sessions, .. }) if sessions.len() == 2),
        "{several:?}"
    );
    assert!(matches!(store.resolve(&me(), "white whale", None).await, Err(ResolveError::Unknown(_))));
}

#[tokio::test]
async fn what_was_said_is_found_as_soon_as_it_is_acknowledged() {
    let Home { store, folder } = home().await;
    let session = session(&store, 1, 0).await;
    let found = async |store: &Store, words: &str| {
        let hits = store.search(words, None, 10).await.unwrap();
        hits.into_iter().map(|hit| (hit.session, hit.number.0)).collect::<Vec<_>>()
    };
    store.append(append(session, vec![prompted("a", "Where is the blue whale?")])).await.unwrap();
    assert_eq!(found(&store, "whale BLUE").await, [(session, 2)]);
    assert_eq!(found(&store, "whale red").await, []);
    assert_eq!(found(&store, "\" OR * NEAR( -").await, []);
    let long = store.put_blob("a very long text on giraffes".into(), 1).await.unwrap();
    let parts = vec![Part::Text { text: Text::Blob { blob: long, bytes: 28 } }];
    let pasted = Body::Prompted { prompt: "b".parse().unwrap(), by: me(), parts };
    let many = (0..150).map(|number| prompted(&format!("many{number}"), "filler")).collect();
    store
        .append(append(session, vec![pasted, Body::Named { name: Some("zebra".parse().unwrap()) }]))
        .await
        .unwrap();
    store.append(append(session, many)).await.unwrap();
    store.close().await;
    let store = Store::open(&folder.path().join("sessions.db"), Config::default()).await.unwrap();
    assert_eq!(
        (found(&store, "giraffes").await, found(&store, "zebra").await),
        (vec![(session, 3)], vec![(session, 4)])
    );
    assert_eq!(store.search("filler", None, 7).await.unwrap().len(), 7);
    assert_eq!(store.search("blue", None, 7).await.unwrap()[0].excerpt, "Where is the blue whale?");
}

async fn rows(store: &Store) -> BTreeMap<&'static str, i64> {
    let mut rows = BTreeMap::new();
    for table in [
        "sessions",
        "events",
        "snapshots",
        "prompts",
        "shares",
        "blobs",
        "blob_bytes",
        "blob_uses",
        "to_index",
        "texts_docsize",
    ] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        rows.insert(table, sqlx::query(sql).fetch_one(&store.inner.read).await.unwrap().try_get(0).unwrap());
    }
    rows
}

#[tokio::test]
async fn what_is_deleted_stays_as_long_as_a_fork_needs_it_and_then_leaves_nothing() {
    let Home { store, folder: _folder } = home().await;
    let none = rows(&store).await;
    let one = session(&store, 1, 5_000).await;
    let blob = store.put_blob("picture".into(), 1).await.unwrap();
    let parts = vec![Part::Image { media_type: "image/png".into(), blob, bytes: 7 }];
    store
        .append(append(
            one,
            vec![Body::Prompted { prompt: "a".parse().unwrap(), by: me(), parts }, prompted("b", "whale")],
        ))
        .await
        .unwrap();
    store.put_snapshot(one, EventNumber(5_002), b"state".to_vec()).await.unwrap();
    assert_eq!(store.search("whale", None, 9).await.unwrap().len(), 1);
    store.fork(one, EventNumber(4_000), id(2), 9, vec![forked(one, 4_000)]).await.unwrap();
    store.fork(id(2), EventNumber(4_001), id(3), 9, vec![forked(id(2), 4_001)]).await.unwrap();
    let kept = all(&store, id(3)).await;
    let mut follower = store.follow(one, EventNumber(5_003)).await.unwrap();

    assert!(store.delete(one).await.unwrap());
    assert!(store.delete(id(2)).await.unwrap());
    assert!(!store.delete(id(2)).await.unwrap());
    assert!(matches!(follower.next().await, Err(ReadError::NoSuchSession(_))));
    for gone in [one, id(2)] {
        let read = store.read(gone, EventNumber(0), ReadLimit::default()).await;
        assert!(matches!(read, Err(ReadError::NoSuchSession(_))), "{read:?}");
        assert!(matches!(
            store.append(append(gone, vec![piece("x")])).await,
            Err(AppendError::NoSuchSession(_))
        ));
        assert!(matches!(store.create(gone, 5, vec![created()]).await, Err(CreateError::Exists(_))));
    }
    assert_eq!(store.list(Filter::default()).await.unwrap().len(), 1);
    assert_eq!(store.search("whale", None, 9).await.unwrap(), []);
    assert_eq!(all(&store, id(3)).await, kept);

    let before = store.bytes().await.unwrap();
    assert!(store.delete(id(3)).await.unwrap());
    store.retain(Retention::default(), 4_000_000).await.unwrap();
    assert_eq!(rows(&store).await, none);
    assert!(store.bytes().await.unwrap() < before / 2);
    assert!(store.blob(blob).await.unwrap().is_none());
    store.create(one, 5, vec![created()]).await.unwrap();
}

#[tokio::test]
async fn only_archived_sessions_are_not_kept_oldest_first() {
    let Home { store, folder: _folder } = home().await;
    for number in 1..=5 {
        session(&store, number, 1_000).await;
    }
    for (number, at_ms) in [(4, 10), (2, 20), (3, 30)] {
        store
            .append(Append { at_ms, ..append(id(number), vec![Body::Archived { by: me() }]) })
            .await
            .unwrap();
    }
    let by_age = Retention { archived_before_ms: Some(20), ..Retention::default() };
    assert_eq!(store.retain(by_age, 0).await.unwrap().deleted, [id(4)]);
    let bytes_max = store.bytes().await.unwrap() - 1;
    let by_size = Retention { bytes_max: Some(bytes_max), ..Retention::default() };
    let retained = store.retain(by_size, 0).await.unwrap();
    assert_eq!(retained.deleted, [id(2)]);
    assert!(retained.bytes <= bytes_max, "{retained:?}");
    let all = Retention { bytes_max: Some(0), ..Retention::default() };
    assert_eq!(store.retain(all, 0).await.unwrap().deleted, [id(3)]);
    assert_eq!(store.list(Filter::default()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_full_disk_is_said_and_loses_nothing() {
    let Home { store, folder: _folder } = home().await;
    let session = session(&store, 1, 10).await;
    let limit = async |sql: &'static str| {
        let limit = store.alone(move |writer| {
            Box::pin(async move { Ok(sqlx::query(sql).execute(&mut writer.connection).await.map(|_| ())?) })
        });
        limit.await.unwrap();
    };
    limit("PRAGMA max_page_count = 40").await;
    let mut written = 11;
    let full = loop {
        match store
            .append(append(session, vec![piece("x".repeat(20_000)), prompted(&written.to_string(), "x")]))
            .await
        {
            Ok(events) => written = events.last().unwrap().number.0,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, AppendError::Storage(StorageError::Full)), "{full:?}");
    assert!(full.to_string().contains("no space"), "{full}");
    assert_eq!(all(&store, session).await.len() as u64, written);
    limit("PRAGMA max_page_count = 4000").await;
    let next = store.append(append(session, vec![piece("x".repeat(20_000))])).await.unwrap();
    assert_eq!(next[0].number.0, written + 1);
}

async fn exported(store: &Store, session: SessionId) -> Vec<u8> {
    let mut text = Vec::new();
    store.export(session, &mut text).await.unwrap();
    text
}

#[tokio::test]
async fn an_export_is_imported_elsewhere_as_it_was_and_goes_on() {
    let (here, there) = (home().await, home().await);
    let one = session(&here.store, 1, 1_200).await;
    let blob = here.store.put_blob("a picture".into(), 1).await.unwrap();
    let parts = vec![Part::Image { media_type: "image/png".into(), blob, bytes: 9 }];
    let pictured = Body::Prompted { prompt: "a".parse().unwrap(), by: me(), parts };
    let named = Body::Named { name: Some("whale".parse().unwrap()) };
    here.store.append(append(one, vec![pictured, named])).await.unwrap();
    here.store
        .fork(one, EventNumber(1_203), id(2), 9, vec![forked(one, 1_203), piece("fork")])
        .await
        .unwrap();

    let first = exported(&here.store, one).await;
    let imported = there.store.import(&mut first.as_slice(), 7).await.unwrap();
    assert_eq!(imported, Imported { session: one, last: EventNumber(1_203), added: 1_203 });
    assert_eq!(all(&there.store, one).await, all(&here.store, one).await);
    assert_eq!(there.store.blob(blob).await.unwrap().unwrap(), "a picture");
    assert_eq!(there.store.session(one).await.unwrap(), here.store.session(one).await.unwrap());
    assert_eq!(exported(&there.store, one).await, first);
    // A fork is whole without its parent.
    let fork = exported(&here.store, id(2)).await;
    there.store.import(&mut fork.as_slice(), 7).await.unwrap();
    assert_eq!(all(&there.store, id(2)).await, all(&here.store, id(2)).await);
    let seen = there.store.append(append(one, vec![prompted("a", "x")])).await;
    assert!(matches!(seen, Err(AppendError::PromptSeen { at: EventNumber(1_202), .. })), "{seen:?}");

    // It goes on here; there it has a fork, a snapshot and a follower, all of which stay.
    there.store.fork(one, EventNumber(10), id(3), 9, vec![forked(one, 10)]).await.unwrap();
    there.store.put_snapshot(one, EventNumber(1_000), b"state".to_vec()).await.unwrap();
    let mut follower = there.store.follow(one, EventNumber(1_203)).await.unwrap();
    here.store.append(append(one, vec![piece("more")])).await.unwrap();
    let second = exported(&here.store, one).await;
    assert_eq!(there.store.import(&mut second.as_slice(), 7).await.unwrap().added, 1);
    assert_eq!(follower.next().await.unwrap().body, piece("more"));
    assert_eq!(there.store.snapshot(one, EventNumber(1_204)).await.unwrap().unwrap().0, EventNumber(1_000));
    assert_eq!(all(&there.store, id(3)).await[..10], all(&here.store, one).await[..10]);
    assert_eq!(rows(&there.store).await["sessions"], 3);
    // The older text brings nothing and takes nothing.
    assert_eq!(there.store.import(&mut first.as_slice(), 7).await.unwrap().added, 0);
    assert_eq!(there.store.last(one).await.unwrap(), EventNumber(1_204));
    there.store.append(append(one, vec![piece("on")])).await.unwrap();
    assert_eq!(there.store.check().await.unwrap().damages, []);
}

#[tokio::test]
async fn an_import_overwrites_nothing_and_leaves_nothing_when_it_fails() {
    let (here, there) = (home().await, home().await);
    let one = session(&here.store, 1, 800).await;
    let text = exported(&here.store, one).await;
    let before = rows(&there.store).await;
    let import = async |text: &[u8]| there.store.import(&mut &text[..], 7).await;
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let without = |at: usize| [lines[..at].concat(), lines[at + 1..].concat()].concat();
    let changed = String::from_utf8(text.clone()).unwrap().replacen("1.700", "1.7oo", 1).into_bytes();
    for torn in
        [&text[..0], &text[..text.len() / 2], &text[..text.len() - 1], &without(lines.len() - 1), &changed]
    {
        let error = import(torn).await.unwrap_err();
        assert!(matches!(error, ImportError::Torn(_)), "{error}");
    }
    for wrong in
        [&without(0), &without(1), &without(400), &[&text[..], b"x"].concat(), &b"hello\n"[..].to_vec()]
    {
        import(wrong).await.unwrap_err();
    }
    assert_eq!(rows(&there.store).await, before);
    // Another history under the same id stays.
    session(&there.store, 1, 5).await;
    there.store.append(append(one, vec![piece("mine")])).await.unwrap();
    let error = import(&text).await.unwrap_err();
    assert!(matches!(error, ImportError::Differs { at: EventNumber(7), .. }), "{error}");
    assert_eq!(all(&there.store, one).await[6].body, piece("mine"));
    assert_eq!(rows(&there.store).await["sessions"], 1);
}
