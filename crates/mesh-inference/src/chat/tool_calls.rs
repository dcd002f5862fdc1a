//! Tool calls, put together from the parts in which they come.

use serde::Deserialize;
use serde_json::Value;

use super::ToolCall;

/// Calls in one answer. Models ask for a handful; Anthropic's and OpenAI's own bounds are 128 tools.
const CALLS_MAX: usize = 128;
/// Bytes of the arguments of one call: a file that is written whole has a few hundred thousand.
const ARGUMENTS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest id and name taken, in bytes.
const ID_BYTES_MAX: usize = 128;

/// A part of a call, as OpenAI's streams have it; a whole one has the same shape.
#[derive(Debug, Deserialize)]
pub(super) struct Part {
    #[serde(default)]
    index: Option<u64>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Debug, Deserialize)]
struct Function {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<Arguments>,
}

/// A string by the letter of the API; some servers write the object itself.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Arguments {
    Text(String),
    Value(Value),
}

/// The calls of one answer.
#[derive(Debug, Default)]
pub(super) struct ToolCalls {
    calls: Vec<Begun>,
}

#[derive(Debug)]
struct Begun {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

impl ToolCalls {
    /// Adds a part.
    ///
    /// # Errors
    /// What is too large, for the end of the answer.
    pub(super) fn add(&mut self, part: Part) -> Result<(), String> {
        let id = part.id.filter(|id| !id.is_empty());
        let at = match self.place_of(part.index, id.as_deref()) {
            Some(at) => at,
            None if self.calls.len() >= CALLS_MAX => return Err(format!("more than {CALLS_MAX} tool calls")),
            None => {
                let (id, name, arguments) = Default::default();
                self.calls.push(Begun { index: part.index, id, name, arguments });
                self.calls.len() - 1
            }
        };
        let call = &mut self.calls[at];
        if let Some(id) = id
            && call.id.is_empty()
        {
            call.id = id;
        }
        let Some(function) = part.function else { return Ok(()) };
        if let Some(name) = function.name {
            call.name.push_str(&name);
        }
        match function.arguments {
            Some(Arguments::Text(more)) => call.arguments.push_str(&more),
            Some(Arguments::Value(Value::Null)) | None => {}
            Some(Arguments::Value(whole)) => call.arguments = whole.to_string(),
        }
        if call.id.len() > ID_BYTES_MAX || call.name.len() > ID_BYTES_MAX {
            return Err(format!("a tool call's id or name of more than {ID_BYTES_MAX} bytes"));
        }
        if call.arguments.len() > ARGUMENTS_BYTES_MAX {
            return Err(format!("arguments of a tool call of more than {ARGUMENTS_BYTES_MAX} bytes"));
        }
        Ok(())
    }

    /// The call that a part belongs to. Servers that number all calls 0, or none, are known by a new id.
    fn place_of(&self, index: Option<u64>, id: Option<&str>) -> Option<usize> {
        let at = match index {
            Some(_) => self.calls.iter().rposition(|call| call.index == index)?,
            None => self.calls.len().checked_sub(1)?,
        };
        let is_another = id.is_some_and(|id| !self.calls[at].id.is_empty() && self.calls[at].id != id);
        (!is_another).then_some(at)
    }

    /// The whole calls, in the order in which they began.
    pub(super) fn take(&mut self) -> impl Iterator<Item = ToolCall> {
        std::mem::take(&mut self.calls).into_iter().map(|call| {
            let id = if call.id.is_empty() { new_id() } else { call.id };
            ToolCall { id, name: call.name, arguments: arguments(call.arguments) }
        })
    }
}

/// As JSON; none at all is an empty object, and what is no JSON stays text.
fn arguments(text: String) -> Value {
    if text.trim().is_empty() {
        return Value::Object(serde_json::Map::new());
    }
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

/// For servers that name no calls: unique beyond this answer, since results are matched by it later.
fn new_id() -> String {
    format!("call_{}", uuid::Uuid::now_v7().simple())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn put_together(parts: &[Value]) -> Result<Vec<(String, String, Value)>, String> {
        let mut calls = ToolCalls::default();
        for part in parts {
            calls.add(serde_json::from_value(part.clone()).unwrap())?;
        }
        Ok(calls.take().map(|call| (call.id, call.name, call.arguments)).collect())
    }

    fn call(id: &str, name: &str, arguments: Value) -> (String, String, Value) {
        (id.into(), name.into(), arguments)
    }

    #[test]
    fn parts_are_put_together_by_index() {
        let parts = [
            json!({"index": 0, "id": "a", "type": "function", "function": {"name": "read", "arguments": ""}}),
            json!({"index": 0, "function": {"arguments": "{\"pa"}}),
            json!({"index": 1, "id": "b", "function": {"name": "list", "arguments": "{}"}}),
            json!({"index": 0, "function": {"arguments": "th\":1}"}}),
            json!({"index": 2, "id": "c", "function": {"name": "now"}}),
        ];
        let expected = [
            call("a", "read", json!({"path": 1})),
            call("b", "list", json!({})),
            call("c", "now", json!({})),
        ];
        assert_eq!(put_together(&parts).unwrap(), expected);
    }

    #[test]
    fn servers_that_number_oddly_are_understood() {
        let same_index = [
            json!({"index": 0, "id": "a", "function": {"name": "x", "arguments": "{\"n\":1}"}}),
            json!({"index": 0, "id": "b", "function": {"name": "y", "arguments": "{\"n\":2}"}}),
        ];
        let expected = [call("a", "x", json!({"n": 1})), call("b", "y", json!({"n": 2}))];
        assert_eq!(put_together(&same_index).unwrap(), expected);
        let no_index = [
            json!({"id": "a", "function": {"name": "x", "arguments": {"n": 1}}}),
            json!({"id": "b", "function": {"name": "y"}}),
            json!({"function": {"arguments": "{\"n\":2}"}}),
        ];
        assert_eq!(put_together(&no_index).unwrap(), expected);
        let unnamed = put_together(&[json!({"index": 0, "id": "", "function": {"name": "x"}})]).unwrap();
        assert!(unnamed[0].0.starts_with("call_") && unnamed[0].0.len() > 20);
    }

    #[test]
    fn arguments_that_are_no_json_stay_text() {
        let parts = [json!({"index": 0, "id": "a", "function": {"name": "x", "arguments": "{\"cut"}})];
        assert_eq!(put_together(&parts).unwrap(), [call("a", "x", json!("{\"cut"))]);
    }

    #[test]
    fn sizes_are_bounded() {
        let many: Vec<_> = (0..=CALLS_MAX).map(|index| json!({"index": index})).collect();
        assert!(put_together(&many).unwrap_err().contains("128 tool calls"));
        let long = "x".repeat(ARGUMENTS_BYTES_MAX / 2 + 1);
        let part = json!({"index": 0, "function": {"arguments": long}});
        assert!(put_together(&[part.clone(), part]).unwrap_err().contains("arguments"));
        let name = "x".repeat(ID_BYTES_MAX + 1);
        assert!(put_together(&[json!({"index": 0, "function": {"name": name}})]).is_err());
    }
}
