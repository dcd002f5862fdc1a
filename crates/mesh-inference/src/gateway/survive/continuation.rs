//! The requests with which an answer goes on elsewhere.

use serde::Deserialize;
use serde_json::json;

use super::fields::Fields;
use super::told::Told;
use crate::gateway::endpoint::Endpoint;

/// Fields that bound the number of tokens, in the words of OpenAI and llama-server.
const LIMITS: [&str; 3] = ["max_tokens", "max_completion_tokens", "n_predict"];

/// Fields whose presence makes an answer something that nobody else could go on with, and what to call it.
const PINNED: [(&str, &str); 16] = [
    ("grammar", "a grammar"),
    ("json_schema", "a schema"),
    ("functions", "functions"),
    ("function_call", "functions"),
    ("suffix", "a suffix"),
    ("n_probs", "probabilities of tokens"),
    ("top_logprobs", "probabilities of tokens"),
    ("audio", "sound"),
    ("modalities", "other media than text"),
    ("prediction", "a prediction"),
    ("return_tokens", "tokens"),
    ("response_fields", "fields of its own"),
    ("chat_parser", "a parser of its own"),
    ("generation_prompt", "a beginning of its own"),
    ("continue_final_message", "a beginning of its own"),
    ("add_generation_prompt", "a beginning of its own"),
];

/// Why a request cannot be gone on with, in words that complete "it has …".
pub(crate) type Pinned = &'static str;

/// A request whose answer another host can go on with.
#[derive(Debug)]
pub(crate) struct Continuation<'a> {
    endpoint: Endpoint,
    fields: Fields<'a>,
    prompt: Prompt,
}

#[derive(Debug)]
enum Prompt {
    /// The messages as they stand, without the closing bracket.
    Messages(String),
    Text(String),
}

#[derive(Deserialize)]
struct Speaker {
    role: String,
}

impl<'a> Continuation<'a> {
    /// Reads a request. Which answers can be gone on with stands in `docs/protocols/gateway.md`.
    pub(crate) fn of(endpoint: Endpoint, body: &'a [u8]) -> Result<Self, Pinned> {
        let fields = Fields::of(body).ok_or("a body that cannot be read")?;
        if fields.get::<bool>("stream") != Some(true) {
            return Err("no stream");
        }
        for (key, what) in PINNED {
            if fields.raw(key).is_some() {
                return Err(what);
            }
        }
        check_choices(&fields)?;
        check_shape(&fields)?;
        let prompt = match endpoint {
            Endpoint::Chat => messages(&fields)?,
            Endpoint::Completions => text(&fields)?,
            Endpoint::Embeddings | Endpoint::Responses => {
                return Err("an endpoint without a text to go on with");
            }
        };
        Ok(Self { endpoint, fields, prompt })
    }

    /// The least number of tokens that the answer may have, of all limits set; None without a limit.
    pub(crate) fn limit(&self) -> Option<u64> {
        // -1, and -2 in older builds, mean no limit.
        LIMITS.iter().filter_map(|key| self.fields.get::<u64>(key)).min()
    }

    /// Whether the caller is told how many tokens it took.
    pub(crate) fn wants_counts(&self) -> bool {
        #[derive(Deserialize)]
        struct Options {
            include_usage: Option<bool>,
        }
        // The last chunk of a text completion has them unasked.
        self.endpoint == Endpoint::Completions
            || self.fields.get::<Options>("stream_options").is_some_and(|o| o.include_usage == Some(true))
    }

    /// Whether the backend sends each token as it comes, and holds none back until it knows what it is part of.
    pub(crate) fn holds_nothing_back(&self) -> bool {
        self.fields.raw("stop").is_none() && self.fields.raw("tools").is_none()
    }

    /// The request that goes on behind `told`, with `left` tokens to go at most.
    pub(crate) fn body(&self, told: &Told, left: Option<u64>) -> Vec<u8> {
        let mut fields = self.fields.clone();
        self.go_on_behind(&mut fields, told);
        if let Some(left) = left {
            set_limits(&mut fields, left);
        }
        fields.to_body()
    }

    /// A request whose answer counts the tokens of the prompt, with `told` behind it.
    pub(crate) fn counting_body(&self, told: &Told) -> Vec<u8> {
        let mut fields = self.fields.clone();
        self.go_on_behind(&mut fields, told);
        for key in ["stream_options", "max_completion_tokens", "n_predict"] {
            fields.remove(key);
        }
        fields.set("stream", "false".into());
        fields.set("max_tokens", "1".into());
        fields.to_body()
    }

    fn go_on_behind(&self, fields: &mut Fields<'a>, told: &Told) {
        if !told.has_text() {
            return;
        }
        match &self.prompt {
            Prompt::Text(prompt) => fields.set("prompt", json!(format!("{prompt}{}", told.text)).to_string()),
            Prompt::Messages(messages) => {
                let mut message = json!({ "role": "assistant", "content": told.text });
                if !told.reasoning.is_empty() {
                    message["reasoning_content"] = told.reasoning.clone().into();
                }
                fields.set("messages", format!("{messages},{message}]"));
                // By itself llama-server goes on with a last message of the assistant, but repeats it first.
                fields.set("continue_final_message", "true".into());
                fields.set("add_generation_prompt", "false".into());
            }
        }
    }
}

fn set_limits(fields: &mut Fields<'_>, left: u64) {
    for key in LIMITS {
        if fields.get::<u64>(key).is_some() {
            fields.set(key, left.to_string());
        }
    }
}

fn check_choices(fields: &Fields<'_>) -> Result<(), Pinned> {
    for key in ["n", "best_of", "n_cmpl"] {
        if fields.raw(key).is_some() && fields.get::<u64>(key) != Some(1) {
            return Err("several answers at a time");
        }
    }
    for key in ["echo", "logprobs"] {
        let raw = fields.raw(key);
        if raw.is_some_and(|raw| raw != "false") {
            return Err(if key == "echo" { "an echo" } else { "probabilities of tokens" });
        }
    }
    Ok(())
}

fn check_shape(fields: &Fields<'_>) -> Result<(), Pinned> {
    #[derive(Deserialize)]
    struct Format {
        r#type: String,
    }
    if fields.raw("response_format").is_some()
        && fields.get::<Format>("response_format").is_none_or(|format| format.r#type != "text")
    {
        return Err("a format that its text must have");
    }
    if fields.raw("tool_choice").is_some_and(|choice| choice != "\"auto\"" && choice != "\"none\"") {
        return Err("a tool that it must call");
    }
    if fields.raw("reasoning_format").is_some_and(|format| format != "\"auto\"" && format != "\"deepseek\"") {
        return Err("a reasoning format of its own");
    }
    Ok(())
}

fn messages(fields: &Fields<'_>) -> Result<Prompt, Pinned> {
    let raw = fields.raw("messages").ok_or("no messages")?;
    let speakers: Vec<Speaker> = fields.get("messages").ok_or("messages that cannot be read")?;
    match speakers.last() {
        None => Err("no messages"),
        Some(last) if last.role == "assistant" => Err("a beginning of its own"),
        Some(_) => {
            let open = raw.trim_end().strip_suffix(']').ok_or("messages that cannot be read")?;
            Ok(Prompt::Messages(open.trim_end().to_owned()))
        }
    }
}

fn text(fields: &Fields<'_>) -> Result<Prompt, Pinned> {
    if let Some(text) = fields.get::<String>("prompt") {
        return Ok(Prompt::Text(text));
    }
    match fields.get::<[String; 1]>("prompt") {
        Some([text]) => Ok(Prompt::Text(text)),
        None => Err("a prompt that is not one text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn told(text: &str, reasoning: &str) -> Told {
        Told { text: text.into(), reasoning: reasoning.into(), ..Told::default() }
    }

    fn parsed(body: &[u8]) -> Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn a_chat_goes_on_with_its_last_message() {
        let body = br#"{"model":"m","stream":true,"max_tokens":10,"tools":[{"b":1,"a":2}],"messages":[{"role":"user","content":"hi"} ]}"#;
        let continuation = Continuation::of(Endpoint::Chat, body).unwrap();
        assert_eq!((continuation.limit(), continuation.wants_counts()), (Some(10), false));
        let out = continuation.body(&told("so \"far", "hm"), Some(4));
        assert_eq!(
            String::from_utf8(out.clone()).unwrap(),
            r#"{"model":"m","stream":true,"max_tokens":4,"tools":[{"b":1,"a":2}],"messages":[{"role":"user","content":"hi"},{"content":"so \"far","reasoning_content":"hm","role":"assistant"}],"continue_final_message":true,"add_generation_prompt":false}"#
        );
        let counting = parsed(&continuation.counting_body(&told("", "")));
        assert_eq!(counting["messages"].as_array().unwrap().len(), 1, "nothing was said yet");
        assert_eq!((&counting["stream"], &counting["max_tokens"]), (&false.into(), &1.into()));
        assert!(counting.get("continue_final_message").is_none());
    }

    #[test]
    fn a_text_goes_on_behind_its_prompt() {
        for prompt in ["\"one \"", "[\"one \"]"] {
            let body = format!("{{\"stream\":true,\"prompt\":{prompt},\"n_predict\":-1}}");
            let continuation = Continuation::of(Endpoint::Completions, body.as_bytes()).unwrap();
            assert_eq!((continuation.limit(), continuation.wants_counts()), (None, true));
            let out = parsed(&continuation.body(&told("two", ""), None));
            assert_eq!((&out["prompt"], &out["n_predict"]), (&"one two".into(), &(-1).into()));
        }
    }

    #[test]
    fn what_only_one_host_can_finish_is_refused() {
        for field in [
            r#""grammar":"x""#,
            r#""response_format":{"type":"json_object"}"#,
            r#""response_format":7"#,
            r#""logprobs":true"#,
            r#""n":2"#,
            r#""n":1.5"#,
            r#""tool_choice":"required""#,
            r#""tool_choice":{"type":"function"}"#,
            r#""continue_final_message":true"#,
            r#""messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]"#,
            r#""messages":[]"#,
            r#""messages":"x""#,
            r#""stream":false"#,
        ] {
            let body = format!(r#"{{"stream":true,"messages":[{{"role":"user","content":"x"}}],{field}}}"#);
            assert!(Continuation::of(Endpoint::Chat, body.as_bytes()).is_err(), "{field}");
        }
        for field in [
            r#""n":1,"logprobs":false,"tool_choice":"auto","response_format":{"type":"text"}"#,
            r#""grammar":null"#,
        ] {
            let body = format!(r#"{{"stream":true,"messages":[{{"role":"user","content":"x"}}],{field}}}"#);
            assert!(Continuation::of(Endpoint::Chat, body.as_bytes()).is_ok(), "{field}");
        }
        for field in [
            r#""prompt":[1,2]"#,
            r#""prompt":["a","b"]"#,
            r#""prompt":"a","echo":true"#,
            r#""prompt":"a","suffix":"b""#,
            r#""prompt":"a","logprobs":0"#,
        ] {
            let body = format!("{{\"stream\":true,{field}}}");
            assert!(Continuation::of(Endpoint::Completions, body.as_bytes()).is_err(), "{field}");
        }
        assert!(Continuation::of(Endpoint::Responses, b"{\"stream\":true,\"input\":\"x\"}").is_err());
    }
}
