//! What a request says of its sender, held against the sender's certificate.

use http::HeaderMap;
use mesh_identity::NodeName;
use mesh_identity::ca::Leaf;
use serde_json::Value;

use super::fault::{Code, Fault};
use super::message::NODE_HEADER;

/// A header may name the node, and then the right one.
pub(crate) fn header(leaf: &Leaf, headers: &HeaderMap) -> Result<(), Fault> {
    for claimed in headers.get_all(NODE_HEADER) {
        match claimed.to_str() {
            Ok(claimed) if leaf.is_of(claimed) => {}
            _ => return Err(not_you(leaf, NODE_HEADER)),
        }
    }
    Ok(())
}

/// The agent of `agent` or `agent@node`.
pub(crate) fn agent<'a>(leaf: &Leaf, claimed: &'a str) -> Result<&'a str, Fault> {
    let agent = match claimed.rsplit_once('@') {
        Some((_, node)) if !leaf.is_of(node) => return Err(not_you(leaf, "fromAgent")),
        Some((agent, _)) => agent,
        None => claimed,
    };
    named("fromAgent", agent)
}

/// The agent of `agent` or `agent@node`, where the node is the one that is asked.
pub(crate) fn asked<'a>(me: &Leaf, to: &'a str) -> Result<&'a str, Fault> {
    match to.rsplit_once('@') {
        Some((agent, node)) if me.is_of(node) => named("toAgent", agent),
        _ => named("toAgent", to),
    }
}

fn named<'a>(what: &str, agent: &'a str) -> Result<&'a str, Fault> {
    let is_name = !agent.is_empty() && agent.len() <= AGENT_BYTES_MAX && !agent.chars().any(char::is_control);
    is_name.then_some(agent).ok_or_else(|| {
        let why = format!("{what} has 1 to {AGENT_BYTES_MAX} bytes without control characters");
        Fault::new(Code::BadRequest, why)
    })
}

/// The longest name of an agent in bytes.
const AGENT_BYTES_MAX: usize = 128;

/// The node that wants to join: the object itself, or the one under `node`.
pub(crate) fn joining(leaf: &Leaf, body: Value) -> Result<Value, Fault> {
    let Value::Object(mut body) = body else {
        return Err(Fault::new(Code::BadRequest, "a node joins with an object that describes it"));
    };
    let node = match body.remove("node") {
        Some(Value::Object(node)) => node,
        Some(other) => {
            body.insert("node".to_owned(), other);
            body
        }
        None => body,
    };
    let named = ["name", "nodeName", "node_name"].iter().filter_map(|key| node.get(*key)).collect::<Vec<_>>();
    if named.is_empty() {
        return Err(Fault::new(Code::BadRequest, "the node that joins has no name"));
    }
    let is_own = |value: &&Value| value.as_str().is_some_and(|name| leaf.is_of(name));
    if !named.iter().all(is_own) {
        return Err(not_you(leaf, "the node that joins"));
    }
    Ok(Value::Object(node))
}

/// Beyond pinging, reading the registry and joining it, a name has to be in it.
pub(crate) fn not_registered(name: &NodeName) -> Fault {
    Fault::new(Code::NotRegistered, format!("{name} is not in this node's registry"))
        .with_mend("join first: POST /api/mesh/join")
}

fn not_you(leaf: &Leaf, what: &str) -> Fault {
    Fault::new(Code::NotYou, format!("{what} is another node than the certificate (CN={})", leaf.name))
        .with_mend("a node speaks for itself alone: claim the name of the certificate or none")
}
