//! Chunks of another answer, made chunks of the one that goes on.

use serde_json::{Map, Value};

use super::events::{data_of, event};
use super::told::Told;
use bytes::Bytes;

/// How many tokens the prompt has, and how many of the answer stood before the host changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// None where nobody needs to know.
    pub(crate) prompt: Option<u64>,
    pub(crate) produced: u64,
}

/// Makes an event of the continuation the caller's; None when it says nothing that the caller lacks.
///
/// It gets the answer's own name, loses the role that was told already, and its counts are those of the whole answer. The
/// times of the part that one host made (`timings`) go, since they describe no answer.
pub(crate) fn rewrite(from: &[u8], told: &Told, counts: Option<Counts>) -> Option<Bytes> {
    let data = data_of(from)?;
    if &*data == b"[DONE]" {
        return Some(event("[DONE]"));
    }
    let Ok(Value::Object(mut chunk)) = serde_json::from_slice(&data) else {
        return Some(Bytes::copy_from_slice(from));
    };
    chunk.remove("timings");
    recount(&mut chunk, counts);
    if let Some(name) = &told.name {
        let fields = [
            ("id", name.id.clone().map(Value::from)),
            ("created", name.created.map(Value::from)),
            ("model", name.model.clone().map(Value::from)),
            ("system_fingerprint", name.fingerprint.clone().map(Value::from)),
        ];
        for (key, value) in fields {
            match value {
                Some(value) => chunk.insert(key.into(), value),
                None => chunk.remove(key),
            };
        }
        if says_role_alone(&mut chunk) {
            return None;
        }
    }
    Some(event(&Value::Object(chunk).to_string()))
}

/// The last chunk of an answer that its host ended for `reason`, or counted, without having told so.
pub(crate) fn closing(told: &Told, chat: bool, reason: Option<&str>, counts: Option<Counts>) -> Bytes {
    let mut chunk = Map::new();
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    chunk.insert("object".into(), object.into());
    let choices = reason.map(|reason| {
        if chat {
            serde_json::json!({ "index": 0, "delta": {}, "finish_reason": reason })
        } else {
            serde_json::json!({ "index": 0, "text": "", "logprobs": null, "finish_reason": reason })
        }
    });
    chunk.insert("choices".into(), Value::from_iter(choices));
    if let Some(Counts { prompt: Some(prompt), produced }) = counts {
        let total = prompt.saturating_add(produced);
        let usage = serde_json::json!({
            "prompt_tokens": prompt, "completion_tokens": produced, "total_tokens": total,
        });
        chunk.insert("usage".into(), usage);
    }
    let bytes = format!("data: {}\n\n", Value::Object(chunk));
    rewrite(bytes.as_bytes(), told, None).unwrap_or_default()
}

fn recount(chunk: &mut Map<String, Value>, counts: Option<Counts>) {
    let (Some(counts), Some(Value::Object(usage))) = (counts, chunk.get_mut("usage")) else { return };
    let new = usage.get("completion_tokens").and_then(Value::as_u64).unwrap_or(0);
    let produced = counts.produced.saturating_add(new);
    let told = usage.get("prompt_tokens").and_then(Value::as_u64).unwrap_or(0);
    let prompt = counts.prompt.unwrap_or_else(|| told.saturating_sub(counts.produced));
    usage.insert("prompt_tokens".into(), prompt.into());
    usage.insert("completion_tokens".into(), produced.into());
    usage.insert("total_tokens".into(), prompt.saturating_add(produced).into());
    if let Some(cached) =
        usage.get_mut("prompt_tokens_details").and_then(|details| details.get_mut("cached_tokens"))
    {
        *cached = cached.as_u64().unwrap_or(0).min(prompt).into();
    }
}

/// Whether a chunk only repeats who speaks. Takes the role out either way.
fn says_role_alone(chunk: &mut Map<String, Value>) -> bool {
    let has_usage = chunk.get("usage").is_some_and(|usage| !usage.is_null());
    let Some([choice]) = chunk.get_mut("choices").and_then(Value::as_array_mut).map(Vec::as_mut_slice) else {
        return false;
    };
    let finished = choice.get("finish_reason").is_some_and(|reason| !reason.is_null());
    let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) else { return false };
    let had_role = delta.remove("role").is_some();
    let empty = |value: &Value| value.is_null() || value.as_str() == Some("");
    had_role && delta.values().all(empty) && !finished && !has_usage
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::survive::told::Name;

    fn told() -> Told {
        let name =
            Name { id: Some("first".into()), created: Some(1), model: Some("m".into()), fingerprint: None };
        Told { name: Some(name), ..Told::default() }
    }

    fn rewritten(data: &str, counts: Option<Counts>) -> Option<Value> {
        let out = rewrite(format!("data: {data}\n\n").as_bytes(), &told(), counts)?;
        Some(serde_json::from_slice(&data_of(&out).unwrap()).unwrap())
    }

    #[test]
    fn chunks_carry_the_answers_own_name() {
        let chunk = rewritten(
            r#"{"id":"other","created":9,"model":"/path","system_fingerprint":"b2","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],"timings":{}}"#,
            None,
        );
        assert_eq!(
            chunk.unwrap(),
            serde_json::json!({"id":"first","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]})
        );
        assert_eq!(rewrite(b"data: [DONE]\n\n", &told(), None).unwrap(), "data: [DONE]\n\n");
        assert_eq!(rewrite(b":\n\n", &told(), None), None);
    }

    #[test]
    fn the_role_is_told_once() {
        assert_eq!(
            rewritten(
                r#"{"choices":[{"delta":{"role":"assistant","content":null},"finish_reason":null}]}"#,
                None
            ),
            None
        );
        let both = rewritten(r#"{"choices":[{"delta":{"role":"assistant","content":"x"}}]}"#, None).unwrap();
        assert_eq!(both["choices"][0]["delta"], serde_json::json!({"content":"x"}));
        let first = Told::default();
        let role = b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n";
        assert!(rewrite(role, &first, None).is_some(), "nothing was told yet");
    }

    #[test]
    fn counts_are_those_of_the_whole_answer() {
        let counts = Counts { prompt: Some(30), produced: 4 };
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":34,"completion_tokens":8,"total_tokens":42,"prompt_tokens_details":{"cached_tokens":33}}}"#;
        assert_eq!(
            rewritten(usage, Some(counts)).unwrap()["usage"],
            serde_json::json!({"prompt_tokens":30,"completion_tokens":12,"total_tokens":42,"prompt_tokens_details":{"cached_tokens":30}})
        );
        let end = closing(&told(), false, Some("length"), Some(counts));
        let end: Value = serde_json::from_slice(&data_of(&end).unwrap()).unwrap();
        assert_eq!(
            (&end["id"], &end["choices"][0]["finish_reason"], &end["usage"]["total_tokens"]),
            (&"first".into(), &"length".into(), &34.into())
        );
    }
}
