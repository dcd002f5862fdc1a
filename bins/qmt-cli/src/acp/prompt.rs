//! What an editor's user says, as parts of a prompt. Pure.

use mesh_control::PromptPart;
use serde_json::Value;

use super::rpc::{Fault, INVALID_PARAMS};

/// The parts that the blocks of a prompt are. What stands behind a link is the agent's to read; files that the editor put in
/// are part of the prompt.
pub(super) fn parts(blocks: &[Value]) -> Result<Vec<PromptPart>, Fault> {
    let mut parts: Vec<PromptPart> = Vec::new();
    for block in blocks {
        let part = part(block)?;
        match (parts.last_mut(), part) {
            (Some(PromptPart::Text { text: before }), PromptPart::Text { text }) => {
                before.push_str(&text);
            }
            (_, part) => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(Fault::new(INVALID_PARAMS, "the prompt is empty"));
    }
    Ok(parts)
}

fn part(block: &Value) -> Result<PromptPart, Fault> {
    let field = |value: &Value, key: &str| {
        let missing = || Fault::new(INVALID_PARAMS, format!("a block of the prompt has no {key}"));
        value[key].as_str().map(str::to_owned).ok_or_else(missing)
    };
    let text = |text: String| Ok(PromptPart::Text { text });
    match block["type"].as_str() {
        Some("text") => text(field(block, "text")?),
        Some("image") => {
            Ok(PromptPart::Image { media_type: field(block, "mimeType")?, data: field(block, "data")? })
        }
        Some("resource_link") => text(format!("[{}]({})", field(block, "name")?, field(block, "uri")?)),
        Some("resource") => {
            let resource = &block["resource"];
            let uri = field(resource, "uri")?;
            let said = field(resource, "text").map_err(|_| {
                Fault::new(INVALID_PARAMS, format!("{uri} is no text, which the agent could read"))
            })?;
            text(format!("\n<file uri={uri:?}>\n{said}\n</file>\n"))
        }
        Some(other) => Err(Fault::new(INVALID_PARAMS, format!("a block of the kind {other:?} is not taken"))),
        None => Err(Fault::new(INVALID_PARAMS, "a block of the prompt has no type")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_links_and_files_are_one_text_and_images_stand_alone() {
        let blocks = [
            json!({"type": "text", "text": "Mend "}),
            json!({"type": "resource_link", "name": "a.rs", "uri": "file:///a.rs"}),
            json!({"type": "resource", "resource": {"uri": "file:///b", "text": "fn b() {}"}}),
            json!({"type": "image", "mimeType": "image/png", "data": "AA=="}),
        ];
        let text = "Mend [a.rs](file:///a.rs)\n<file uri=\"file:///b\">\nfn b() {}\n</file>\n".to_owned();
        let image = PromptPart::Image { media_type: "image/png".into(), data: "AA==".into() };
        assert_eq!(parts(&blocks), Ok(vec![PromptPart::Text { text }, image]));
    }

    #[test]
    fn what_an_agent_cannot_hear_is_refused() {
        for block in [
            json!({"type": "audio", "data": "AA==", "mimeType": "audio/wav"}),
            json!({"type": "resource", "resource": {"uri": "file:///b", "blob": "AA=="}}),
            json!({"type": "text"}),
            json!({"text": "x"}),
            json!(7),
        ] {
            assert!(parts(std::slice::from_ref(&block)).is_err(), "{block}");
        }
        assert!(parts(&[]).is_err());
    }
}
