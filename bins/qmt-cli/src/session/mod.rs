//! Agents' sessions: what they are asked, and what is seen of them.

pub(crate) mod args;
mod attach;
pub(crate) mod change;
pub(crate) mod list;
pub(crate) mod seen;
mod talk;
pub(crate) mod teller;
mod transfer;
pub(crate) mod turn;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_control::{Client, CreateSession, PromptPart, SessionView};

pub(crate) use list::agents;
pub(crate) use talk::chat;

use self::args::{CreateArgs, DelegateArgs, PromptArgs, SessionCommand};
use self::turn::{Saying, address, at_first, new_id, verdict};
use crate::chat;
use crate::failure::Failure;
use crate::screen::Screen;

/// Longest image, bytes; a node stores none longer.
const IMAGE_BYTES_MAX: u64 = 32 * 1024 * 1024;

pub(crate) async fn session(
    client: &Client,
    screen: &Screen,
    command: SessionCommand,
) -> Result<(), Failure> {
    use SessionCommand as C;
    match command {
        C::List(args) => list::list(client, screen, args).await,
        C::Search { words, node, limit } => list::search(client, screen, words.join(" "), node, limit).await,
        C::Show { session } => list::show(client, screen, &session).await,
        C::Create(args) => create(client, screen, args).await,
        C::Attach { session, after, past } => attach::attach(client, screen, &session, after, past).await,
        C::Prompt(args) => prompt(client, screen, args).await,
        C::Steer { session, text } => {
            let parts = vec![PromptPart::Text { text: chat::words(&text)? }];
            change::steer(client, screen, session, parts).await
        }
        C::Cancel { session, turn } => change::cancel(client, screen, session, turn).await,
        C::Allow(args) => change::decide(client, screen, args, true).await,
        C::Deny(args) => change::decide(client, screen, args, false).await,
        C::Name { session, name } => change::name(client, screen, session, name).await,
        C::Label { session, labels } => change::label(client, screen, session, &labels).await,
        C::Share(args) => change::share(client, screen, args).await,
        C::Fork { session, at, name } => change::fork(client, screen, session, at, name).await,
        C::Suspend { session, why } => change::suspend(client, screen, session, &why).await,
        C::Resume { session } => change::resume(client, screen, &session).await,
        C::Archive { session } => change::archive(client, screen, &session).await,
        C::Move { session, node } => change::hand_over(client, screen, session, node).await,
        C::Export { session, output } => transfer::export(client, screen, &session, output.as_deref()).await,
        C::Import { file } => transfer::import(client, screen, &file).await,
    }
}

/// Gives an agent a task and shows how it is done. The exit code says how it ended.
pub(crate) async fn delegate(client: &Client, screen: &Screen, args: DelegateArgs) -> Result<(), Failure> {
    let text = chat::words(&args.task)?;
    let new = CreateSession {
        id: new_id(),
        agent: args.agent,
        capabilities: args.capabilities,
        name: args.name,
        labels: BTreeMap::new(),
    };
    let session = at_first(|text| screen.note(text), || client.create_session(&new)).await?;
    screen.note(&begun(&session));
    let saying = Saying { id: new_id(), parts: vec![PromptPart::Text { text }], tools: args.tools };
    let seen = turn::prompt(client, screen, &session, saying).await?;
    if args.archive {
        client.archive(&address(&seen.session, &seen.node)).await?;
    }
    screen.show(&seen, |_| String::new())?;
    verdict(&seen)
}

async fn create(client: &Client, screen: &Screen, args: CreateArgs) -> Result<(), Failure> {
    let new = CreateSession {
        id: args.id.map_or_else(new_id, |id| id.to_string()),
        agent: args.agent,
        capabilities: args.capabilities,
        name: args.name,
        labels: labels(&args.labels)?,
    };
    let session = at_first(|text| screen.note(text), || client.create_session(&new)).await?;
    screen.note(&begun(&session));
    screen.show(&session, |session| session.id.clone())
}

/// `session 0197… with coder at gpu`.
pub(crate) fn begun(session: &SessionView) -> String {
    let node = if session.node_name.is_empty() { &session.node } else { &session.node_name };
    crate::screen::harmless(&format!("session {} with {} at {node}", session.id, session.agent))
}

async fn prompt(client: &Client, screen: &Screen, args: PromptArgs) -> Result<(), Failure> {
    let mut parts = Vec::new();
    if !args.prompt.is_empty() || args.images.is_empty() {
        parts.push(PromptPart::Text { text: chat::words(&args.prompt)? });
    }
    for file in &args.images {
        parts.push(image(file)?);
    }
    let session = at_first(|text| screen.note(text), || client.session(&args.session)).await?;
    let saying = Saying { id: args.id.unwrap_or_else(new_id), parts, tools: args.tools };
    if args.no_wait {
        return change::prompt(client, screen, &session, saying).await;
    }
    let seen = turn::prompt(client, screen, &session, saying).await?;
    screen.show(&seen, |_| String::new())?;
    verdict(&seen)
}

fn image(file: &Path) -> Result<PromptPart, Failure> {
    let fault = |what: String| Failure::usage(format!("the image {} {what}", file.display()));
    let open = std::fs::File::open(file).map_err(|error| fault(format!("cannot be read: {error}")))?;
    let mut bytes = Vec::new();
    let read = open.take(IMAGE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| fault(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > IMAGE_BYTES_MAX {
        return Err(fault(format!("is longer than {IMAGE_BYTES_MAX} bytes")));
    }
    let media_type = media_type(&bytes)
        .ok_or_else(|| fault("is none that is known: PNG, JPEG, GIF or WebP".to_owned()))?;
    Ok(PromptPart::Image { media_type: media_type.to_owned(), data: STANDARD.encode(bytes) })
}

/// What an image is by its first bytes.
fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

fn labels(words: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let label = |word: &String| match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(format!("{word:?} is no label: KEY=VALUE is expected"))),
    };
    words.iter().map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_bytes() {
        assert_eq!(media_type(b"\x89PNG\r\n"), Some("image/png"));
        assert_eq!(media_type(b"RIFF\0\0\0\0WEBPVP8 "), Some("image/webp"));
        assert_eq!(media_type(b"RIFF\0\0\0\0WAVE"), None);
        assert_eq!(media_type(b""), None);
    }

    #[test]
    fn a_label_has_a_key_and_a_value() {
        let words = ["team=red".to_owned(), "empty=".to_owned(), "sum=a=b".to_owned()];
        let read = labels(&words).expect("labels");
        assert_eq!(
            read.into_iter().map(|(k, v)| format!("{k}:{v}")).collect::<Vec<_>>(),
            ["empty:", "sum:a=b", "team:red"]
        );
        assert!(labels(&["=x".to_owned()]).is_err() && labels(&["x".to_owned()]).is_err());
    }
}
