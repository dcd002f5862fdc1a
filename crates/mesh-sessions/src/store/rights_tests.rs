#![allow(clippy::unwrap_used)]
//! Whose a prompt is, with whom a session is shared, which contents are its own: what the tables say of the log.

use mesh_identity::{Founding, NodeId, NodeKey, Role, ScopeId};
use sqlx::ConnectOptions;
use sqlx::migrate::Migrator;

use super::tests::{Home, all, append, created, forked, home, id, me, prompted, session};
use super::*;
use crate::content::{Part, Text};
use crate::event::{Party, Right, Share, ShareWith};
use crate::ids::{PromptId, TurnNumber};

fn node(seed: u8) -> NodeId {
    NodeKey::from_seed([seed; 32]).node_id()
}

fn scope(seed: u8) -> ScopeId {
    Founding::with_recovery(&NodeKey::from_seed([seed; 32]), NodeKey::from_seed([99; 32])).root.id()
}

fn began(turn: u32, prompt: &str) -> Body {
    Body::TurnStarted { turn: TurnNumber(turn), prompt: prompt.parse().unwrap() }
}

fn prompted_by(node: NodeId, prompt: &str) -> Body {
    let parts = vec![Part::Text { text: Text::Inline(prompt.to_owned()) }];
    Body::Prompted { prompt: prompt.parse().unwrap(), by: Party::local(node), parts }
}

async fn seen(store: &Store, session: SessionId, prompt: &str, by: NodeId) -> Option<u64> {
    let prompt: PromptId = prompt.parse().unwrap();
    store.prompt_seen(session, &prompt, by).await.unwrap().map(|number| number.0)
}

#[tokio::test]
async fn a_fork_knows_the_prompts_that_were_answered_before_its_cut_and_no_others() {
    let Home { store, folder } = home().await;
    let one = session(&store, 1, 0).await;
    let bodies = vec![prompted("a", "x"), began(1, "a"), prompted("waits", "x"), prompted("after", "x")];
    store.append(append(one, bodies)).await.unwrap(); // 2, 3, 4, 5
    store.fork(one, EventNumber(4), id(2), 9, vec![forked(one, 4)]).await.unwrap(); // 5
    store.append(append(one, vec![began(2, "waits")])).await.unwrap();
    let here = me().node;
    assert_eq!(seen(&store, one, "waits", here).await, Some(4));
    assert_eq!(seen(&store, id(2), "a", here).await, Some(2));
    assert_eq!(seen(&store, id(2), "waits", here).await, None, "it was never answered in the fork");
    assert_eq!(seen(&store, id(2), "after", here).await, None);
    let again = store.append(append(id(2), vec![prompted("a", "x")])).await;
    assert!(matches!(again, Err(AppendError::PromptSeen { at: EventNumber(2), .. })), "{again:?}");
    store.append(append(id(2), vec![prompted("waits", "x"), began(2, "waits")])).await.unwrap();
    assert_eq!(seen(&store, id(2), "waits", here).await, Some(6));
    store.fork(id(2), EventNumber(7), id(3), 9, vec![forked(id(2), 7)]).await.unwrap();
    assert_eq!(seen(&store, id(3), "waits", here).await, Some(6), "answered in what it is a fork of");

    // Written as one log it is the same.
    let mut text = Vec::new();
    store.export(id(2), &mut text).await.unwrap();
    let Home { store: other, folder: _other } = home().await;
    other.import(&mut text.as_slice(), 9).await.unwrap();
    assert_eq!(all(&other, id(2)).await, all(&store, id(2)).await);
    assert_eq!(seen(&other, id(2), "waits", here).await, Some(6));
    drop(folder);
}

#[tokio::test]
async fn two_nodes_may_call_their_prompts_alike() {
    let Home { store, folder: _folder } = home().await;
    let one = session(&store, 1, 0).await;
    store.append(append(one, vec![prompted_by(node(5), "1"), prompted_by(node(6), "1")])).await.unwrap();
    let again = store.append(append(one, vec![prompted_by(node(6), "1")])).await;
    assert!(matches!(again, Err(AppendError::PromptSeen { at: EventNumber(3), .. })), "{again:?}");
    store.append(append(one, vec![began(1, "1")])).await.unwrap();
    store.fork(one, EventNumber(4), id(2), 9, vec![forked(one, 4)]).await.unwrap();
    assert_eq!(seen(&store, id(2), "1", node(5)).await, Some(2));
    assert_eq!(seen(&store, id(2), "1", node(6)).await, None, "the second one still waits");
}

#[tokio::test]
async fn a_party_finds_what_is_its_own_or_shared_with_it() {
    let Home { store, folder } = home().await;
    let (owner, guest) =
        (Party::peer(node(5), scope(1), Role::Member), Party::peer(node(6), scope(1), Role::Client));
    let own = Body::Created { agent: "coder".parse().unwrap(), owner: owner.clone() };
    store.create(id(1), 5, vec![own]).await.unwrap();
    session(&store, 2, 0).await;
    session(&store, 3, 0).await;
    let share = |with, right| Body::Shared { shares: vec![Share { with, right }] };
    let to_members = ShareWith::Role(scope(1), Role::Member);
    store.append(append(id(2), vec![share(to_members.clone(), Right::Watch)])).await.unwrap();
    let both = vec![
        Share { with: to_members, right: Right::Own },
        Share { with: ShareWith::Node(guest.node), right: Right::Prompt },
        Share { with: ShareWith::Role(scope(1), Role::Client), right: Right::Watch },
    ];
    store
        .append(append(
            id(3),
            vec![share(ShareWith::Node(node(9)), Right::Own), Body::Shared { shares: both }],
        ))
        .await
        .unwrap();
    let store = {
        store.close().await;
        Store::open(&folder.path().join("sessions.db"), Config::default()).await.unwrap()
    };
    let rights = async |party: &Party| {
        let right = async |number| store.right_of(id(number), party).await.unwrap();
        (right(1).await, right(2).await, right(3).await)
    };
    let (watch, prompt, all) = (Some(Right::Watch), Some(Right::Prompt), Some(Right::Own));
    assert_eq!(rights(&owner).await, (all, watch, all));
    assert_eq!(rights(&guest).await, (None, None, prompt));
    assert_eq!(rights(&Party::peer(node(7), scope(1), Role::Client)).await, (None, None, watch));
    assert_eq!(
        rights(&Party::peer(node(5), scope(2), Role::Member)).await,
        (None, None, None),
        "another scope"
    );
    assert_eq!(
        rights(&Party::peer(node(9), scope(1), Role::Client)).await,
        (None, None, watch),
        "shared anew"
    );
    assert_eq!(rights(&me()).await, (all, all, all));
    assert_eq!(store.right_of(id(4), &me()).await.unwrap(), None);

    let list = async |party: &Party, limit| {
        let filter = Filter { seen_by: Some(party.clone()), limit: Some(limit), ..Filter::default() };
        let listed = store.list(filter).await.unwrap();
        listed.iter().map(|listed| listed.session).collect::<Vec<_>>()
    };
    assert_eq!(list(&guest, 1).await, [id(3)]);
    assert_eq!(list(&owner, 2).await, [id(3), id(2)]);
    assert_eq!(list(&Party::peer(node(5), scope(2), Role::Member), 9).await, []);
    assert!(matches!(store.resolve(&guest, &id(1).to_string(), None).await, Err(ResolveError::Unknown(_))));
    assert_eq!(store.resolve(&guest, "0000", None).await.unwrap(), id(3), "the others are not there for it");
    assert!(matches!(store.resolve(&owner, "0000", None).await, Err(ResolveError::Ambiguous { .. })));

    // What was shared is not shared by its fork.
    store.fork(id(3), EventNumber(3), id(4), 9, vec![forked(id(3), 3)]).await.unwrap();
    assert_eq!(store.right_of(id(4), &owner).await.unwrap(), None);
    let mut text = Vec::new();
    store.export(id(4), &mut text).await.unwrap();
    let Home { store: other, folder: _other } = home().await;
    other.import(&mut text.as_slice(), 9).await.unwrap();
    assert_eq!(other.right_of(id(4), &owner).await.unwrap(), None);
}

#[tokio::test]
async fn a_content_is_a_sessions_own_when_one_of_its_events_names_it() {
    let Home { store, folder: _folder } = home().await;
    let (one, two) = (session(&store, 1, 0).await, session(&store, 2, 0).await);
    let (first, second) =
        (store.put_blob("first".into(), 1).await.unwrap(), store.put_blob("second".into(), 1).await.unwrap());
    let image = |prompt: &str, blob| Body::Prompted {
        prompt: prompt.parse().unwrap(),
        by: me(),
        parts: vec![Part::Image { media_type: "image/png".into(), blob, bytes: 6 }],
    };
    store.append(append(one, vec![image("a", first), image("b", second)])).await.unwrap();
    store.fork(one, EventNumber(2), id(3), 9, vec![forked(one, 2)]).await.unwrap();
    let names = async |session| {
        let names = async |blob| store.names_blob(session, blob).await.unwrap();
        (names(first).await, names(second).await)
    };
    assert_eq!(names(one).await, (true, true));
    assert_eq!(names(two).await, (false, false));
    assert_eq!(names(id(3)).await, (true, false), "the second came after the cut");
}

/// A file of the schema before is brought up to date with all that it says.
#[tokio::test]
async fn a_file_of_the_first_schema_keeps_its_rights_and_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.db");
    let mut connection = super::open::options(&path).create_if_missing(true).connect().await.unwrap();
    let first = super::open::migrations().into_iter().take(1).collect::<Vec<_>>();
    Migrator::with_migrations(first).run_direct(None, &mut connection, false).await.unwrap();
    let share = |right| Share { with: ShareWith::Role(scope(1), Role::Client), right };
    let node_share = Share { with: ShareWith::Node(node(6)), right: Right::Prompt };
    let bodies = [
        created(),
        Body::Shared { shares: vec![share(Right::Own)] },
        Body::Shared { shares: vec![share(Right::Watch), node_share] },
        prompted("a", "x"),
        began(1, "a"),
        prompted("b", "x"),
    ];
    let owner = serde_json::to_string(&me()).unwrap();
    let made = "INSERT INTO sessions (row, session, agent, owner, state) VALUES (1, ?, 'coder', ?, 'active')";
    sqlx::query(made).bind(id(1).as_bytes().to_vec()).bind(owner).execute(&mut connection).await.unwrap();
    let mut checksum = Checksum::start(id(1));
    for (body, number) in bodies.iter().zip(1_u64..) {
        let json = serde_json::to_string(body).unwrap();
        checksum = checksum.next(number, 5, &json);
        let sql = "INSERT INTO events (place, at, body, checksum) VALUES (?, 5, ?, ?)";
        let insert = sqlx::query(sql).bind(super::place::place(1, number)).bind(json).bind(checksum.to_vec());
        insert.execute(&mut connection).await.unwrap();
        if let Body::Prompted { prompt, .. } = body {
            let sql = "INSERT INTO prompts (session, prompt, number) VALUES (1, ?, ?)";
            let insert = sqlx::query(sql).bind(prompt.as_str()).bind(number.cast_signed());
            insert.execute(&mut connection).await.unwrap();
        }
    }
    sqlx::Connection::close(connection).await.unwrap();
    let store = Store::open(&path, Config::default()).await.unwrap();
    assert_eq!(all(&store, id(1)).await.len(), bodies.len());
    let right = async |party| store.right_of(id(1), &party).await.unwrap();
    assert_eq!(right(Party::peer(node(6), scope(2), Role::Client)).await, Some(Right::Prompt));
    assert_eq!(right(Party::peer(node(7), scope(1), Role::Member)).await, Some(Right::Watch));
    assert_eq!(right(Party::peer(node(7), scope(2), Role::Member)).await, None);
    assert_eq!(seen(&store, id(1), "a", me().node).await, Some(4));
    store.fork(id(1), EventNumber(6), id(2), 9, vec![forked(id(1), 6)]).await.unwrap();
    assert_eq!(seen(&store, id(2), "a", me().node).await, Some(4));
    assert_eq!(seen(&store, id(2), "b", me().node).await, None);
}
