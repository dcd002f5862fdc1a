//! The bodies of the channel, in the seed's words.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The header that carries the signed chain of delegations.
pub const CHAIN_HEADER: &str = "x-mesh-chain";
/// The header in which a caller may name its node; it has to be that of its certificate.
pub const NODE_HEADER: &str = "x-mesh-node";
/// The header by which a delegation that is sent again is the same one.
pub const KEY_HEADER: &str = "idempotency-key";
/// The longest key in bytes: a UUID with a prefix has half of it.
pub(crate) const KEY_BYTES_MAX: usize = 128;

/// The body of `POST /api/message`. Fields that are not known are passed over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageRequest {
    /// The agent that asks, `agent` or `agent@node`; the node is the certificate's.
    pub from_agent: String,
    /// The agent that is asked; none for the node's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_agent: Option<String>,
    /// What it is to do.
    pub message: String,
    /// What it should know for it: a text, several, or anything else that is shown as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Value>,
    /// Whether the answer is waited for; it is when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for_response: Option<bool>,
    /// How long it may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How many delegations led to the one who asks: 0 when a person spoke to it. With a signed chain it counts only when it
    /// is more than the chain's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_depth: Option<u32>,
    /// The model that the agent should think with; another is used when the node does not choose by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

impl MessageRequest {
    /// The context as texts, in order.
    pub fn context_texts(&self) -> Vec<String> {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match &self.context {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(values)) => values.iter().map(text).collect(),
            Some(value) => vec![text(value)],
        }
    }
}

/// How a delegation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Status {
    /// The agent is done.
    Completed,
    /// It is under way, and nobody waits for it.
    Accepted,
    /// What another build says; of the seed's nodes failures among it.
    #[serde(other)]
    Other,
}

/// The answer to `POST /api/message`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageResponse {
    /// What the agent said; empty when nobody waits for it.
    #[serde(default)]
    pub response: String,
    /// The agent.
    #[serde(default)]
    pub agent: String,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub duration_ms: u64,
    /// How it stands.
    pub status: Status,
}

/// The answer to `GET /api/mesh/ping`: what the seed's page says and what its nodes send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// `ok`.
    #[serde(default)]
    pub status: String,
    /// True.
    #[serde(default)]
    pub ok: bool,
    /// The node that answers.
    pub node: String,
    /// True: there is no plaintext.
    #[serde(default)]
    pub tls: bool,
    /// The name in the caller's certificate.
    #[serde(default)]
    pub cn: String,
}

/// An agent in `GET /api/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedAgent {
    /// What it is called by.
    pub id: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The model that it thinks with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// The answer to `GET /api/agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedAgents {
    /// The node whose they are.
    #[serde(default)]
    pub node: String,
    /// Those that are open to the caller.
    pub agents: Vec<ListedAgent>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_in_the_seeds_words() {
        let text = r#"{"fromAgent":"opus","toAgent":"grok","message":"go","context":["a",{"b":1}],
            "waitForResponse":false,"timeoutMs":1000,"chainDepth":1,"model":"m","later":true}"#;
        let request: MessageRequest = serde_json::from_str(text).expect("a request");
        assert_eq!(request.context_texts(), ["a", r#"{"b":1}"#]);
        assert_eq!((request.wait_for_response, request.chain_depth), (Some(false), Some(1)));
        let one: MessageRequest =
            serde_json::from_str(r#"{"fromAgent":"a","message":"m","context":"c"}"#).expect("a request");
        assert_eq!(one.context_texts(), ["c"]);
        let back = serde_json::to_value(&one).expect("JSON");
        assert_eq!(back, serde_json::json!({"fromAgent": "a", "message": "m", "context": "c"}));
    }

    #[test]
    fn an_answer_has_the_seeds_fields() {
        let response = MessageResponse {
            response: "done".to_owned(),
            agent: "grok".to_owned(),
            duration_ms: 7,
            status: Status::Completed,
        };
        let value = serde_json::to_value(&response).expect("JSON");
        let wanted =
            serde_json::json!({"response": "done", "agent": "grok", "durationMs": 7, "status": "completed"});
        assert_eq!(value, wanted);
        let failed: MessageResponse = serde_json::from_str(r#"{"status":"error"}"#).expect("an answer");
        assert_eq!(failed.status, Status::Other);
    }
}
