//! `drop` from a second node stops a model where it runs, and nothing else.

use mesh_control::{DropRequest, ErrorCode, InviteRequest, LoadRequest, ModelState, ModelView, Role};

use crate::support::process::{Folder, llama_bin_dir};
use crate::support::stub::Stub;
use crate::support::{Host, Place, api_error, http, stop_both, until};

fn dropping(model: &str) -> DropRequest {
    DropRequest { model: model.to_owned(), node: None }
}

async fn status(host: &Host, model: &str) -> u16 {
    let answer = http::post(host.gateway().await, "/v1/chat/completions", http::chat(model)).await;
    answer.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_drops_a_model_of_another_node_and_its_llama_server_ends() {
    let Some(bin_dir) = llama_bin_dir().await else { return };
    let folder = Folder::new();
    let first = folder.start_serving(&bin_dir, &["tiny-one", "tiny-two"]).await;
    let second = Host::new("second").await;
    let invite = first.client.invite(&InviteRequest::default()).await.unwrap();
    second.join(&invite.token).await;
    tokio::join!(second.offers("tiny-one"), second.offers("tiny-two"));
    let seen = second.client.models().await.unwrap();
    let known = first.client.models().await.unwrap();
    let size = |models: &[ModelView]| {
        let model = models.iter().find(|model| model.name == "tiny-one").unwrap();
        (model.size_bytes.unwrap(), model.context_tokens.unwrap())
    };
    assert_eq!(size(&seen), size(&known));
    assert!(size(&seen).0 > 100_000, "the size of a file: {}", size(&seen).0);
    let (one, two) = (first.served_model("tiny-one"), first.served_model("tiny-two"));

    let dropped = second.client.drop_model(&dropping("tiny-one")).await.unwrap();
    assert_eq!((dropped.nodes, dropped.unreached.len()), (vec![invite_issuer(&first).await], 0));
    // The answer is given when the process is gone.
    assert!(!one.server.is_alive() && !one.guard.is_alive());
    assert!(two.server.is_alive());
    until("the second node knows", || async { (status(&second, "tiny-one").await == 404).then_some(()) })
        .await;
    assert_eq!(status(&second, "tiny-two").await, 200);
    assert_eq!(first.served().len(), 1);

    let loaded = first
        .client
        .load(&LoadRequest { model: "tiny-one".to_owned(), ..LoadRequest::default() })
        .await
        .unwrap();
    assert_eq!((loaded.name.as_str(), loaded.state), ("tiny-one", ModelState::Loading));
    first.ready("tiny-one").await;
    until("the second node uses it again", || async {
        (status(&second, "tiny-one").await == 200).then_some(())
    })
    .await;
    assert!(two.server.is_alive());
    second.stop().await;
}

async fn invite_issuer(node: &crate::support::process::Process) -> String {
    node.client.status().await.unwrap().node_id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_use_a_model_and_not_drop_it() {
    let Some(bin_dir) = llama_bin_dir().await else { return };
    let folder = Folder::new();
    std::fs::create_dir_all(folder.home()).unwrap();
    std::fs::write(folder.home().join("config.toml"), "[inference]\nshare = \"clients\"\n").unwrap();
    let first = folder.start_serving(&bin_dir, &["tiny-one"]).await;
    let client = Host::new("client").await;
    let for_clients = InviteRequest { role: Some(Role::Client), ..InviteRequest::default() };
    let joined = client.join(&first.client.invite(&for_clients).await.unwrap().token).await;
    assert_eq!(joined.role, Role::Client);
    client.offers("tiny-one").await;
    assert_eq!(status(&client, "tiny-one").await, 200);
    let served = first.served_model("tiny-one");
    let error = api_error(client.client.drop_model(&dropping("tiny-one")).await);
    assert_eq!(error.code, ErrorCode::NotAllowed, "{error:?}");
    assert!(error.message.contains("client") && error.mend.is_some(), "{error:?}");
    assert!(served.server.is_alive());
    assert_eq!(status(&client, "tiny-one").await, 200);
    client.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_no_mesh_drops_its_own_model_by_its_id() {
    let Some(bin_dir) = llama_bin_dir().await else { return };
    let folder = Folder::new();
    let node = folder.start_serving(&bin_dir, &["tiny-one"]).await;
    let id = invite_issuer(&node).await;
    let here = DropRequest { node: Some(id.clone()), ..dropping("tiny-one") };
    assert_eq!(node.client.drop_model(&here).await.unwrap().nodes, [id]);
    assert!(node.served().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_runs_cannot_be_dropped() {
    let stub = Stub::start(&["talks"]).await;
    let place = Place::new("first");
    let first = place.start_with(|config| config.providers = vec![stub.provider()]).await;
    let second = Host::new("second").await;
    second.join(&first.invite().await.token).await;
    second.offers("talks").await;
    for model in ["unheard-of", "talks"] {
        let error = api_error(second.client.drop_model(&dropping(model)).await);
        assert_eq!(error.code, ErrorCode::UnknownModel, "{error:?}");
        assert!(error.message.contains(&format!("{model:?}")) && error.mend.is_some(), "{error:?}");
    }
    let elsewhere = DropRequest { model: "talks".to_owned(), node: Some("nobody".to_owned()) };
    let error = api_error(second.client.drop_model(&elsewhere).await);
    assert_eq!(error.code, ErrorCode::UnknownNode, "{error:?}");
    // A provider's model is its owner's: it is still there.
    assert_eq!(status(&second, "talks").await, 200);
    stop_both(first, second).await;
}
