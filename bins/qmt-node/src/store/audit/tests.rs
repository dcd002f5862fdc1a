use mesh_identity::{InviteId, NodeId, NodeKey, Revoked, ScopeId, UnixTime};
use sqlx::AssertSqlSafe;

use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);

struct Home {
    folder: tempfile::TempDir,
    store: Store,
}

impl Home {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let store = Store::open(&folder.path().join("node.db")).await.expect("opens");
        Self { folder, store }
    }

    /// With this many rows, each about another node.
    async fn with_rows(rows: u8) -> Self {
        let home = Self::new().await;
        for number in 1..=rows {
            assert!(home.store.note(&admitted(number)).await.expect("writes"));
        }
        home
    }

    /// What somebody with the file open does to it.
    async fn tamper(&self, sql: &str) {
        let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&self.store.write).await.expect("SQL");
        assert!(done.rows_affected() > 0, "{sql} changed nothing");
    }

    async fn check(&self) -> Chain {
        self.store.trail().check().await.expect("reads")
    }

    /// What the check says of the first break; it must find exactly one.
    async fn fault(&self) -> String {
        let chain = self.check().await;
        assert_eq!(chain.breaks, 1, "{chain:?}");
        chain.broken.expect("a break").to_string()
    }

    async fn rows(&self, search: Search) -> Vec<u64> {
        let rows = self.store.trail().rows(&search).await.expect("reads");
        rows.into_iter().map(|row| row.number).collect()
    }
}

fn node(number: u8) -> NodeId {
    NodeKey::from_seed([number; 32]).node_id()
}

fn scope() -> ScopeId {
    ScopeId::from_bytes([9; 32])
}

fn entry(kind: Kind, number: u8) -> Entry {
    Entry::new(kind, scope(), "home", Revoked::Node(node(number)), UnixTime(NOW.0 + u64::from(number)))
        .called(format!("node-{number}"))
        .by(node(200), "desk")
}

fn admitted(number: u8) -> Entry {
    entry(Kind::Admitted, number).with("use", number)
}

fn all() -> Search {
    Search { limit: u32::MAX, ..Search::default() }
}

#[tokio::test]
async fn rows_follow_each_other_and_survive_a_restart() {
    let home = Home::new().await;
    assert_eq!(home.check().await, Chain { first: 1, ..Chain::default() });
    let home = Home::with_rows(3).await;
    let rows = home.store.trail().rows(&all()).await.expect("reads");
    assert_eq!(rows[0].previous, [0; 32]);
    assert_eq!((rows[1].previous, rows[2].previous), (rows[0].hash, rows[1].hash));
    assert_eq!(
        (
            rows[2].kind.as_str(),
            rows[2].subject_name.as_str(),
            rows[2].actor_name.as_str(),
            rows[2].details.as_str()
        ),
        ("admitted", "node-3", "desk", "{\"use\":3}")
    );
    let path = home.folder.path().join("node.db");
    home.store.close().await;
    let read_only = Trail::open(&path).await.expect("opens").expect("a trail");
    assert_eq!(read_only.rows(&all()).await.expect("reads"), rows);
    let store = Store::open(&path).await.expect("opens");
    let invite = Revoked::Invite(InviteId::generate(NOW));
    store.note(&Entry::new(Kind::Ended, scope(), "home", invite, NOW)).await.expect("writes");
    let chain = store.trail().check().await.expect("reads");
    assert_eq!((chain.broken, chain.first, chain.last), (None, 1, 4));
    assert_eq!(read_only.check().await.expect("reads"), chain, "beside the node that writes");
}

#[tokio::test]
async fn a_changed_row_is_named_whatever_was_changed() {
    for change in [
        "at = at + 1",
        "kind = 'seen'",
        "scope = zeroblob(32)",
        "scope_name = 'work'",
        "subject = zeroblob(32)",
        "subject_name = 'someone'",
        "actor = zeroblob(0)",
        "actor_name = ''",
        "details = '{}'",
        "hash = zeroblob(32)",
    ] {
        let home = Home::with_rows(3).await;
        home.tamper(&format!("UPDATE audit SET {change} WHERE number = 2")).await;
        let chain = home.check().await;
        let broken = chain.broken.expect("a break");
        assert_eq!((broken.number, broken.fault), (2, Fault::Changed), "{change}: {broken}");
    }
    let home = Home::with_rows(3).await;
    home.tamper("UPDATE audit SET details = '{}' WHERE number = 3").await;
    assert_eq!(home.fault().await, "row 3 was changed after it was written");
}

#[tokio::test]
async fn a_row_with_a_hash_made_to_fit_breaks_the_next_one_or_the_end() {
    for (number, next) in [(2, 3), (3, 3)] {
        let home = Home::with_rows(3).await;
        let sql = format!("SELECT {} FROM audit WHERE number = {number}", Raw::COLUMNS);
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&home.store.read).await.expect("reads");
        let mut row = Raw::read(&row).expect("reads");
        row.subject_name = "someone".to_owned();
        let hash: String = row.digest().iter().map(|byte| format!("{byte:02x}")).collect();
        home.tamper(&format!(
            "UPDATE audit SET subject_name = 'someone', hash = x'{hash}' WHERE number = {number}"
        ))
        .await;
        let expected = format!("row {next} does not follow the row before it: one of them was replaced");
        assert_eq!(home.fault().await, expected);
    }
}

#[tokio::test]
async fn removed_rows_are_named_at_any_place() {
    for (removed, said) in [
        ("number = 1", "row 1 is missing"),
        ("number IN (2, 3)", "rows 2 to 3 are missing"),
        ("number >= 4", "rows 4 to 5 are missing"),
        ("number > 0", "rows 1 to 5 are missing"),
    ] {
        let home = Home::with_rows(5).await;
        home.tamper(&format!("DELETE FROM audit WHERE {removed}")).await;
        assert_eq!(home.fault().await, said);
        // New rows go on from here, and the break stays to be seen.
        home.store.note(&admitted(6)).await.expect("writes");
        assert_eq!(home.fault().await, said);
        assert_eq!(home.check().await.last, 6);
    }
}

#[tokio::test]
async fn swapped_and_added_rows_are_found() {
    let home = Home::with_rows(3).await;
    home.tamper("UPDATE audit SET number = CASE number WHEN 1 THEN -2 ELSE -1 END WHERE number < 3").await;
    home.tamper("UPDATE audit SET number = -number WHERE number < 0").await;
    let broken = home.check().await.broken.expect("a break");
    assert_eq!((broken.number, broken.fault), (1, Fault::Detached));

    let home = Home::with_rows(3).await;
    let columns = Raw::COLUMNS.replacen("number", "4", 1);
    home.tamper(&format!("INSERT INTO audit SELECT {columns} FROM audit WHERE number = 3")).await;
    let broken = home.check().await.broken.expect("a break");
    assert_eq!((broken.number, broken.fault), (4, Fault::Detached));
    assert!(home.store.note(&admitted(5)).await.expect("the trail goes on"), "after what was put in");
    home.tamper("DELETE FROM audit_ends").await;
    assert!(home.store.note(&admitted(6)).await.expect("the trail goes on"), "without its end");
    assert!(home.check().await.broken.is_some());
}

#[tokio::test]
async fn a_change_that_does_not_happen_leaves_no_row() {
    let home = Home::with_rows(1).await;
    let mut transaction = home.store.begin().await.expect("begins");
    append(&mut transaction, &admitted(2)).await.expect("writes");
    drop(transaction); // as a crash does
    assert!(home.store.note(&admitted(3)).await.expect("writes"));
    assert_eq!(home.rows(all()).await, [1, 2]);
    assert_eq!(home.check().await.broken, None);
}

#[tokio::test]
async fn what_is_kept_of_a_long_trail_still_proves_itself() {
    let home = Home::new().await;
    for number in 1..=10 {
        let mut transaction = home.store.begin().await.expect("begins");
        append_keeping(&mut transaction, &admitted(number), 4).await.expect("writes");
        transaction.commit().await.expect("commits");
    }
    assert_eq!(home.rows(all()).await, [7, 8, 9, 10]);
    let chain = home.check().await;
    assert_eq!((chain.broken, chain.first, chain.last), (None, 7, 10));
    home.tamper("DELETE FROM audit WHERE number = 7").await;
    assert_eq!(home.fault().await, "row 7 is missing");
}

#[tokio::test]
async fn what_was_said_already_is_not_said_again() {
    let home = Home::new().await;
    let note = async |entry: Entry| home.store.note(&entry).await.expect("writes");
    let at = |entry: Entry, later: u64| Entry { at: UnixTime(entry.at.0 + later), ..entry };
    assert!(note(entry(Kind::Admitted, 1)).await);
    assert!(!note(at(entry(Kind::Admitted, 1), 3_599)).await, "an answer that was lost and asked for again");
    assert!(note(at(entry(Kind::Admitted, 1), 7_200)).await);
    assert!(!note(entry(Kind::Seen, 1)).await, "it is known how it came in");
    assert!(note(entry(Kind::Seen, 2)).await && !note(entry(Kind::Seen, 2)).await);
    let left = || entry(Kind::Left, 2).with("observed", true);
    assert!(note(left()).await && !note(left()).await && note(entry(Kind::Seen, 2)).await);
    // Whoever comes and goes all day does not fill the trail.
    let mut written = 0;
    for round in 0..50 {
        written += u32::from(note(at(left(), round)).await);
        written += u32::from(note(at(entry(Kind::Seen, 2), round)).await);
    }
    assert!((10..=20).contains(&written), "{written}");
    assert!(note(at(left(), 100_000)).await || note(at(entry(Kind::Seen, 2), 100_000)).await, "a day later");
    assert!(note(entry(Kind::Revoked, 2)).await && note(entry(Kind::Revoked, 2)).await, "never left out");
}

#[tokio::test]
async fn rows_are_found_by_scope_time_and_node() {
    let home = Home::with_rows(4).await;
    let other = ScopeId::from_bytes([8; 32]);
    let ended = entry(Kind::Revoked, 7).with("members", serde_json::json!({"ids": [node(3).to_string()]}));
    home.store.note(&Entry { scope: other, scope_name: "work".into(), ..ended }).await.expect("writes");
    assert_eq!(home.rows(Search { limit: 2, ..Search::default() }).await, [4, 5], "the newest");
    assert_eq!(home.rows(Search { scope: Some(other), ..all() }).await, [5]);
    assert_eq!(home.rows(Search { since: Some(UnixTime(NOW.0 + 3)), ..all() }).await, [3, 4, 5]);
    assert_eq!(home.rows(Search { nodes: vec![node(3)], ..all() }).await, [3, 5], "named as ended, too");
    assert_eq!(home.rows(Search { nodes: vec![node(1), node(2)], ..all() }).await, [1, 2]);
    assert_eq!(
        home.rows(Search { nodes: vec![node(200)], scope: Some(scope()), ..all() }).await,
        [1, 2, 3, 4]
    );
    let trail = home.store.trail();
    let mut scopes = trail.scopes().await.expect("reads");
    scopes.sort();
    assert_eq!(scopes, [(other, "work".to_owned()), (scope(), "home".to_owned())]);
    assert!(trail.nodes().await.expect("reads").contains(&(node(200), "desk".to_owned())));
}

#[tokio::test]
async fn a_home_without_a_trail_has_none() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("node.db");
    assert!(Trail::open(&path).await.expect("looks").is_none());
    assert!(!path.exists(), "looking makes nothing");
}
