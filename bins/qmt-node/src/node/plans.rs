//! `qmt-cli plan`: where a model would run, by the node that has its file. `plan/1` asks a member that has it.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use mesh_control::{ApiError, ErrorCode, PlanRequest, PlanView};
use mesh_identity::{NodeId, ScopeId};
use mesh_transport::{Call, CallError, CallFault, Member, Protocol, serve_call};
use serde::{Deserialize, Serialize};

use super::machine::{MACHINE_KEY, MachineFacts, decode_disk};
use super::models::{bounded, is_plain_name, upgrade};
use super::placing::Unprepared;
use super::{Node, chain};

/// To read a model's file and compare.
const DEADLINE: Duration = Duration::from_secs(20);
/// Of a member's words shown at most, characters: a plan over 15 devices has some 4,000.
const TEXT_CHARS_MAX: usize = 32 * 1024;
/// Members asked at most, until one could run it.
const ASKED_MAX: usize = 4;
/// Members that a mend names; `qmt-cli nodes` lists them all.
const NAMED_MAX: usize = 3;
/// The node cannot plan this model: its words say why.
const NOT_PLANNED: u16 = 1;

/// Asks where a model of the callee's own disk would run, as it sees that. For members only.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PlanModel {
    /// The name of a model there; never a path.
    model: String,
    split: Option<bool>,
    context_tokens: Option<u32>,
}

impl Call for PlanModel {
    const PROTOCOL: Protocol = Protocol::new("plan/1");
    type Reply = Planned;
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Planned {
    model: String,
    text: String,
    /// JSON.
    plan: String,
}

/// Serves `plan/1`. Weak: the transport keeps its handlers, and a handler must not keep the node.
pub(super) fn serve(node: &Node) {
    let planning = Arc::downgrade(&node.inner);
    serve_call::<PlanModel, _, _>(node.transport(), move |_: Member, call: PlanModel| {
        let node = upgrade(&planning);
        async move {
            bounded(&call.model)?;
            let node = node?;
            let refused = |error: ApiError| CallFault::new(NOT_PLANNED, error.message);
            node.known_by_name(&call.model).map_err(refused)?;
            let PlanModel { model, split, context_tokens } = call;
            let planned = node.plan_here(&PlanRequest { model, split, context_tokens }).await;
            let planned = planned.map_err(|error| refused(error.into()))?;
            Ok(Planned { model: planned.model, text: planned.text, plan: planned.plan.to_string() })
        }
    });
}

impl Node {
    /// What `qmt-cli plan` shows: the plan of this node, or that of a member when the file is only there.
    pub(crate) async fn plan(&self, request: PlanRequest) -> Result<PlanView, ApiError> {
        let refusal = match self.plan_here(&request).await {
            Err(Unprepared::Unknown(error)) if is_plain_name(&request.model) => error,
            planned => return Ok(planned?),
        };
        let mut fallback = None;
        for (scope, node, name) in self.having_on_disk(&request.model).into_iter().take(ASKED_MAX) {
            let PlanRequest { model, split, context_tokens } = request.clone();
            let call = PlanModel { model, split, context_tokens };
            match self.transport().call(&scope, &node, &call, DEADLINE).await {
                Ok(planned) => {
                    let shown = shown(planned, &name)?;
                    if can_be_done(&shown) {
                        return Ok(shown);
                    }
                    fallback.get_or_insert(shown);
                }
                Err(CallError::Fault(fault)) if fault.code == NOT_PLANNED => {
                    let message = format!("{name} says: {}", plain(&fault.message));
                    return Err(ApiError::new(ErrorCode::UnknownModel, message));
                }
                // An older node, or one that is going: the next one may answer.
                Err(error) => {
                    tracing::info!(node = %node.short(), error = %chain(&error), "a member does not plan");
                }
            }
        }
        fallback.ok_or(refusal)
    }

    async fn plan_here(&self, request: &PlanRequest) -> Result<PlanView, Unprepared> {
        // Without llama.cpp the plan says so itself.
        let _ = self.llama().await;
        let prepared = self.prepare(&request.model, request.split, request.context_tokens).await?;
        let plan = self.placed(&prepared);
        let text = plan.to_string();
        let plan = serde_json::to_value(&plan).map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("the plan cannot be shown: {error}"))
        })?;
        Ok(PlanView { model: prepared.model.name, text, plan })
    }

    /// The members that are here and have a model of this name on their disks, the one with most memory for it first.
    fn having_on_disk(&self, model: &str) -> Vec<(ScopeId, NodeId, String)> {
        let mut found: Vec<(u64, ScopeId, NodeId, String)> = Vec::new();
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            for member in gossip.members().alive() {
                let value = |key: &str| member.value(key).map(|bytes| bytes.as_ref());
                let on_disk = decode_disk(value);
                if on_disk.iter().any(|found| found.model.eq_ignore_ascii_case(model))
                    && !found.iter().any(|(_, _, node, _)| *node == member.id)
                {
                    let facts = value(MACHINE_KEY).and_then(|facts| serde_json::from_slice(facts).ok());
                    let memory = facts.map_or(0, |facts: MachineFacts| facts.memory_for(model));
                    found.push((memory, scope.id(), member.id, member.name.to_string()));
                }
            }
        }
        found.sort_by_key(|(memory, _, node, _)| (Reverse(*memory), *node));
        found.into_iter().map(|(_, scope, node, name)| (scope, node, name)).collect()
    }

    /// Who has a model that is not on this disk, and how to use it from there; `None` when nobody is known to have it.
    pub(crate) fn elsewhere(&self, model: &str) -> Option<String> {
        let names: Vec<String> = self.having_on_disk(model).into_iter().map(|(_, _, name)| name).collect();
        let first = names.first()?;
        let verb = if names.len() == 1 { "has" } else { "have" };
        let named = names[..names.len().min(NAMED_MAX)].join(", ");
        Some(format!(
            "{named} {verb} it: `qmt-cli load {model} --node {first}` serves it there, `qmt-cli models pull {model}` brings it here"
        ))
    }
}

/// Whether one of the ways is open.
fn can_be_done(view: &PlanView) -> bool {
    view.plan["alternatives"].get(0).is_some_and(|first| first["refusal"].is_null())
}

fn shown(planned: Planned, by: &str) -> Result<PlanView, ApiError> {
    let plan = serde_json::from_str(&planned.plan).map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("{by} answered with what is no plan: {error}"))
    })?;
    let text = format!("as {by} sees it, which has the file:\n{}", plain(&planned.text));
    Ok(PlanView { model: plain(&planned.model), text, plan })
}

/// A member's words, without what a terminal would take for commands.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || !c.is_control()).take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_words_command_no_terminal() {
        assert_eq!(plain("a\u{1b}[2J\nb\r\u{7}"), "a[2J\nb");
        assert_eq!(plain(&"x".repeat(TEXT_CHARS_MAX + 5)).len(), TEXT_CHARS_MAX);
        let planned = |plan: &str| Planned { model: "m".into(), text: "t".into(), plan: plan.into() };
        assert!(shown(planned("{"), "b").is_err());
        assert_eq!(
            shown(planned("{}"), "b").map(|view| view.text),
            Ok("as b sees it, which has the file:\nt".into())
        );
    }
}
