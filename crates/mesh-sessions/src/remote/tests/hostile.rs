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
