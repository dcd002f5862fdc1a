use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_at_another_node_is_used_like_one_here() {
    let scene = Scene::new(Script::echo()).await;
    let host = scene.remote(1);
    assert_eq!(host.agents().await.unwrap()[0].id.as_str(), "coder");
    let session = host.create("coder".parse().unwrap(), Some("mine".parse().unwrap()), BTreeMap::new());
    let session = session.await.unwrap();
    let number = prompt(&session, "one").await;
    assert_eq!(prompt(&session, "one").await, number, "one prompt");
    let events = until_turns(&session, 1).await;
    assert_eq!(streamed(&events), "you said one");
    assert_eq!(host.resolve("mine").await.unwrap().id(), session.id());
    let fork = host.fork(session.id(), Some(events.last().unwrap().number)).await.unwrap();
    prompt(&fork, "two").await;
    assert_eq!(streamed(&until_turns(&fork, 2).await), "you said oneyou said two");
    let (listed, next) = host.list(None, None, 1).await.unwrap();
    assert_eq!((listed[0].id, listed[0].parent.unwrap().0), (fork.id(), session.id()));
    let (listed, _) = host.list(None, next, 10).await.unwrap();
    assert_eq!((listed.len(), listed[0].id), (1, session.id()));
    session.act(Deed::Archive).await.unwrap();
    assert_eq!(code(session.prompt("late".parse().unwrap(), text("late")).await), Code::Archived);
    assert_eq!(code(session.act(Deed::Cancel { turn: None }).await), Code::Archived);
    assert_eq!(code(host.resolve("nothing").await), Code::NoSuchSession);
    assert_eq!(code(host.fork(fork.id(), Some(EventNumber(999))).await), Code::NoSuchEvent);
    assert_eq!(code(fork.follow(EventNumber(999)).next().await), Code::NoSuchEvent);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_and_an_image_cross_the_mesh_whole() {
    let scene = Scene::new(Script::new(|_| said("seen"))).await;
    let session = scene.session().await;
    let image = Shown::Image { media_type: "image/png".to_owned(), bytes: vec![9; 300_000].into() };
    let parts = vec![Shown::Text("ü".repeat(5 << 20)), image];
    session.prompt("big".parse().unwrap(), parts.clone()).await.unwrap();
    let events = until_turns(&session, 1).await;
    assert_eq!(scene.host.script.calls.lock().unwrap()[0].messages[1], Message::User(parts));
    let blob = events.iter().find_map(|event| match &event.body {
        Body::Prompted { parts, .. } => match &parts[0] {
            crate::content::Part::Text { text: Text::Blob { blob, .. } } => Some(*blob),
            _ => None,
        },
        _ => None,
    });
    let content = session.content(blob.unwrap()).await.unwrap();
    assert!(content.len() == 10 << 20 && content.starts_with("üü".as_bytes()));
    assert_eq!(code(session.content(crate::ids::BlobId::of(b"other")).await), Code::NoSuchContent);
    // One that knows the name of a content and not the session that names it.
    let elsewhere = scene.session().await;
    assert_eq!(code(elsewhere.content(blob.unwrap()).await), Code::NoSuchContent);
    let long = Shown::Text("x".repeat(40 << 20));
    assert_eq!(code(session.prompt("long".parse().unwrap(), vec![long]).await), Code::TooMuch);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_what_is_shared_with_it_and_gets_no_tool() {
    let tool = TestTool::new("shell", false, |_| async { Ran::done("done") });
    let script = Script::new(|call| match call.messages.last() {
        Some(Message::User(_)) => wants(&[("a", "shell")]),
        _ => said("no"),
    });
    let scene = Scene::with(script, vec![tool.clone()]).await;
    let (session, theirs) = (scene.session().await, scene.remote(2));
    let client = theirs.session(session.id());
    assert_eq!(code(client.follow(EventNumber::START).next().await), Code::NoSuchSession);
    assert_eq!(code(client.prompt("p".parse().unwrap(), text("p")).await), Code::NoSuchSession);
    let created = theirs.create("coder".parse().unwrap(), None, BTreeMap::new()).await;
    assert_eq!(code(created), Code::NoSuchAgent, "it is open to members alone");
    let share = |right| {
        let with = ShareWith::Node(scene.mesh[2].id());
        Deed::Share { shares: vec![Share { with, right }] }
    };
    session.act(share(Right::Watch)).await.unwrap();
    client.follow(EventNumber::START).next().await.unwrap();
    assert_eq!(code(client.prompt("p".parse().unwrap(), text("p")).await), Code::NotAllowed);
    assert_eq!(code(client.act(Deed::Archive).await), Code::NotAllowed);
    session.act(share(Right::Prompt)).await.unwrap();
    prompt(&client, "p").await;
    let events = until_turns(&client, 1).await;
    assert_eq!((ended(&events), tool.runs()), (1, 0));
    assert!(scene.host.script.calls.lock().unwrap()[0].tools.is_empty(), "it is not even offered");
    let mut open = scene.host.agent();
    open.open_to = OpenTo::Clients;
    scene.sessions.as_ref().unwrap().set_agents(vec![open]);
    theirs.create("coder".parse().unwrap(), None, BTreeMap::new()).await.unwrap();
    scene.end().await;
}
