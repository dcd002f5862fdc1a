//! `delegate`: a task for another agent, here or at a peer.
//!
//! This is the tool as models see it and the choice among agents, which is pure. What delegating means (a session at the
//! other side, a signed chain, waiting for the answer) is behind [`Delegator`].

use std::sync::Arc;

use futures_util::future::BoxFuture;
use mesh_identity::NodeId;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::files::{arguments, cancelled};
use crate::chain::{AgentAt, Budget, Chain, DEPTH_MAX};
use crate::event::Party;
use crate::ids::{SessionId, ToolCallId};
use crate::model::ToolSpec;
use crate::tool::{Ran, Tool, ToolRun};

/// The longest list of agents in the tool's description, in bytes: models are told it with every call.
const ROSTER_BYTES_MAX: usize = 8 * 1024;
/// The longest line about one agent; peers write it.
const LINE_BYTES_MAX: usize = 300;
/// The longest task in bytes.
const TASK_BYTES_MAX: usize = 1024 * 1024;

/// The agents that can be delegated to, as the mesh is at this moment.
pub trait Roster: Send + Sync {
    /// The best choice first.
    fn candidates(&self) -> Vec<Candidate>;
}

/// An agent that can be delegated to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who and where.
    pub at: AgentAt,
    /// What people call the node; none for this one.
    pub node_name: Option<String>,
    /// What it is good for, in its owner's words.
    pub description: String,
    /// The model that it thinks with, when it is known.
    pub model: Option<String>,
    /// Such as `gpu`.
    pub labels: Vec<String>,
    /// Whether it would have to wait.
    pub is_busy: bool,
}

/// What gets a task done.
pub trait Delegator: Send + Sync {
    /// The delegations that led to the session's current turn; none when a person spoke.
    fn chain(&self, session: &SessionId) -> Option<Chain>;

    /// Gives the task to the agent and waits for its answer; the error is for the model. It ends soon after the
    /// cancellation, and dropping the future ends the other turn too.
    fn delegate(&self, order: Order) -> BoxFuture<'static, Result<String, String>>;
}

/// A task for an agent.
pub struct Order {
    /// The session that waits for the answer.
    pub session: SessionId,
    /// The call in it: an order that comes twice under one call is one order.
    pub call: ToolCallId,
    /// On whose behalf.
    pub on_behalf_of: Party,
    /// The delegations so far.
    pub chain: Option<Chain>,
    /// The agent.
    pub to: Candidate,
    /// Agents of the same name at other nodes, in case the one that was chosen cannot begin; none when a node was named.
    pub fallbacks: Vec<Candidate>,
    /// What to do.
    pub task: String,
    /// What to know for it, beside the task.
    pub context: Option<String>,
    /// What it may spend, within that of the chain.
    pub budget: Budget,
    /// Takes what the other agent says while it works.
    pub printed: Arc<dyn Fn(&str) + Send + Sync>,
    /// Ends it early.
    pub cancel: CancellationToken,
}

/// The tool `delegate`.
pub struct Delegate {
    /// To whom.
    pub roster: Arc<dyn Roster>,
    /// By what.
    pub delegator: Arc<dyn Delegator>,
    /// The most that one task may spend.
    pub budget: Budget,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    agent: String,
    #[serde(default)]
    node: Option<String>,
    task: String,
    #[serde(default)]
    context: Option<String>,
    #[serde(default)]
    max_tokens: Option<u64>,
}

impl Tool for Delegate {
    fn spec(&self) -> ToolSpec {
        let description = format!(
            "Gives a task to another agent, waits until it is done and returns its answer. The other agent knows nothing \
             of this conversation: say in the task all that it needs, and what its answer is to contain. Agents that can \
             be asked now:\n{}",
            described(&self.roster.candidates()),
        );
        ToolSpec {
            name: "delegate".to_owned(),
            description,
            parameters: json!({
                "type": "object",
                "properties": {
                    "agent": {"type": "string", "description": "The agent, as listed: NAME or NAME@NODE"},
                    "node": {"type": "string", "description": "The node, when several have the agent (default: the best)"},
                    "task": {"type": "string", "description": "What to do, complete in itself"},
                    "context": {"type": "string", "description": "What to know for it: facts, text to work on (optional)"},
                    "max_tokens": {"type": "integer", "minimum": 1, "description": "The most tokens that it may use"},
                },
                "required": ["agent", "task"],
                "additionalProperties": false,
            }),
        }
    }

    fn only_reads(&self, _: &Value) -> bool {
        false
    }

    fn run(&self, run: ToolRun) -> BoxFuture<'static, Ran> {
        let order = self.order(run);
        let delegator = self.delegator.clone();
        Box::pin(async move {
            let order = match order {
                Ok(order) => order,
                Err(why) => return Ran::failed(why),
            };
            let cancel = order.cancel.clone();
            match delegator.delegate(order).await {
                _ if cancel.is_cancelled() => cancelled(),
                Ok(answer) => Ran::done(answer),
                Err(why) => Ran::failed(why),
            }
        })
    }
}

impl Delegate {
    fn order(&self, run: ToolRun) -> Result<Order, String> {
        let asked: Arguments = arguments(run.arguments)?;
        let context_bytes = asked.context.as_ref().map_or(0, String::len);
        if asked.task.trim().is_empty() || asked.task.len() + context_bytes > TASK_BYTES_MAX {
            return Err(format!("a task has 1 to {TASK_BYTES_MAX} bytes, its context included"));
        }
        let chain = self.delegator.chain(&run.session);
        let candidates = self.roster.candidates();
        let to = chosen(&candidates, &asked.agent, asked.node.as_deref(), chain.as_ref())?;
        let is_other = |candidate: &&Candidate| {
            candidate.at.agent == to.at.agent
                && candidate.at != to.at
                && candidate.at.agent.as_str() == asked.agent
        };
        let waits = |candidate: &Candidate| chain.as_ref().is_some_and(|chain| chain.waits(&candidate.at));
        let names_none = asked.node.as_deref().is_none_or(str::is_empty);
        let others = candidates.iter().filter(is_other).filter(|candidate| names_none && !waits(candidate));
        let asked_for = Budget { tokens: asked.max_tokens, ..Budget::UNBOUNDED };
        let inherited = chain.as_ref().map_or(Budget::UNBOUNDED, |chain| *chain.budget());
        Ok(Order {
            session: run.session,
            call: run.call,
            on_behalf_of: run.on_behalf_of,
            budget: self.budget.min(inherited).min(asked_for),
            to: to.clone(),
            fallbacks: others.cloned().collect(),
            chain,
            task: asked.task,
            context: asked.context.filter(|context| !context.trim().is_empty()),
            printed: run.printed,
            cancel: run.cancel,
        })
    }
}

/// The agent that is meant: of several the first that is not busy, of busy ones the first.
fn chosen<'a>(
    candidates: &'a [Candidate],
    agent: &str,
    node: Option<&str>,
    chain: Option<&Chain>,
) -> Result<&'a Candidate, String> {
    if chain.is_some_and(Chain::is_at_end) {
        return Err(format!("this task was itself delegated {DEPTH_MAX} deep: do it without delegating"));
    }
    let (agent, node) = match (agent.rsplit_once('@'), node) {
        (Some((agent, node)), None) => (agent, Some(node)),
        _ => (agent, node),
    };
    let node = node.filter(|node| !node.is_empty());
    let is_meant = |candidate: &&Candidate| {
        candidate.at.agent.as_str() == agent && node.is_none_or(|node| is_called(candidate, node))
    };
    let meant: Vec<&Candidate> = candidates.iter().filter(is_meant).collect();
    if meant.is_empty() {
        return Err(format!(
            "there is no such agent now. Agents that can be asked:\n{}",
            described(candidates)
        ));
    }
    let waits = |candidate: &&&Candidate| chain.is_some_and(|chain| chain.waits(&candidate.at));
    let mut free = meant.iter().filter(|candidate| !waits(candidate));
    let Some(first) = free.next() else {
        return Err(format!(
            "{agent} waits for the answer to this very task; ask another agent or do it yourself"
        ));
    };
    let idle = std::iter::once(first).chain(free).find(|candidate| !candidate.is_busy);
    Ok(idle.unwrap_or(first))
}

/// By its name, its id, or `here` for this node.
fn is_called(candidate: &Candidate, node: &str) -> bool {
    match &candidate.node_name {
        _ if node.parse::<NodeId>() == Ok(candidate.at.node) => true,
        Some(name) => name == node,
        None => node == "here",
    }
}

/// A line for each agent. What peers say of themselves is told as one plain line, cut where it is long.
fn described(candidates: &[Candidate]) -> String {
    let mut text = String::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let line = line(candidate);
        if text.len() + line.len() > ROSTER_BYTES_MAX {
            text.push_str(&format!("(and {} more)\n", candidates.len() - index));
            break;
        }
        text.push_str(&line);
    }
    if text.is_empty() { "(none)\n".to_owned() } else { text }
}

fn line(candidate: &Candidate) -> String {
    let node = candidate.node_name.as_deref().unwrap_or("here");
    let mut facts: Vec<String> = candidate.model.iter().map(|model| format!("model {model}")).collect();
    facts.extend(candidate.labels.iter().cloned());
    facts.extend(candidate.is_busy.then(|| "busy".to_owned()));
    let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join(", ")) };
    let line = format!("- {}@{node}{facts}: {}", candidate.at.agent, candidate.description);
    let plain: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cut = plain.floor_char_boundary(LINE_BYTES_MAX);
    let more = if cut < plain.len() { "…" } else { "" };
    format!("{}{more}\n", plain[..cut].trim_end())
}

#[cfg(test)]
mod tests;
