//! Boards: the commands, on two nodes.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{CLI, DEADLINE, Ran, Running};

fn said(ran: &Ran, out: &str) {
    assert_eq!((ran.code, ran.out.as_str()), (0, out), "{ran:?}");
}

fn refused(ran: &Ran, code: &str) {
    assert_eq!((ran.code, ran.json()["error"]["code"].as_str()), (1, Some(code)), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_board_is_made_shared_posted_on_and_read_at_two_nodes() {
    let (desk, lap) = (Running::start("desk", "").await, Running::start("lap", "").await);
    let none = desk.cli(&["board", "list"]).run().await;
    assert!(none.out.is_empty() && none.err.contains("qmt-cli board new"), "{none:?}");
    let token = desk.cli(&["invite", "--name", "home"]).run().await.out;
    assert_eq!(lap.cli(&["join", "-"]).input(&token).run().await.code, 0);
    let made = desk.cli(&["board", "new", "plan"]).run().await;
    assert!(made.code == 0 && made.out.trim().len() == 36, "{made:?}");
    assert!(
        made.err.contains("board plan at desk\n") && made.err.contains("nobody else can see it"),
        "{made:?}"
    );
    let posted =
        desk.cli(&["board", "post", "plan", "-", "--id", "p1"]).input("begin\n[9] lap: no").run().await;
    assert!(posted.code == 0 && posted.err == "posted as [3]\n", "{posted:?}");
    assert_eq!(desk.cli(&["board", "post", "plan", "x", "--id", "p1"]).run().await.err, "posted as [3]\n");
    lap.until(&["nodes"], |nodes| {
        let mut all = nodes.as_array().expect("a list").iter();
        all.any(|node| node["name"] == "desk" && node["state"] == "alive")
    })
    .await;
    refused(&lap.cli(&["board", "read", "plan", "--json"]).run().await, "unknown_session");
    refused(&lap.cli(&["board", "post", "plan@desk", "x", "--json"]).run().await, "unknown_session");

    said(&desk.cli(&["board", "share", "plan", "--scope", "home", "--right", "read"]).run().await, "");
    said(&lap.cli(&["board", "read", "plan"]).run().await, "[3] desk: begin\n    [9] lap: no\n");
    refused(&lap.cli(&["board", "post", "plan", "x", "--json"]).run().await, "not_allowed");
    let listed = lap.cli(&["board", "list", "--all"]).run().await;
    assert!(
        listed.out.lines().nth(1).is_some_and(|line| line.starts_with("plan   desk  open ")),
        "{listed:?}"
    );
    said(&desk.cli(&["board", "share", "plan", "--scope", "home"]).run().await, "");

    // Who follows sees what others post.
    let mut reader = Command::new(CLI)
        .args(["board", "read", "plan", "--after", "3", "--follow"])
        .env("QMT_HOME", lap.home())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(reader.stdout.take().expect("its output")).lines();
    assert_eq!(lap.cli(&["board", "post", "plan", "from", "the", "lap"]).run().await.code, 0);
    let line = timeout(DEADLINE, lines.next_line()).await.expect("in time").expect("a line");
    let line = line.expect("not the end");
    assert!(line.ends_with("] lap: from the lap"), "{line}");
    assert_eq!(desk.cli(&["board", "archive", "plan"]).run().await.code, 0);
    let ended = timeout(DEADLINE, reader.wait()).await.expect("in time").expect("it ended");
    assert!(ended.success(), "{ended:?}");
    refused(&lap.cli(&["board", "post", "plan", "x", "--json"]).run().await, "archived");
    let after = lap.cli(&["board", "read", "plan", "--after", "3", "--json"]).run().await;
    assert_eq!(after.ok_json()["kind"], "posted", "{after:?}");
    let usage = desk.cli(&["board", "share", "plan"]).run().await;
    assert_eq!(usage.code, 2, "{usage:?}");
    desk.stop().await;
    lap.stop().await;
}
