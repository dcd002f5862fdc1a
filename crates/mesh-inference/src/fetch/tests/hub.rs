//! The hub and URLs: what they answer, and what comes of it.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::server::{Reply, Seen, Server, file};
use super::*;
use crate::backend::Secret;

const MIB: usize = 1 << 20;
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub answers for a large file: what it is, and where it lies.
fn linked(body: &[u8], to: &str) -> Reply {
    Reply::status(302)
        .with("location", to)
        .with("x-linked-etag", format!("\"{}\"", sha256(body)))
        .with("x-linked-size", body.len())
        .with("x-repo-commit", COMMIT)
}

fn at(folder: &Path, server: &Server) -> Fetch {
    let config = config(folder).with_endpoint(&server.url("")).unwrap();
    Fetch::new(config, None).unwrap()
}

async fn pull(fetch: &Fetch, what: &str) -> Result<Pulled, FetchError> {
    done(&fetch.pull(what)?).await
}

/// Downloads a URL's file from a server of this script.
async fn of_url(
    script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    fragment: &str,
) -> (Server, tempfile::TempDir, Result<Pulled, FetchError>) {
    let server = Server::start(script).await;
    let folder = tempfile::tempdir().unwrap();
    let fetch = at(folder.path(), &server);
    let ended = pull(&fetch, &format!("{}{fragment}", server.url("/files/m.gguf"))).await;
    fetch.shutdown().await;
    (server, folder, ended)
}

#[tokio::test]
async fn a_hub_file_comes_by_way_of_its_store_is_checked_and_found_by_the_catalogue() {
    let body = model(2 * MIB + 77);
    let given = body.clone();
    let store = Server::start(move |seen, _| file(seen, &given, "\"store\"")).await;
    let (known, to) = (body.clone(), store.url("/blob?signature=secret"));
    let hub = Server::start(move |_, _| linked(&known, &to)).await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path()).with_endpoint(&hub.url("")).unwrap();
    config.token = Some(Secret::new("hf_token"));
    let fetch = Fetch::new(config, None).unwrap();
    let pulled = pull(&fetch, "org/repo/m.gguf").await.unwrap();
    let path = folder.path().join("org/repo/m.gguf");
    assert_eq!((&pulled.files[..], pulled.checked), (&[path.clone()][..], Checked::Sha256));
    assert_eq!(std::fs::read(&path).unwrap(), body);
    assert!(leftovers(folder.path()).is_empty());
    let paths: Vec<String> = hub.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    assert_eq!(
        paths,
        [
            "HEAD /org/repo/resolve/main/m.gguf".to_owned(),
            format!("GET /org/repo/resolve/{COMMIT}/m.gguf") // the very version that was asked about
        ]
    );
    assert!(hub.seen().iter().all(|seen| seen.header("authorization") == Some("Bearer hf_token")));
    assert!(
        store.seen().iter().all(|seen| seen.header("authorization").is_none()),
        "the token stays at the hub"
    );
    let found =
        crate::catalogue::Catalogue::scan(&[folder.path().to_owned()]).resolve("org/repo/m.gguf").unwrap();
    assert_eq!((found.name.as_str(), found.file_bytes), ("m", body.len() as u64));
    // Once more: nobody is asked.
    assert_eq!(pull(&fetch, "org/repo/m.gguf").await.unwrap().checked, Checked::Here);
    assert_eq!(hub.seen().len(), 2);
    fetch.shutdown().await;
}

#[tokio::test]
async fn every_part_of_a_split_model_comes() {
    let server = Server::start(|seen, _| {
        let part: usize = seen.path.split("m-0000").nth(1).unwrap()[..1].parse().unwrap();
        let body = model(MIB + part);
        file(seen, &body, "\"x\"").with("x-linked-etag", format!("\"{}\"", sha256(&body)))
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let fetch = at(folder.path(), &server);
    let call = fetch.pull("org/repo/q/m-00002-of-00003.gguf").unwrap();
    let pulled = done(&call).await.unwrap();
    assert_eq!((pulled.files.len(), pulled.bytes, pulled.checked), (3, 3 * MIB as u64 + 6, Checked::Sha256));
    assert_eq!(call.progress().borrow().total, Some(pulled.bytes));
    let catalogue = crate::catalogue::Catalogue::scan(&[folder.path().to_owned()]);
    assert_eq!(catalogue.resolve("m").unwrap().file_bytes, pulled.bytes);
    fetch.shutdown().await;
}

#[tokio::test]
async fn a_line_that_breaks_often_gets_there_by_ranges() {
    let body = model(2 * MIB + 9);
    let given = body.clone();
    // Far more breaks than faults in a row are taken, and each brings less than a chunk.
    let (server, folder, ended) =
        of_url(move |seen, _| file(seen, &given, "\"a\"").cut_at(200_000), "").await;
    assert_eq!(ended.unwrap().checked, Checked::Not);
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    let from: Vec<usize> = server.seen().iter().map(Seen::from).collect();
    assert!(from.len() > 10 && from[1..].is_sorted(), "{from:?}");
    assert!(server.seen()[5].header("if-range") == Some("\"a\""));
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_beginning() {
    let body = model(3 * MIB);
    let given = body.clone();
    let (server, folder, ended) = of_url(
        move |_, number| match number {
            0 | 1 => {
                Reply::body(&given).with("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT").cut_at(MIB + 5)
            }
            _ => Reply::body(&given).with("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
        },
        &format!("#sha256={}", sha256(&body)),
    )
    .await;
    assert_eq!(ended.unwrap().checked, Checked::Sha256);
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    assert_eq!(server.count("GET"), 3);
}

#[tokio::test]
async fn a_file_that_was_replaced_meanwhile_begins_anew() {
    let (old, new) = (model(3 * MIB), model(2 * MIB));
    let expected = new.clone();
    let (server, folder, ended) = of_url(
        move |seen, number| match number {
            0 | 1 => file(seen, &old, "\"old\"").cut_at(MIB + 5),
            _ => file(seen, &new, "\"new\""),
        },
        "",
    )
    .await;
    assert_eq!(ended.unwrap().bytes, expected.len() as u64);
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), expected);
    assert!(server.seen().iter().any(|seen| seen.header("if-range") == Some("\"old\"")));
}

#[tokio::test]
async fn a_file_that_changes_with_every_request_is_given_up() {
    let body = model(MIB);
    let (_server, folder, ended) =
        of_url(move |seen, number| file(seen, &body, &format!("\"{number}\"")), "").await;
    assert!(matches!(ended, Err(FetchError::Changing { .. })), "{ended:?}");
    assert!(!folder.path().join("m.gguf").exists());
}

#[tokio::test]
async fn what_has_another_hash_is_thrown_away() {
    let (body, other) = (model(2 * MIB), model(2 * MIB + 1));
    let (_server, folder, ended) =
        of_url(move |seen, _| file(seen, &body, "\"a\""), &format!("#sha256={}", sha256(&other))).await;
    assert!(matches!(ended, Err(FetchError::WrongHash { .. })), "{ended:?}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn damage_from_an_earlier_try_is_mended() {
    let body = model(3 * MIB);
    let mut other = body.clone();
    other[99] ^= 1;
    let url = {
        let hash = sha256(&body);
        move |server: &Server| format!("{}#sha256={hash}", server.url("/m.gguf"))
    };
    let given = body.clone();
    let server = Server::start(move |seen, number| match number {
        1 => file(seen, &other, "\"a\"").then_silence(MIB + 7),
        _ => file(seen, &given, "\"a\""),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let fetch = at(folder.path(), &server);
    let first = fetch.pull(&url(&server)).unwrap();
    until(&first, "a chunk is there", |progress| progress.bytes == MIB as u64).await;
    drop(first);
    let again = pull(&fetch, &url(&server)).await;
    assert_eq!(again.unwrap().checked, Checked::Sha256);
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    fetch.shutdown().await;
}

#[tokio::test]
async fn answers_that_no_other_try_would_change_end_it_at_once() {
    type IsIt = fn(&FetchError) -> bool;
    let refused: [(u16, IsIt); 5] = [
        (404, |error| matches!(error, FetchError::NotFound { .. })),
        (401, |error| matches!(error, FetchError::Denied { with_token: false, .. })),
        (403, |error| matches!(error, FetchError::Denied { status: 403, .. })),
        (400, |error| matches!(error, FetchError::Server { .. })),
        (304, |error| matches!(error, FetchError::Server { .. })),
    ];
    for (status, is_it) in refused {
        let (server, folder, ended) = of_url(move |_, _| Reply::status(status), "").await;
        let error = ended.unwrap_err();
        assert!(is_it(&error), "{status}: {error:?}");
        assert_eq!((server.seen().len(), leftovers(folder.path()).len()), (1, 0), "{status}");
    }
}

#[tokio::test]
async fn answers_that_may_be_better_next_time_are_tried_again_and_then_given_up() {
    let body = model(MIB);
    let (server, _folder, ended) = of_url(
        move |seen, number| match number {
            0 => Reply::status(429).with("retry-after", "0"),
            1 => Reply::status(503),
            2 => file(seen, &body, "\"a\"").cut_at(0),
            _ => file(seen, &body, "\"a\""),
        },
        "",
    )
    .await;
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!(server.count("GET"), 4, "the answer that says what it is brings no byte by itself");
    let (server, _folder, ended) = of_url(|_, _| Reply::status(500), "").await;
    assert!(matches!(&ended, Err(FetchError::Unreachable { tries: 4, .. })), "{ended:?}");
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn the_time_that_a_busy_server_names_is_waited() {
    let body = model(MIB);
    let server = Server::start(move |seen, number| match number {
        0 => Reply::status(429).with("retry-after", "100000"),
        _ => file(seen, &body, "\"a\""),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let fetch = at(folder.path(), &server);
    let pull = fetch.pull(&server.url("/m.gguf")).unwrap();
    // Ten times the longest own wait of 50 ms: no server makes a download sleep for a day.
    until(&pull, "it waits and says for whom", |progress| match &progress.stage {
        Stage::Waiting(why) => {
            why.contains("it answered 429 Too Many Requests; again in 1 s") && why.contains("127.0.0.1")
        }
        _ => false,
    })
    .await;
    done(&pull).await.unwrap();
    fetch.shutdown().await;
}

#[tokio::test]
async fn no_answer_is_longer_than_it_says() {
    let body = model(MIB + 3);
    let endless = [body.clone(), vec![7; 5 * MIB]].concat();
    let length = body.len();
    let (_server, folder, ended) =
        of_url(move |_, _| Reply::body(&endless).with("content-length", length).with("etag", "\"a\""), "")
            .await;
    assert_eq!(ended.unwrap().bytes, length as u64);
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    let (_server, _folder, ended) =
        of_url(|_, _| Reply::body(&model(MIB)).with("x-no-length", "1"), "").await;
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("does not say how long"), "{error}");
    for length in [0, u64::MAX, 1 << 41] {
        let (_server, _folder, ended) =
            of_url(move |_, _| Reply::body(b"GGUF").with("content-length", length), "").await;
        assert!(
            matches!(ended, Err(FetchError::Server { .. } | FetchError::Unreachable { .. })),
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn a_store_that_has_another_length_than_the_hub_says_is_named() {
    let (said, body) = (model(2 * MIB), model(MIB));
    let store = Server::start(move |seen, _| file(seen, &body, "\"s\"")).await;
    let to = store.url("/x");
    let hub = Server::start(move |_, _| linked(&said, &to)).await;
    let folder = tempfile::tempdir().unwrap();
    let fetch = at(folder.path(), &hub);
    let error = pull(&fetch, "org/repo/m.gguf").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&store.addr.to_string()) && text.contains("1048576 bytes where 2097152"), "{text}");
    fetch.shutdown().await;
}

#[tokio::test]
async fn a_page_is_no_model() {
    let (_server, folder, ended) =
        of_url(|_, _| Reply::body(b"<html>please log in</html>").with("etag", "\"a\""), "").await;
    assert!(matches!(ended, Err(FetchError::NotGguf { .. })), "{ended:?}");
    assert!(!folder.path().join("m.gguf").exists());
}

#[tokio::test]
async fn redirects_are_bounded() {
    let (server, _folder, ended) = of_url(|_, _| Reply::status(302).with("location", "/again"), "").await;
    assert!(ended.unwrap_err().to_string().contains("redirects"));
    assert_eq!(server.seen().len(), 11);
}

#[tokio::test]
async fn another_file_of_the_name_is_not_touched() {
    let body = model(MIB);
    let server = {
        let body = body.clone();
        Server::start(move |seen, _| file(seen, &body, "\"a\"")).await
    };
    let folder = tempfile::tempdir().unwrap();
    let fetch = at(folder.path(), &server);
    let url = format!("{}#sha256={}", server.url("/m.gguf"), sha256(&body));
    let mut same_size = body.clone();
    same_size[50] ^= 1;
    for other in [b"mine".to_vec(), same_size] {
        std::fs::write(folder.path().join("m.gguf"), &other).unwrap();
        let error = pull(&fetch, &url).await.unwrap_err();
        assert!(matches!(error, FetchError::Occupied { .. }), "{error:?}");
        assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), other);
    }
    std::fs::write(folder.path().join("m.gguf"), &body).unwrap();
    assert_eq!(pull(&fetch, &url).await.unwrap().checked, Checked::Sha256, "the right one");
    fetch.shutdown().await;
}

#[tokio::test]
async fn a_silent_server_is_asked_again() {
    let body = model(2 * MIB);
    let given = body.clone();
    let server = Server::start(move |seen, number| match number {
        0 => file(seen, &given, "\"a\""),
        1 => file(seen, &given, "\"a\"").then_silence(MIB + 1),
        _ => file(seen, &given, "\"a\""),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.silence_timeout = Duration::from_millis(300);
    let fetch = Fetch::new(config, None).unwrap();
    pull(&fetch, &server.url("/m.gguf")).await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    assert_eq!(server.seen()[2].from(), MIB + 1);
    fetch.shutdown().await;
}

#[tokio::test]
async fn two_who_want_one_file_get_one_download() {
    let body = model(3 * MIB);
    let given = body.clone();
    let server = Server::start(move |seen, _| file(seen, &given, "\"a\"")).await;
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (at(folder.path(), &server), at(folder.path(), &server));
    let url = server.url("/m.gguf");
    // Two callers of one program share it; another program, played by another handle, waits for it.
    let pulls = [one.pull(&url).unwrap(), one.pull(&url).unwrap(), two.pull(&url).unwrap()];
    for pull in &pulls {
        assert_eq!(done(pull).await.unwrap().bytes, body.len() as u64);
    }
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    let came = one.stats().from_servers_bytes + two.stats().from_servers_bytes;
    assert_eq!(came, body.len() as u64, "no byte twice");
    assert!(leftovers(folder.path()).is_empty());
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test]
async fn a_download_that_nobody_waits_for_stops_and_the_next_goes_on() {
    let body = model(3 * MIB);
    let given = body.clone();
    let held = AtomicUsize::new(0);
    let server = Server::start(move |seen, _| {
        let reply = file(seen, &given, "\"a\"");
        // The first body stops in the middle of its second chunk.
        if held.fetch_add(1, SeqCst) == 1 { reply.then_silence(MIB + 99) } else { reply }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let fetch = at(folder.path(), &server);
    let pull = fetch.pull(&server.url("/m.gguf")).unwrap();
    until(&pull, "a chunk is there", |progress| progress.bytes == MIB as u64).await;
    let other = pull.clone();
    drop(pull);
    assert!(other.outcome().is_none(), "one holder is enough");
    drop(other);
    fetch.shutdown().await;
    assert_eq!(leftovers(folder.path()).len(), 2, "the part and its journal");
    let fetch = at(folder.path(), &server);
    super::done(&fetch.pull(&server.url("/m.gguf")).unwrap()).await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    assert_eq!(server.seen().last().unwrap().from(), MIB);
    assert_eq!(fetch.stats().from_servers_bytes, 2 * MIB as u64);
    fetch.shutdown().await;
}
