//! Two nodes, one invite: the commands that make and end a mesh, and those that show it.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Ran, Running};

fn said(ran: &Ran, what: &str) {
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains(what) || ran.err.contains(what), "no {what:?} in {ran:?}");
}

fn refused(ran: &Ran, code: &str) {
    assert_eq!((ran.code, ran.err.as_str()), (1, ""), "{ran:?}");
    assert_eq!(ran.json()["error"]["code"], code, "{ran:?}");
}

/// Invites with these further arguments, and returns the token.
async fn invite(node: &Running, args: &[&str]) -> String {
    let args: Vec<&str> = ["invite", "--json"].iter().chain(args).copied().collect();
    let created = node.cli(&args).run().await.ok_json();
    created["token"].as_str().expect("a token").to_owned()
}

/// Waits until `node` sees a node of this name in this state.
async fn until_seen(node: &Running, name: &str, state: &str) {
    node.until(&["nodes"], |nodes| {
        let mut all = nodes.as_array().expect("a list").iter();
        all.any(|node| node["name"] == name && node["state"] == state)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_with_nothing_to_show_names_the_next_command() {
    let desk = Running::start("desk", "").await;
    for (command, next) in [
        ("nodes", "qmt-cli invite"),
        ("invites", "qmt-cli invite"),
        ("models", "qmt-cli load"),
        ("routes", "qmt-cli load"),
    ] {
        let ran = desk.cli(&[command]).run().await;
        assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
        assert!(ran.err.contains(next), "{ran:?}");
        assert_eq!(desk.cli(&[command, "--json"]).run().await.ok_json(), serde_json::json!([]));
    }
    let status = desk.cli(&["status"]).run().await;
    said(&status, "node       desk (12D3KooW");
    said(&status, "gateway    http://127.0.0.1:");
    said(&status, "this node is in no mesh");
    assert_eq!(desk.cli(&["status", "--json"]).run().await.ok_json()["node_name"], "desk");
    desk.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_the_token_alone_and_can_be_piped_drawn_and_taken_back() {
    let (desk, lap) = (Running::start("desk", "").await, Running::start("lap", "").await);
    let ran = desk.cli(&["invite", "--name", "home"]).run().await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out.trim().lines().count(), 1, "{ran:?}");
    for told in [
        "founded the mesh home",
        "recovery key",
        "admits 1 node to home as member and ends in 24 h",
        "qmt-cli revoke",
        "qmt-cli join",
    ] {
        assert!(ran.err.contains(told), "no {told:?} in {ran:?}");
    }

    let drawing = desk.home().join("invite.svg");
    let options = ["--qr", "--uses", "0", "--ttl", "never", "--svg", drawing.to_str().expect("text")];
    let args: Vec<&str> = ["invite"].into_iter().chain(options).collect();
    let printed = desk.cli(&args).run().await;
    assert!(printed.out.lines().count() > 20 && printed.out.contains('█'), "{printed:?}");
    said(&printed, "admits any number of nodes to home as member and never ends");
    assert!(std::fs::read_to_string(&drawing).expect("the drawing").contains("<svg"));
    let mode = std::fs::metadata(&drawing).expect("the drawing").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it admits whoever reads it");
    let ran = desk.cli(&["invite", "--svg", "/no/such/folder/x.svg"]).run().await;
    assert!(ran.code == 1 && ran.err.contains("/no/such/folder/x.svg"), "{ran:?}");

    let invites = desk.cli(&["invites", "--json"]).run().await.ok_json();
    assert_eq!(invites.as_array().map(Vec::len), Some(2), "the one that could not be drawn was not made");
    said(&desk.cli(&["invites"]).run().await, "0 of any");
    let printed_one = invites.as_array().into_iter().flatten().find(|invite| invite["max_uses"] == 0);
    let id = printed_one.and_then(|invite| invite["id"].as_str()).expect("an id");
    said(&desk.cli(&["revoke", id]).run().await, "revoked the invite");
    said(&desk.cli(&["invites"]).run().await, "revoked");
    refused(&lap.cli(&["join", "-", "--json"]).input(&printed.out).run().await, "invite_revoked");
    desk.stop().await;
    lap.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_meet_by_one_invite() {
    let (desk, lap) = (Running::start("desk", "").await, Running::start("lap", "").await);
    let printed = desk.cli(&["invite", "--name", "home", "--qr"]).run().await.out;
    let joined = lap.cli(&["join", "-"]).input(&printed).run().await;
    assert_eq!((joined.code, joined.out.as_str()), (0, "joined home as member\n"), "{joined:?}");
    until_seen(&desk, "lap", "alive").await;
    until_seen(&lap, "desk", "alive").await;

    let nodes = desk.cli(&["nodes"]).run().await;
    let lines: Vec<&str> = nodes.out.lines().collect();
    assert!(
        lines[0].starts_with("NAME ") && lines[1].contains(" self ") && lines[2].starts_with("lap "),
        "{nodes:?}"
    );
    said(&lap.cli(&["status"]).run().await, "mesh       home as member; 2 nodes alive");
    said(&desk.cli(&["status"]).run().await, "mesh       home as member, its founder; 2 nodes alive");
    said(&desk.cli(&["invites"]).run().await, "used up");

    let ping = lap.cli(&["ping", "desk", "--count", "2"]).run().await;
    assert!(ping.out.starts_with("desk 1: ") && ping.out.contains(" ms, direct\n"), "{ping:?}");
    assert!(ping.out.contains("2 of 2 pings answered; round trip "), "{ping:?}");
    let ping = lap.cli(&["ping", "desk", "-c", "1", "--json"]).run().await.ok_json();
    assert_eq!((&ping["answered"], &ping["pongs"][0]["path"]), (&1.into(), &"direct".into()));
    refused(&lap.cli(&["ping", "nobody", "--json"]).run().await, "unknown_node");

    said(&lap.cli(&["leave", "home"]).run().await, "left home");
    refused(&lap.cli(&["leave", "home", "--json"]).run().await, "unknown_scope");
    desk.stop().await;
    lap.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_comes_by_argument_link_or_environment_and_a_refusal_says_why() {
    let (desk, lap) = (Running::start("desk", "").await, Running::start("lap", "").await);
    let token = invite(&desk, &["--name", "home", "--uses", "2"]).await;
    let link = format!("qmt://mesh/join/{token}");
    let joined = lap.cli(&["join", "--json"]).env("QMT_INVITE", &link).run().await.ok_json();
    assert_eq!((&joined["name"], &joined["role"]), (&"home".into(), &"member".into()));
    said(&lap.cli(&["join", &token]).run().await, "joined home as member");

    refused(&lap.cli(&["join", "hello world", "--json"]).run().await, "invite_malformed");
    let ran = lap.cli(&["join", "hello world"]).run().await;
    assert!(ran.code == 1 && ran.err.starts_with("error: ") && ran.err.contains("\nmend: "), "{ran:?}");
    refused(&desk.cli(&["join", &token, "--json"]).run().await, "conflict");
    refused(&desk.cli(&["revoke", "nobody", "--json"]).run().await, "unknown_node");
    refused(&desk.cli(&["leave", "elsewhere", "--json"]).run().await, "unknown_scope");

    until_seen(&desk, "lap", "alive").await;
    let revoked = desk.cli(&["revoke", "lap", "--json"]).run().await.ok_json();
    assert_eq!((&revoked["kind"], &revoked["name"]), (&"node".into(), &"lap".into()));
    desk.stop().await;
    lap.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_a_node_is_shown_with_its_reason() {
    let (desk, lap) = (Running::start("desk", "").await, Running::start("lap", "").await);
    let token = invite(&desk, &[]).await;
    assert_eq!(lap.cli(&["join", &token]).run().await.code, 0);
    until_seen(&desk, "lap", "alive").await;
    let ran = desk.cli(&["routes", "lap"]).run().await;
    said(&ran, "internet direct");
    said(&ran, "straight over the internet transport");
    said(&ran, "\naddresses known: ");
    let ways = desk.cli(&["routes", "lap", "--json"]).run().await.ok_json();
    assert_eq!((&ways[0]["name"], &ways[0]["path"]), (&"lap".into(), &"direct".into()), "{ways}");
    refused(&desk.cli(&["routes", "nowhere", "--json"]).run().await, "unknown_model");
    desk.stop().await;
    lap.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_model_an_agent_asks_is_changed_while_the_node_runs() {
    let agents =
        "[[agents]]\nid = \"coder\"\nmodel = \"gemma\"\n[[agents]]\nid = \"poet\"\nmodel = \"gemma\"\n";
    let (desk, lap) = (Running::start("desk", agents).await, Running::start("lap", "").await);
    let token = invite(&desk, &[]).await;
    assert_eq!(lap.cli(&["join", &token]).run().await.code, 0);
    until_seen(&desk, "lap", "alive").await;
    said(&desk.cli(&["routes"]).run().await, "coder  gemma  this node, then its peers  configuration\n");

    let set = ["routes", "set", "coder"];
    let with = |more: &[&'static str]| [&set[..], more].concat();
    said(&desk.cli(&with(&["--local"])).run().await, "coder asks this node alone\n");
    said(&desk.cli(&with(&["--peer", "lap"])).run().await, "coder asks lap\n");
    let shown = desk.cli(&["routes", "coder"]).run().await;
    said(&shown, "coder  gemma  lap   routes set\n");
    assert!(!shown.out.contains("poet"), "{shown:?}");
    let all = desk.cli(&["routes", "agents", "--json"]).run().await.ok_json();
    assert_eq!((&all[0]["to"], &all[0]["set"]), (&"lap".into(), &true.into()), "{all}");
    assert_eq!((&all[1]["to"], &all[1]["set"]), (&"any".into(), &false.into()), "{all}");

    refused(&desk.cli(&with(&["--peer", "nowhere", "--json"])).run().await, "unknown_node");
    refused(&desk.cli(&["routes", "set", "nobody", "--any", "--json"]).run().await, "unknown_agent");
    for wrong in [&[][..], &["--local", "--any"], &["--peer", "local"]] {
        let ran = desk.cli(&with(wrong)).run().await;
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
    }
    let unset = desk.cli(&["routes", "unset", "coder"]).run().await;
    said(&unset, "coder asks this node, then its peers, as the configuration says\n");
    let none = lap.cli(&["routes", "agents"]).run().await;
    assert!(none.out.is_empty() && none.err.contains("[[agents]]"), "{none:?}");
    desk.stop().await;
    lap.stop().await;
}
