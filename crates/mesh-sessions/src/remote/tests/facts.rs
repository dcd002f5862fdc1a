//! What a peer is told of sessions, and gets of them.

use super::*;
use crate::event::Party;
use crate::ids::SessionName;

fn script() -> Script {
    Script::new(|_| said("a blue whale"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_told_how_a_session_stands_and_shares_it_when_it_owns_it() {
    let scene = Scene::new(script()).await;
    let session = scene.session().await;
    prompt(&session, "one").await;
    until_turns(&session, 1).await;
    let watcher = scene.mesh[2].id();
    let shares = vec![Share { with: ShareWith::Node(watcher), right: Right::Watch }];
    session.act(Deed::Share { shares: shares.clone() }).await.unwrap();
    let own = session.show().await.unwrap();
    let owner = Party::peer(scene.mesh[1].id(), scene.mesh.scope(), mesh_identity::Role::Member);
    assert_eq!((own.owner, own.right, own.shares), (owner.clone(), Some(Right::Own), Some(shares)));
    assert_eq!((own.state.as_str(), own.turn, own.waiting, own.epoch), ("waiting", None, 0, 1));
    assert!(own.created_ms > 0 && own.created_ms <= own.updated_ms);

    let watched = scene.remote(2).session(session.id()).show().await.unwrap();
    assert_eq!((watched.owner, watched.right, watched.shares), (owner, Some(Right::Watch), None));
    let (listed, _) = scene.remote(2).list(None, None, 10).await.unwrap();
    assert_eq!((listed.len(), listed[0].right, listed[0].epoch), (1, None, 1));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_and_a_search_hold_what_the_caller_may_watch() {
    let scene = Scene::new(script()).await;
    let (session, other) = (scene.session().await, scene.session().await);
    session.act(Deed::Name { name: Some(SessionName::try_from("mine".to_owned()).unwrap()) }).await.unwrap();
    for session in [&session, &other] {
        // Long enough to be stored apart from its event.
        session.prompt("p".parse().unwrap(), text(&"x".repeat(300_000))).await.unwrap();
        until_turns(session, 1).await;
    }
    let mut brought = Vec::new();
    session.export(&mut brought).await.unwrap();
    let mut stored = Vec::new();
    scene.sessions.as_ref().unwrap().store().export(session.id(), &mut stored).await.unwrap();
    assert!(brought == stored && brought.len() > 300_000);

    let watcher = scene.remote(2);
    assert_eq!(code(watcher.session(session.id()).export(&mut Vec::new()).await), Code::NoSuchSession);
    assert_eq!(watcher.search("whale", 10).await.unwrap(), []);
    let with = ShareWith::Node(scene.mesh[2].id());
    session.act(Deed::Share { shares: vec![Share { with, right: Right::Watch }] }).await.unwrap();
    let mut watched = Vec::new();
    watcher.session(session.id()).export(&mut watched).await.unwrap();
    assert!(watched.starts_with(&stored[..stored.len() / 2]));
    let hits = watcher.search("blue whale", 10).await.unwrap();
    let found: Vec<_> = hits.iter().map(|hit| (hit.session, hit.excerpt.as_str())).collect();
    assert_eq!(found, [(session.id(), "a blue whale")]);
    assert_eq!(hits[0].name.as_ref().map(ToString::to_string), Some("mine".to_owned()));
    assert_eq!(scene.remote(1).search("whale", 10).await.unwrap().len(), 2);
    scene.end().await;
}
