//! The same agents for callers that speak A2A, the Agent2Agent protocol, version 1.0, as JSON-RPC.
//!
//! Its types are those of the protocol's own crate. A task is a delegation under a key of its own: sent again under the same
//! message id it is the same task, and it goes on when its caller leaves.

use std::convert::Infallible;
use std::sync::Arc;

use a2a::{
    A2AError, AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Artifact, CancelTaskRequest,
    GetTaskRequest, JsonRpcId, JsonRpcRequest, JsonRpcResponse, Message, Part, PartContent, Role,
    SendMessageRequest, SendMessageResponse, StreamResponse, Task, TaskArtifactUpdateEvent, TaskState,
    TaskStatus, TaskStatusUpdateEvent,
};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, header};
use mesh_identity::NodeName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::api::Api;
use super::desk::{Caller, Delegation, Standing};
use super::fault::{Code, Fault};
use super::once::Turn;
use super::work::{News, Reader, Terms, Work};

/// Where A2A is spoken.
pub(crate) const PATH: &str = "/a2a";
/// The longest id of a message or a task.
const ID_BYTES_MAX: usize = 256;

type Shared = State<Arc<Api>>;
type Who = Extension<Caller>;

/// `GET /.well-known/agent-card.json`: the node, with an interface and a skill for each agent that is open to the caller.
pub(crate) async fn card(
    State(api): Shared,
    Extension(caller): Who,
    headers: HeaderMap,
) -> Result<Json<AgentCard>, Fault> {
    let standing = api.admit(&caller, &headers)?;
    api.accepted(&caller, "GET /.well-known/agent-card.json");
    let node = api.tls.leaf().name.clone();
    let url = match headers.get(header::HOST).and_then(|host| host.to_str().ok()) {
        Some(host) => format!("https://{host}{PATH}"),
        None => format!("https://{node}.mesh{PATH}"),
    };
    let agents = api.desk.agents(&caller, &standing).await?;
    let interface = |tenant: Option<String>| AgentInterface {
        tenant,
        ..AgentInterface::new(url.clone(), a2a::TRANSPORT_PROTOCOL_JSONRPC)
    };
    // A caller that names no agent gets the first one: whoever takes no notice of tenants has one to talk to.
    let supported_interfaces = std::iter::once(None)
        .chain(agents.iter().map(|agent| Some(agent.id.clone())))
        .map(interface)
        .collect();
    let skills = agents.iter().map(|agent| AgentSkill {
        id: agent.id.clone(),
        name: agent.id.clone(),
        description: agent.description.clone(),
        tags: agent.model.iter().cloned().collect(),
        examples: None,
        input_modes: None,
        output_modes: None,
        security_requirements: None,
    });
    Ok(Json(AgentCard {
        name: node.to_string(),
        description: format!(
            "The agents of the node {node}. The tenant of a request is the agent that is asked."
        ),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        supported_interfaces,
        capabilities: AgentCapabilities { streaming: Some(true), ..AgentCapabilities::default() },
        default_input_modes: vec!["text/plain".to_owned()],
        default_output_modes: vec!["text/plain".to_owned()],
        skills: skills.collect(),
        provider: None,
        documentation_url: None,
        icon_url: None,
        security_schemes: None,
        security_requirements: None,
        signatures: None,
    }))
}

/// `POST /a2a`: one call. What is wrong with the caller is an HTTP error as everywhere; what is wrong with the call is JSON-RPC's.
pub(crate) async fn call(
    State(api): Shared,
    Extension(caller): Who,
    request: Request<Body>,
) -> Result<Response, Fault> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let standing = api.admit(&caller, &headers)?;
    let version = headers.get(a2a::SVC_PARAM_VERSION).and_then(|version| version.to_str().ok());
    let body = api.body(&headers, body).await?;
    let Ok(request) = serde_json::from_slice::<JsonRpcRequest>(&body) else {
        return Ok(failed(JsonRpcId::Null, &A2AError::parse_error("no JSON-RPC request")));
    };
    api.accepted(&caller, "POST /a2a");
    if let Some(version) = version.filter(|version| version.split('.').next() != Some("1")) {
        return Ok(failed(request.id, &A2AError::version_not_supported(version)));
    }
    let id = request.id.clone();
    let answered = match request.method.as_str() {
        a2a::methods::SEND_MESSAGE | "message/send" => send(&api, caller, standing, request).await,
        a2a::methods::SEND_STREAMING_MESSAGE | "message/stream" => stream(&api, caller, standing, request),
        a2a::methods::GET_TASK | "tasks/get" => get(&api, &caller, request),
        a2a::methods::CANCEL_TASK | "tasks/cancel" => cancel(&api, &caller, request).await,
        other => Err(A2AError::method_not_found(other)),
    };
    Ok(answered.unwrap_or_else(|error| failed(id, &error)))
}

async fn send(
    api: &Arc<Api>,
    caller: Caller,
    standing: Standing,
    request: JsonRpcRequest,
) -> Result<Response, A2AError> {
    let asked: SendMessageRequest = params(&request)?;
    let waits = asked.configuration.as_ref().and_then(|wanted| wanted.return_immediately) != Some(true);
    let begun = begin(api, caller, standing, asked)?;
    if waits {
        let _ = begun.work.read().outcome().await;
    }
    Ok(done(request.id, &SendMessageResponse::Task(begun.task())))
}

fn stream(
    api: &Arc<Api>,
    caller: Caller,
    standing: Standing,
    request: JsonRpcRequest,
) -> Result<Response, A2AError> {
    let begun = begin(api, caller, standing, params(&request)?)?;
    let (first, heartbeat) = (StreamResponse::Task(begun.working()), api.limits.heartbeat);
    let state = Some((begun.work.read(), Some(first)));
    let (id, begun) = (request.id, Arc::new(begun));
    let events = stream::unfold(state, move |state| {
        let (id, begun) = (id.clone(), begun.clone());
        async move {
            let (mut reader, first): (Reader, Option<StreamResponse>) = state?;
            let event = |said: StreamResponse| {
                let answer = JsonRpcResponse::success(id.clone(), value(&said));
                Bytes::from(format!("data: {}\n\n", value(&answer)))
            };
            if let Some(first) = first {
                return Some((Ok::<_, Infallible>(event(first)), Some((reader, None))));
            }
            let (bytes, is_last) = match tokio::time::timeout(heartbeat, reader.next()).await {
                Err(_) | Ok(News::Begun { .. }) => (Bytes::from_static(b": still at it\n\n"), false),
                Ok(News::Text(text)) => (event(begun.added(text)), false),
                Ok(News::Over(_)) => (event(begun.ended()), true),
            };
            Some((Ok(bytes), (!is_last).then_some((reader, None))))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

fn get(api: &Api, caller: &Caller, request: JsonRpcRequest) -> Result<Response, A2AError> {
    let asked: GetTaskRequest = params(&request)?;
    let begun = found(api, &caller.leaf.name, &asked.id)?;
    Ok(done(request.id, &begun.task()))
}

async fn cancel(api: &Api, caller: &Caller, request: JsonRpcRequest) -> Result<Response, A2AError> {
    let asked: CancelTaskRequest = params(&request)?;
    let begun = found(api, &caller.leaf.name, &asked.id)?;
    if begun.work.is_over() {
        return Err(A2AError::task_not_cancelable(&asked.id));
    }
    begun.work.cancel();
    let _ = begun.work.read().outcome().await;
    Ok(done(request.id, &begun.task()))
}

/// A task of this caller.
fn found(api: &Api, name: &NodeName, id: &str) -> Result<Begun, A2AError> {
    let work = api.once.find(name, &key(id)).ok_or_else(|| A2AError::task_not_found(id))?;
    Ok(Begun { id: id.to_owned(), context: id.to_owned(), work })
}

/// Has the agent do what the message says; the same message is the same task.
fn begin(
    api: &Arc<Api>,
    caller: Caller,
    standing: Standing,
    asked: SendMessageRequest,
) -> Result<Begun, A2AError> {
    let SendMessageRequest { message, tenant, .. } = asked;
    if let Some(task) = &message.task_id {
        found(api, &caller.leaf.name, task)?;
        return Err(A2AError::unsupported_operation(
            "a task takes one message: send the next one without a task",
        ));
    }
    let is_id = |id: &str| (1..=ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control);
    if !is_id(&message.message_id) || !message.context_id.as_deref().is_none_or(is_id) {
        return Err(A2AError::invalid_params(format!("an id has 1 to {ID_BYTES_MAX} bytes")));
    }
    let task = text_of(&message)?;
    let id = task_id(&caller.leaf.name, &message.message_id);
    let request = value(&(&tenant, &task)).to_string();
    let turn = api.once.enter(&caller.leaf.name, Some(&key(&id)), request.as_bytes());
    let context = message.context_id.unwrap_or_else(|| id.clone());
    match turn.map_err(|fault| A2AError::new(a2a::error_code::INVALID_REQUEST, fault.message))? {
        Turn::Again(work) => Ok(Begun { id, context, work }),
        Turn::First(under_way) => {
            let work = under_way.work.clone();
            let terms = Terms {
                deadline: api.limits.deadline_max,
                orphaned: None,
                answer_bytes_max: api.limits.answer_bytes_max,
            };
            let delegation = Delegation {
                caller,
                standing,
                from_agent: "a2a".to_owned(),
                to_agent: tenant.filter(|tenant| !tenant.is_empty()),
                task,
                context: Vec::new(),
                model: None,
                chain: None,
                depth: 1,
                deadline: terms.deadline,
            };
            api.begin(under_way, delegation, terms);
            Ok(Begun { id, context, work })
        }
    }
}

/// What a message says; agents here take text and data.
fn text_of(message: &Message) -> Result<String, A2AError> {
    let mut texts = Vec::new();
    for part in &message.parts {
        match &part.content {
            PartContent::Text(text) => texts.push(text.clone()),
            PartContent::Data(data) => texts.push(data.to_string()),
            _ => return Err(A2AError::content_type_not_supported()),
        }
    }
    let text = texts.join("\n");
    if text.trim().is_empty() { Err(A2AError::invalid_params("the message is empty")) } else { Ok(text) }
}

/// The same for the same message of the same caller, and nobody else's.
fn task_id(name: &NodeName, message: &str) -> String {
    let mut hash = blake3::Hasher::new_derive_key("qmt-mesh 2026 agent channel A2A task");
    hash.update(name.as_str().to_ascii_lowercase().as_bytes()).update(&[0]).update(message.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// Under which a task is remembered; no header holds such a key.
fn key(task: &str) -> String {
    format!("\na2a {task}")
}

/// A task as its caller sees it.
struct Begun {
    id: String,
    context: String,
    work: Arc<Work>,
}

impl Begun {
    fn status(&self) -> TaskStatus {
        let (state, why) = match self.work.outcome() {
            None => (TaskState::Working, None),
            Some(Ok(_)) => (TaskState::Completed, None),
            Some(Err(_)) if self.work.is_cancelled() => (TaskState::Canceled, None),
            Some(Err(fault)) if matches!(fault.code, Code::NotAllowed | Code::UnknownAgent) => {
                (TaskState::Rejected, Some(fault.message))
            }
            Some(Err(fault)) => (TaskState::Failed, Some(fault.message)),
        };
        let message = why.map(|why| Message {
            task_id: Some(self.id.clone()),
            context_id: Some(self.context.clone()),
            ..Message::new(Role::Agent, vec![Part::text(why)])
        });
        TaskStatus { state, message, timestamp: None }
    }

    fn task(&self) -> Task {
        let answer = self.work.outcome().and_then(Result::ok).map(|response| response.response);
        let artifacts = answer.map(|text| vec![self.artifact(text)]);
        Task { artifacts, ..self.with(self.status()) }
    }

    fn working(&self) -> Task {
        self.with(TaskStatus { state: TaskState::Working, message: None, timestamp: None })
    }

    fn with(&self, status: TaskStatus) -> Task {
        let (id, context_id) = (self.id.clone(), self.context.clone());
        Task { id, context_id, status, artifacts: None, history: None, metadata: None }
    }

    fn added(&self, text: String) -> StreamResponse {
        StreamResponse::ArtifactUpdate(TaskArtifactUpdateEvent {
            task_id: self.id.clone(),
            context_id: self.context.clone(),
            artifact: self.artifact(text),
            append: Some(true),
            last_chunk: None,
            metadata: None,
        })
    }

    fn ended(&self) -> StreamResponse {
        StreamResponse::StatusUpdate(TaskStatusUpdateEvent {
            task_id: self.id.clone(),
            context_id: self.context.clone(),
            status: self.status(),
            metadata: None,
        })
    }

    /// The one thing that comes of a task.
    fn artifact(&self, text: String) -> Artifact {
        Artifact {
            artifact_id: "answer".to_owned(),
            name: None,
            description: None,
            parts: vec![Part::text(text)],
            metadata: None,
            extensions: None,
        }
    }
}

fn params<T: DeserializeOwned>(request: &JsonRpcRequest) -> Result<T, A2AError> {
    let params = request.params.clone().unwrap_or_default();
    serde_json::from_value(params).map_err(|error| A2AError::invalid_params(error.to_string()))
}

fn done(id: JsonRpcId, result: &impl Serialize) -> Response {
    Json(JsonRpcResponse::success(id, value(result))).into_response()
}

fn failed(id: JsonRpcId, error: &A2AError) -> Response {
    Json(JsonRpcResponse::error(id, error.to_jsonrpc_error())).into_response()
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("what is sent here has texts as keys")
}
