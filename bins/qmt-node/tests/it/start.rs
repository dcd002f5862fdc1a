//! Nodes that cannot start say what is wrong, where, and what mends it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use qmt_node::Node;
use qmt_node::config::{GATEWAY_PORT, Listener};

use crate::support::process::Folder;
use crate::support::{Place, gateway, http};

fn assert_says(written: &str, words: &[&str]) {
    for word in words {
        assert!(written.contains(word), "{word:?} is missing in: {written}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_in_use_names_the_process_that_uses_it() {
    let folder = Folder::new();
    let running = folder.start(&["--port", "0"]).await;
    let (status, written) = folder.run(&["--port", "0"]);
    assert!(!status.success());
    let pid = format!("process {}", running.pid());
    assert_says(&written, &["error: ", &pid, &folder.home().display().to_string(), "QMT_HOME"]);
    // The one that runs is not disturbed, its socket is where it was.
    assert_eq!(running.client.status().await.unwrap().pid, running.pid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_is_free_again_after_a_kill() {
    let folder = Folder::new();
    let mut killed = folder.start(&["--port", "0"]).await;
    let id = killed.client.status().await.unwrap().node_id;
    killed.kill();
    assert!(folder.home().join("node.sock").exists());
    let again = folder.start(&["--port", "0"]).await;
    assert_eq!(again.client.status().await.unwrap().node_id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_was_asked_for_and_is_taken_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let folder = Folder::new();
    let (status, written) = folder.run(&["--port", &addr.port().to_string()]);
    assert!(!status.success());
    assert_says(&written, &["error: ", &addr.to_string(), "in use", "mend: ", "--port"]);
    assert!(!folder.home().join("node.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_port_that_is_taken_is_left_and_the_new_one_named() {
    // Held here, unless another program of this machine holds it already.
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, GATEWAY_PORT));
    let folder = Folder::new();
    let running = folder.start(&[]).await;
    let addr = gateway(&running.client).await;
    assert!(addr.port() > GATEWAY_PORT, "{addr}");
    assert!(http::models(addr).await.is_empty());
    assert_says(&folder.written(), &["taken", &addr.port().to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_leaves_the_home_free() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::new("host");
    let mut config = place.config();
    config.gateway.listener = Listener { addr: taken.local_addr().unwrap(), asked: true };
    Box::pin(Node::start(config)).await.unwrap_err();
    place.start().await.stop().await;
}

fn write_key(folder: &Folder, text: &str, mode: u32) {
    std::fs::create_dir_all(folder.home()).unwrap();
    let path = folder.home().join("mesh_identity.key");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The node does not start, says these words, and leaves the key and everything else alone.
fn assert_refuses_key(folder: &Folder, words: &[&str]) {
    let key = folder.home().join("mesh_identity.key");
    let before = std::fs::read(&key).ok();
    let (status, written) = folder.run(&["--port", "0"]);
    assert!(!status.success());
    assert_says(&written, &["error: ", &key.display().to_string(), "mend: "]);
    assert_says(&written, words);
    assert_eq!(std::fs::read(&key).ok(), before);
    let mut left: Vec<_> =
        std::fs::read_dir(folder.home()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["mesh_identity.key", "node.lock"]);
}

#[test]
fn a_key_that_others_can_read_is_refused_and_stays_as_it_is() {
    let folder = Folder::new();
    write_key(&folder, &format!("qmt-node-key-v1 {}\n", "7".repeat(64)), 0o644);
    assert_refuses_key(&folder, &["can be read by others", "0644", "chmod 600"]);
    assert_eq!(crate::support::mode(&folder.home().join("mesh_identity.key")), 0o644);
}

#[test]
fn a_key_file_of_another_kind_is_refused_and_stays_as_it_is() {
    let folder = Folder::new();
    write_key(&folder, "-----BEGIN PRIVATE KEY-----\n", 0o600);
    assert_refuses_key(&folder, &["does not hold one line", "backup"]);
}

#[test]
fn a_key_that_cannot_be_read_is_refused() {
    let folder = Folder::new();
    // Even root cannot read a folder as a file.
    std::fs::create_dir_all(folder.home().join("mesh_identity.key")).unwrap();
    std::fs::set_permissions(folder.home().join("mesh_identity.key"), std::fs::Permissions::from_mode(0o700))
        .unwrap();
    assert_refuses_key(&folder, &["cannot read", "owns"]);
}

#[test]
fn a_faulty_configuration_names_file_line_and_key() {
    let folder = Folder::new();
    std::fs::create_dir_all(folder.home()).unwrap();
    let path = folder.home().join("config.toml");
    std::fs::write(&path, "[api]\nport = 70000\n\n[mesh]\nnode_nam = \"attic\"\n").unwrap();
    let (status, written) = folder.run(&[]);
    assert!(!status.success());
    assert_says(&written, &["error: ", "config.toml:2", "port", "config.toml:5", "node_nam", "node_name"]);
    assert!(!folder.home().join("mesh_identity.key").exists());
}

#[test]
fn a_home_that_cannot_be_made_is_named() {
    let folder = Folder::new();
    std::fs::write(folder.home(), "a file").unwrap();
    let (status, written) = folder.run(&["--port", "0"]);
    assert!(!status.success());
    assert_says(&written, &["error: ", &folder.home().display().to_string(), "mend: ", "QMT_HOME"]);
    assert!(Path::new(&folder.home()).is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_keeps_to_the_port_that_was_asked_for() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = Place::new("host");
    let host =
        place.start_with(|config| config.gateway.listener = Listener { addr: free, asked: true }).await;
    assert_eq!(host.gateway().await, SocketAddr::from((Ipv4Addr::LOCALHOST, free.port())));
    host.stop().await;
}
