//! What `mesh.json` holds.

use std::collections::BTreeMap;
use std::collections::btree_map;

use serde_json::{Map, Value};
use thiserror::Error;

use super::limits::NODES_MAX;
use super::node::Entry;

/// The only version of the file that there is.
const VERSION: u64 = 1;

/// The nodes of a registry by their ids, and what else stands in its file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Contents {
    nodes: BTreeMap<String, Entry>,
    rest: Map<String, Value>,
}

/// The bytes are no registry.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ContentsFault {
    /// Torn in the middle of a write, or never one. It may be written anew.
    #[error("it is no registry: {0}")]
    Torn(String),
    /// Of a later version, which this one must not overwrite.
    #[error("it has version {0}, and this program knows version {VERSION}")]
    Version(u64),
}

impl Contents {
    /// Reads a file. Entries that are none are left out; the older form, a list of nodes with `ip` in the place of `host`, is read as well.
    ///
    /// # Errors
    /// [`ContentsFault`] for bytes that are no registry.
    pub fn parse(bytes: &[u8]) -> Result<Self, ContentsFault> {
        let torn = |error: serde_json::Error| ContentsFault::Torn(error.to_string());
        Self::read(serde_json::from_slice(bytes).map_err(torn)?)
    }

    /// Reads a registry that came as a value: the file's form, or a bare list of nodes.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn read(value: Value) -> Result<Self, ContentsFault> {
        let mut rest = match value {
            Value::Object(rest) => rest,
            list @ Value::Array(_) => Map::from_iter([("nodes".to_owned(), list)]),
            _ => return Err(ContentsFault::Torn("it is neither an object nor a list".to_owned())),
        };
        let version = rest.remove("version").map_or(Some(VERSION), |version| version.as_u64());
        rest.remove("updatedAt");
        match version {
            Some(VERSION) => {}
            Some(other) => return Err(ContentsFault::Version(other)),
            None => return Err(ContentsFault::Torn("its version is no number".to_owned())),
        }
        let entries: Vec<Entry> = match rest.remove("nodes") {
            Some(Value::Object(nodes)) => {
                nodes.into_iter().filter_map(|(id, value)| Entry::read(&id, value).ok()).collect()
            }
            Some(Value::Array(list)) => {
                list.into_iter().filter_map(|value| Entry::read_whole(with_host(value)).ok()).collect()
            }
            None => Vec::new(),
            Some(_) => return Err(ContentsFault::Torn("its nodes are no object".to_owned())),
        };
        let mut contents = Self { nodes: BTreeMap::new(), rest };
        for entry in entries {
            contents.merge_entry(entry);
        }
        Ok(contents)
    }

    /// The file, as the systems that share it write it: indented by two.
    pub fn render(&self, now_ms: u64) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(&self.value(now_ms)).expect("maps with text keys are JSON");
        bytes.push(b'\n');
        bytes
    }

    /// The file as a value.
    pub fn value(&self, now_ms: u64) -> Value {
        let mut file = self.rest.clone();
        file.insert("version".to_owned(), VERSION.into());
        file.insert("updatedAt".to_owned(), now_ms.into());
        let nodes: Map<String, Value> =
            self.nodes.iter().map(|(id, entry)| (id.clone(), entry.value())).collect();
        file.insert("nodes".to_owned(), nodes.into());
        Value::Object(file)
    }

    /// The nodes, by id.
    pub fn nodes(&self) -> &BTreeMap<String, Entry> {
        &self.nodes
    }

    /// Takes in one entry, the later one of two of one id. True when that changed anything. Merging is the same in whichever order
    /// and however often, as long as there is room: beyond [`NODES_MAX`] new ids are left out.
    pub fn merge_entry(&mut self, entry: Entry) -> bool {
        let room = self.nodes.len() < NODES_MAX;
        match self.nodes.entry(entry.id().to_owned()) {
            btree_map::Entry::Vacant(place) if room => {
                place.insert(entry);
                true
            }
            btree_map::Entry::Occupied(mut place) if entry.order(place.get()).is_gt() => {
                place.insert(entry);
                true
            }
            _ => false,
        }
    }

    /// Puts a node's own word in the place of what is said of it, whatever that is.
    pub(crate) fn put(&mut self, entry: Entry) {
        self.nodes.insert(entry.id().to_owned(), entry);
    }
}

impl FromIterator<Entry> for Contents {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut contents = Self::default();
        for entry in entries {
            contents.merge_entry(entry);
        }
        contents
    }
}

fn with_host(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut()
        && !fields.contains_key("host")
        && let Some(ip) = fields.remove("ip")
    {
        fields.insert("host".to_owned(), ip);
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_kept() {
        let text = json!({
            "version": 1, "updatedAt": 5, "note": "by hand",
            "nodes": {"a": {"id": "a", "name": "a", "rack": [1, 2]}, "broken": 7},
        });
        let contents = Contents::parse(text.to_string().as_bytes()).expect("reads");
        let value: Value = serde_json::from_slice(&contents.render(9)).expect("parses");
        assert_eq!(value["note"], "by hand");
        assert_eq!(value["nodes"], json!({"a": {"id": "a", "name": "a", "rack": [1, 2]}}));
        assert_eq!((&value["version"], &value["updatedAt"]), (&json!(1), &json!(9)));
    }

    #[test]
    fn the_older_list_form_is_read() {
        let text = br#"{"nodes":[{"name":"ct110","ip":"10.0.0.1","role":"primary"},{"ip":"10.0.0.2"}]}"#;
        let contents = Contents::parse(text).expect("reads");
        assert_eq!(contents.nodes().keys().collect::<Vec<_>>(), ["ct110"]);
        assert_eq!(contents.nodes()["ct110"].host(), Some("10.0.0.1"));
        let list = Contents::read(json!([{"id": "x", "name": "grok"}])).expect("reads");
        assert_eq!(list.nodes()["x"].name().as_str(), "grok");
    }

    #[test]
    fn torn_bytes_and_later_versions_are_told_apart() {
        for torn in ["", "{\"version\": 1, \"nod", "7", "{\"nodes\": 3}", "{\"version\": \"1\"}"] {
            let fault = Contents::parse(torn.as_bytes()).expect_err(torn);
            assert!(matches!(fault, ContentsFault::Torn(_)), "{torn}: {fault}");
        }
        let fault = Contents::parse(br#"{"version": 2}"#).expect_err("refused");
        assert!(matches!(fault, ContentsFault::Version(2)), "{fault}");
    }

    /// Entries of few ids, counters and clocks, so that most of them meet another of the same rank.
    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let one = (0..3_u8, 0..3_u64, 0..3_u64, any::<bool>(), proptest::option::of(0..3_u8), any::<bool>());
        let entry = one.prop_map(|(id, counter, seen, gone, extra, counts)| {
            let id = format!("n{id}");
            let mut value = json!({"id": id, "name": id, "lastSeen": seen, "extra": extra});
            value["status"] = if gone { "offline" } else { "online" }.into();
            if counts {
                value["qmt"] = json!({"counter": counter});
            }
            Entry::read(&id, value).expect("an entry")
        });
        proptest::collection::vec(entry, 0..12)
    }

    proptest! {
        #[test]
        fn merging_does_not_depend_on_order_or_repetition(
            (entries, shuffled) in entries().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            cut in 0..12_usize,
        ) {
            let straight: Contents = entries.iter().cloned().collect();
            let mut again: Contents = shuffled.iter().take(cut).cloned().collect();
            for entry in shuffled.iter().chain(&entries) {
                again.merge_entry(entry.clone());
            }
            prop_assert_eq!(&straight, &again);
            for entry in straight.nodes().values() {
                prop_assert!(!again.merge_entry(entry.clone()), "what is there changes nothing");
            }
            for entry in &entries {
                let kept = &straight.nodes()[entry.id()];
                prop_assert!(entry.order(kept).is_le(), "nothing that was later is lost");
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            drop(Contents::parse(&bytes));
        }
    }
}
