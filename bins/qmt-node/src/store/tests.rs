use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use mesh_identity::{
    Authority, Founding, Invite, InviteId, InviteOptions, LedgerError, NodeAddr, NodeId, NodeKey,
    RedemptionLedger, Revocation, Revoked, ScopeId, UnixTime, Use, UseOutcome,
};

use super::audit::{Entry, Kind, Search};
use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);

struct Home {
    folder: tempfile::TempDir,
    store: Store,
}

async fn home() -> Home {
    let folder = tempfile::tempdir().expect("temporary folder");
    let store = Store::open(&folder.path().join("node.db")).await.expect("opens");
    Home { folder, store }
}

fn holder(number: u64) -> NodeId {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    NodeKey::from_seed(seed).node_id()
}

fn wish(invite: InviteId, number: u64, max_uses: u32) -> Use {
    Use { invite, holder: holder(number), max_uses, at: NOW }
}

/// A row for a change whose words do not matter here.
fn row(kind: Kind, what: Revoked) -> Entry {
    Entry::new(kind, ScopeId::from_bytes([3; 32]), "home", what, NOW)
}

async fn record(store: &Store, wish: Use) -> Result<UseOutcome, LedgerError> {
    Recorded { store, entry: row(Kind::Admitted, Revoked::Node(wish.holder)) }.record(wish).await
}

fn founder() -> (Authority, Founding) {
    let key = NodeKey::from_seed([1; 32]);
    let founding = Founding::new(&key);
    (Authority::founder(key, founding.root).expect("own root"), founding)
}

fn invite(authority: &Authority) -> Invite {
    let options = InviteOptions { name: Some("home".into()), max_uses: 2, ..InviteOptions::default() };
    authority.issue_invite(&options, NOW).expect("issues").verify(NOW).expect("own invite")
}

#[tokio::test]
async fn counts_uses_by_holder_and_refuses_the_rest() {
    let Home { store, folder: _folder } = home().await;
    let invite = InviteId::generate(NOW);
    assert_eq!(record(&store, wish(invite, 1, 2)).await.expect("records"), UseOutcome::First { uses: 1 });
    assert_eq!(record(&store, wish(invite, 1, 2)).await.expect("records"), UseOutcome::Repeated);
    assert_eq!(record(&store, wish(invite, 2, 2)).await.expect("records"), UseOutcome::First { uses: 2 });
    assert_eq!(record(&store, wish(invite, 3, 2)).await.expect("records"), UseOutcome::UsedUp);
    assert_eq!(record(&store, wish(invite, 2, 2)).await.expect("records"), UseOutcome::Repeated);
    let other = InviteId::generate(NOW);
    for number in 0..20 {
        assert!(matches!(
            record(&store, wish(other, number, 0)).await.expect("records"),
            UseOutcome::First { .. }
        ));
    }
    store.end_invite(&invite, NOW, &row(Kind::Ended, Revoked::Invite(invite))).await.expect("ends");
    assert_eq!(record(&store, wish(invite, 1, 2)).await.expect("records"), UseOutcome::Revoked);
    let uses: Vec<NodeId> =
        store.uses(&invite).await.expect("uses").into_iter().map(|(holder, _)| holder).collect();
    assert_eq!(uses, [holder(1), holder(2)]);
}

#[tokio::test]
async fn concurrent_holders_never_exceed_the_limit() {
    let Home { store, folder: _folder } = home().await;
    let invite = InviteId::generate(NOW);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let store = store.clone();
        tasks.spawn(async move { record(&store, wish(invite, number % 20, 5)).await.expect("records") });
    }
    let outcomes = tasks.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, UseOutcome::First { .. })).count(), 5);
    assert_eq!(store.uses(&invite).await.expect("uses").len(), 5);
}

#[tokio::test]
async fn a_full_disk_admits_nobody_and_loses_nobody() {
    let Home { store, folder } = home().await;
    let invite = InviteId::generate(NOW);
    let pages: i64 = sqlx::query("PRAGMA page_count")
        .fetch_one(&store.write)
        .await
        .expect("pages")
        .try_get(0)
        .expect("number");
    let limit = format!("PRAGMA max_page_count = {}", pages + 2);
    sqlx::query(sqlx::AssertSqlSafe(limit)).execute(&store.write).await.expect("limits the file");
    let mut admitted = BTreeSet::new();
    let refused = loop {
        let number = u64::try_from(admitted.len()).expect("small");
        match record(&store, wish(invite, number, 0)).await {
            Ok(outcome) => assert_eq!(
                outcome,
                UseOutcome::First { uses: u32::try_from(admitted.len() + 1).expect("small") }
            ),
            Err(error) => break error,
        }
        admitted.insert(holder(number));
        assert!(admitted.len() < 10_000, "the limit did not bite");
    };
    let mut chain = String::new();
    let mut source: Option<&dyn std::error::Error> = Some(&refused);
    while let Some(error) = source {
        chain = format!("{chain}: {error}");
        source = error.source();
    }
    assert!(chain.contains("full"), "{chain}");
    let stored =
        |uses: Vec<(NodeId, UnixTime)>| uses.into_iter().map(|(holder, _)| holder).collect::<BTreeSet<_>>();
    assert_eq!(stored(store.uses(&invite).await.expect("uses")), admitted);

    // A new connection has no limit: as if room had been made.
    store.close().await;
    let store = Store::open(&folder.path().join("node.db")).await.expect("opens");
    assert!(matches!(
        record(&store, wish(invite, 99_999, 0)).await.expect("records"),
        UseOutcome::First { .. }
    ));
    assert_eq!(record(&store, wish(invite, 0, 0)).await.expect("records"), UseOutcome::Repeated);
}

const CRASH_DB: &str = "QMT_TEST_CRASH_DB";
const CRASH_USES: u32 = 60;

/// The process that gets killed: redeems one invite by ever new holders and prints each that was admitted.
#[tokio::test]
async fn crashing_child() {
    let Ok(setting) = std::env::var(CRASH_DB) else { return };
    let (first, path) = setting.split_once(' ').expect("first holder and path");
    let store = Store::open(Path::new(path)).await.expect("opens");
    let invite: InviteId = store.kv("invite").await.expect("reads").expect("set").parse().expect("an id");
    for number in first.parse::<u64>().expect("number").. {
        let word = match record(&store, wish(invite, number, CRASH_USES)).await.expect("records") {
            UseOutcome::First { .. } => "admitted",
            _ => "refused",
        };
        writeln!(std::io::stdout(), "\n{word} {number}").expect("parent reads");
    }
}

#[tokio::test]
async fn survives_being_killed_in_the_middle_of_redemptions() {
    let Home { store, folder } = home().await;
    let path = folder.path().join("node.db");
    let invite = InviteId::generate(NOW);
    store.set_kv("invite", Some(&invite.to_string())).await.expect("sets");
    store.close().await;
    let mut answered = BTreeSet::new();
    for round in 0..6_u64 {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "store::tests::crashing_child", "--nocapture"])
            .env(CRASH_DB, format!("{} {}", round * 1000, path.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("child starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut seen = 0;
        // Kill after some answers, each round at another point; lines already in the pipe count as answered too.
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("admitted ") {
                answered.insert(holder(number.parse().expect("number")));
            }
            seen += usize::from(line.contains("ed "));
            if seen == 5 + usize::try_from(round).expect("small") * 3 {
                child.kill().expect("kills"); // SIGKILL
            }
        }
        child.wait().expect("reaped");
    }
    let store = Store::open(&path).await.expect("opens");
    let stored: BTreeSet<NodeId> =
        store.uses(&invite).await.expect("uses").into_iter().map(|(holder, _)| holder).collect();
    assert!(stored.len() <= usize::try_from(CRASH_USES).expect("small"), "{} uses", stored.len());
    assert!(answered.is_subset(&stored), "answered but not stored");
    assert!(answered.len() > 20, "the children did too little: {}", answered.len());
    // No admission without its row, no row without its admission, and the chain goes on through every crash.
    let trail = store.trail();
    let told = trail.rows(&Search { limit: 1_000, ..Search::default() }).await.expect("reads");
    let told: BTreeSet<String> = told.into_iter().map(|row| row.subject).collect();
    assert_eq!(told, stored.iter().map(ToString::to_string).collect());
    let chain = trail.check().await.expect("checks");
    assert_eq!((chain.broken, chain.last), (None, stored.len() as u64));
    let check: String = sqlx::query("PRAGMA integrity_check")
        .fetch_one(&store.read)
        .await
        .expect("checks")
        .try_get(0)
        .expect("text");
    assert_eq!(check, "ok");
}

#[tokio::test]
async fn files_are_private_and_last() {
    let Home { store, folder } = home().await;
    let path = folder.path().join("node.db");
    store.set_kv("port", Some("4433")).await.expect("sets");
    for entry in std::fs::read_dir(folder.path()).expect("folder") {
        let entry = entry.expect("entry");
        assert_eq!(
            entry.metadata().expect("facts").permissions().mode() & 0o777,
            0o600,
            "{:?}",
            entry.path()
        );
    }
    store.close().await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("sets the mode");
    let store = Store::open(&path).await.expect("opens");
    assert_eq!(std::fs::metadata(&path).expect("facts").permissions().mode() & 0o777, 0o600);
    assert_eq!(store.kv("port").await.expect("reads").as_deref(), Some("4433"));
    store.set_kv("port", None).await.expect("removes");
    assert_eq!(store.kv("port").await.expect("reads"), None);
}

#[tokio::test]
async fn refuses_a_newer_schema_and_names_a_missing_folder() {
    let Home { store, folder } = home().await;
    let path = folder.path().join("node.db");
    let sql = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'later', 1, x'00', 0)";
    sqlx::query(sql).execute(&store.write).await.expect("inserts");
    store.close().await;
    let error = Store::open(&path).await.expect_err("newer");
    assert!(matches!(error, StoreError::Newer { version: 99, .. }), "{error}");
    let nowhere = folder.path().join("nowhere/node.db");
    let error = Store::open(&nowhere).await.expect_err("no folder");
    assert_eq!(error.to_string(), format!("cannot open the node's database {}", nowhere.display()));
}

#[tokio::test]
async fn scopes_and_grants_are_kept_and_forgotten() {
    let Home { store, folder: _folder } = home().await;
    let (authority, founding) = founder();
    let me = NodeKey::from_seed([2; 32]).node_id();
    let name = "laptop".parse().expect("a name");
    let permissions = mesh_identity::Permissions::MEMBER;
    let grant = authority.sign_grant(me, name, permissions, None, NOW).expect("signs");
    let joined = ScopeRow {
        root: founding.root,
        name: "home".into(),
        founded: false,
        grant: Some(grant.clone()),
        delegation: None,
        joined_at: NOW,
        invite: Some(authority.issue_invite(&InviteOptions::default(), NOW).expect("signs")),
    };
    store.put_scope(&joined, &row(Kind::Joined, Revoked::Node(me))).await.expect("stores");
    let kept = store.scopes().await.expect("reads");
    assert_eq!(
        (kept.len(), kept[0].id(), kept[0].name.as_str(), kept[0].founded),
        (1, joined.id(), "home", false)
    );
    assert_eq!(kept[0].grant.as_ref().map(mesh_identity::SignedGrant::encode), Some(grant.encode()));

    let signed = authority.revoke(Revoked::Node(me), NOW).expect("signs");
    let revocation: Revocation = signed.verify(&joined.id(), NOW).expect("verifies");
    let revoked = row(Kind::Revoked, Revoked::Node(me));
    assert!(store.put_revocation(&revocation, &revoked).await.expect("stores"));
    assert!(!store.put_revocation(&revocation, &revoked).await.expect("knows it"));
    let forms = store.revocations(&joined.id()).await.expect("reads");
    assert_eq!(
        forms.iter().map(mesh_identity::SignedRevocation::encode).collect::<Vec<_>>(),
        [signed.encode()]
    );

    let left = row(Kind::Left, Revoked::Node(me));
    assert!(store.remove_scope(&joined.id(), &left).await.expect("removes"));
    assert!(!store.remove_scope(&joined.id(), &left).await.expect("removes"));
    assert!(store.scopes().await.expect("reads").is_empty());
    assert_eq!(store.revocations(&joined.id()).await.expect("reads").len(), 1);
}

#[tokio::test]
async fn invites_are_listed_with_their_uses() {
    let Home { store, folder: _folder } = home().await;
    let (authority, _) = founder();
    let invite = invite(&authority);
    store
        .put_invite(&invite, NOW, &row(Kind::Invited, Revoked::Invite(invite.grant().invite_id)))
        .await
        .expect("stores");
    record(&store, wish(invite.grant().invite_id, 1, 2)).await.expect("records");
    let listed = store.invites().await.expect("lists");
    let [one] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!(
        (one.id, one.scope, one.max_uses, one.name.as_deref()),
        (invite.grant().invite_id, authority.scope(), 2, Some("home"))
    );
    assert_eq!(
        (one.expires_at, one.revoked_at, one.uses.as_slice()),
        (invite.grant().expires_at, None, [(holder(1), NOW)].as_slice())
    );
    assert_eq!(one.token.to_string(), invite.token().to_string());
    let ended = row(Kind::Ended, Revoked::Invite(one.id));
    store.end_invite(&one.id, UnixTime(NOW.0 + 5), &ended).await.expect("ends");
    store.end_invite(&one.id, UnixTime(NOW.0 + 9), &ended).await.expect("ends");
    assert_eq!(store.invites().await.expect("lists")[0].revoked_at, Some(UnixTime(NOW.0 + 5)));
}

#[tokio::test]
async fn peers_beyond_the_bound_are_forgotten_longest_unseen_first() {
    let Home { store, folder: _folder } = home().await;
    let (_, founding) = founder();
    let scope = founding.root.id();
    let peer = |number: u64| SeenPeer {
        scope,
        node: holder(number),
        name: "n".parse().expect("a name"),
        addr: NodeAddr { direct: vec![([192, 0, 2, 1], 4433).into()], relay: None, ..NodeAddr::default() },
        seen_at: UnixTime(NOW.0 + number),
    };
    let many: Vec<SeenPeer> = (0..u64::from(PEERS_MAX) + 3).map(peer).collect();
    store.put_peers(&many).await.expect("stores");
    let kept = store.peers(&scope).await.expect("reads");
    assert_eq!(kept.len(), usize::try_from(PEERS_MAX).expect("small"));
    assert_eq!(
        (&kept[0], kept.last().map(|peer| peer.seen_at)),
        (&many[many.len() - 1], Some(UnixTime(NOW.0 + 3)))
    );
    assert!(store.remove_peer(&scope, &kept[0].node).await.expect("removes"));
    assert!(!store.remove_peer(&scope, &kept[0].node).await.expect("removes"));
}
