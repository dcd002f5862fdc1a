//! The gateway under the console's own name, so that the page can chat: requests are passed on as they are, answers piece
//! by piece.

use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mesh_control::{ApiError, ErrorCode};

use crate::control::failure;
use crate::node::Node;

/// What the page says to the gateway and hears from it. Its cookie stays here.
const PASSED: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::RETRY_AFTER,
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("x-mesh-resumable"),
    HeaderName::from_static("x-mesh-response-id"),
];

#[derive(Clone)]
pub(super) struct Chat {
    client: Client<HttpConnector, Body>,
    gateway: SocketAddr,
    authorization: Option<HeaderValue>,
}

impl Chat {
    pub(super) fn new(node: &Node) -> Self {
        let key = node.config().gateway.api_key.as_ref();
        let authorization =
            key.and_then(|key| HeaderValue::from_str(&format!("Bearer {}", key.expose())).ok());
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, gateway: node.gateway_addr(), authorization }
    }

    fn uri(&self, asked: &Uri) -> Option<Uri> {
        let mut addr = self.gateway;
        if addr.ip().is_unspecified() {
            addr.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let path = asked.path_and_query()?.clone();
        Uri::builder().scheme("http").authority(addr.to_string()).path_and_query(path).build().ok()
    }
}

/// Passes one request on. The answer ends when its reader goes.
pub(super) async fn forward(State(chat): State<Chat>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let Some(uri) = chat.uri(&head.uri) else {
        return failure(&ApiError::new(ErrorCode::BadRequest, "this is no address of the gateway"));
    };
    head.uri = uri;
    head.headers = passed(&head.headers);
    head.extensions = http::Extensions::new();
    if let Some(authorization) = &chat.authorization {
        head.headers.insert(header::AUTHORIZATION, authorization.clone());
    }
    match chat.client.request(http::Request::from_parts(head, body)).await {
        Ok(answer) => {
            let (head, body) = answer.into_parts();
            let mut response = (head.status, Body::new(body)).into_response();
            *response.headers_mut() = passed(&head.headers);
            response
        }
        Err(error) => {
            tracing::debug!(error = %crate::node::chain(&error), "the gateway did not answer the console");
            let error = ApiError::new(ErrorCode::Unavailable, "the gateway of this node did not answer");
            let mut response = failure(&error);
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    }
}

fn passed(headers: &HeaderMap) -> HeaderMap {
    let all = PASSED.into_iter().filter_map(|name| Some((name.clone(), headers.get(&name)?.clone())));
    all.collect()
}
