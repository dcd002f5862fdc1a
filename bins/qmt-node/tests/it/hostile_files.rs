//! Files that call themselves models: cut off, of another kind, with lies in them. No node falls over one, and each says why.

use std::path::PathBuf;

use mesh_control::{ErrorCode, LoadRequest, ModelState, PlanRequest};
use mesh_inference::gguf::tiny::TinyModel;

use crate::support::machine::{Machine, TOKENS};
use crate::support::{Host, Place, api_error, until};

/// The head of a GGUF file with so many tensors and keys.
fn head(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    [b"GGUF".as_slice(), &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
}

fn whole() -> Vec<u8> {
    TinyModel { name: "tiny".to_owned(), ..TinyModel::default() }.to_bytes()
}

/// Files by name, each with a word of what is wrong with it.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let whole = whole();
    let mut deep = head(3, 0, 1);
    deep.extend(1u64.to_le_bytes());
    deep.push(b'k');
    // An array of arrays of arrays.
    for _ in 0..10_000 {
        deep.extend(9u32.to_le_bytes());
        deep.extend(9u32.to_le_bytes());
        deep.extend(1u64.to_le_bytes());
    }
    let mut swapped = whole.clone();
    swapped[4..8].copy_from_slice(&3u32.to_be_bytes());
    vec![
        ("empty", Vec::new(), "cut off"),
        ("page", b"<!doctype html><title>Sign in</title>".to_vec(), "not a GGUF file"),
        ("cut-in-the-head", whole[..100].to_vec(), "cut off"),
        ("cut-in-the-weights", whole[..whole.len() / 2].to_vec(), "cut off"),
        ("many-tensors", head(3, u64::MAX, 0), "above the limit"),
        ("many-keys", head(3, 0, u64::MAX), "above the limit"),
        ("deep", deep, "above the limit"),
        ("version-9", head(9, 0, 0), "version 9"),
        ("other-end", swapped, "big-endian"),
    ]
}

/// A node whose folder has all of them, and one that is well.
async fn with_all() -> (Place, Host) {
    let place = Place::new("first");
    let folder: PathBuf = place.config().inference.model_dirs.remove(0);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, body, _) in hostile() {
        std::fs::write(folder.join(format!("{name}.gguf")), body).unwrap();
    }
    std::fs::write(folder.join("well.gguf"), whole()).unwrap();
    let host = place.start().await;
    (place, host)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_or_a_load_of_a_hostile_file_says_what_is_wrong_with_it() {
    let (_place, host) = with_all().await;
    for (name, _, word) in hostile() {
        let plan =
            api_error(host.client.plan(&PlanRequest { model: name.into(), ..PlanRequest::default() }).await);
        let load =
            api_error(host.client.load(&LoadRequest { model: name.into(), ..LoadRequest::default() }).await);
        for error in [plan, load] {
            assert_eq!(error.code, ErrorCode::UnknownModel, "{name}: {error:?}");
            assert!(
                error.message.contains("cannot be run: ") && error.message.contains(word),
                "{name}: {error:?}"
            );
        }
    }
    let plan =
        host.client.plan(&PlanRequest { model: "well".into(), ..PlanRequest::default() }).await.unwrap();
    assert!(plan.text.starts_with("well\n"), "{}", plan.text);
    host.stop().await;
}

/// What only llama-server finds out: a tensor that the architecture asks for has another name.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_llama_server_cannot_load_fails_with_its_words_and_others_go_on() {
    let Some(machine) = Machine::new("a").await else { return };
    let mut machine = machine.with_model("well", 1);
    let (name, other) = (b"blk.0.attn_q.weight", b"blk.0.attn_x.weight");
    let mut body = whole();
    let at = body.windows(name.len()).position(|bytes| bytes == name).unwrap();
    body[at..at + name.len()].copy_from_slice(other);
    std::fs::write(machine.folder.models().join("renamed.gguf"), body).unwrap();
    machine.start(&["--model", "well", "--no-draft"]).await;
    machine.ready_at("well", &["a"]).await;
    machine.client().load(&LoadRequest { model: "renamed".into(), ..LoadRequest::default() }).await.unwrap();
    let why = until("it fails", || async {
        let view = machine.model("renamed").await.filter(|view| view.state == ModelState::Failed)?;
        Some(view.providers[0].detail.clone())
    })
    .await;
    assert!(why.contains("exit code 1") && why.contains("failed to load model"), "{why}");
    assert_eq!(machine.answers("well").await.len(), TOKENS);
}
