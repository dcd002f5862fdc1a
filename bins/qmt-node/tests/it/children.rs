//! No llama-server outlives its node, whatever ends the node.

use rustix::process::Signal;

use crate::support::process::{Folder, Process, llama_bin_dir, signal};
use crate::support::{gateway, http, until};

const MODEL: &str = "tiny-one";

async fn serving(folder: &Folder) -> Option<Process> {
    let node = folder.start_serving(&llama_bin_dir().await?, &[MODEL]).await;
    assert_eq!(node.served().len(), 1, "{:?}", node.served());
    Some(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_leaves_no_llama_server() {
    let folder = Folder::new();
    let Some(mut node) = serving(&folder).await else { return };
    let answer = http::post(gateway(&node.client).await, "/v1/chat/completions", http::chat(MODEL)).await;
    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    assert!(answer.body.ends_with(b"data: [DONE]\n\n"), "{answer:?}");
    let served = node.served_model(MODEL);
    node.kill();
    served.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_end_ends_its_llama_server_first() {
    let folder = Folder::new();
    let Some(mut node) = serving(&folder).await else { return };
    let served = node.served_model(MODEL);
    let status = node.terminate().await;
    assert!(status.success(), "{status}: {}", folder.written());
    // Gone when the node is, not some time after.
    assert!(!served.server.is_alive() && !served.guard.is_alive());
    assert_eq!(std::fs::read_dir(folder.home().join("run/children")).unwrap().count(), 0);
    assert!(!folder.home().join("node.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_guard_takes_its_llama_server_along_and_the_model_comes_back() {
    let folder = Folder::new();
    let Some(mut node) = serving(&folder).await else { return };
    let first = node.served_model(MODEL);
    signal(first.guard.pid, Signal::KILL);
    first.gone().await;
    let second = until("another llama-server runs", || async { node.served().pop() }).await;
    node.ready(MODEL).await;
    assert_ne!((&second.guard, &second.server), (&first.guard, &first.server));
    node.kill();
    second.gone().await;
}
