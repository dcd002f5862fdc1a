//! Boards at their host and from other nodes.

use super::*;
use crate::event::Party;
use crate::host::tests::{me, new_id};
use crate::ids::{AgentId, SessionId};
use crate::store::{Filter, Kind};

impl Scene {
    async fn board(&self, name: &str, shares: Vec<Share>) -> SessionId {
        let (sessions, id) = (self.sessions.as_ref().unwrap(), new_id());
        sessions.create_board(id, &self.owner(), name.parse().unwrap(), shares.clone()).await.unwrap();
        // An answer that was lost is asked for again.
        sessions.create_board(id, &self.owner(), name.parse().unwrap(), shares).await.unwrap();
        id
    }

    fn owner(&self) -> Party {
        Party::local(self.mesh[0].id())
    }

    fn share(&self, caller: usize, right: Right) -> Share {
        Share { with: ShareWith::Node(self.mesh[caller].id()), right }
    }
}

fn agent() -> AgentId {
    "coder".parse().unwrap()
}

/// The texts of the posts up to this many, with the nodes and agents that wrote them.
async fn posts(board: &RemoteSession, count: usize) -> Vec<(String, Party, Option<AgentId>)> {
    let mut following = board.follow(EventNumber::START);
    let mut posts = Vec::new();
    while posts.len() < count {
        let event =
            tokio::time::timeout(Duration::from_secs(40), following.next()).await.expect("a post").unwrap();
        if let Body::Posted { by, agent, parts, .. } = event.body {
            let crate::content::Part::Text { text: Text::Inline(text) } = &parts[0] else {
                panic!("{parts:?}")
            };
            posts.push((text.clone(), by, agent));
        }
    }
    posts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_may_post_on_a_board_and_read_the_same_order() {
    let mut scene = Scene::new(Script::echo()).await;
    let share = scene.share(1, Right::Prompt);
    let id = scene.board("plan", vec![share]).await;
    let sessions = scene.sessions.clone().unwrap();
    let first = sessions.post(id, &scene.owner(), "1".parse().unwrap(), None, text("begin")).await.unwrap();
    let there = scene.remote(1).resolve_board("plan").await.unwrap();
    assert_eq!(there.id(), id);
    // The ids of two nodes' posts are theirs.
    let second = there.post("1".parse().unwrap(), Some(agent()), text("at work")).await.unwrap();
    assert_eq!(second, first.next());
    assert_eq!(
        there.post("1".parse().unwrap(), Some(agent()), text("at work")).await.unwrap(),
        second,
        "one post"
    );
    drop(sessions);
    scene.crash_host().await;
    scene.start_host().await;
    assert_eq!(
        there.post("1".parse().unwrap(), None, text("at work")).await.unwrap(),
        second,
        "still one post"
    );
    there.post("2".parse().unwrap(), None, text("done")).await.unwrap();
    let posts = posts(&there, 3).await;
    let told: Vec<_> =
        posts.iter().map(|(text, by, agent)| (text.as_str(), by.node, agent.clone())).collect();
    let (host, caller) = (scene.mesh[0].id(), scene.mesh[1].id());
    assert_eq!(told, [("begin", host, None), ("at work", caller, Some(agent())), ("done", caller, None)]);
    there.act(Deed::Archive).await.unwrap_err();
    let sessions = scene.sessions.as_ref().unwrap();
    sessions.command(id, &scene.owner(), crate::proto::Command::Archive).await.unwrap();
    assert_eq!(code(there.post("3".parse().unwrap(), None, text("late")).await), Code::Archived);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_and_posts_on_what_it_was_given_and_nothing_else() {
    let scene = Scene::new(Script::echo()).await;
    let (read, post) = (scene.share(2, Right::Watch), scene.share(2, Right::Prompt));
    let hidden = scene.board("hidden", vec![scene.share(1, Right::Own)]).await;
    let news = scene.board("news", vec![read]).await;
    let talk = scene.board("talk", vec![post]).await;
    let client = scene.remote(2);
    let (listed, _) = client.list_boards(None, 10).await.unwrap();
    let names: Vec<_> = listed.iter().map(|board| board.name.as_ref().unwrap().as_str()).collect();
    assert_eq!(names, ["talk", "news"]);
    let hidden = client.session(hidden);
    assert_eq!(code(hidden.post("1".parse().unwrap(), None, text("x")).await), Code::NoSuchSession);
    assert_eq!(code(hidden.follow(EventNumber::START).next().await), Code::NoSuchSession);
    assert_eq!(code(client.resolve_board("hidden").await), Code::NoSuchSession);
    let news = client.session(news);
    assert_eq!(code(news.post("1".parse().unwrap(), None, text("x")).await), Code::NotAllowed);
    client.session(talk).post("1".parse().unwrap(), None, text("hello")).await.unwrap();
    let posts = posts(&scene.remote(2).session(talk), 1).await;
    assert_eq!((posts[0].0.as_str(), posts[0].1.role), ("hello", Some(mesh_identity::Role::Client)));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_board_is_no_session_and_a_session_no_board() {
    let scene = Scene::new(Script::echo()).await;
    let board = scene.board("plan", vec![scene.share(1, Right::Own)]).await;
    let (session, host) = (scene.session().await, scene.remote(1));
    session.act(Deed::Name { name: Some("plan".parse().unwrap()) }).await.unwrap();
    assert_eq!(code(session.post("1".parse().unwrap(), None, text("x")).await), Code::WrongKind);
    let prompted = host.session(board).prompt("1".parse().unwrap(), text("x")).await;
    assert_eq!(code(prompted), Code::WrongKind);
    let steered = host.session(board).steer(None, text("x")).await;
    assert_eq!(code(steered), Code::NoSuchTurn);
    // One name for both is told apart by what is looked for.
    assert_eq!(host.resolve("plan").await.unwrap().id(), session.id());
    assert_eq!(host.resolve_board("plan").await.unwrap().id(), board);
    let listed = |listed: Vec<crate::proto::wire::SessionFacts>| {
        listed.iter().map(|facts| facts.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(host.list(None, None, 10).await.unwrap().0), [session.id()]);
    assert_eq!(listed(host.list_boards(None, 10).await.unwrap().0), [board]);
    let created = host.create(AgentId::board(), None, BTreeMap::new()).await;
    assert_eq!(code(created), Code::NoSuchAgent, "a peer makes none here");
    scene.end().await;
}

#[tokio::test]
async fn a_board_is_found_by_its_words_exported_and_not_woken_at_the_start() {
    let host = Host::new(Script::echo());
    let (sessions, id) = (host.start().await, new_id());
    sessions.create_board(id, &me(), "plan".parse().unwrap(), Vec::new()).await.unwrap();
    let long = "walrus ".repeat(20_000);
    sessions.post(id, &me(), "1".parse().unwrap(), Some(agent()), text(&long)).await.unwrap();
    let fork = new_id();
    sessions.fork(id, None, fork, &me()).await.unwrap();
    sessions.post(fork, &me(), "2".parse().unwrap(), None, text("two")).await.unwrap();
    let again = sessions.post(fork, &me(), "1".parse().unwrap(), None, text("one")).await.unwrap();
    assert_eq!(again, EventNumber(3), "it stands there since before the fork");
    host.crash(sessions).await;
    let sessions = host.start().await;
    let hits = sessions.store().search("walrus", None, 5).await.unwrap();
    assert_eq!((hits.len(), hits[0].session, hits[0].number), (1, id, EventNumber(3)));
    let unfinished = Filter { unfinished: true, ..Filter::default() };
    assert!(sessions.store().list(unfinished).await.unwrap().is_empty());
    let boards = Filter { kind: Some(Kind::Board), ..Filter::default() };
    assert_eq!(sessions.store().list(boards).await.unwrap().len(), 2);
    let mut lines = Vec::new();
    sessions.store().export(id, &mut lines).await.unwrap();
    let other = Host::new(Script::echo());
    let elsewhere = other.start().await;
    let imported = elsewhere.store().import(&mut &lines[..], 1).await.unwrap();
    assert_eq!(imported.last, EventNumber(3));
    let known = elsewhere.post(id, &me(), "1".parse().unwrap(), None, text("x")).await.unwrap();
    assert_eq!(known, EventNumber(3), "what was posted stays posted");
    sessions.shutdown().await;
    elsewhere.shutdown().await;
}
