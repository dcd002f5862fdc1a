//! Splits over members that are not as one would wish, and nodes that take models up by themselves: real nodes, a real llama.cpp
//! and tiny models.

use std::os::unix::fs::PermissionsExt;

use mesh_control::{DropRequest, LoadRequest, ModelState, PlanRequest};
use mesh_inference::gguf::tiny::TinyModel;

use crate::support::machine::{Machine, TOKENS};
use crate::support::until;

/// A llama.cpp that is this machine's and says that it is another build.
fn of_another_build(machine: &mut Machine) {
    let folder = machine.folder.home().join("other-build");
    std::fs::create_dir(&folder).unwrap();
    let real = std::mem::replace(&mut machine.bin_dir, folder.clone());
    for program in ["llama-server", "ggml-rpc-server", "rpc-server"] {
        let path = real.join(program);
        if !path.is_file() {
            continue;
        }
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo 'version: 999 (0ddba11)' >&2 && exit\nexec '{}' \"$@\"\n",
            path.display()
        );
        std::fs::write(folder.join(program), script).unwrap();
        std::fs::set_permissions(folder.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn large(seed: u64) -> TinyModel {
    TinyModel { layers: 12, seed, ..TinyModel::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_another_build_is_refused_and_both_are_named() {
    let (Some(a), Some(mut b)) = (Machine::new("a").await, Machine::new("b").await) else { return };
    of_another_build(&mut b);
    // Too much for the host by what it remembers: only a split would do.
    let long = TinyModel { context: 16_384, layers: 64, feed_forward: 64, ..TinyModel::default() };
    let (mut a, mut b) = (a.with("long", long), b);
    a.start(&["--model", "long", "--ctx-size", "16384", "--max-vram", "0.35"]).await;
    b.start(&["--max-vram", "1"]).await;
    b.join(&a).await;
    let told = until("the reason names both builds", || async {
        let view = a.model("long").await.filter(|view| view.state == ModelState::Failed)?;
        Some(view.providers[0].detail.clone()).filter(|detail| detail.contains("b cannot help"))
    })
    .await;
    let plan =
        a.client().plan(&PlanRequest { model: "long".into(), ..PlanRequest::default() }).await.unwrap();
    assert!(plan.text.contains("not in a split: b ("), "{}", plan.text);
    for text in [&plan.text, &told, &a.folder.written()] {
        let named = "its llama.cpp is \"version: 999 (0ddba11)\", the host's is \"version: ";
        assert!(text.contains(named), "{text}");
    }
    assert!(b.rpc_servers().is_empty() && a.llama_servers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_file_of_the_name_at_the_worker_is_sent_with_a_warning() {
    let (Some(a), Some(b)) = (Machine::new("a").await, Machine::new("b").await) else { return };
    let (mut a, mut b) = (a.with("large", large(1)), b.with("large", large(2)));
    a.start(&["--model", "large", "--split"]).await;
    a.ready_at("large", &["a"]).await;
    let alone = a.answers("large").await;
    b.start(&["--max-vram", "1"]).await;
    b.join(&a).await;
    a.hosts_over(2).await;
    a.ready_at("large", &["a"]).await;
    assert_eq!(a.answers("large").await, alone, "the host's weights, not those of the worker's disk");
    let warned = a.folder.written();
    let line = warned.lines().find(|line| line.contains("the worker's file is another one than the host's"));
    assert!(line.is_some_and(|line| line.contains("WARN") && line.contains("large.gguf")), "{warned}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_memory_of_a_worker_is_lent_to_one_host_of_two() {
    let (Some(a), Some(b), Some(w)) =
        (Machine::new("a").await, Machine::new("b").await, Machine::new("w").await)
    else {
        return;
    };
    // Each takes more than half of what the worker has, beside a host that is too small alone.
    let long =
        |seed| TinyModel { context: 16_384, layers: 64, feed_forward: 64, seed, ..TinyModel::default() };
    let (mut a, mut b, mut w) = (a.with("one", long(1)), b.with("two", long(2)), w);
    w.start(&["--max-vram", "0.3"]).await;
    for (host, model) in [(&mut a, "one"), (&mut b, "two")] {
        host.configure("lend = false");
        host.start(&["--model", model, "--ctx-size", "16384", "--max-vram", "0.35", "--no-draft"]).await;
    }
    a.join(&w).await;
    b.join(&w).await;
    let hosts = || [&a, &b].map(|host| !host.llama_servers().is_empty());
    until("one of them hosts", || async { hosts().contains(&true).then_some(()) }).await;
    let (winner, model, loser, other) =
        if hosts()[0] { (&a, "one", &b, "two") } else { (&b, "two", &a, "one") };
    assert_eq!(winner.answers(model).await.len(), TOKENS);
    until("the other one says why not", || async {
        loser.model(other).await.filter(|view| view.state == ModelState::Failed)
    })
    .await;
    assert_eq!((w.rpc_servers().len(), loser.llama_servers().len()), (1, 0));
    // What the first one gives back is the other one's.
    winner.client().drop_model(&DropRequest { model: model.into(), node: None }).await.unwrap();
    assert_eq!(loser.answers(other).await.len(), TOKENS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_room_at_its_node_is_taken_up_by_a_joiner() {
    let (Some(a), Some(b)) = (Machine::new("a").await, Machine::new("b").await) else { return };
    let (mut a, mut b) =
        (a.with_model("one", 1).with_model("two", 2), b.with_model("one", 1).with_model("two", 2));
    // Room for one of them; the joiner lends nothing, so that no split makes room.
    b.configure("lend = false");
    a.start(&["--model", "one", "--model", "two", "--max-vram", "0.07", "--no-draft"]).await;
    a.ready_at("one", &["a"]).await;
    until("the other one has no room", || async {
        a.model("two").await.filter(|view| view.state == ModelState::Failed)
    })
    .await;
    b.start(&["--no-draft"]).await;
    b.join(&a).await;
    a.ready_at("two", &["b"]).await;
    assert_eq!(a.answers("two").await.len(), TOKENS);
    assert_eq!((a.llama_servers().len(), b.llama_servers().len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_up_is_left_to_others_for_what_nobody_serves() {
    let (Some(a), Some(b)) = (Machine::new("a").await, Machine::new("b").await) else { return };
    let (mut a, mut b) = (a, b.with_model("one", 1).with_model("two", 2));
    a.start(&["--model", "one", "--model", "two"]).await;
    b.start(&[]).await;
    b.join(&a).await;
    a.ready_at("one", &["b"]).await;
    let first = b.process().served_model("one");
    // The file comes to the node whose owner asked for it.
    a.folder.add_model("one", 1);
    a.client().load(&LoadRequest { model: "one".into(), ..LoadRequest::default() }).await.unwrap();
    a.ready_at("two", &["b"]).await;
    first.gone().await;
    a.ready_at("one", &["a"]).await;
    assert!(b.lines_with("Assigned to serve two (needed by the mesh, already on disk), instead of one") > 0);
    assert_eq!(b.lines_with("Assigned to serve"), 2, "{}", b.folder.written());
    for model in ["one", "two"] {
        assert_eq!(a.answers(model).await.len(), TOKENS);
    }
}
