//! Thousands of connections that say nothing: capped below the node's file limit, and no harm to who comes honestly.

use std::sync::Arc;
use std::time::Duration;

use mesh_control::{ErrorCode, InviteRequest, JoinRequest};
use mesh_identity::{InviteToken, NodeAddr, NodeKey, UnixTime};
use mesh_transport::internet::{Config as InternetConfig, Internet};
use mesh_transport::{Connection, DialVia, Driver};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::process::{Folder, Process};
use crate::support::{Host, PATIENCE, gateway, http, until, until_within};

/// Open files of the node under test.
const FILES: usize = 512;
/// Connections that are opened to its gateway.
const CROWD: usize = 3_000;
/// Keys that open links, and links of each.
const KEYS: usize = 40;
const LINKS_OF_A_KEY: usize = 10;

async fn node_of_few_files(folder: &Folder) -> Process {
    let limited = format!("ulimit -n {FILES} && exec \"$0\" \"$@\"");
    folder.start_by(&["sh", "-c", &limited], &["--port", "0"]).await
}

/// Lets this process hold the crowd.
fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).unwrap();
    let room = getrlimit(Resource::Nofile).current.is_none_or(|files| files > CROWD as u64 + 200);
    assert!(room, "this test needs {} open files: raise the hard limit", CROWD + 200);
}

fn open_files(node: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_callers_are_capped_below_the_file_limit_and_an_honest_one_gets_in() {
    raise_own_limit();
    let folder = Folder::new();
    let node = node_of_few_files(&folder).await;
    let addr = gateway(&node.client).await;
    let mut crowd = Vec::with_capacity(CROWD);
    for _ in 0..CROWD {
        crowd.push(TcpStream::connect(addr).await.unwrap());
    }
    // Who came last is told why, with everybody else still there.
    let mut told = Vec::new();
    let mut last = crowd.pop().unwrap();
    let read = tokio::time::timeout(PATIENCE, last.read_to_end(&mut told)).await;
    read.expect("nothing was said to a caller beyond the cap").unwrap();
    let told = String::from_utf8(told).unwrap();
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("retry-after: 1\r\n"), "{told}");
    assert!(told.contains("all the connections it can hold"), "{told}");
    assert!(open_files(&node) < FILES, "{} files are open", open_files(&node));
    assert!(node.client.status().await.is_ok(), "the control socket does not answer");
    // Nobody of the crowd leaves; those who got in and say nothing lose their places.
    let answer = until("an honest caller is answered", || async {
        http::try_get(addr, "/v1/models").await.filter(|answer| answer.status.as_u16() == 200)
    })
    .await;
    assert_eq!(answer.json()["object"], "list");
    let written = folder.written();
    assert!(written.contains("refusing connections: the gateway is full"), "{written}");
    // (512 files - 128 for everything else) / 2, as each caller may need a second file for its backend.
    assert!(written.contains("connections_max=192"), "{written}");
    assert!(written.contains("few open files are allowed") && written.contains("ulimit -n"), "{written}");
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_never_say_hello_keep_no_joiner_out() {
    let folder = Folder::new();
    let node = node_of_few_files(&folder).await;
    let invite = node.client.invite(&InviteRequest::default()).await.unwrap();
    let token = InviteToken::parse(&invite.token).unwrap().verify(UnixTime::now()).unwrap();
    let (scope, issuer) = (token.grant().scope, token.issuer());
    let port = token.grant().hints.direct[0].port();
    let addr = NodeAddr { direct: vec![([127, 0, 0, 1], port).into()], relay: None, ..NodeAddr::default() };
    let mut crowd = JoinSet::new();
    for _ in 0..KEYS {
        let addr = addr.clone();
        crowd.spawn(async move {
            let driver = Internet::bind(&NodeKey::generate(), InternetConfig::loopback()).await.unwrap();
            let mut links: Vec<Arc<dyn Connection>> = Vec::new();
            for _ in 0..LINKS_OF_A_KEY {
                let dialed = tokio::time::timeout(
                    Duration::from_secs(2),
                    driver.dial(&scope, issuer, &addr, DialVia::default()),
                );
                links.extend(dialed.await.ok().and_then(Result::ok));
            }
            (driver, links)
        });
    }
    let crowd = crowd.join_all().await;
    let opened: usize = crowd.iter().map(|(_, links)| links.len()).sum();
    assert!(opened > KEYS, "only {opened} of the links were opened at all");
    let joiner = Host::new("joiner").await;
    let request = JoinRequest { token: invite.token };
    until_within(PATIENCE * 2, "an honest node joins", || async {
        match joiner.client.join(&request).await {
            Ok(joined) => Some(joined),
            Err(mesh_control::ClientError::Api(error)) => {
                let is_busy = matches!(error.code, ErrorCode::Unavailable | ErrorCode::IssuerUnreachable);
                assert!(is_busy, "{error:?}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    assert_eq!(node.client.invites().await.unwrap()[0].uses, 1);
    assert!(open_files(&node) < FILES);
    let written = folder.written();
    assert!(written.contains("inbound connection refused at a limit"), "{written}");
    assert!(written.contains("connections_max=128"), "{written}");
    joiner.stop().await;
    for (driver, links) in crowd {
        drop(links);
        driver.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_file_limit_is_raised_to_the_hard_one() {
    let folder = Folder::new();
    let limited = "ulimit -Sn 256 && ulimit -Hn 2048 && exec \"$0\" \"$@\"";
    let node = folder.start_by(&["sh", "-c", limited], &["--port", "0"]).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("2048"), "{files}");
    assert!(folder.written().contains("file_limit=2048"), "{}", folder.written());
}
