//! Models served here and elsewhere: loaded and dropped, here on the owner's word and at others on a member's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_control::{ApiError, DropRequest, Dropped, ErrorCode, LoadRequest, ModelState, ModelView};
use mesh_identity::{NodeId, ScopeId};
use mesh_transport::{Call, CallError, CallFault, Member, Protocol, serve_call};
use serde::{Deserialize, Serialize};

use super::placing::Unprepared;
use super::plans::plain;
use super::serving::record::decode;
use super::{Inner, Node, chain};

const DROP_DEADLINE: Duration = Duration::from_secs(20);
/// To read a model's file and decide; its loading is not waited for.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);
/// Longest model name taken from a peer, bytes.
const NAME_BYTES_MAX: usize = 512;

/// Asks a node to stop serving a model. For members only.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DropModel {
    model: String,
}

impl Call for DropModel {
    const PROTOCOL: Protocol = Protocol::new("drop/1");
    type Reply = bool;
}

/// Asks a node to serve a model of its own disk. For members only.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LoadModel {
    /// The name of a model there; never a path.
    model: String,
    split: Option<bool>,
}

impl Call for LoadModel {
    const PROTOCOL: Protocol = Protocol::new("load/1");
    type Reply = ();
}

/// The node has no model of that name, or cannot run it: its words say which.
const NOT_LOADED: u16 = 1;

/// Serves `drop/1` and `load/1`. Weak: the transport keeps its handlers, and a handler must not keep the node.
pub(super) fn serve(node: &Node) {
    let dropping = Arc::downgrade(&node.inner);
    serve_call::<DropModel, _, _>(node.transport(), move |member: Member, call: DropModel| {
        let node = upgrade(&dropping);
        async move {
            bounded(&call.model)?;
            let node = node?;
            tracing::info!(peer = %member.id.short(), model = call.model, "a member drops a model here");
            Ok(node.drop_here(&call.model).await)
        }
    });
    let loading = Arc::downgrade(&node.inner);
    serve_call::<LoadModel, _, _>(node.transport(), move |member: Member, call: LoadModel| {
        let node = upgrade(&loading);
        async move {
            bounded(&call.model)?;
            let node = node?;
            tracing::info!(peer = %member.id.short(), model = call.model, "a member loads a model here");
            node.load_by_name(&call.model, call.split)
                .await
                .map_err(|error| CallFault::new(NOT_LOADED, error.message))
        }
    });
}

pub(super) fn upgrade(inner: &Weak<Inner>) -> Result<Node, CallFault> {
    let stopping = || CallFault::new(CallFault::DEADLINE, "the node is stopping");
    Ok(Node { inner: inner.upgrade().ok_or_else(stopping)?, _last_handle: None })
}

pub(super) fn bounded(model: &str) -> Result<(), CallFault> {
    let fits = model.len() <= NAME_BYTES_MAX;
    fits.then_some(()).ok_or_else(|| CallFault::new(CallFault::BAD_REQUEST, "the model's name is too long"))
}

impl Node {
    /// Starts to serve a model from this machine's disk, or from that of the node named. One that is served or loading
    /// already stays as it is. Nodes at which it was dropped serve it again.
    pub(crate) async fn load(&self, request: LoadRequest) -> Result<ModelView, ApiError> {
        if let Some(text) = &request.node
            && *text != self.id().to_string()
        {
            let (scope, node) = self.resolve_node(text, None)?;
            if node != self.id() {
                return self.load_at(scope, node, request).await;
            }
        }
        let prepared = match self.prepare(&request.model, request.split, None).await {
            Err(Unprepared::NotHere) => return self.load_when_here(&request.model),
            prepared => prepared?,
        };
        self.llama().await?;
        let name = prepared.model.name.clone();
        self.inner.serving.serve(prepared, true).await;
        self.inner.coming.end(&name);
        for (scope, node) in self.holding_dropped(&name) {
            let call = LoadModel { model: name.clone(), split: None };
            let caller = self.clone();
            self.inner.tasks.spawn(async move {
                if let Err(error) = caller.transport().call(&scope, &node, &call, LOAD_DEADLINE).await {
                    tracing::info!(node = %node.short(), model = call.model, error = %chain(&error), "a node at which a model was dropped does not serve it");
                }
            });
        }
        Ok(self.model_or_cold(name))
    }

    async fn load_at(
        &self,
        scope: ScopeId,
        node: NodeId,
        request: LoadRequest,
    ) -> Result<ModelView, ApiError> {
        let call = LoadModel { model: request.model, split: request.split };
        match self.transport().call(&scope, &node, &call, LOAD_DEADLINE).await {
            Ok(()) => Ok(self.model_or_cold(call.model)),
            Err(CallError::Fault(fault)) if fault.code == CallFault::NOT_ALLOWED => Err(ApiError::new(
                ErrorCode::NotAllowed,
                format!("this node is a client there, and only members may load {:?}", call.model),
            )),
            Err(CallError::Fault(fault)) if fault.code == NOT_LOADED => Err(ApiError::new(
                ErrorCode::UnknownModel,
                format!("{} says: {}", self.called(&scope, &node), plain(&fault.message)),
            )),
            Err(error) => Err(ApiError::new(
                ErrorCode::Unavailable,
                format!("{} does not answer: {}", self.called(&scope, &node), chain(&error)),
            )
            .with_mend("`qmt-cli nodes` shows who is there; try again when it is alive")),
        }
    }

    /// What people call a member: its name, else the beginning of its id.
    fn called(&self, scope: &ScopeId, node: &NodeId) -> String {
        let name = self.member_name(scope, node);
        if name.is_empty() { node.short() } else { name }
    }

    /// By the name of a model in this node's folders: what a member, or election, may ask for.
    async fn load_by_name(&self, name: &str, split: Option<bool>) -> Result<(), ApiError> {
        if let Err(error) = self.known_by_name(name) {
            // Whoever loads it elsewhere wants it not held back from here either.
            self.inner.serving.hold_no_more(name.to_owned()).await;
            return Err(error);
        }
        self.llama().await?;
        let prepared = self.prepare(name, split, None).await?;
        self.inner.serving.serve(prepared, true).await;
        Ok(())
    }

    /// Whether a name is that of a model in this node's folders, and no path.
    pub(super) fn known_by_name(&self, name: &str) -> Result<(), ApiError> {
        let is_on_disk = self.on_disk().iter().any(|model| model.name == name);
        let is_known = is_on_disk || self.inner.serving.size(name).is_some();
        if is_known && Path::new(name).components().count() == 1 {
            return Ok(());
        }
        let message = format!("there is no model called {name:?} on this node's disk");
        Err(ApiError::new(ErrorCode::UnknownModel, message))
    }

    /// Serves a model that election has assigned, in the place of another one where it says so.
    pub(crate) async fn take_up(&self, model: String, instead_of: Option<String>) {
        let prepared = match self.prepare(&model, None, None).await {
            Ok(prepared) => prepared,
            Err(error) => {
                let error = ApiError::from(error);
                tracing::warn!(model, error = %error.message, "a model cannot be taken up, and counts as not on this disk until its file is another");
                return self.set_aside(&model);
            }
        };
        if let Some(left) = instead_of
            && !self.inner.serving.leave(left).await
        {
            return;
        }
        self.inner.serving.serve(prepared, false).await;
    }

    /// A model of the configuration: served, or wanted of the mesh where it is not on this disk.
    pub(crate) async fn serve_configured(&self, model: &str) {
        match self.load(LoadRequest { model: model.to_owned(), ..LoadRequest::default() }).await {
            Ok(_) => {}
            Err(error) if error.code == ErrorCode::UnknownModel && is_plain_name(model) => {
                let mend = "put its file there, or leave it to a node that has it";
                tracing::error!(model, error = %error.message, mend, "a model is not served here");
                self.inner.serving.want(model.to_owned()).await;
            }
            Err(error) => {
                tracing::error!(model, error = %error.message, mend = error.mend.as_deref().unwrap_or(""), "a model is not served");
            }
        }
    }

    /// Serves a model no more and downloads it no more; false when neither was so.
    async fn drop_here(&self, model: &str) -> bool {
        let was_coming = self.inner.coming.stop(model);
        self.inner.serving.drop_model(model).await || was_coming
    }

    fn model_or_cold(&self, name: String) -> ModelView {
        // Another node may have it, and not have told yet.
        let cold = |name| ModelView { name, state: ModelState::Cold, ..ModelView::default() };
        self.model(&name).unwrap_or_else(|| cold(name))
    }

    /// The members at which a model was dropped, each once.
    fn holding_dropped(&self, model: &str) -> Vec<(ScopeId, NodeId)> {
        let mut nodes: BTreeMap<NodeId, ScopeId> = BTreeMap::new();
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            for member in gossip.members().iter() {
                if decode(member).iter().any(|facts| facts.dropped && facts.model == model) {
                    nodes.entry(member.id).or_insert(scope.id());
                }
            }
        }
        nodes.into_iter().map(|(node, scope)| (scope, node)).collect()
    }

    /// Stops the serving of a model at every node that offers it, or at one.
    pub(crate) async fn drop_model(&self, request: DropRequest) -> Result<Dropped, ApiError> {
        let only = match &request.node {
            // Also in no mesh, where no name leads here.
            Some(text) if *text == self.id().to_string() => Some(self.id()),
            Some(text) => Some(self.resolve_node(text, None)?.1),
            None => None,
        };
        let mut dropped = Dropped { model: request.model.clone(), ..Dropped::default() };
        if only.is_none_or(|node| node == self.id()) && self.drop_here(&request.model).await {
            dropped.nodes.push(self.id().to_string());
        }
        let mut is_refused = false;
        for (scope, node) in self.offering(&request.model) {
            if only.is_some_and(|only| only != node) {
                continue;
            }
            let call = DropModel { model: request.model.clone() };
            match self.transport().call(&scope, &node, &call, DROP_DEADLINE).await {
                Ok(true) => dropped.nodes.push(node.to_string()),
                Ok(false) => {}
                Err(CallError::Fault(fault)) if fault.code == CallFault::NOT_ALLOWED => is_refused = true,
                Err(error) => {
                    tracing::warn!(node = %node.short(), error = %chain(&error), "a model could not be dropped there");
                    dropped.unreached.push(node.to_string());
                }
            }
        }
        if is_refused && dropped.nodes.is_empty() {
            return Err(ApiError::new(
                ErrorCode::NotAllowed,
                format!("this node is a client there, and only members may drop {:?}", request.model),
            )
            .with_mend("drop it at a member of the mesh, or join with an invite for members"));
        }
        if dropped.nodes.is_empty() && dropped.unreached.is_empty() {
            return Err(ApiError::new(
                ErrorCode::UnknownModel,
                format!("no node runs a model called {:?}", request.model),
            )
            .with_mend(
                "`qmt-cli models` lists what is served; a provider's model ends with its configuration",
            ));
        }
        self.refresh();
        Ok(dropped)
    }

    /// The other nodes that offer a model, each once.
    fn offering(&self, model: &str) -> Vec<(ScopeId, NodeId)> {
        let mut nodes: BTreeMap<NodeId, ScopeId> = BTreeMap::new();
        for (scope, member, offer) in self.visible_offers() {
            if offer.model == model {
                nodes.entry(member.id).or_insert(scope);
            }
        }
        nodes.into_iter().map(|(node, scope)| (scope, node)).collect()
    }
}

/// Whether it can be another node's model: neither a path nor something to be downloaded.
pub(super) fn is_plain_name(model: &str) -> bool {
    !model.is_empty() && !model.contains('/')
}
