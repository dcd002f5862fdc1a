//! Agents' calls through this node's own gateway.

use std::time::Duration;

use futures_util::StreamExt;
use mesh_inference::backend::{Backend, Share};
use mesh_inference::chat::{Answer, Call, Chat, ChatError, FinishReason, Message, Part, Piece, Usage};
use mesh_transport::testing::Mesh;

use crate::gateway_mesh::Node;
use crate::gateway_support::*;

pub(crate) fn call(model: &str) -> Call {
    Call {
        model: model.into(),
        peer: None,
        messages: vec![Message::User(vec![Part::Text("hello".into())])],
        tools: Vec::new(),
        max_tokens: None,
        temperature: None,
        on_behalf_of: None,
    }
}

/// A stream of one text, as OpenAI's API has it.
pub(crate) fn says(text: &str) -> Act {
    let events = format!(
        "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}]}}\n\n\
         data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":2}}}}\n\ndata: [DONE]\n\n"
    );
    Act::Raw([sse_head(), chunk(events.as_bytes()), LAST_CHUNK.to_vec()].concat())
}

pub(crate) async fn all(answer: Answer) -> Vec<Result<Piece, ChatError>> {
    tokio::time::timeout(Duration::from_secs(20), answer.pieces.collect())
        .await
        .expect("the answer never ends")
}

fn finished(input: u64, output: u64) -> Piece {
    let usage = Usage { input_tokens: input, output_tokens: output, cost_micros: None };
    Piece::Finished { reason: FinishReason::Done, usage }
}

#[tokio::test]
async fn an_agent_asks_as_any_client_does_and_needs_no_key() {
    let stub = Stub::start(|_| says("hi")).await;
    let (_state, backend) = backend("m", stub.addr);
    let mut config = config();
    config.api_key = Some(mesh_inference::backend::Secret::new("callers-key"));
    let front =
        Front::with(config, vec![backend], std::sync::Arc::new(mesh_inference::gateway::NoPeers)).await;
    let chat = Chat::new(&front.gateway);
    let answer = chat.call(call("m")).await.unwrap();
    assert_eq!(answer.peer, None);
    assert_eq!(all(answer).await, [Ok(Piece::Text("hi".into())), Ok(finished(1, 2))]);
    let seen = stub.last();
    assert_eq!(seen.line, "POST /v1/chat/completions HTTP/1.1");
    let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!((&body["model"], &body["stream"]), (&"m".into(), &true.into()));
    assert_eq!(seen.header("authorization"), None);

    let unknown = chat.call(call("x")).await.unwrap_err();
    assert!(matches!(&unknown, ChatError::Refused(why) if why.contains("`x`")), "{unknown}");
    front.gateway.shutdown().await;
    assert!(matches!(chat.call(call("m")).await, Err(ChatError::Unavailable(_))));
}

#[tokio::test]
async fn large_questions_and_answers_pass() {
    let text = "x".repeat(3_000_000);
    let long = text.clone();
    let stub = Stub::start(move |seen| {
        assert!(seen.body.len() > 10_000_000);
        let pieces = long.as_bytes().chunks(50_000).map(|part| {
            let part = std::str::from_utf8(part).unwrap();
            chunk(format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{part}\"}}}}]}}\n\n").as_bytes())
        });
        let last =
            chunk(b"data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
        Act::Raw([sse_head(), pieces.collect::<Vec<_>>().concat(), last, LAST_CHUNK.to_vec()].concat())
    })
    .await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let image = Part::Image { media_type: "image/png".into(), bytes: vec![7; 8_000_000].into() };
    let asked = Call { messages: vec![Message::User(vec![image])], ..call("m") };
    let answer = Chat::new(&front.gateway).call(asked).await.unwrap();
    let said: String = all(answer)
        .await
        .into_iter()
        .filter_map(|piece| match piece.unwrap() {
            Piece::Text(text) => Some(text),
            _ => None,
        })
        .collect();
    assert!(said == text);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn what_a_provider_does_wrong_is_sorted() {
    let stub = Stub::start(|seen| {
        let body = String::from_utf8(seen.body.clone()).unwrap();
        let error = "{\"error\":{\"message\":\"so\"}}";
        match () {
            () if body.contains("\"full\"") => {
                Act::Raw(b"HTTP/1.1 429 X\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n".to_vec())
            }
            () if body.contains("\"wrong\"") => Act::Raw(answer(400, "application/json", error)),
            () if body.contains("\"broken\"") => Act::Raw(answer(500, "application/json", error)),
            () if body.contains("\"nothing\"") => Act::RawThenClose(Vec::new()),
            () => Act::RawThenClose(
                [sse_head(), chunk(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"cho")]
                    .concat(),
            ),
        }
    })
    .await;
    let models = ["full", "wrong", "broken", "nothing", "half"];
    let (states, backends): (Vec<_>, Vec<_>) = models
        .map(|model| {
            let (state, one) = backend(model, stub.addr);
            (state, Backend { kind: mesh_inference::backend::BackendKind::Provider, ..one })
        })
        .into_iter()
        .unzip();
    let front = Front::start(backends).await;
    let chat = Chat::new(&front.gateway);
    let full = chat.call(call("full")).await.unwrap_err();
    assert!(
        matches!(full, ChatError::Busy { retry_after: Some(wait), .. } if wait == Duration::from_secs(9)),
        "{full}"
    );
    assert_eq!(chat.call(call("wrong")).await.unwrap_err(), ChatError::Refused("so".into()));
    assert_eq!(chat.call(call("broken")).await.unwrap_err(), ChatError::Unavailable("so".into()));
    let nothing = chat.call(call("nothing")).await.unwrap_err();
    assert!(matches!(nothing, ChatError::Unavailable(_)), "{nothing}");
    let half = all(chat.call(call("half")).await.unwrap()).await;
    assert_eq!(half[0], Ok(Piece::Text("a".into())));
    assert!(matches!(half[1], Err(ChatError::BrokenOff(_))) && half.len() == 2, "{half:?}");
    drop(states);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_is_dropped_ends_at_the_model() {
    let mut stub = Stub::start(|_| {
        Act::RawThenHang(
            [sse_head(), chunk(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n")].concat(),
        )
    })
    .await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut answer = Chat::new(&front.gateway).call(call("m")).await.unwrap();
    assert_eq!(answer.pieces.next().await, Some(Ok(Piece::Text("a".into()))));
    drop(answer);
    stub.wait_left(1).await;
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn an_agent_names_the_node_that_answers_and_nobody_else_is_asked() {
    let far_stub = Stub::start(|_| says("far")).await;
    let near_stub = Stub::start(|_| says("near")).await;
    let (_far_state, far_backend) = backend("m", far_stub.addr);
    let (_near_state, near_backend) = backend("m", near_stub.addr);
    let mesh = Mesh::memory(3).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), vec![near_backend]).await;
    let far = Node::start(&mesh[1], mesh.scope(), config(), vec![far_backend]).await;
    near.hears_of(&mesh, 1, "m");
    let chat = Chat::new(&near.gateway);
    let ask = async |peer: Option<usize>| {
        let asked = Call { peer: peer.map(|peer| mesh[peer].id()), ..call("m") };
        let answer = chat.call(asked).await?;
        let peer = answer.peer;
        let Some(Ok(Piece::Text(text))) = all(answer).await.into_iter().next() else { panic!("no text") };
        Ok::<_, ChatError>((text, peer))
    };
    assert_eq!(ask(Some(1)).await.unwrap(), ("far".into(), Some(mesh[1].id())));
    assert_eq!(ask(Some(0)).await.unwrap(), ("near".into(), Some(mesh[0].id())));
    assert_eq!(ask(None).await.unwrap(), ("near".into(), Some(mesh[0].id())));
    let stranger = ask(Some(2)).await.unwrap_err();
    assert!(matches!(&stranger, ChatError::Refused(why) if why.contains("serves no model")), "{stranger}");
    // The node that was named is away: the one that is here does not step in.
    far.gateway.shutdown().await;
    mesh[1].transport.shutdown().await;
    let asked = near_stub.count();
    let away = ask(Some(1)).await.unwrap_err();
    assert!(matches!(away, ChatError::Unavailable(_)), "{away}");
    assert_eq!(near_stub.count(), asked);
    near.gateway.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test]
async fn what_a_node_does_not_share_it_gives_to_no_agent_of_another_one() {
    let stub = Stub::start(|_| says("secret")).await;
    let (_state, backend) = backend("m", stub.addr);
    let mesh = Mesh::memory(2).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let far =
        Node::start(&mesh[1], mesh.scope(), config(), vec![Backend { share: Share::None, ..backend }]).await;
    near.hears_of(&mesh, 1, "m");
    let asked = Call { peer: Some(mesh[1].id()), ..call("m") };
    assert!(Chat::new(&near.gateway).call(asked).await.is_err());
    assert_eq!(stub.count(), 0);
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}
