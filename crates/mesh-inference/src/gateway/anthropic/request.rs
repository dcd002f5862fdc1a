//! A question in OpenAI's shape, as Anthropic's Messages API reads it.
//!
//! The body is made anew of the fields that are known here: nothing else that a caller wrote goes out.

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The bound of an answer for callers that name none: the API needs one, and every current model takes this.
const MAX_TOKENS_DEFAULT: u64 = 8192;

/// A question, translated.
#[derive(Debug)]
pub(crate) struct Translated {
    pub(crate) body: Vec<u8>,
    pub(crate) asked: Asked,
}

/// What of a question shapes its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) model: String,
    pub(crate) stream: bool,
    /// Whether the caller wants the usage at the end of a stream.
    pub(crate) usage: bool,
}

#[derive(Deserialize)]
struct Ask {
    model: String,
    messages: Vec<Said>,
    #[serde(default)]
    tools: Option<Vec<Tool>>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    parallel_tool_calls: Option<bool>,
    #[serde(default)]
    max_tokens: Option<u64>,
    #[serde(default)]
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    temperature: Option<f64>,
    #[serde(default)]
    top_p: Option<f64>,
    #[serde(default)]
    top_k: Option<u64>,
    #[serde(default)]
    stop: Option<OneOrMany>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    thinking: Option<Value>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(default)]
    logprobs: Option<bool>,
    #[serde(default)]
    response_format: Option<Format>,
    #[serde(default)]
    functions: Option<Value>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    #[serde(default)]
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    image_url: Option<ImageUrl>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ImageUrl {
    Object { url: String },
    Bare(String),
}

#[derive(Deserialize)]
struct ToolCall {
    #[serde(default)]
    id: String,
    function: CalledFunction,
}

#[derive(Deserialize)]
struct CalledFunction {
    name: String,
    #[serde(default)]
    arguments: Option<Value>,
}

#[derive(Deserialize)]
struct Tool {
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Format {
    #[serde(default)]
    r#type: String,
}

/// Translates a question.
///
/// # Errors
/// What of it cannot be said to Anthropic's API, for the caller to read.
pub(crate) fn translate(body: &[u8]) -> Result<Translated, String> {
    let ask: Ask =
        serde_json::from_slice(body).map_err(|error| format!("The request cannot be read: {error}."))?;
    refuse_unknown(&ask)?;
    let stream = ask.stream.unwrap_or(false);
    let usage = ask.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
    let mut out = Map::new();
    out.insert("model".into(), ask.model.clone().into());
    let most = ask.max_completion_tokens.or(ask.max_tokens).unwrap_or(MAX_TOKENS_DEFAULT);
    out.insert("max_tokens".into(), most.into());
    if stream {
        out.insert("stream".into(), true.into());
    }
    let tools = tools(ask.tools.unwrap_or_default());
    let is_agent = !tools.is_empty();
    let said = Conversation::of(ask.messages)?;
    if !said.system.is_empty() {
        let mut block = json!({ "type": "text", "text": said.system });
        cached(&mut block, is_agent);
        out.insert("system".into(), json!([block]));
    }
    let mut messages = said.messages;
    if let Some(Value::Array(blocks)) = messages.last_mut().and_then(|last| last.get_mut("content"))
        && let Some(block) = blocks.last_mut()
    {
        cached(block, is_agent);
    }
    out.insert("messages".into(), messages.into());
    if is_agent {
        if let Some(choice) = tool_choice(ask.tool_choice, ask.parallel_tool_calls)? {
            out.insert("tool_choice".into(), choice);
        }
        out.insert("tools".into(), tools.into());
    }
    let thinks = ask.thinking.as_ref().is_some_and(|thinking| thinking["type"] != "disabled");
    if let Some(thinking) = ask.thinking.filter(Value::is_object) {
        out.insert("thinking".into(), thinking);
    }
    match (ask.temperature, ask.top_p) {
        // The API takes no temperature beside thinking, and not both of these; OpenAI's scale ends at 2.
        _ if thinks => {}
        (Some(temperature), _) => drop(out.insert("temperature".into(), temperature.clamp(0.0, 1.0).into())),
        (None, Some(top_p)) => drop(out.insert("top_p".into(), top_p.into())),
        (None, None) => {}
    }
    if let Some(top_k) = ask.top_k.filter(|_| !thinks) {
        out.insert("top_k".into(), top_k.into());
    }
    let stops = match ask.stop {
        Some(OneOrMany::One(stop)) => vec![stop],
        Some(OneOrMany::Many(stops)) => stops,
        None => Vec::new(),
    };
    // The API refuses white space alone, which agents for other models send.
    let stops: Vec<String> = stops.into_iter().filter(|stop| !stop.trim().is_empty()).collect();
    if !stops.is_empty() {
        out.insert("stop_sequences".into(), stops.into());
    }
    let body = Value::Object(out).to_string().into_bytes();
    Ok(Translated { body, asked: Asked { model: ask.model, stream, usage } })
}

fn refuse_unknown(ask: &Ask) -> Result<(), String> {
    let cannot = |what: &str| Err(format!("This provider cannot do what `{what}` asks for."));
    if ask.n.is_some_and(|n| n > 1) {
        return cannot("n");
    }
    if ask.logprobs == Some(true) {
        return cannot("logprobs");
    }
    if ask.functions.as_ref().is_some_and(|functions| !functions.is_null()) {
        return cannot("functions");
    }
    match &ask.response_format {
        Some(format) if format.r#type != "text" => cannot("response_format"),
        _ => Ok(()),
    }
}

/// Marks the end of what stays the same from question to question. An agent asks again with all that was said before, which
/// the provider then reads from its cache, for a tenth of the price.
fn cached(block: &mut Value, is_agent: bool) {
    if is_agent && let Some(block) = block.as_object_mut() {
        block.insert("cache_control".into(), json!({ "type": "ephemeral" }));
    }
}

fn tools(tools: Vec<Tool>) -> Vec<Value> {
    let functions = tools.into_iter().filter_map(|tool| tool.function);
    functions
        .map(|function| {
            let schema =
                function.parameters.filter(Value::is_object).unwrap_or_else(|| json!({ "type": "object" }));
            let mut tool = json!({ "name": function.name, "input_schema": schema });
            if let Some(description) = function.description {
                tool["description"] = description.into();
            }
            tool
        })
        .collect()
}

fn tool_choice(choice: Option<Value>, parallel: Option<bool>) -> Result<Option<Value>, String> {
    let mut choice = match choice {
        None | Some(Value::Null) if parallel != Some(false) => return Ok(None),
        None | Some(Value::Null) => json!({ "type": "auto" }),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => json!({ "type": "auto" }),
            "none" => json!({ "type": "none" }),
            "required" => json!({ "type": "any" }),
            _ => return Err("`tool_choice` must be \"auto\", \"none\", \"required\" or a function.".into()),
        },
        Some(object) => match object["function"]["name"].as_str() {
            Some(name) => json!({ "type": "tool", "name": name }),
            None => return Err("`tool_choice` names no function.".into()),
        },
    };
    if parallel == Some(false) && choice["type"] != "none" {
        choice["disable_parallel_tool_use"] = true.into();
    }
    Ok(Some(choice))
}

/// What was said, in Anthropic's order: instructions apart, then user and assistant in turn, results of tools with the user.
struct Conversation {
    system: String,
    messages: Vec<Value>,
}

impl Conversation {
    fn of(said: Vec<Said>) -> Result<Self, String> {
        let mut all = Self { system: String::new(), messages: Vec::new() };
        for one in said {
            match one.role.as_str() {
                "system" | "developer" => {
                    let text = text_of(one.content);
                    if !all.system.is_empty() && !text.is_empty() {
                        all.system.push_str("\n\n");
                    }
                    all.system.push_str(&text);
                }
                "user" => {
                    let blocks = blocks(one.content)?;
                    all.add("user", blocks);
                }
                "assistant" => {
                    let mut blocks = blocks(one.content)?;
                    for call in one.tool_calls.into_iter().flatten() {
                        let input = input(call.function.arguments);
                        let (id, name) = (clean_id(&call.id), call.function.name);
                        blocks.push(json!({ "type": "tool_use", "id": id, "name": name, "input": input }));
                    }
                    all.add("assistant", blocks);
                }
                "tool" => {
                    let id = clean_id(&one.tool_call_id.unwrap_or_default());
                    let content = match one.content {
                        Some(Content::Text(text)) => text.into(),
                        other => Value::Array(blocks(other)?),
                    };
                    all.add(
                        "user",
                        vec![json!({ "type": "tool_result", "tool_use_id": id, "content": content })],
                    );
                }
                other => return Err(format!("A message has the unknown role `{}`.", shortened(other))),
            }
        }
        all.trim_last();
        if all.messages.is_empty() {
            return Err("No message of a user or an assistant says anything.".into());
        }
        Ok(all)
    }

    /// Adds to the last message when it has the same speaker. Without blocks there is nothing to say.
    fn add(&mut self, role: &str, blocks: Vec<Value>) {
        if blocks.is_empty() {
            return;
        }
        if let Some(last) = self.messages.last_mut()
            && last["role"] == role
            && let Some(content) = last["content"].as_array_mut()
        {
            content.extend(blocks);
            return;
        }
        self.messages.push(json!({ "role": role, "content": blocks }));
    }

    /// The API refuses an answer to go on with that ends in white space.
    fn trim_last(&mut self) {
        let Some(last) = self.messages.last_mut().filter(|last| last["role"] == "assistant") else { return };
        let Some(block) = last["content"].as_array_mut().and_then(|blocks| blocks.last_mut()) else { return };
        if let Some(text) = block["text"].as_str() {
            block["text"] = text.trim_end().into();
        }
    }
}

fn text_of(content: Option<Content>) -> String {
    match content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
        None => String::new(),
    }
}

/// Blocks of what was said; empty texts are left out, since the API refuses them.
fn blocks(content: Option<Content>) -> Result<Vec<Value>, String> {
    let parts = match content {
        None => return Ok(Vec::new()),
        Some(Content::Text(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Content::Text(text)) => return Ok(vec![json!({ "type": "text", "text": text })]),
        Some(Content::Parts(parts)) => parts,
    };
    let mut blocks = Vec::with_capacity(parts.len());
    for part in parts {
        match (part.r#type.as_str(), part.text.or(part.refusal), part.image_url) {
            ("text" | "refusal", Some(text), _) if text.trim().is_empty() => {}
            ("text" | "refusal", Some(text), _) => blocks.push(json!({ "type": "text", "text": text })),
            ("image_url", _, Some(ImageUrl::Object { url } | ImageUrl::Bare(url))) => {
                blocks.push(image(&url)?)
            }
            (other, _, _) => {
                return Err(format!("A part of a message of type `{}` cannot be sent.", shortened(other)));
            }
        }
    }
    Ok(blocks)
}

fn image(url: &str) -> Result<Value, String> {
    if url.starts_with("https://") || url.starts_with("http://") {
        return Ok(json!({ "type": "image", "source": { "type": "url", "url": url } }));
    }
    let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    let Some((media_type, data)) = data else {
        return Err("An image must be an http URL or a data URL in base64.".into());
    };
    let media_type = media_type.split(';').next().unwrap_or_default();
    Ok(json!({ "type": "image", "source": { "type": "base64", "media_type": media_type, "data": data } }))
}

/// Arguments of a call as an object, which the API wants.
fn input(arguments: Option<Value>) -> Value {
    match arguments {
        Some(Value::Object(input)) => Value::Object(input),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Object(input)) => Value::Object(input),
            Ok(Value::Null) | Err(_) if text.trim().is_empty() => json!({}),
            _ => json!({ "arguments": text }),
        },
        None | Some(Value::Null) => json!({}),
        Some(other) => json!({ "arguments": other }),
    }
}

/// Ids that other providers made, in the letters that the API takes. A call and its result change alike.
fn clean_id(id: &str) -> String {
    id.chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || "_-".contains(letter) { letter } else { '_' })
        .collect()
}

fn shortened(word: &str) -> String {
    word.chars().take(50).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn translated(ask: Value) -> Value {
        serde_json::from_slice(&translate(ask.to_string().as_bytes()).unwrap().body).unwrap()
    }

    fn refused(change: Value) -> String {
        let mut ask = json!({ "model": "m", "messages": [{ "role": "user", "content": "a" }] });
        for (key, value) in change.as_object().unwrap() {
            ask[key] = value.clone();
        }
        translate(ask.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn a_plain_question() {
        let ask = json!({ "model": "claude", "messages": [{ "role": "user", "content": "hi" }] });
        assert_eq!(
            translated(ask),
            json!({ "model": "claude", "max_tokens": 8192,
                "messages": [{ "role": "user", "content": [{ "type": "text", "text": "hi" }] }] })
        );
    }

    #[test]
    fn an_agents_question_with_all_that_it_may_have() {
        let ask = json!({
            "model": "claude", "stream": true, "stream_options": { "include_usage": true },
            "max_completion_tokens": 50, "temperature": 1.5, "top_p": 0.5, "stop": ["END", "\n"],
            "tool_choice": "required", "parallel_tool_calls": false,
            "tools": [{ "type": "function", "function": { "name": "look", "description": "d", "parameters": { "type": "object", "properties": {} } } },
                { "type": "function", "function": { "name": "now" } }],
            "messages": [
                { "role": "system", "content": "be" },
                { "role": "developer", "content": [{ "type": "text", "text": "good" }] },
                { "role": "user", "content": [{ "type": "text", "text": "see" },
                    { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } },
                    { "type": "image_url", "image_url": { "url": "https://x.example/a.png" } }] },
                { "role": "assistant", "content": null, "tool_calls": [
                    { "id": "call.1", "type": "function", "function": { "name": "look", "arguments": "{\"a\":1}" } },
                    { "id": "call2", "type": "function", "function": { "name": "now", "arguments": "" } }] },
                { "role": "tool", "tool_call_id": "call.1", "content": "seen" },
                { "role": "tool", "tool_call_id": "call2", "content": "" },
                { "role": "user", "content": "go on" },
            ],
        });
        let cache = json!({ "type": "ephemeral" });
        assert_eq!(
            translated(ask),
            json!({
                "model": "claude", "stream": true, "max_tokens": 50, "temperature": 1.0, "stop_sequences": ["END"],
                "tool_choice": { "type": "any", "disable_parallel_tool_use": true },
                "system": [{ "type": "text", "text": "be\n\ngood", "cache_control": cache }],
                "tools": [{ "name": "look", "description": "d", "input_schema": { "type": "object", "properties": {} } },
                    { "name": "now", "input_schema": { "type": "object" } }],
                "messages": [
                    { "role": "user", "content": [{ "type": "text", "text": "see" },
                        { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } },
                        { "type": "image", "source": { "type": "url", "url": "https://x.example/a.png" } }] },
                    { "role": "assistant", "content": [
                        { "type": "tool_use", "id": "call_1", "name": "look", "input": { "a": 1 } },
                        { "type": "tool_use", "id": "call2", "name": "now", "input": {} }] },
                    { "role": "user", "content": [
                        { "type": "tool_result", "tool_use_id": "call_1", "content": "seen" },
                        { "type": "tool_result", "tool_use_id": "call2", "content": "" },
                        { "type": "text", "text": "go on", "cache_control": cache }] },
                ],
            })
        );
    }

    #[test]
    fn nothing_that_a_caller_wrote_beside_it_goes_out() {
        let ask = json!({ "model": "claude", "base_url": "http://evil.example", "api_key": "k", "metadata": { "user_id": "u" },
            "messages": [{ "role": "user", "content": "hi", "cache_control": 1, "x": 2 }] });
        let text = translated(ask).to_string();
        for word in ["evil", "api_key", "metadata", "cache_control", "\"x\""] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn thinking_goes_without_a_temperature() {
        let thinking = json!({ "type": "enabled", "budget_tokens": 1024 });
        let ask = json!({ "model": "m", "thinking": thinking, "temperature": 0.5, "top_k": 3,
            "messages": [{ "role": "user", "content": "a" }] });
        let out = translated(ask);
        assert_eq!((&out["thinking"], out.get("temperature"), out.get("top_k")), (&thinking, None, None));
    }

    #[test]
    fn an_answer_to_go_on_with_loses_its_last_blanks() {
        let ask = json!({ "model": "m", "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b \n" }] });
        assert_eq!(translated(ask)["messages"][1]["content"][0]["text"], "b");
    }

    #[test]
    fn what_cannot_be_said_is_refused_by_name() {
        assert!(refused(json!({ "n": 2 })).contains("`n`"));
        assert!(refused(json!({ "logprobs": true })).contains("`logprobs`"));
        assert!(
            refused(json!({ "response_format": { "type": "json_schema" } })).contains("`response_format`")
        );
        assert!(refused(json!({ "functions": [] })).contains("`functions`"));
        assert!(
            refused(json!({ "tools": [{"function": {"name": "a"}}], "tool_choice": "perhaps" }))
                .contains("tool_choice")
        );
        assert!(refused(json!({ "messages": [{ "role": "robot", "content": "a" }] })).contains("robot"));
        assert!(
            refused(json!({ "messages": [{ "role": "user", "content": " " }] })).contains("says anything")
        );
        let audio = json!({ "messages": [{ "role": "user", "content": [{ "type": "input_audio" }] }] });
        assert!(refused(audio).contains("input_audio"));
        let file = json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "file:///etc/passwd" } }] }] });
        assert!(refused(file).contains("data URL"));
        assert!(translate(b"{").unwrap_err().contains("cannot be read"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(body in "\\{\"model\":\"m\",\"messages\":[\\[\\]{}\":,a0nul rolecontentusertool\n]{0,80}\\}?") {
            let _ = translate(body.as_bytes());
        }
    }
}
