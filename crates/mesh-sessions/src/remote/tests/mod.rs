//! A host and its callers on a network in memory.

#![allow(clippy::unwrap_used)]

mod agents;
mod boards;
mod calls;
mod facts;
mod hand_over;
mod hostile;
mod links;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_identity::Permissions;
use mesh_transport::memory::{Conditions, Network};
use mesh_transport::testing::Mesh;
use mesh_transport::write_frame;
use tokio::io::AsyncReadExt;

use super::*;
use crate::agent::OpenTo;
use crate::content::Text;
use crate::event::{Body, Event, Right, Share, ShareWith};
use crate::host::Sessions;
use crate::host::tests::{Host, Script, TestTool, said, text, wants};
use crate::ids::EventNumber;
use crate::model::{Message, Shown};
use crate::proto::wire::{Ask, Beat, Code, Deed, FRAME_BYTES_MAX, PIECE, Tell};
use crate::tool::Ran;

/// A host (node 0) with its sessions, and callers.
struct Scene {
    network: Network,
    mesh: Mesh,
    host: Host,
    sessions: Option<Sessions>,
    config: Config,
}

impl Scene {
    async fn new(script: Script) -> Self {
        Self::with(script, Vec::new()).await
    }

    async fn with(script: Script, tools: Vec<TestTool>) -> Self {
        let network = Network::new(7);
        let detect_after = Duration::from_millis(300);
        network.set_conditions(Conditions { detect_after, ..Conditions::default() });
        let mut mesh = Mesh::on(network.clone(), 2).await;
        mesh.add(Permissions::CLIENT).await;
        let mut host = Host::new(script);
        (host.me, host.tools) = (mesh[0].id(), tools);
        // Long enough for a machine that is busy with something else.
        let config = Config {
            idle: Duration::from_secs(2),
            beat: Duration::from_millis(100),
            grace: Duration::from_secs(30),
            ..Config::default()
        };
        let mut scene = Self { network, mesh, host, sessions: None, config };
        scene.start_host().await;
        scene
    }

    async fn start_host(&mut self) {
        let sessions = self.host.start().await;
        serve(&self.mesh[0].transport, &sessions, self.config.clone());
        self.sessions = Some(sessions);
    }

    /// The host's sessions end as in a crash.
    async fn crash_host(&mut self) {
        self.host.crash(self.sessions.take().unwrap()).await;
    }

    fn remote(&self, caller: usize) -> RemoteHost {
        let transport = self.mesh[caller].transport.clone();
        RemoteHost::new(transport, self.mesh.scope(), self.mesh[0].id(), self.config.clone())
    }

    async fn session(&self) -> RemoteSession {
        self.remote(1).create("coder".parse().unwrap(), None, BTreeMap::new()).await.unwrap()
    }

    fn cut(&self) {
        self.network.cut(self.mesh[0].id(), self.mesh[1].id());
    }

    fn heal(&self) {
        self.network.heal(self.mesh[0].id(), self.mesh[1].id());
    }

    fn break_link(&self) {
        self.network.break_connections(self.mesh[0].id(), self.mesh[1].id());
    }

    /// A stream of the protocol in the hands of somebody who does as he likes.
    async fn raw(&self, ask: &[u8]) -> mesh_transport::Stream {
        let (scope, host) = (self.mesh.scope(), self.mesh[0].id());
        let mut stream = self.mesh[1].transport.open(&scope, &host, PROTOCOL).await.unwrap();
        write_frame(&mut stream, ask, FRAME_BYTES_MAX).await.unwrap();
        stream
    }

    async fn end(self) {
        if let Some(sessions) = self.sessions {
            sessions.shutdown().await;
        }
        self.mesh.shutdown().await;
    }
}

async fn prompt(session: &RemoteSession, id: &str) -> EventNumber {
    session.prompt(id.parse().unwrap(), text(id)).await.unwrap()
}

/// All events up to the end of this many turns: each once, in order.
async fn until_turns(session: &RemoteSession, turns: usize) -> Vec<Event> {
    read_on(&mut session.follow(EventNumber::START), turns).await
}

async fn read_on(following: &mut RemoteFollowing, turns: usize) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while ended(&events) < turns {
        let after = following.at();
        let next = tokio::time::timeout(Duration::from_secs(40), following.next()).await;
        let event = next.expect("an event").unwrap();
        assert_eq!(event.number, after.next(), "no gap and no repeat");
        events.push(event);
    }
    events
}

fn ended(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event.body, Body::TurnEnded { .. })).count()
}

fn streamed(events: &[Event]) -> String {
    let piece = |event: &Event| match &event.body {
        Body::TextAdded { text, .. } => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(piece).collect()
}

fn code<T: std::fmt::Debug>(result: Result<T, RemoteError>) -> Code {
    match result {
        Err(RemoteError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}
