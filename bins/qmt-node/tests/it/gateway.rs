//! The gateway of a second node in front of what a first one serves, when all is not well.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::stub::{HANGS, PIECES, Stub};
use crate::support::{Host, PATIENCE, Place, http, stop_both, until};

/// Two nodes, the first one passing on the stub's models.
async fn with_provider(stub: &Stub) -> (Host, Host) {
    let place = Place::new("first");
    let first = place.start_with(|config| config.providers = vec![stub.provider()]).await;
    let second = Host::new("second").await;
    second.join(&first.invite().await.token).await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_is_404_and_names_those_there_are() {
    let stub = Stub::start(&["talks"]).await;
    let (first, second) = with_provider(&stub).await;
    second.offers("talks").await;
    for host in [&first, &second] {
        let answer = http::post(host.gateway().await, "/v1/chat/completions", http::chat("unheard-of")).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "model_not_found"));
        let error = &answer.json()["error"];
        assert_eq!((&error["type"], &error["param"]), (&"invalid_request_error".into(), &"model".into()));
        assert_eq!(answer.message(), "The model `unheard-of` does not exist here. Known models: talks.");
    }
    assert!(stub.bodies().is_empty());
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_loading_is_503_until_it_answers() {
    let stub = Stub::start(&["talks"]).await;
    stub.lists(false);
    let (first, second) = with_provider(&stub).await;
    for host in [&first, &second] {
        let gateway = host.gateway().await;
        let answer = until("the model is known", || async {
            let answer = http::post(gateway, "/v1/chat/completions", http::chat("talks")).await;
            (answer.status.as_u16() != 404).then_some(answer)
        })
        .await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "model_not_ready"));
        let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
        assert!(answer.message().contains("talks"), "{answer:?}");
    }
    assert!(stub.bodies().is_empty());
    stub.lists(true);
    for host in [&first, &second] {
        let gateway = host.gateway().await;
        let answer = until("the model answers", || async {
            let answer = http::post(gateway, "/v1/chat/completions", http::chat("talks")).await;
            (answer.status.as_u16() == 200).then_some(answer)
        })
        .await;
        assert_eq!(answer.body, PIECES.concat());
    }
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_413_before_it_is_read() {
    let host = Host::new("host").await;
    let mut caller = TcpStream::connect(host.gateway().await).await.unwrap();
    let length = 64 * 1024 * 1024 + 1;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{{\"model\":"
    );
    caller.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = caller.read_to_end(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.expect("no answer before the body's end").unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\"request_too_large\"") && answer.contains("67108864"), "{answer}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_frees_the_slot_at_the_first_nodes_server() {
    let stub = Stub::start(&[HANGS]).await;
    let (first, second) = with_provider(&stub).await;
    second.offers(HANGS).await;
    let gateway = second.gateway().await;
    let mut callers = Vec::new();
    for number in 1..=3 {
        let mut answer = http::open(gateway, "/v1/chat/completions", http::chat(HANGS)).await;
        assert_eq!(answer.piece().await.unwrap().unwrap(), PIECES[0]);
        stub.wait_open(number).await;
        callers.push(answer);
    }
    callers.remove(1);
    stub.wait_open(2).await;
    drop(callers);
    stub.wait_open(0).await;
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_ends_the_answer_in_one_declared_error() {
    let stub = Stub::start(&[HANGS]).await;
    let (first, second) = with_provider(&stub).await;
    second.offers(HANGS).await;
    let gateway = second.gateway().await;
    let mut answer = http::open(gateway, "/v1/chat/completions", http::chat(HANGS)).await;
    assert_eq!(answer.piece().await.unwrap().unwrap(), PIECES[0]);
    stub.kill().await;
    let rest = String::from_utf8(answer.whole().await.body.to_vec()).unwrap();
    let (_, error) = rest.split_once("data: ").unwrap();
    let error: serde_json::Value = serde_json::from_str(error.trim()).unwrap();
    assert_eq!(error["error"]["code"], "upstream_lost", "{rest}");
    assert!(!rest.contains("[DONE]"));
    // A new request finds nobody behind the name, and says so as well.
    let answer = http::post(gateway, "/v1/chat/completions", http::chat(HANGS)).await;
    assert_eq!(answer.status.as_u16(), 503, "{answer:?}");
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.message().contains(HANGS), "{answer:?}");
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_node_that_ends_ends_its_answers_and_no_node_with_it() {
    let stub = Stub::start(&[HANGS]).await;
    let (first, second) = with_provider(&stub).await;
    second.offers(HANGS).await;
    let mut answer = http::open(second.gateway().await, "/v1/chat/completions", http::chat(HANGS)).await;
    assert_eq!(answer.piece().await.unwrap().unwrap(), PIECES[0]);
    let ((), rest) = tokio::join!(first.stop(), answer.whole());
    let rest = String::from_utf8(rest.body.to_vec()).unwrap();
    assert!(rest.contains("\"error\"") && !rest.contains("[DONE]"), "{rest}");
    stub.wait_open(0).await;
    let asking = Duration::from_secs(5);
    let listed = tokio::time::timeout(asking, http::models(second.gateway().await)).await;
    assert!(listed.is_ok(), "the second node does not answer any more");
    second.stop().await;
}
