//! The trail on the screen, with a node and without one.

use std::path::Path;

use serde_json::Value;

use crate::support::{CLI, Running, cli, program};

fn kinds(view: &Value) -> Vec<&str> {
    view["entries"].as_array().expect("a list").iter().filter_map(|row| row["kind"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_is_a_table_for_people_and_json_for_programs() {
    let (desk, lap) = (Running::start("desk", "").await, Running::start("lap", "").await);
    let ran = desk.cli(&["audit"]).run().await;
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert!(ran.err.contains("nothing has happened yet"), "{ran:?}");
    let token = desk.cli(&["invite", "--name", "home", "--json"]).run().await.ok_json();
    let joined = lap.cli(&["join", token["token"].as_str().expect("a token")]).run().await;
    assert_eq!(joined.code, 0, "{joined:?}");
    lap.until(&["nodes"], |nodes| nodes.as_array().is_some_and(|nodes| nodes.len() == 2)).await;

    let ran = desk.cli(&["audit", "--verify"]).run().await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("NR  WHEN "), "{ran:?}");
    assert!(lines[1].contains(" founded ") && lines[1].contains(" desk (.."), "{ran:?}");
    assert!(lines[2].contains(" invited ") && lines[2].contains("member, 1 use, until "), "{ran:?}");
    assert!(lines[3].contains(" admitted ") && lines[3].contains(" lap (.."), "{ran:?}");
    assert!(lines[4].starts_with("the chain holds: rows 1 to 3, last hash "), "{ran:?}");

    let view = desk.cli(&["audit", "--json", "--node", "lap", "--since", "1h"]).run().await.ok_json();
    assert_eq!(kinds(&view), ["admitted"]);
    assert_eq!((&view["entries"][0]["subject_name"], &view["chain"]), (&"lap".into(), &Value::Null));
    let ran = desk.cli(&["audit", "--node", "nobody", "--json"]).run().await;
    assert_eq!((ran.code, &ran.json()["error"]["code"]), (1, &"unknown_node".into()), "{ran:?}");
    assert_eq!(desk.cli(&["audit", "--since", "yesterday"]).run().await.code, 2);
    assert_eq!(desk.cli(&["audit", "--limit", "0"]).run().await.code, 2);
    let mesh = view["entries"][0]["scope"].as_str().expect("an id");
    let of_mesh = desk.cli(&["audit", "--mesh", &mesh[..8], "--limit", "2", "--json"]).run().await.ok_json();
    assert_eq!(kinds(&of_mesh), ["invited", "admitted"]);
    lap.stop().await;
    desk.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_node_its_program_reads_the_trail() {
    let desk = Running::start("desk", "").await;
    desk.cli(&["invite", "--name", "home", "--json"]).run().await.ok_json();
    let home = desk.home().to_owned();
    let node = Path::new(CLI).with_file_name("qmt-node");
    let kept = desk.stop_and_keep_home().await;
    if !node.is_file() {
        println!("skipped: no qmt-node beside qmt-cli");
        return;
    }
    let view = cli(&home, &["audit", "--verify", "--json"]).run().await.ok_json();
    assert_eq!(kinds(&view), ["founded", "invited"]);
    assert_eq!((&view["chain"]["holds"], &view["chain"]["last"]), (&true.into(), &2.into()));
    let ran = cli(&home, &["audit", "--node", "nobody", "--json"]).run().await;
    assert_eq!((ran.code, &ran.json()["error"]["code"]), (1, &"unknown_node".into()), "{ran:?}");
    drop(kept);

    let nowhere = tempfile::tempdir().expect("a folder");
    let view = cli(nowhere.path(), &["audit", "--json"]).run().await.ok_json();
    assert_eq!(view["entries"], Value::Array(Vec::new()));
    assert!(!nowhere.path().join("node.db").exists(), "looking makes nothing");
    // A program of another version is named; without any, no node runs.
    let alone = tempfile::tempdir().expect("a folder");
    std::fs::copy(CLI, alone.path().join("qmt-cli")).expect("copied");
    let path = nowhere.path().to_str().expect("text");
    let ran = program(&alone.path().join("qmt-cli"), nowhere.path(), &["audit", "--json"]).env("PATH", path);
    let ran = ran.run().await;
    assert_eq!((ran.code, &ran.json()["error"]["code"]), (3, &"no_node".into()), "{ran:?}");
}
