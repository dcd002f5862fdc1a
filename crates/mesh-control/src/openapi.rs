//! The control API as an OpenAPI document (version 3.0.3), made of the types themselves. It is written to `docs/openapi.json`
//! by `WRITE_DOCS=1 cargo test -p mesh-control openapi`, and a test holds that file to the code.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::paths::Endpoint;
use crate::*;

/// What an endpoint takes and gives.
struct Operation {
    endpoint: Endpoint,
    method: &'static str,
    summary: &'static str,
    /// The body of a request, or its query.
    takes: Option<(Takes, Value)>,
    gives: Gives,
}

#[derive(Clone, Copy, PartialEq)]
enum Takes {
    Body,
    Query,
    Lines,
}

enum Gives {
    Json(Value),
    /// Server-sent events, each with this as its data.
    Events(Value),
    Bytes(&'static str),
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

macro_rules! operations {
    ($generator:ident: $($method:ident $endpoint:ident $summary:literal ($($how:ident $takes:ty)?) -> $gives:ident $($given:ty)?, $($media:literal)?;)+) => {
        vec![$(Operation {
            endpoint: Endpoint::$endpoint,
            method: stringify!($method),
            summary: $summary,
            takes: operations!(@takes $generator $($how $takes)?),
            gives: operations!(@gives $generator $gives $($given)? $($media)?),
        }),+]
    };
    (@takes $generator:ident) => { None };
    (@takes $generator:ident $how:ident $takes:ty) => { Some((Takes::$how, of::<$takes>($generator))) };
    (@gives $generator:ident Json $given:ty) => { Gives::Json(of::<$given>($generator)) };
    (@gives $generator:ident Events $given:ty) => { Gives::Events(of::<$given>($generator)) };
    (@gives $generator:ident Bytes $media:literal) => { Gives::Bytes($media) };
}

/// A query of one text.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it describes what the router reads itself")]
struct RouteQuery {
    /// Routes of requests for this model.
    model: Option<String>,
    /// Ways to this node.
    node: Option<String>,
}

fn all(generator: &mut SchemaGenerator) -> Vec<Operation> {
    operations! { generator:
        get Status "The node at this moment" () -> Json Status,;
        get Nodes "All nodes it knows, itself first" () -> Json Vec<NodeView>,;
        get Invites "Invites that the node made" () -> Json Vec<InviteView>,;
        post Invites "Makes an invite, founding a mesh when the node is in none" (Body InviteRequest) -> Json InviteCreated,;
        post Revoke "Revokes an invite or a node" (Body RevokeRequest) -> Json Revoked,;
        post Recover "Revokes a node by the recovery key" (Body RecoverRequest) -> Json Revoked,;
        post Admins "Makes a member an admin" (Body AppointRequest) -> Json Appointed,;
        post Join "Joins the mesh of an invite" (Body JoinRequest) -> Json Joined,;
        post Leave "Leaves a mesh" (Body LeaveRequest) -> Json Left,;
        post Ping "Measures the round trip to a node" (Body PingRequest) -> Json Vec<Pong>,;
        get Models "Models that the node can reach" () -> Json Vec<ModelView>,;
        post Load "Serves a model here or at another node" (Body LoadRequest) -> Json ModelView,;
        post Drop "Stops the serving of a model" (Body DropRequest) -> Json Dropped,;
        post Pull "Downloads a model" (Body PullRequest) -> Json PullView,;
        post StopPull "Stops a download" (Body PullRequest) -> Json PullView,;
        get Pulls "Downloads under way, and those that ended lately" () -> Json Vec<PullView>,;
        post Plan "Where a model would run" (Body PlanRequest) -> Json PlanView,;
        get Routes "Where requests would go (RouteView), or by which ways a node is reached (PeerRouteView)" (Query RouteQuery) -> Json Vec<RouteView>,;
        get AgentRoutes "Whose models the agents ask" () -> Json Vec<AgentRouteView>,;
        post AgentRoutes "Has an agent ask another node's model" (Body SetAgentRoute) -> Json AgentRouteView,;
        get Audit "Who let whom in" (Query AuditQuery) -> Json AuditView,;
        get Doctor "What is missing or wrong" () -> Json Vec<Finding>,;
        get Metrics "What the node counts, for Prometheus" () -> Bytes, "text/plain";
        get Logs "Log lines" (Query LogQuery) -> Json LogPage,;
        get LogEvents "Log lines as they come" (Query LogQuery) -> Events LogPage,;
        post ConsoleLink "A link that opens the console once" (Body LinkRequest) -> Json ConsoleLink,;
        post CloseConsole "Signs every browser out of the console" (Body ConsoleClosed) -> Json ConsoleClosed,;
        get Events "What happens at the node, a snapshot first" () -> Events Event,;
        get Agents "Agents that sessions can be held with" () -> Json Vec<AgentView>,;
        get Sessions "Sessions, the newest first" (Query SessionQuery) -> Json SessionPage,;
        post Sessions "Begins a session" (Body CreateSession) -> Json SessionView,;
        get ShowSession "One session" (Query OneQuery) -> Json SessionView,;
        get SessionEvents "Events of a session, past and live; the last one is a StreamEnd" (Query EventsQuery) -> Events SessionEvent,;
        get SessionContent "A long text or an image of a session" (Query ContentQuery) -> Bytes, "application/octet-stream";
        post Prompt "Prompts a session's agent" (Body PromptSession) -> Json Written,;
        post Steer "Speaks into a turn" (Body SteerSession) -> Json Written,;
        post Cancel "Ends a turn" (Body CancelTurn) -> Json Written,;
        post Decide "Decides about a tool that waits" (Body DecideTool) -> Json Written,;
        post NameSession "Names a session" (Body NameSession) -> Json Written,;
        post LabelSession "Labels a session" (Body LabelSession) -> Json Written,;
        post ShareSession "Shares a session" (Body ShareSession) -> Json Written,;
        post ForkSession "Begins a session that is another one up to an event" (Body ForkSession) -> Json SessionView,;
        post Suspend "Has a session rest" (Body SuspendSession) -> Json Written,;
        post Resume "Has a session go on" (Body OneSession) -> Json Written,;
        post Archive "Ends a session" (Body OneSession) -> Json Written,;
        post MoveSession "Hands a session over to another node" (Body MoveSession) -> Json SessionView,;
        get ExportSession "A session as lines of JSON" (Query OneQuery) -> Bytes, "application/x-ndjson";
        post ImportSession "Takes such lines in" (Lines String) -> Json ImportedSession,;
        get SearchSessions "Where words were said" (Query SearchQuery) -> Json Vec<HitView>,;
        get Boards "Boards, the newest first" (Query SessionQuery) -> Json SessionPage,;
        post Boards "Makes a board at the node" (Body CreateBoard) -> Json SessionView,;
        get ShowBoard "One board, by what people call it" (Query BoardQuery) -> Json SessionView,;
        post PostOnBoard "Posts on a board" (Body PostOnBoard) -> Json Written,;
    }
}

impl JsonSchema for ErrorCode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ErrorCode".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> schemars::Schema {
        let words: Vec<&str> = ErrorCode::KNOWN.iter().map(ErrorCode::as_str).collect();
        schemars::json_schema!({ "type": "string", "description": "What went wrong, for programs; a later version may have more words", "examples": words })
    }
}

fn document() -> Value {
    let mut settings = SchemaSettings::openapi3();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut operations = all(&mut generator);
    let error = of::<ApiError>(&mut generator);
    let mut paths: Map<String, Value> = Map::new();
    for operation in &mut operations {
        let path = paths.entry(operation.endpoint.path()).or_insert_with(|| json!({}));
        path[operation.method] = described(operation, &mut generator, &error);
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.0.3",
        "info": {
            "title": "Control API of a QMT node",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Served on the Unix socket `QMT_HOME/node.sock` and, behind a cookie, by the console.",
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn described(operation: &Operation, generator: &mut SchemaGenerator, error: &Value) -> Value {
    let (media, schema) = match &operation.gives {
        Gives::Json(schema) => ("application/json", schema.clone()),
        Gives::Events(schema) => ("text/event-stream", schema.clone()),
        Gives::Bytes(media) => (*media, json!({ "type": "string" })),
    };
    let mut described = json!({
        "summary": operation.summary,
        "operationId": format!("{}{:?}", operation.method, operation.endpoint),
        "responses": {
            "200": { "description": "done", "content": { media: { "schema": schema } } },
            "default": { "description": "refused or failed", "content": { "application/json": {
                "schema": { "type": "object", "required": ["error"], "properties": { "error": error } },
            } } },
        },
    });
    match &operation.takes {
        None => {}
        Some((Takes::Body, schema)) => {
            described["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        Some((Takes::Lines, schema)) => {
            described["requestBody"] =
                json!({ "required": true, "content": { "application/x-ndjson": { "schema": schema } } });
        }
        Some((Takes::Query, schema)) => described["parameters"] = parameters(schema, generator),
    }
    described
}

/// The fields of a type as those of a query.
fn parameters(schema: &Value, generator: &SchemaGenerator) -> Value {
    let name =
        schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()).expect("a query is a named type");
    let query = &generator.definitions()[name];
    let required = query["required"].as_array().cloned().unwrap_or_default();
    let fields = query["properties"].as_object().expect("a query has fields");
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        json!({ "name": name, "in": "query", "required": required.contains(&json!(name)), "description": description, "schema": schema })
    };
    fields.iter().map(parameter).collect()
}

#[test]
fn the_document_is_the_code() {
    let made = format!("{:#}\n", document());
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::write(file, &made).expect("writes");
    }
    let written = std::fs::read_to_string(file).unwrap_or_default();
    assert!(written == made, "docs/openapi.json is of another version; write it anew with WRITE_DOCS=1");
}

#[test]
fn every_endpoint_is_described_and_every_reference_leads_somewhere() {
    let document = document();
    let text = include_str!("paths.rs");
    let paths = text.lines().filter_map(|line| {
        line.trim().split_once("=> \"/").map(|(_, rest)| format!("/{}", rest.trim_end_matches("\",")))
    });
    for path in paths {
        assert!(document["paths"].get(&path).is_some(), "{path} is not described");
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let path = reference.split('"').next().unwrap_or_default();
        assert!(document.pointer(path).is_some(), "{path}");
    }
}
