use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_reads_nothing_holds_nobody_up_and_is_let_go() {
    let scene = Scene::new(Script::new(|_| said(&"x".repeat(60_000)))).await;
    let session = scene.session().await;
    let ask = Ask::Attach { session: session.id(), after: EventNumber::START };
    let mut stuck = scene.raw(&serde_json::to_vec(&ask).unwrap()).await;
    for turn in 1..=20 {
        prompt(&session, &format!("p{turn}")).await;
    }
    assert_eq!(ended(&until_turns(&session, 20).await), 20);
    // It says nothing, so the host ends its stream.
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        stuck.read_to_end(&mut rest).await
    });
    assert!(end.await.expect("it ends").is_err(), "cut off, and not ended properly");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_follow_the_protocol_is_refused() {
    let scene = Scene::new(Script::echo()).await;
    let session = scene.session().await;
    let prompt_without_end = Ask::Prompt {
        session: session.id(),
        prompt: "p".parse().unwrap(),
        parts: vec![crate::proto::wire::PartHead::Text { bytes: 5 }],
    };
    let cases: [(Vec<u8>, Vec<u8>); 4] = [
        (b"{}".to_vec(), vec![]),
        (vec![0xff; 100], vec![]),
        (serde_json::to_vec(&prompt_without_end).unwrap(), vec![PIECE, b'a', b'b', b'c', b'd', b'e', b'f']),
        (serde_json::to_vec(&prompt_without_end).unwrap(), vec![PIECE, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ];
    for (ask, piece) in cases {
        let mut stream = scene.raw(&ask).await;
        if !piece.is_empty() {
            write_frame(&mut stream, &piece, FRAME_BYTES_MAX).await.unwrap();
        }
        let mut told = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut told)).await;
        let is_refused = String::from_utf8_lossy(&told).contains("malformed");
        assert!(read.expect("an end").is_err() || is_refused, "{told:?}");
    }
    prompt(&session, "fine").await;
    until_turns(&session, 1).await;
    scene.end().await;
}

/// Whatever comes, and wherever it breaks off: the host refuses or goes on, and serves the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrary_frames_end_their_stream_and_nothing_else() {
    let scene = Scene::new(Script::echo()).await;
    let session = scene.session().await;
    let ask = |ask: &Ask| serde_json::to_vec(ask).unwrap();
    let valid = [
        ask(&Ask::Attach { session: session.id(), after: EventNumber::START }),
        ask(&Ask::List { agent: None, before: None, limit: u32::MAX, boards: false }),
        ask(&Ask::Prompt {
            session: session.id(),
            prompt: "q".parse().unwrap(),
            parts: vec![crate::proto::wire::PartHead::Text { bytes: u64::MAX }; 9],
        }),
        ask(&Ask::Do { session: session.id(), what: Deed::Label { labels: BTreeMap::new() } }),
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    for round in 0..200_usize {
        let mut bytes = valid[round % valid.len()].clone();
        for _ in 0..next(4) {
            let at = next(bytes.len());
            bytes[at] = u8::try_from(next(256)).unwrap();
        }
        bytes.truncate(1 + next(bytes.len()) + round % 2 * bytes.len());
        let mut stream = scene.raw(&bytes).await;
        let mut told = [0; 64];
        // Some of it is valid still, and is answered; its stream ends with our going.
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut told)).await;
        assert!(read.is_ok(), "no answer to {}", String::from_utf8_lossy(&bytes));
    }
    prompt(&session, "fine").await;
    until_turns(&session, 1).await;
    scene.end().await;
}

/// A host that says what it likes to its reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_follow_the_protocol_is_an_error_for_its_callers() {
    let mut scene = Scene::new(Script::echo()).await;
    scene.config.grace = Duration::from_millis(700);
    let says: std::sync::Arc<std::sync::Mutex<Vec<u8>>> = Default::default();
    let said = says.clone();
    scene.mesh[0].transport.serve(
        PROTOCOL,
        mesh_transport::handler_fn(move |_: mesh_transport::Peer, mut stream: mesh_transport::Stream| {
            let said = said.lock().unwrap().clone();
            async move {
                // A caller that has heard enough goes.
                let _ = write_frame(&mut stream, &said, FRAME_BYTES_MAX).await;
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
            }
        }),
    );
    let id = "0197a5c2-0000-7000-8000-000000000007".parse().unwrap();
    let session = scene.remote(1).session(id);
    let event = Event { number: EventNumber(5), at_ms: 1, body: Body::Resumed };
    for frame in [
        b"{}".to_vec(),
        vec![0xff; 9],
        vec![PIECE; 9],
        serde_json::to_vec(&Tell::Event { event }).unwrap(),
        serde_json::to_vec(&Tell::Content { bytes: u64::MAX }).unwrap(),
    ] {
        says.lock().unwrap().clone_from(&frame);
        let what = String::from_utf8_lossy(&frame);
        let read = session.follow(EventNumber::START).next().await;
        assert!(matches!(read, Err(RemoteError::Lost { .. })), "{what}: {read:?}");
        let prompted = session.prompt("p".parse().unwrap(), text("p")).await;
        assert!(matches!(prompted, Err(RemoteError::Lost { .. })), "{what}: {prompted:?}");
        let content = session.content(crate::ids::BlobId::of(b"x")).await;
        assert!(matches!(content, Err(RemoteError::Lost { .. })), "{what}: {content:?}");
    }
    scene.end().await;
}
