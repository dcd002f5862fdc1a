//! Boards that nodes share: people post over the control socket, agents by their tools.

use mesh_control::{
    Client, CreateBoard, ErrorCode, EventsQuery, Happened, InviteRequest, JoinRequest, PostOnBoard,
    PromptPart, RightView, Role, SessionEvent, SessionItem, SessionQuery, ShareView,
};
use uuid::Uuid;

use crate::sessions::{begin, configure_agent, prompt, results, to_the_end};
use crate::support::process::Folder;
use crate::support::script::Script;
use crate::support::{PATIENCE, until};

async fn post(client: &Client, board: &str, text: &str) -> Result<u64, mesh_control::ClientError> {
    let parts = vec![PromptPart::Text { text: text.to_owned() }];
    let post = PostOnBoard { board: board.to_owned(), post: text.to_owned(), parts };
    Ok(client.post_on_board(&post).await?.number)
}

/// The first posts, as they come, and who wrote them.
async fn read(client: &Client, board: &str, count: usize) -> Vec<(u64, String, String)> {
    let query = EventsQuery { session: board.to_owned(), ..EventsQuery::default() };
    let mut events = client.session_events(&query).await.unwrap();
    let mut posts = Vec::new();
    while posts.len() < count {
        let item = tokio::time::timeout(PATIENCE, events.next()).await.expect("no post came").unwrap();
        let Some(SessionItem::Event(event)) = item else { panic!("{item:?} after {posts:?}") };
        posts.extend(told(&event));
    }
    posts
}

fn told(event: &SessionEvent) -> Option<(u64, String, String)> {
    let Happened::Posted { by, agent, .. } = event.happened() else { return None };
    let text = event.fields["parts"][0]["text"].as_str().unwrap().to_owned();
    Some((event.number, agent.unwrap_or(by.node), text))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_and_people_of_two_nodes_read_one_board_in_one_order() {
    let (there, here, script) = (Folder::new(), Folder::new(), Script::start().await);
    configure_agent(&there, &script, "coder", "\"board_read\", \"board_post\"");
    here.configure("[api]\nport = 0\n");
    let (mut gpu, desk) =
        tokio::join!(there.start(&["--node-name", "gpu"]), here.start(&["--node-name", "desk"]));
    let invite = gpu.client.invite(&InviteRequest::default()).await.unwrap();
    let mesh = desk.client.join(&JoinRequest { token: invite.token }).await.unwrap();
    let new = CreateBoard { id: Uuid::now_v7().to_string(), name: "plan".to_owned(), shares: Vec::new() };
    let board = gpu.client.create_board(&new).await.unwrap();
    assert_eq!(gpu.client.create_board(&new).await.unwrap().id, board.id, "the same again is the same board");
    assert_eq!(post(&gpu.client, "plan", "begin").await.unwrap(), 3);

    // What is not shared is not there for others.
    let address = format!("{}@{}", board.id, board.node);
    until("the nodes know each other", || async {
        desk.client.nodes().await.unwrap().iter().any(|node| node.name == "gpu").then_some(())
    })
    .await;
    let hidden = post(&desk.client, &address, "mine").await.unwrap_err();
    assert!(
        matches!(hidden, mesh_control::ClientError::Api(error) if error.code == ErrorCode::UnknownSession)
    );
    let all = SessionQuery { all: true, ..SessionQuery::default() };
    assert!(desk.client.boards(&all).await.unwrap().sessions.is_empty());

    let share = |right| mesh_control::ShareSession {
        session: address.clone(),
        shares: vec![ShareView {
            node: None,
            scope: Some(mesh.scope.clone()),
            role: Some(Role::Member),
            right,
        }],
    };
    gpu.client.share_session(&share(RightView::Prompt)).await.unwrap();
    let listed = desk.client.boards(&all).await.unwrap().sessions;
    assert_eq!(
        (listed.len(), listed[0].name.as_deref(), listed[0].node_name.as_str()),
        (1, Some("plan"), "gpu")
    );
    assert!(
        desk.client.sessions(&all).await.unwrap().sessions.is_empty(),
        "a board is in no list of sessions"
    );
    let number = post(&desk.client, "plan", "from desk").await.unwrap();
    assert_eq!(post(&desk.client, "plan", "from desk").await.unwrap(), number, "the same again is one post");

    // The agent reads what people wrote, and answers on the board.
    let session = begin(&gpu.client, "coder").await;
    prompt(&gpu.client, &session, r#"tool board_read {"board":"plan","after":3}"#).await;
    let first = to_the_end(&gpu.client, &session, 0).await;
    assert!(results(&first).contains("desk: from desk"), "{first:?}");
    assert!(!results(&first).contains("begin"), "{first:?}");
    prompt(&gpu.client, &session, r#"tool board_post {"board":"plan","text":"from the agent"}"#).await;
    let second = to_the_end(&gpu.client, &session, first.last().unwrap().number).await;
    assert!(results(&second).contains("posted on plan"), "{second:?}");

    let at = (read(&gpu.client, &address, 3).await, read(&desk.client, &address, 3).await);
    assert_eq!(at.0, at.1);
    let words: Vec<&str> = at.0.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(words, ["begin", "from desk", "from the agent"]);
    assert_eq!(at.0[2].1, "coder");

    // A board outlives its node, and a right that is taken away ends at once.
    gpu.kill();
    let gpu = there.start(&["--node-name", "gpu"]).await;
    assert_eq!(read(&desk.client, &address, 3).await, at.0);
    gpu.client.share_session(&share(RightView::Watch)).await.unwrap();
    let refused = post(&desk.client, &address, "more").await.unwrap_err();
    assert!(matches!(refused, mesh_control::ClientError::Api(error) if error.code == ErrorCode::NotAllowed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_uses_boards_with_the_rights_of_whom_it_works_for() {
    let (there, here, script) = (Folder::new(), Folder::new(), Script::start().await);
    configure_agent(&there, &script, "coder", "\"board_read\", \"board_post\"");
    configure_agent(&here, &script, "clerk", "\"board_read\", \"board_post\"");
    let (gpu, desk) =
        tokio::join!(there.start(&["--node-name", "gpu"]), here.start(&["--node-name", "desk"]));
    let invite = gpu.client.invite(&InviteRequest::default()).await.unwrap();
    let mesh = desk.client.join(&JoinRequest { token: invite.token }).await.unwrap();
    let member =
        |right| ShareView { node: None, scope: Some(mesh.scope.clone()), role: Some(Role::Member), right };
    for (name, shares) in [
        ("diary", Vec::new()),
        ("news", vec![member(RightView::Watch)]),
        ("plan", vec![member(RightView::Prompt)]),
    ] {
        let new = CreateBoard { id: Uuid::now_v7().to_string(), name: name.to_owned(), shares };
        gpu.client.create_board(&new).await.unwrap();
        post(&gpu.client, name, &format!("secret of {name}")).await.unwrap();
    }
    until("the agent is known", || async {
        let agents = desk.client.agents().await.unwrap();
        agents.iter().any(|agent| agent.name == "coder" && !agent.local).then_some(())
    })
    .await;
    // The peer's prompt has the host's agent see what the peer may see.
    let session = begin(&desk.client, "coder@gpu").await;
    let mut last = 0;
    let mut asked = async |client: &Client, session: &str, text: &str| {
        prompt(client, session, text).await;
        let events = to_the_end(client, session, last).await;
        last = events.last().unwrap().number;
        results(&events)
    };
    let list = asked(&desk.client, &session, "tool board_read {}").await;
    assert!(list.contains("plan@gpu") && list.contains("news@gpu") && !list.contains("diary"), "{list}");
    assert!(list.contains("to be read only"), "{list}");
    let diary = asked(&desk.client, &session, r#"tool board_read {"board":"diary"}"#).await;
    assert!(diary.contains("there is no board diary") && !diary.contains("secret"), "{diary}");
    let news = asked(&desk.client, &session, r#"tool board_read {"board":"news"}"#).await;
    assert!(news.contains("gpu: secret of news"), "{news}");
    let posted = asked(&desk.client, &session, r#"tool board_post {"board":"news","text":"hello"}"#).await;
    assert!(posted.contains("not posted on"), "{posted}");
    let posted =
        asked(&desk.client, &session, r#"tool board_post {"board":"plan","text":"hello all"}"#).await;
    assert!(posted.contains("posted on plan"), "{posted}");

    // The user's own agent reaches boards of other nodes, in its own name.
    let own = begin(&desk.client, "clerk").await;
    last = 0;
    let mut asked = async |text: &str| {
        prompt(&desk.client, &own, text).await;
        let events = to_the_end(&desk.client, &own, last).await;
        last = events.last().unwrap().number;
        results(&events)
    };
    let list = asked("tool board_read {}").await;
    assert!(list.contains("plan@gpu") && !list.contains("diary"), "{list}");
    asked(r#"tool board_post {"board":"plan@gpu","text":"from the clerk"}"#).await;
    let plan = asked(r#"tool board_read {"board":"plan"}"#).await;
    assert!(plan.contains("coder@gpu: hello") && plan.contains("clerk@desk: from the clerk"), "{plan}");
}
