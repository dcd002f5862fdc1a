//! Agents as their node's configuration describes them.

use std::sync::Arc;

use mesh_identity::{NodeId, Role};

use crate::content::ToolCall;
use crate::event::Party;
use crate::ids::AgentId;
use crate::model::ToolSpec;
use crate::policy::{self, Asked, Decision, Policy, Standing};
use crate::proto::{Compaction, Interrupted, Limits, Playbook, Rules, Verdict};
use crate::tool::Tool;

/// A model with instructions, tools and bounds, that sessions are held with.
#[derive(Clone)]
pub struct Agent {
    /// What it is called by.
    pub id: AgentId,
    /// What it is for, in a sentence.
    pub description: String,
    /// What its model is told first.
    pub instructions: String,
    /// Its model's name; never an address or a key.
    pub model: String,
    /// The node whose model it is; none for whatever routing prefers.
    pub peer: Option<NodeId>,
    /// The most tokens of one answer; none for the provider's own bound.
    pub max_tokens: Option<u32>,
    /// How bold its model is; none for the provider's own choice.
    pub temperature: Option<f32>,
    /// How many tokens its model can be told, where that is known: before they are full, what was said is summarized.
    pub window_tokens: Option<u64>,
    /// What it can do beside talking.
    pub tools: Vec<Arc<dyn Tool>>,
    /// Which tools run for whom.
    pub policy: Policy,
    /// Bounds of its turns.
    pub limits: Limits,
    /// What becomes of tools that may have run when the node went down.
    pub interrupted: Interrupted,
    /// Who may begin sessions with it.
    pub open_to: OpenTo,
}

/// Who may begin sessions with an agent, beside the host's own user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenTo {
    /// Nobody.
    Nobody,
    /// Members of the scopes that the host is in.
    #[default]
    Members,
    /// Clients too.
    Clients,
}

impl Agent {
    /// An agent with this model and nothing else: no instructions, no tools, the usual bounds.
    pub fn new(id: AgentId, model: impl Into<String>) -> Self {
        Self {
            id,
            description: String::new(),
            instructions: String::new(),
            model: model.into(),
            peer: None,
            max_tokens: None,
            temperature: None,
            window_tokens: None,
            tools: Vec::new(),
            policy: Policy::default(),
            limits: Limits::default(),
            interrupted: Interrupted::default(),
            open_to: OpenTo::default(),
        }
    }

    /// Whether the party may begin a session with it.
    pub fn is_open_to(&self, party: &Party) -> bool {
        match (party.scope, party.role) {
            (None, _) => true,
            (Some(_), Some(Role::Member)) => self.open_to != OpenTo::Nobody,
            (Some(_), _) => self.open_to == OpenTo::Clients,
        }
    }

    /// The tool of this name.
    pub fn tool(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.tools.iter().find(|tool| tool.spec().name == name)
    }

    /// The tools that a model is told of in a turn in which these spoke: those that none of them is denied whatever the
    /// arguments.
    pub fn offered(&self, speakers: &[Party]) -> Vec<ToolSpec> {
        let is_offered = |spec: &ToolSpec| {
            let may = |party: &Party| self.policy.may_offer(&spec.name, &caller(party));
            !speakers.is_empty() && speakers.iter().all(may)
        };
        self.tools.iter().map(|tool| tool.spec()).filter(is_offered).collect()
    }

    /// What a session's core needs of it.
    pub(crate) fn playbook(self: &Arc<Self>) -> Playbook {
        Playbook {
            model: self.model.clone(),
            peer: self.peer,
            limits: self.limits.clone(),
            compaction: self.window_tokens.map(Compaction::for_window),
            interrupted: self.interrupted,
            rules: Arc::new(AgentRules(self.clone())),
        }
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("id", &self.id).field("model", &self.model).finish_non_exhaustive()
    }
}

struct AgentRules(Arc<Agent>);

impl Rules for AgentRules {
    fn verdict(&self, call: &ToolCall, by: &Party) -> Verdict {
        if self.0.tool(&call.name).is_none() {
            return Verdict::NoSuchTool;
        }
        let caller = caller(by);
        let only_reads = self.only_reads(call);
        let asked = Asked { tool: &call.name, arguments: &call.arguments, only_reads, caller: &caller };
        let policy::Verdict { decision, why } = self.0.policy.decide(&asked);
        match decision {
            Decision::Allow => Verdict::Allow,
            Decision::Ask => Verdict::Ask(why),
            Decision::Deny => Verdict::Deny(why),
        }
    }

    fn only_reads(&self, call: &ToolCall) -> bool {
        self.0.tool(&call.name).is_some_and(|tool| tool.only_reads(&call.arguments))
    }
}

/// What a party is to the owner of the agents.
fn caller(party: &Party) -> policy::Caller {
    let standing = match (party.scope, party.role) {
        (None, _) => Standing::Owner,
        (Some(_), Some(Role::Member)) => Standing::Member,
        (Some(_), _) => Standing::Client,
    };
    policy::Caller { node: party.node, standing }
}
