//! Providers: discovered, watched, keyed, taken out.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_inference::backend::{BackendState, Backends, Secret, Share};
use mesh_inference::gateway::{Gateway, NoPeers, Provider, ProviderConfig, ProviderError, ProviderModel};
use mesh_inference::terms::{Api, Quota};
use mesh_transport::testing::until;

use crate::gateway_support::*;

fn provider(url: &str) -> ProviderConfig {
    ProviderConfig {
        name: "box".into(),
        base_url: url.parse().unwrap(),
        api_key: Some(Secret::new("k-1")),
        models: Vec::new(),
        share: Share::Members,
        refresh: Duration::from_millis(20),
        timeout: Duration::from_secs(5),
        api: Api::OpenAi,
        quota: Quota::default(),
        price: None,
    }
}

fn names(backends: &Backends) -> Vec<String> {
    let mut names: Vec<_> = backends.list().iter().map(|backend| backend.model.clone()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn models_are_discovered_followed_and_asked_with_the_key() {
    let listed = Arc::new(Mutex::new("{\"data\":[{\"id\":\"a\"},{\"id\":\"b\"},{\"id\":\"\"}]}".to_owned()));
    let list = listed.clone();
    let stub = Stub::start(move |seen| match seen.line.as_str() {
        "GET /api/v1/models HTTP/1.1" => json(&list.lock().unwrap()),
        _ => json("\"done\""),
    })
    .await;
    let backends = Backends::new();
    let mut running =
        Provider::start(provider(&format!("http://{}/api/v1", stub.addr)), backends.clone()).unwrap();
    until("both are found", || async { names(&backends) == ["a", "b"] }).await;
    assert_eq!(stub.last().header("authorization"), Some("Bearer k-1"));
    *listed.lock().unwrap() = "{\"data\":[{\"id\":\"b\"},{\"id\":\"c\"}]}".into();
    until("one went, one came", || async { names(&backends) == ["b", "c"] }).await;

    let gateway = Gateway::start(config(), backends.clone(), Arc::new(NoPeers), None).await.unwrap();
    let mut caller = Caller::to(gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", "{\"model\":\"c\"}")).await;
    assert_eq!(caller.answer().await.text(), "\"done\"");
    let asked = stub.seen.lock().unwrap().iter().find(|seen| seen.line.starts_with("POST")).cloned().unwrap();
    assert_eq!(asked.line, "POST /api/v1/chat/completions HTTP/1.1");
    assert_eq!(asked.header("authorization"), Some("Bearer k-1"));

    running.shutdown().await;
    running.shutdown().await;
    assert!(names(&backends).is_empty());
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_provider_that_goes_is_unready_and_ready_again_when_it_returns() {
    let status = Arc::new(AtomicUsize::new(500));
    let code = status.clone();
    let stub = Stub::start(move |_| {
        let code = u16::try_from(code.load(Ordering::Relaxed)).unwrap();
        Act::Raw(answer(code, "text/plain", "x"))
    })
    .await;
    let backends = Backends::new();
    let mut config = provider(&format!("http://{}", stub.addr));
    config.models = vec![ProviderModel { model: "m".into(), upstream: Some("vendor/m".into()) }];
    let mut running = Provider::start(config, backends.clone()).unwrap();
    let state = || backends.get("m")[0].state.borrow().to_string();
    assert_eq!(backends.get("m")[0].upstream_model.as_deref(), Some("vendor/m"));
    until("it is seen away", || async { state().contains("provider box: it answers 500") }).await;
    // Configured models need no list: any answer shows that it lives.
    status.store(404, Ordering::Relaxed);
    until("it is back", || async { state() == "ready" }).await;
    status.store(401, Ordering::Relaxed);
    until("the key is refused", || async {
        matches!(*backends.get("m")[0].state.borrow(), BackendState::Failed { .. })
    })
    .await;
    status.store(200, Ordering::Relaxed);
    until("it is back again", || async { state() == "ready" }).await;
    assert_eq!(stub.last().line, "GET /v1/models HTTP/1.1");
    running.shutdown().await;
}

#[tokio::test]
async fn configurations_that_cannot_work_are_refused() {
    for url in ["/v1", "ftp://host/v1", "http://user:pass@host/v1", "http://host/v1?key=1"] {
        let refused = Provider::start(provider(url), Backends::new());
        assert!(matches!(refused, Err(ProviderError::BadUrl { .. })), "{url}");
    }
    let mut config = provider("http://host");
    config.api_key = Some(Secret::new("a\nb"));
    assert!(matches!(Provider::start(config, Backends::new()), Err(ProviderError::BadKey { .. })));
}

#[tokio::test]
async fn https_is_spoken_and_a_plain_server_behind_it_is_an_error_that_says_so() {
    let stub = Stub::start(|_| json("{}")).await;
    let backends = Backends::new();
    let mut config = provider(&format!("https://{}", stub.addr));
    config.models = vec!["m".into()];
    config.timeout = Duration::from_millis(300);
    let mut running = Provider::start(config, backends.clone()).unwrap();
    until("it fails", || async { backends.get("m")[0].state.borrow().to_string().contains("provider box") })
        .await;
    assert_eq!(stub.count(), 0);
    running.shutdown().await;
}
