//! HTTP to a server at an address: the "streamable HTTP" transport of the Model Context Protocol.
//!
//! rmcp keeps the session; this sends its requests and bounds the answers. Redirects are not followed: the keys in the
//! headers are for the owner's address and no other.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::common::http_header::{
    EVENT_STREAM_MIME_TYPE, HEADER_LAST_EVENT_ID, HEADER_SESSION_ID, JSON_MIME_TYPE,
};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};

type Events = BoxStream<'static, Result<Sse, sse_stream::Error>>;
type Fault = StreamableHttpError<WebError>;

/// A client of one server. Clones share its connections.
#[derive(Debug, Clone)]
pub(super) struct Web {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// The longest answer, or event of one that streams.
    message_bytes: usize,
}

/// A request did not get an answer that can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebError {
    #[error("the address or a header is not valid")]
    Request(#[source] http::Error),
    #[error("the server cannot be reached")]
    Send(#[source] hyper_util::client::legacy::Error),
    #[error("the answer broke off")]
    Body(#[source] hyper::Error),
    #[error("an answer is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
}

impl Web {
    pub(super) fn new(message_bytes: usize) -> Result<Self, rustls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector), message_bytes })
    }

    async fn send(&self, asked: Asked<'_>) -> Result<Response<Incoming>, Fault> {
        let accepted = format!("{JSON_MIME_TYPE}, {EVENT_STREAM_MIME_TYPE}");
        let mut request = Request::builder().method(asked.method).uri(asked.uri).header(ACCEPT, accepted);
        if asked.body.is_some() {
            request = request.header(CONTENT_TYPE, JSON_MIME_TYPE);
        }
        if let Some(session) = asked.session {
            request = request.header(HEADER_SESSION_ID, session);
        }
        if let Some(last) = asked.last_event {
            request = request.header(HEADER_LAST_EVENT_ID, last);
        }
        if let Some(token) = asked.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in asked.headers {
            request = request.header(name, value);
        }
        let body = Full::new(Bytes::from(asked.body.unwrap_or_default()));
        let request = request.body(body).map_err(|error| Fault::Client(WebError::Request(error)))?;
        self.client.request(request).await.map_err(|error| Fault::Client(WebError::Send(error)))
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Vec<u8>, Fault> {
        let mut body = response.into_body().into_data_stream();
        let mut whole = Vec::new();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| Fault::Client(WebError::Body(error)))?;
            if piece.len() > self.message_bytes - whole.len() {
                return Err(Fault::Client(WebError::TooLarge { bytes_max: self.message_bytes }));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    fn events(&self, response: Response<Incoming>) -> Events {
        let mut bounded = EventBound { bytes: 0, is_line_empty: true, bytes_max: self.message_bytes };
        let body = response.into_body().into_data_stream().map_err(WebError::Body);
        let bytes = body.and_then(move |piece| std::future::ready(bounded.admit(piece)));
        SseStream::from_bytes_stream(bytes).boxed()
    }
}

/// A request to be sent.
struct Asked<'a> {
    method: Method,
    uri: &'a str,
    session: Option<&'a str>,
    last_event: Option<&'a str>,
    token: Option<&'a str>,
    headers: HashMap<HeaderName, HeaderValue>,
    body: Option<Vec<u8>>,
}

/// Counts the bytes of an event, which ends with an empty line.
struct EventBound {
    bytes: usize,
    is_line_empty: bool,
    bytes_max: usize,
}

impl EventBound {
    fn admit(&mut self, piece: Bytes) -> Result<Bytes, WebError> {
        for byte in &piece {
            self.bytes += 1;
            match byte {
                b'\n' if self.is_line_empty => self.bytes = 0,
                b'\n' => self.is_line_empty = true,
                b'\r' => {}
                _ => self.is_line_empty = false,
            }
            if self.bytes > self.bytes_max {
                return Err(WebError::TooLarge { bytes_max: self.bytes_max });
            }
        }
        Ok(piece)
    }
}

fn unexpected(what: impl Into<Cow<'static, str>>) -> Fault {
    Fault::UnexpectedServerResponse(what.into())
}

fn is_of(response: &Response<Incoming>, media_type: &str) -> bool {
    let is = |value: &HeaderValue| value.as_bytes().starts_with(media_type.as_bytes());
    response.headers().get(CONTENT_TYPE).is_some_and(is)
}

impl StreamableHttpClient for Web {
    type Error = WebError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Fault> {
        let response = self
            .send(Asked {
                method: Method::POST,
                uri: &uri,
                session: session_id.as_deref(),
                last_event: None,
                token: auth_header.as_deref(),
                headers: custom_headers,
                body: Some(serde_json::to_vec(&message)?),
            })
            .await?;
        let status = response.status();
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if status == StatusCode::NOT_FOUND && session_id.is_some() {
            return Err(Fault::SessionExpired);
        }
        if !status.is_success() {
            return Err(unexpected(format!("the server answers {status}")));
        }
        let session = response.headers().get(HEADER_SESSION_ID);
        let session = session.and_then(|value| value.to_str().ok()).map(str::to_owned);
        if is_of(&response, EVENT_STREAM_MIME_TYPE) {
            return Ok(StreamableHttpPostResponse::Sse(self.events(response), session));
        }
        let wants_answer = matches!(message, ClientJsonRpcMessage::Request(_));
        if !wants_answer {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if !is_of(&response, JSON_MIME_TYPE) {
            return Err(unexpected("the server answers in another form than JSON"));
        }
        let whole = self.whole(response).await?;
        let message: ServerJsonRpcMessage = serde_json::from_slice(&whole)?;
        Ok(StreamableHttpPostResponse::Json(message, session))
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Fault> {
        let response = self
            .send(Asked {
                method: Method::DELETE,
                uri: &uri,
                session: Some(&session_id),
                last_event: None,
                token: auth_header.as_deref(),
                headers: custom_headers,
                body: None,
            })
            .await?;
        match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => Ok(()),
            status if status.is_success() => Ok(()),
            status => Err(unexpected(format!("the server answers {status}"))),
        }
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<Events, Fault> {
        let response = self
            .send(Asked {
                method: Method::GET,
                uri: &uri,
                session: session_id.as_deref(),
                last_event: last_event_id.as_deref(),
                token: auth_header.as_deref(),
                headers: custom_headers,
                body: None,
            })
            .await?;
        if !response.status().is_success() || !is_of(&response, EVENT_STREAM_MIME_TYPE) {
            // A server need not offer this stream; its tools work without.
            return Err(Fault::ServerDoesNotSupportSse);
        }
        Ok(self.events(response))
    }
}
