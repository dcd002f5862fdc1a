//! A question as the body of `POST /v1/chat/completions`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{Call, ChatError, Message, Part, ToolCall};

/// Questions above this are written on a blocking thread: about a millisecond of work.
const WRITE_HERE_MAX: usize = 512 * 1024;

pub(super) async fn body(call: Call) -> Result<Vec<u8>, ChatError> {
    if size(&call) <= WRITE_HERE_MAX {
        return Ok(write(call));
    }
    tokio::task::spawn_blocking(move || write(call))
        .await
        .map_err(|_| ChatError::Unavailable("this node is shutting down".into()))
}

/// About how many bytes the question has.
fn size(call: &Call) -> usize {
    let of_parts = |parts: &[Part]| -> usize {
        parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.len(),
                Part::Image { bytes, .. } => bytes.len(),
            })
            .sum()
    };
    let of_message = |message: &Message| match message {
        Message::System(text) => text.len(),
        Message::User(parts) | Message::Tool { parts, .. } => of_parts(parts),
        // Arguments were the model's own words once, and few.
        Message::Assistant { text, .. } => text.len(),
    };
    call.messages.iter().map(of_message).sum()
}

fn write(call: Call) -> Vec<u8> {
    let mut body = Map::new();
    body.insert("model".into(), call.model.into());
    body.insert("messages".into(), messages(call.messages));
    body.insert("stream".into(), true.into());
    body.insert("stream_options".into(), json!({ "include_usage": true }));
    if !call.tools.is_empty() {
        let tools = call.tools.into_iter().map(|tool| {
            let function =
                json!({ "name": tool.name, "description": tool.description, "parameters": tool.parameters });
            json!({ "type": "function", "function": function })
        });
        body.insert("tools".into(), tools.collect());
    }
    if let Some(max_tokens) = call.max_tokens {
        body.insert("max_tokens".into(), max_tokens.into());
    }
    if let Some(temperature) = call.temperature {
        // As people write it: 0.7 is no exact f32, and its nearest f64 has 17 digits.
        let written = temperature.to_string().parse::<f64>().unwrap_or(f64::from(temperature));
        body.insert("temperature".into(), written.into());
    }
    Value::Object(body).to_string().into_bytes()
}

fn messages(said: Vec<Message>) -> Value {
    let mut out: Vec<Value> = Vec::with_capacity(said.len());
    // Images of tools' results: all results of an answer must follow it at once, so the images come behind them.
    let mut images: Vec<Value> = Vec::new();
    for message in said {
        if !matches!(message, Message::Tool { .. }) {
            show(&mut images, &mut out);
        }
        match message {
            Message::System(text) => out.push(json!({ "role": "system", "content": text })),
            Message::User(parts) => out.push(json!({ "role": "user", "content": content(parts) })),
            Message::Assistant { text, tool_calls } if tool_calls.is_empty() => {
                out.push(json!({ "role": "assistant", "content": text }));
            }
            Message::Assistant { text, tool_calls } => {
                let calls: Vec<Value> = tool_calls.into_iter().map(tool_call).collect();
                let text = if text.is_empty() { Value::Null } else { text.into() };
                out.push(json!({ "role": "assistant", "content": text, "tool_calls": calls }));
            }
            Message::Tool { call, parts } => {
                let mut text = String::new();
                for part in parts {
                    match part {
                        Part::Text(more) => text.push_str(&more),
                        image @ Part::Image { .. } => {
                            if images.is_empty() {
                                images.push(
                                    json!({ "type": "text", "text": "Images that the tools returned:" }),
                                );
                            }
                            images.push(shown(image));
                        }
                    }
                }
                out.push(json!({ "role": "tool", "tool_call_id": call, "content": text }));
            }
        }
    }
    show(&mut images, &mut out);
    Value::Array(out)
}

fn show(images: &mut Vec<Value>, out: &mut Vec<Value>) {
    if !images.is_empty() {
        out.push(json!({ "role": "user", "content": std::mem::take(images) }));
    }
}

/// Text alone as a string, which every server reads; else the list of parts.
fn content(parts: Vec<Part>) -> Value {
    if parts.iter().all(|part| matches!(part, Part::Text(_))) {
        let text = parts.into_iter().filter_map(|part| match part {
            Part::Text(text) => Some(text),
            Part::Image { .. } => None,
        });
        return text.collect::<String>().into();
    }
    parts.into_iter().map(shown).collect()
}

fn shown(part: Part) -> Value {
    match part {
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Image { media_type, bytes } => {
            let url = format!("data:{media_type};base64,{}", STANDARD.encode(&bytes));
            json!({ "type": "image_url", "image_url": { "url": url } })
        }
    }
}

fn tool_call(call: ToolCall) -> Value {
    // Servers read the arguments back as an object; one that was none goes as the text in one.
    let arguments = match call.arguments {
        Value::Object(arguments) => Value::Object(arguments),
        other => json!({ "arguments": other }),
    };
    let function = json!({ "name": call.name, "arguments": arguments.to_string() });
    json!({ "id": call.id, "type": "function", "function": function })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Tool;

    fn image() -> Part {
        Part::Image { media_type: "image/png".into(), bytes: bytes::Bytes::from_static(b"\x89PNG") }
    }

    fn asked(messages: Vec<Message>) -> Value {
        let call = Call {
            model: "m".into(),
            peer: None,
            messages,
            tools: Vec::new(),
            max_tokens: None,
            temperature: None,
            on_behalf_of: None,
        };
        serde_json::from_slice(&write(call)).unwrap()
    }

    #[test]
    fn a_question_is_written_as_openai_reads_it() {
        let call = Call {
            model: "m".into(),
            peer: None,
            messages: vec![
                Message::System("be".into()),
                Message::User(vec![Part::Text("a".into()), image()]),
            ],
            tools: vec![Tool {
                name: "t".into(),
                description: "d".into(),
                parameters: json!({"type": "object"}),
            }],
            max_tokens: Some(9),
            temperature: Some(0.7),
            on_behalf_of: None,
        };
        let written: Value = serde_json::from_slice(&write(call)).unwrap();
        assert_eq!(
            written,
            json!({
                "model": "m",
                "messages": [
                    {"role": "system", "content": "be"},
                    {"role": "user", "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
                    ]},
                ],
                "stream": true,
                "stream_options": {"include_usage": true},
                "tools": [{"type": "function", "function":
                    {"name": "t", "description": "d", "parameters": {"type": "object"}}}],
                "max_tokens": 9,
                "temperature": 0.7,
            })
        );
    }

    #[test]
    fn images_of_tools_follow_all_results_of_an_answer() {
        let call = |id: &str, arguments| ToolCall { id: id.into(), name: "look".into(), arguments };
        let result = |id: &str, parts| Message::Tool { call: id.into(), parts };
        let written = asked(vec![
            Message::Assistant {
                text: String::new(),
                tool_calls: vec![call("1", json!({"at": 1})), call("2", json!("{\"at"))],
            },
            result("1", vec![Part::Text("seen".into()), image()]),
            result("2", vec![image()]),
            Message::User(vec![Part::Text("and".into())]),
        ]);
        let messages = written["messages"].as_array().unwrap();
        let roles: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["assistant", "tool", "tool", "user", "user"]);
        assert_eq!(messages[0]["content"], Value::Null);
        assert_eq!(messages[0]["tool_calls"][0]["function"]["arguments"], "{\"at\":1}");
        assert_eq!(messages[0]["tool_calls"][1]["function"]["arguments"], "{\"arguments\":\"{\\\"at\"}");
        assert_eq!((&messages[1]["content"], &messages[2]["content"]), (&json!("seen"), &json!("")));
        assert_eq!(messages[3]["content"].as_array().unwrap().len(), 3, "a word and two images");
        assert_eq!(messages[4]["content"], "and");
    }
}
