//! One node of the registry: the JSON object that it and others wrote, kept as it stands.

use std::cmp::Ordering;

use mesh_identity::{NodeId, NodeName};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::limits::{COUNTER_MAX, ENTRY_BYTES_MAX, ID_BYTES_MAX};

/// The field that is ours among those of the schema: the counter and the node's id in the mesh.
const OURS: &str = "qmt";

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The name in its certificate, which is its id in the registry.
    pub name: NodeName,
    /// Its id in the mesh; none for a node that has only a certificate.
    pub node: Option<NodeId>,
    /// Where its agent channel is: an IP address or a host name.
    pub host: String,
    /// The channel's port.
    pub port: u16,
    /// Its agents.
    pub agents: Vec<String>,
    /// Providers that it passes on.
    pub providers: Vec<String>,
    /// Models that it answers with.
    pub models: Vec<String>,
    /// Its own labels.
    pub capabilities: Vec<String>,
    /// The version of its software.
    pub version: String,
}

/// What an entry says of its node's condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `online`, and every word that is not known.
    Online,
    /// `degraded`: up, with something missing.
    Degraded,
    /// `updating`: about to restart.
    Updating,
    /// `offline`: stopped.
    Offline,
}

impl Status {
    /// What others are told of a node that is silent, and which is no status of an entry.
    pub(super) const STALE: &'static str = "stale";

    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Degraded => "degraded",
            Self::Updating => "updating",
            Self::Offline => "offline",
        }
    }
}

/// The value is no entry. Nothing changed; another value is needed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// It is no JSON object.
    #[error("a node of the registry is a JSON object")]
    NoObject,
    /// Its id is empty, too long or not the one it stands under.
    #[error("a node's id has 1 to {ID_BYTES_MAX} bytes and is the one that it stands under")]
    Id,
    /// It has no usable name.
    #[error("a node's name has 1 to 63 of the characters A-Z a-z 0-9 . _ -")]
    Name,
    /// It is too big.
    #[error("a node of the registry has at most {ENTRY_BYTES_MAX} bytes of JSON")]
    Size,
    /// Its counter is beyond what any node counts to.
    #[error("a node's counter is at most {COUNTER_MAX}")]
    Counter,
}

/// One node of the registry. Fields that this version does not know are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    id: String,
    name: NodeName,
    fields: Map<String, Value>,
}

impl Entry {
    /// Reads what stands under an id.
    ///
    /// # Errors
    /// [`EntryFault`], for whatever peers and other programs may have written.
    pub fn read(id: &str, value: Value) -> Result<Self, EntryFault> {
        let Value::Object(mut fields) = value else { return Err(EntryFault::NoObject) };
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(EntryFault::Id);
        }
        match fields.get("id").and_then(Value::as_str) {
            Some(own) if own == id => {}
            Some(_) => return Err(EntryFault::Id),
            None => drop(fields.insert("id".to_owned(), id.into())),
        }
        let name = fields.get("name").and_then(Value::as_str).unwrap_or(id);
        let name = NodeName::new(name).map_err(|_| EntryFault::Name)?;
        let entry = Self { id: id.to_owned(), name, fields };
        if entry.counter() > COUNTER_MAX {
            return Err(EntryFault::Counter);
        }
        if serde_json::to_vec(&entry.fields).map_or(usize::MAX, |bytes| bytes.len()) > ENTRY_BYTES_MAX {
            return Err(EntryFault::Size);
        }
        Ok(entry)
    }

    /// Reads a value that carries its id itself, as an announcement does.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_whole(value: Value) -> Result<Self, EntryFault> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let id = text("id").or_else(|| text("name")).ok_or(EntryFault::Id)?;
        Self::read(&id, value)
    }

    /// What a node writes of itself. Fields of `before` that are not the node's own to say stay as they are.
    pub(crate) fn own(
        facts: &Facts,
        status: Status,
        before: Option<&Self>,
        counter: u64,
        now_ms: u64,
    ) -> Self {
        let mut fields = before.map_or_else(Map::new, |entry| entry.fields.clone());
        let registered = before.map_or(0, Self::registered_at);
        let mut ours = fields.get(OURS).and_then(Value::as_object).cloned().unwrap_or_default();
        ours.insert("counter".to_owned(), counter.min(COUNTER_MAX).into());
        match &facts.node {
            Some(node) => drop(ours.insert("node".to_owned(), node.to_string().into())),
            None => drop(ours.remove("node")),
        }
        let said = json!({
            "id": facts.name.as_str(),
            "name": facts.name.as_str(),
            "role": "agent",
            "agents": facts.agents,
            "host": facts.host,
            "port": facts.port,
            "providers": facts.providers,
            "models": facts.models,
            "capabilities": facts.capabilities,
            "status": status.as_str(),
            "lastSeen": now_ms,
            "registeredAt": if registered == 0 { now_ms } else { registered },
            "version": facts.version,
            OURS: ours,
        });
        if let Value::Object(said) = said {
            fields.extend(said);
        }
        Self { id: facts.name.as_str().to_owned(), name: facts.name.clone(), fields }
    }

    /// This entry, seen alive by somebody who does not write for its node.
    pub(crate) fn seen(mut self, now_ms: u64) -> Self {
        let last = self.last_seen().max(now_ms);
        self.fields.insert("lastSeen".to_owned(), last.into());
        self
    }

    /// Whether the two differ in nothing but when their node was last seen.
    pub(crate) fn is_but_for_its_time(&self, other: &Self) -> bool {
        self.counter() == other.counter() && self.says_the_same(other)
    }

    /// Whether the two differ in nothing but the signs of life.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let told = |entry: &Self| {
            let mut fields = entry.fields.clone();
            fields.remove("lastSeen");
            if let Some(ours) = fields.get_mut(OURS).and_then(Value::as_object_mut) {
                ours.remove("counter");
            }
            fields
        };
        told(self) == told(other)
    }

    /// The key under which it stands.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name in its node's certificate.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The node's id in the mesh, when it says one.
    pub fn node(&self) -> Option<NodeId> {
        self.fields.get(OURS)?.get("node")?.as_str()?.parse().ok()
    }

    /// Where its agent channel is.
    pub fn host(&self) -> Option<&str> {
        self.fields.get("host").and_then(Value::as_str).filter(|host| !host.is_empty())
    }

    /// The channel's port.
    pub fn port(&self) -> Option<u16> {
        self.fields.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok())
    }

    /// Its agents.
    pub fn agents(&self) -> Vec<&str> {
        self.texts("agents")
    }

    /// Its models.
    pub fn models(&self) -> Vec<&str> {
        self.texts("models")
    }

    /// Its own labels.
    pub fn capabilities(&self) -> Vec<&str> {
        self.texts("capabilities")
    }

    /// The version of its software; empty when it says none.
    pub fn version(&self) -> &str {
        self.fields.get("version").and_then(Value::as_str).unwrap_or_default()
    }

    /// Its condition as it is written.
    pub fn status(&self) -> Status {
        match self.fields.get("status").and_then(Value::as_str) {
            Some("offline") => Status::Offline,
            Some("degraded") => Status::Degraded,
            Some("updating") => Status::Updating,
            _ => Status::Online,
        }
    }

    /// Whether it is what somebody saw of its node, and not what that one said.
    pub(super) fn is_hearsay(&self) -> bool {
        self.fields.get("status").and_then(Value::as_str) == Some(Status::STALE)
    }

    /// How often its node has written it; 0 for nodes of other software, which do not count.
    pub fn counter(&self) -> u64 {
        self.fields.get(OURS).and_then(|ours| ours.get("counter")).and_then(Value::as_u64).unwrap_or(0)
    }

    /// The node's own clock when it wrote, in milliseconds since 1970. It orders what one node wrote and nothing else: clocks of two
    /// machines are never compared.
    pub fn last_seen(&self) -> u64 {
        self.fields.get("lastSeen").and_then(Value::as_u64).unwrap_or(0)
    }

    fn registered_at(&self) -> u64 {
        self.fields.get("registeredAt").and_then(Value::as_u64).unwrap_or(0)
    }

    /// As it stands in the file.
    pub fn value(&self) -> Value {
        Value::Object(self.fields.clone())
    }

    /// Which of two entries of one id is the later one: by its node's counter, then by its node's clock, then the one that
    /// says goodbye, and by their text where all that is equal, so that every merger of the same entries ends with the same one.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let gone = |entry: &Self| entry.status() == Status::Offline;
        (self.counter(), self.last_seen(), gone(self))
            .cmp(&(other.counter(), other.last_seen(), gone(other)))
            .then_with(|| order_of_maps(&self.fields, &other.fields))
    }

    fn texts(&self, key: &str) -> Vec<&str> {
        let list = self.fields.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

/// An order of JSON values that does not depend on how objects keep their keys.
fn order_of(a: &Value, b: &Value) -> Ordering {
    let kind = |value: &Value| match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    };
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => a.to_string().cmp(&b.to_string()),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let first = a.iter().zip(b).map(|(a, b)| order_of(a, b)).find(|order| order.is_ne());
            first.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => order_of_maps(a, b),
        _ => kind(a).cmp(&kind(b)),
    }
}

fn order_of_maps(a: &Map<String, Value>, b: &Map<String, Value>) -> Ordering {
    let sorted = |map: &'_ Map<String, Value>| {
        let mut keys: Vec<String> = map.keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    let (keys, others) = (sorted(a), sorted(b));
    let values = || keys.iter().map(|key| order_of(&a[key], &b[key])).find(|order| order.is_ne());
    keys.cmp(&others).then_with(|| values().unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(name: &str) -> Facts {
        Facts {
            name: name.parse().expect("a name"),
            node: None,
            host: "10.0.0.1".to_owned(),
            port: 3000,
            agents: vec!["opus".to_owned()],
            providers: Vec::new(),
            models: vec!["m".to_owned()],
            capabilities: Vec::new(),
            version: "1".to_owned(),
        }
    }

    #[test]
    fn an_own_entry_has_every_field_of_the_schema_and_can_be_read_again() {
        let entry = Entry::own(&facts("ct110"), Status::Online, None, 3, 1_000);
        let fields = [
            "agents",
            "capabilities",
            "host",
            "id",
            "lastSeen",
            "models",
            "name",
            "port",
            "providers",
            "qmt",
            "registeredAt",
            "role",
            "status",
            "version",
        ];
        let mut keys: Vec<&String> = entry.fields.keys().collect();
        keys.sort();
        assert_eq!(keys, fields);
        assert_eq!(Entry::read("ct110", entry.value()).expect("reads"), entry);
        assert_eq!((entry.counter(), entry.last_seen(), entry.port()), (3, 1_000, Some(3000)));
    }

    #[test]
    fn fields_that_are_not_the_nodes_own_outlive_its_writing() {
        let before = json!({
            "id": "ct110", "name": "ct110", "registeredAt": 7, "metadata": {"rack": 4}, "agents": ["old"],
            "qmt": {"counter": 2, "hint": true},
        });
        let before = Entry::read("ct110", before).expect("reads");
        let after = Entry::own(&facts("ct110"), Status::Offline, Some(&before), 3, 1_000).value();
        assert_eq!(after["metadata"], json!({"rack": 4}));
        assert_eq!(after["qmt"], json!({"counter": 3, "hint": true}));
        assert_eq!((&after["registeredAt"], &after["agents"]), (&json!(7), &json!(["opus"])));
    }

    #[test]
    fn what_others_wrote_is_read_or_refused_and_never_trusted_to_be_well_formed() {
        let lean =
            Entry::read("5b3c", json!({"name": "grok", "lastSeen": -4, "port": "3000"})).expect("reads");
        assert_eq!(
            (lean.name().as_str(), lean.last_seen(), lean.port(), lean.host()),
            ("grok", 0, None, None)
        );
        let fault = |id: &str, value: Value| Entry::read(id, value).expect_err("refused");
        assert_eq!(fault("a", json!([])), EntryFault::NoObject);
        assert_eq!(fault("", json!({})), EntryFault::Id);
        assert_eq!(fault("a", json!({"id": "b"})), EntryFault::Id);
        assert_eq!(fault("a", json!({"name": "x y"})), EntryFault::Name);
        assert_eq!(fault("a", json!({"qmt": {"counter": u64::MAX}})), EntryFault::Counter);
        assert_eq!(fault("a", json!({"metadata": "x".repeat(ENTRY_BYTES_MAX)})), EntryFault::Size);
        assert_eq!(Entry::read_whole(json!({"host": "h"})).expect_err("refused"), EntryFault::Id);
    }
}
