//! What stands behind the two servers: an agent that repeats its task, and axum without anything of ours.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use axum::body::Body;
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::future::{self, BoxFuture};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use mesh_identity::ca::Leaf;
use mesh_identity::{NodeId, NodeKey, NodeName, Role};
use mesh_sessions::channel::{
    Caller, Delegation, Desk, Directory, Fault, JoinError, ListedAgent, MessageRequest, MessageResponse,
    Piece, Place, Standing, Status,
};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(crate) struct Echo;

impl Desk for Echo {
    fn me(&self) -> NodeId {
        NodeKey::from_seed([1; 32]).node_id()
    }

    fn standing(&self, _: &Leaf) -> Option<Standing> {
        Some(Standing { role: Role::Member, scopes: Vec::new() })
    }

    fn agents(&self, _: &Caller, _: &Standing) -> BoxFuture<'static, Result<Vec<ListedAgent>, Fault>> {
        future::ready(Ok(Vec::new())).boxed()
    }

    fn deliver(&self, delegation: Delegation) -> BoxStream<'static, Piece> {
        let begun = Piece::Begun { agent: "echo".to_owned(), session: None };
        stream::iter([begun, Piece::Done { answer: Some(delegation.task) }]).boxed()
    }
}

pub(crate) struct Everybody;

impl Directory for Everybody {
    fn view(&self) -> Value {
        Value::Null
    }

    fn knows(&self, _: &NodeName) -> bool {
        true
    }

    fn join(&self, _: &Leaf, _: Value) -> BoxFuture<'static, Result<Value, JoinError>> {
        std::future::ready(Ok(Value::Null)).boxed()
    }

    fn place_of(&self, _: &NodeName) -> Option<Place> {
        None
    }
}

/// Where the bare echo returns what it is sent.
pub(crate) const ECHO: &str = "/api/message";
/// Where it reads it as a delegation and writes an answer to one.
pub(crate) const TYPED: &str = "/typed";

/// Returns what it is sent, over TLS with certificates at both ends.
pub(crate) async fn bare(config: Arc<ServerConfig>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let typed = async |Json(request): Json<MessageRequest>| {
        Json(MessageResponse {
            response: request.message,
            agent: "echo".to_owned(),
            duration_ms: 0,
            status: Status::Completed,
        })
    };
    let router = Router::new().route(ECHO, post(async |body: Bytes| body)).route(TYPED, post(typed));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, router) = (TlsAcceptor::from(config.clone()), router.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = tower::ServiceExt::map_request(
                    router.into_service::<Body>(),
                    |request: hyper::Request<hyper::body::Incoming>| request.map(Body::new),
                );
                let service = TowerToHyperService::new(service);
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok(address)
}
