use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_goes_on_over_links_that_fall_without_gap_or_repeat() {
    let words: String = (0..150).map(|word| format!("w{word} ")).collect();
    let answer = words.clone();
    let mut script = Script::new(move |_| said(&answer));
    script.pause = Duration::from_millis(10);
    let scene = Scene::new(script).await;
    let session = scene.session().await;
    let mut following = session.follow(EventNumber::START);
    prompt(&session, "one").await;
    let reading = tokio::spawn(async move { read_on(&mut following, 1).await });
    for round in 0..4_u64 {
        tokio::time::sleep(Duration::from_millis(60 + round * 37)).await;
        scene.break_link();
    }
    scene.cut();
    tokio::time::sleep(Duration::from_millis(500)).await;
    scene.heal();
    assert_eq!(streamed(&reading.await.unwrap()), words);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_wait_for_the_link_and_run_once_in_order() {
    let scene = Scene::new(Script::echo()).await;
    let session = scene.session().await;
    scene.cut();
    scene.break_link();
    let waiting: Vec<_> = (0..3)
        .map(|number| {
            let session = session.clone();
            tokio::spawn(async move { prompt(&session, &format!("p{number}")).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(400)).await;
    scene.heal();
    for (number, waiting) in waiting.into_iter().enumerate() {
        let first = waiting.await.unwrap();
        scene.break_link();
        assert_eq!(prompt(&session, &format!("p{number}")).await, first, "said again, done once");
    }
    assert_eq!(ended(&until_turns(&session, 3).await), 3);
    let prompted = until_turns(&session, 3).await;
    let prompted = prompted.iter().filter(|event| matches!(event.body, Body::Prompted { .. }));
    assert_eq!(prompted.count(), 3);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_outlives_the_crash_of_its_host() {
    let mut script = Script::new(|_| said(&"word ".repeat(60)));
    script.pause = Duration::from_millis(5);
    let mut scene = Scene::new(script).await;
    let session = scene.session().await;
    let mut following = session.follow(EventNumber::START);
    prompt(&session, "one").await;
    let reading = tokio::spawn(async move { read_on(&mut following, 2).await });
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        scene.crash_host().await;
        scene.break_link();
        scene.start_host().await;
    }
    prompt(&session, "two").await;
    let events = reading.await.unwrap();
    let starts = events.iter().filter(|event| matches!(event.body, Body::TurnStarted { .. })).count();
    assert_eq!((starts, ended(&events)), (2, 2), "one end for each turn");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stays_away_is_one_error_for_its_reader() {
    let mut scene = Scene::new(Script::echo()).await;
    scene.config.grace = Duration::from_millis(800);
    let session = scene.session().await;
    let mut following = session.follow(EventNumber::START);
    following.next().await.unwrap();
    scene.cut();
    scene.break_link();
    let error = following.next().await.unwrap_err();
    assert!(matches!(error, RemoteError::Lost { .. }), "{error}");
    assert_eq!(following.next().await.unwrap_err(), error);
    let lost = session.prompt("one".parse().unwrap(), text("one")).await;
    assert!(matches!(lost, Err(RemoteError::Lost { .. })), "{lost:?}");
    scene.heal();
    scene.end().await;
}

/// Ids of prompts are each caller's own: both count from 1, and nobody's prompt is taken for the other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_callers_that_count_alike_are_both_answered() {
    let scene = Scene::new(Script::echo()).await;
    let session = scene.session().await;
    let share = Share { with: ShareWith::Node(scene.mesh[2].id()), right: Right::Prompt };
    session.act(Deed::Share { shares: vec![share] }).await.unwrap();
    let other = scene.remote(2).session(session.id());
    let send = |session: &RemoteSession, who: &'static str| {
        let session = session.clone();
        async move {
            let mut numbers = Vec::new();
            for count in 1..=5 {
                let id = count.to_string();
                numbers
                    .push(session.prompt(id.parse().unwrap(), text(&format!("{who}{count}"))).await.unwrap());
            }
            numbers
        }
    };
    let (mut mine, mut theirs) = (session.follow(EventNumber::START), other.follow(EventNumber::START));
    let (one, two) = tokio::join!(send(&session, "a"), send(&other, "b"));
    assert!(one.iter().all(|number| !two.contains(number)), "{one:?} {two:?}");
    let (mine, theirs) = tokio::join!(read_on(&mut mine, 10), read_on(&mut theirs, 10));
    assert_eq!(mine, theirs, "both see the same");
    let answers = streamed(&mine);
    for count in 1..=5 {
        for who in ["a", "b"] {
            assert_eq!(answers.matches(&format!("you said {who}{count}")).count(), 1, "{answers}");
        }
    }
    assert_eq!(tokio::join!(send(&session, "a"), send(&other, "b")), (one, two), "said again, done once");
    scene.end().await;
}

/// The link falls while the contents of a prompt are under way, and while a content is fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_megabytes_arrive_once_though_the_link_falls_under_them() {
    let scene = Scene::new(Script::new(|_| said("seen"))).await;
    let session = scene.session().await;
    let image = Shown::Image { media_type: "image/png".to_owned(), bytes: vec![9; 300_000].into() };
    let parts = vec![Shown::Text("ü".repeat(5 << 20)), image];
    let sending = tokio::spawn({
        let (session, parts) = (session.clone(), parts.clone());
        async move { session.prompt("big".parse().unwrap(), parts).await.unwrap() }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(7)).await;
        scene.break_link();
    }
    let number = sending.await.unwrap();
    let again = session.prompt("big".parse().unwrap(), parts.clone()).await.unwrap();
    assert_eq!(again, number);
    let events = until_turns(&session, 1).await;
    let prompted = events.iter().filter(|event| matches!(event.body, Body::Prompted { .. }));
    assert_eq!(prompted.count(), 1);
    assert_eq!(scene.host.script.calls.lock().unwrap()[0].messages[1], Message::User(parts));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_before_the_sessions_of_a_node_are_at_work_waits_for_them() {
    let scene = Scene::new(Script::echo()).await;
    // The second node has just been started: it is linked with, and its sessions are not there yet.
    let late = &scene.mesh[1];
    announce(&late.transport);
    let host =
        RemoteHost::new(scene.mesh[0].transport.clone(), scene.mesh.scope(), late.id(), scene.config.clone());
    let asked =
        tokio::spawn(async move { host.create("coder".parse().unwrap(), None, BTreeMap::new()).await });
    let heard = async {
        while late.transport.metrics().streams_served == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), heard).await.expect("it is asked too early");
    let mut second = Host::new(Script::echo());
    second.me = late.id();
    let sessions = second.start().await;
    serve(&late.transport, &sessions, scene.config.clone());
    let session =
        tokio::time::timeout(Duration::from_secs(40), asked).await.expect("an answer").unwrap().unwrap();
    prompt(&session, "one").await;
    assert_eq!(ended(&until_turns(&session, 1).await), 1);
    sessions.shutdown().await;
    scene.end().await;
}
