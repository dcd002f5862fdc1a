//! Scenarios 1 to 9, 14 and 15 by which mesh-llm is tested, under their numbers there: real nodes, a real llama.cpp and tiny
//! models. Its 10 is of a console; what stands behind that (several warm models, each with the nodes that serve it) is here.

use std::time::Duration;

use mesh_control::{DropRequest, InviteRequest, LoadRequest, ModelState, NodeState, PlanRequest};
use mesh_inference::gguf::tiny::TinyModel;

use crate::support::machine::{Machine, TOKENS, rpc_entries, shares, told};
use crate::support::{PATIENCE, gateway, http, until, until_within};

/// Two members, each on a machine of its own.
async fn two() -> Option<(Machine, Machine)> {
    Some((Machine::new("a").await?, Machine::new("b").await?))
}

/// Too large for a third of a gigabyte by what it remembers, and small on disk.
fn forgetful_of_nothing() -> TinyModel {
    TinyModel { context: 16_384, layers: 64, feed_forward: 64, ..TinyModel::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_1_a_node_alone_serves_without_any_rpc_server() {
    let Some(machine) = Machine::new("a").await else { return };
    let mut machine = machine.with_model("tiny", 1);
    machine.start(&["--model", "tiny"]).await;
    machine.ready_at("tiny", &["a"]).await;
    assert_eq!(machine.answers("tiny").await.len(), TOKENS);
    let [server] = &machine.llama_servers()[..] else { panic!("one llama-server") };
    // mesh-llm reaches its own device by RPC, which halves its speed.
    assert_eq!((rpc_entries(server).len(), machine.rpc_servers().len()), (0, 0));
    assert!(machine.client().nodes().await.unwrap().iter().all(|node| node.state == NodeState::Me));
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_2_what_fits_each_of_two_nodes_runs_on_both() {
    let Some((a, b)) = two().await else { return };
    let (mut a, mut b) = (a.with_model("tiny", 1), b.with_model("tiny", 1));
    a.start(&["--model", "tiny"]).await;
    b.start(&["--model", "tiny"]).await;
    b.join(&a).await;
    for machine in [&a, &b] {
        machine.ready_at("tiny", &["a", "b"]).await;
        assert_eq!(machine.answers("tiny").await.len(), TOKENS);
        let [server] = &machine.llama_servers()[..] else { panic!("one llama-server each") };
        assert!(rpc_entries(server).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_3_a_forced_split_lies_over_both_by_their_memory_with_a_draft() {
    let Some((a, b)) = two().await else { return };
    let large = TinyModel { layers: 24, seed: 1, ..TinyModel::default() };
    let draft = TinyModel { layers: 1, feed_forward: 32, seed: 2, ..TinyModel::default() };
    let (mut a, mut b) = (a.with("large", large.clone()).with("draft", draft), b.with("large", large));
    a.start(&["--model", "large", "--split", "--max-vram", "2"]).await;
    a.ready_at("large", &["a"]).await;
    b.start(&["--max-vram", "1"]).await;
    b.join(&a).await;
    let server = a.hosts_over(2).await;
    let [theirs, ours] = shares(&server)[..] else { panic!("two shares: {}", server.words) };
    assert!((0.3..0.7).contains(&(theirs / ours)), "one gigabyte beside two: {theirs} and {ours}");
    assert!(told(&server, "-md").is_some_and(|draft| draft.ends_with("draft.gguf")), "{}", server.words);
    a.ready_at("large", &["a"]).await;
    assert_eq!(b.rpc_servers().len(), 1);
    for machine in [&a, &b] {
        assert_eq!(machine.answers("large").await.len(), TOKENS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_4_what_is_too_large_for_one_is_split_without_being_asked() {
    let Some((a, b)) = two().await else { return };
    let (mut a, mut b) = (a.with("large", forgetful_of_nothing()), b);
    a.start(&["--model", "large", "--ctx-size", "16384", "--max-vram", "0.35"]).await;
    let why = until("it fits nowhere", || async {
        let view = a.model("large").await.filter(|view| view.state == ModelState::Failed)?;
        Some(view.providers[0].detail.clone())
    })
    .await;
    assert!(why.contains("no machine holds it"), "{why}");
    let (status, _) = a.ask("large").await;
    assert_eq!(status, 503, "it exists, and cannot be served yet");
    b.start(&["--max-vram", "0.3"]).await;
    b.join(&a).await;
    a.hosts_over(2).await;
    a.ready_at("large", &["a"]).await;
    assert_eq!(b.answers("large").await.len(), TOKENS);
    // b has not got the file, and asks the member that has it.
    let plan =
        b.client().plan(&PlanRequest { model: "large".into(), ..PlanRequest::default() }).await.unwrap();
    assert!(plan.text.starts_with("as a sees it, which has the file:\nlarge\n"), "{}", plan.text);
    assert!(plan.text.contains("-> split over 2 devices, hosted by a: "), "{}", plan.text);
    assert_eq!(plan.plan["alternatives"][0]["at"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_5_and_8_a_lite_client_uses_the_models_of_all() {
    let Some((a, b)) = two().await else { return };
    let (mut a, mut b) = (a.with_model("one", 1), b.with_model("two", 2));
    a.start(&["--model", "one"]).await;
    b.start(&["--model", "two"]).await;
    b.join(&a).await;
    a.ready_at("two", &["b"]).await;
    let mut client = Machine::new("lite").await.unwrap();
    let invite = a.client().invite(&InviteRequest::default()).await.unwrap();
    client.start(&["--client", "--join", &invite.token]).await;
    for model in ["one", "two"] {
        assert_eq!(client.answers(model).await.len(), TOKENS);
    }
    let listed = http::get(gateway(client.client()).await, "/v1/models").await.json();
    let mut ids: Vec<&str> =
        listed["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["one", "two"]);
    assert!(client.process().served().is_empty());
    // It gives no memory, so none of it is counted.
    let of_client = |node: &mesh_control::NodeView| node.name == "lite" && node.memory.is_some();
    assert!(!a.client().nodes().await.unwrap().iter().any(of_client));
}

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_6_and_7_a_joiner_takes_up_what_the_mesh_wants_and_it_has() {
    let Some((a, b)) = two().await else { return };
    let (mut a, mut b) = (a.with_model("one", 1), b.with_model("one", 1).with_model("two", 2));
    a.start(&["--model", "one", "--model", "two"]).await;
    a.ready_at("one", &["a"]).await;
    b.start(&[]).await;
    b.join(&a).await;
    a.ready_at("two", &["b"]).await;
    assert!(b.lines_with("Assigned to serve two (needed by the mesh, already on disk)") > 0);
    b.ready_at("one", &["a"]).await;
    for machine in [&a, &b] {
        for model in ["one", "two"] {
            assert_eq!(machine.answers(model).await.len(), TOKENS);
        }
        assert!(machine.rpc_servers().is_empty(), "no split");
    }
    // Two joiners take different ones: what is served already is not needed.
    assert_eq!((a.llama_servers().len(), b.llama_servers().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_9_a_dropped_model_goes_cold_until_it_is_loaded_again() {
    let Some((a, b)) = two().await else { return };
    let (mut a, mut b) = (a.with_model("one", 1), b.with_model("two", 2));
    a.start(&["--model", "one"]).await;
    b.start(&["--model", "two"]).await;
    b.join(&a).await;
    a.ready_at("two", &["b"]).await;
    let server = b.process().served_model("two");
    let dropped = a.client().drop_model(&DropRequest { model: "two".into(), node: None }).await.unwrap();
    assert_eq!(dropped.nodes, [b.id().await]);
    server.gone().await;
    until("it is gone from the list", || async { a.model("two").await.is_none().then_some(()) }).await;
    assert_eq!(a.answers("one").await.len(), TOKENS, "others are not touched");
    // From any node: `a` does not have the file.
    let there = LoadRequest { model: "two".into(), node: Some("b".into()), split: None };
    a.client().load(&there).await.unwrap();
    a.ready_at("two", &["b"]).await;
    assert_eq!(a.answers("two").await.len(), TOKENS);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_10_several_warm_models_each_with_its_nodes_answer_by_name() {
    let Some((a, b)) = two().await else { return };
    let (mut a, mut b) = (a.with_model("one", 1), b.with_model("one", 1).with_model("two", 2));
    a.start(&["--model", "one"]).await;
    b.start(&["--model", "one", "--model", "two"]).await;
    b.join(&a).await;
    a.ready_at("one", &["a", "b"]).await;
    a.ready_at("two", &["b"]).await;
    let (one, two) = (a.answers("one").await, a.answers("two").await);
    assert_ne!(one, two, "each model by its name");
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_14_a_split_on_one_machine_goes_back_to_one_node_when_the_worker_is_killed() {
    let Some((a, b)) = two().await else { return };
    let large = TinyModel { layers: 12, ..TinyModel::default() };
    let (mut a, mut b) = (a.with("large", large.clone()), b.with("large", large));
    a.start(&["--model", "large", "--split"]).await;
    a.ready_at("large", &["a"]).await;
    let alone = a.llama_servers().remove(0);
    assert!(rpc_entries(&alone).is_empty(), "alone until somebody lends");
    b.start(&["--model", "large", "--split", "--max-vram", "1"]).await;
    b.join(&a).await;
    let server = a.hosts_over(2).await;
    a.ready_at("large", &["a"]).await;
    assert_eq!((b.rpc_servers().len(), b.llama_servers().len()), (1, 0), "the worker asks the host");
    assert_eq!(b.answers("large").await.len(), TOKENS);
    let [theirs, ours] = shares(&server)[..] else { panic!("two shares") };
    assert!(theirs < ours, "{theirs} of the worker, {ours} of the host");
    // Started once for this election, whatever gossip told since.
    assert_eq!(a.llama_servers().len(), 1);
    assert!(server.server.is_alive());
    b.process.as_mut().unwrap().kill();
    server.gone().await;
    a.ready_at("large", &["a"]).await;
    assert!(rpc_entries(&a.llama_servers()[0]).is_empty());
    assert_eq!(a.answers("large").await.len(), TOKENS);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_15_a_passive_client_costs_the_host_nothing() {
    let Some(machine) = Machine::new("a").await else { return };
    let mut a = machine.with_model("tiny", 1);
    a.start(&["--model", "tiny"]).await;
    a.ready_at("tiny", &["a"]).await;
    let mut client = Machine::new("lite").await.unwrap();
    let invite = a.client().invite(&InviteRequest::default()).await.unwrap();
    client.start(&["--client", "--join", &invite.token]).await;
    assert_eq!(client.answers("tiny").await.len(), TOKENS);
    let nodes = a.client().nodes().await.unwrap();
    assert!(!nodes.iter().any(|node| node.name == "lite"), "no entry in the host's list: {nodes:?}");
}

/// Not of the list: a worker that hangs instead of dying.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_left() {
    let Some((a, b)) = two().await else { return };
    let large = TinyModel { layers: 12, ..TinyModel::default() };
    let (mut a, mut b) = (a.with("large", large), b);
    a.start(&["--model", "large", "--split"]).await;
    b.start(&["--max-vram", "1"]).await;
    b.join(&a).await;
    let server = a.hosts_over(2).await;
    a.ready_at("large", &["a"]).await;
    let pid = i32::try_from(b.process().pid()).unwrap();
    crate::support::process::signal(pid, rustix::process::Signal::STOP);
    server.gone().await;
    a.ready_at("large", &["a"]).await;
    assert_eq!(a.answers("large").await.len(), TOKENS);
    crate::support::process::signal(pid, rustix::process::Signal::CONT);
    until_within(PATIENCE + Duration::from_secs(10), "it lends again", || async {
        a.llama_servers().iter().any(|server| rpc_entries(server).len() == 2).then_some(())
    })
    .await;
}
