use std::sync::Arc;

use mesh_identity::{NodeId, ScopeId};

use super::*;
use crate::event::TurnOutcome;
use crate::model::ModelError;

/// The mesh as a test has it: the host is called `gpu-server`, and there is one that nobody reaches.
struct Known {
    scope: ScopeId,
    host: NodeId,
    away: NodeId,
}

impl Nodes for Known {
    fn nodes(&self) -> Vec<NodeInfo> {
        let node = |peer_id, name: &str| NodeInfo {
            peer_id,
            name: Some(name.to_owned()),
            scopes: vec![self.scope],
            providers: Vec::new(),
            models: vec!["m".to_owned()],
            agents: vec!["coder".to_owned()],
            capabilities: vec!["gpu".to_owned()],
            version: "1".to_owned(),
            rtt: None,
            path: None,
        };
        vec![node(self.away, "away"), node(self.host, "gpu-server")]
    }

    fn find(&self, node: &str) -> Option<(ScopeId, NodeId)> {
        (node == "gpu-server").then_some((self.scope, self.host))
    }
}

fn agents(scene: &Scene) -> RemoteAgents {
    let away = mesh_identity::NodeKey::from_seed([0xaa; 32]).node_id();
    let known = Known { scope: scene.mesh.scope(), host: scene.mesh[0].id(), away };
    RemoteAgents::new(scene.mesh[1].transport.clone(), Arc::new(known), scene.config.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedder_chats_with_an_agent_of_the_mesh() {
    let scene = Scene::new(Script::echo()).await;
    let agents = agents(&scene);
    assert_eq!(agents.list_remote_nodes().await.len(), 2);
    let remote_session = agents.create_remote_session("gpu-server", "coder").await.unwrap();
    let session = agents.attach_remote_session(remote_session).await.unwrap();
    assert_eq!(session.chat("Hello!").await.unwrap(), "you said Hello!");
    let long = "word ".repeat(100_000);
    assert_eq!(session.chat(long.as_str()).await.unwrap(), format!("you said {long}"));
    let prefix = session.id().to_string();
    let again = agents.attach_remote_session(("gpu-server", &prefix[..prefix.len() - 2])).await.unwrap();
    assert_eq!(again.id(), session.id());
    let cut = until_turns(&session, 1).await.last().unwrap().number;
    let fork = agents.fork_remote_session("gpu-server", session.id(), Some(cut)).await.unwrap();
    assert_eq!(fork.chat("other").await.unwrap(), "you said other");
    session.act(Deed::Suspend { why: "night".to_owned() }).await.unwrap();
    let session = agents.resume_remote_session("gpu-server", session.id()).await.unwrap();
    assert_eq!(session.chat("there?").await.unwrap(), "you said there?");
    let anywhere = agents.create_session_anywhere("coder", &["gpu"]).await.unwrap();
    assert_eq!(
        (anywhere.host().node(), anywhere.chat("x").await.unwrap().as_str()),
        (scene.mesh[0].id(), "you said x")
    );
    let none = agents.create_session_anywhere("coder", &["tpu"]).await.unwrap_err();
    assert!(matches!(none, RemoteError::NoSuchAgent { .. }), "{none}");
    let nobody = agents.create_remote_session("gpu", "coder").await.unwrap_err();
    assert!(matches!(nobody, RemoteError::NoSuchNode { .. }), "{nobody}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_fails_is_an_error_of_its_chat_alone() {
    let scene = Scene::new(Script::new(|call| match call.messages.last() {
        Some(Message::User(parts)) if *parts == text("bad") => {
            vec![Err(ModelError::Refused("no".to_owned()))]
        }
        _ => said("fine"),
    }))
    .await;
    let session = scene.session().await;
    let (bad, good) = tokio::join!(session.chat("bad"), session.chat("good"));
    let ended = bad.unwrap_err();
    assert!(matches!(ended, ChatError::Ended { outcome: TurnOutcome::Failed { .. } }), "{ended}");
    assert_eq!(good.unwrap(), "fine");
    scene.end().await;
}
