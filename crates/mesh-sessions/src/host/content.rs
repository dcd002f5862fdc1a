//! Long contents: into blobs before an event names them, and out of them before a model is told.

use bytes::Bytes;

use super::now_ms;
use crate::content::{INLINE_BYTES_MAX, Part, Text};
use crate::event::Body;
use crate::ids::BlobId;
use crate::model::Shown;
use crate::store::{PutError, StorageError, Store};

/// Stores what is too long to stand in an event.
pub(super) async fn parts(store: &Store, shown: Vec<Shown>) -> Result<Vec<Part>, PutError> {
    let mut parts = Vec::with_capacity(shown.len());
    // All of them together stand in one event.
    let mut room = INLINE_BYTES_MAX;
    for shown in shown {
        parts.push(match shown {
            Shown::Text(text) if text.len() <= room => {
                room -= text.len();
                Part::Text { text: Text::Inline(text) }
            }
            Shown::Text(text) => Part::Text { text: stored(store, text).await? },
            Shown::Image { media_type, bytes } => {
                let length = bytes.len() as u64;
                Part::Image { media_type, blob: store.put_blob(bytes, now_ms()).await?, bytes: length }
            }
        });
    }
    Ok(parts)
}

/// The body with every text that is too long for an event in a blob.
pub(super) async fn spill(store: &Store, body: Body) -> Result<Body, PutError> {
    Ok(match body {
        Body::Answered { turn, text, reasoning, tool_calls, finish, usage } => {
            let reasoning = match reasoning {
                Some(text) => Some(spill_text(store, text).await?),
                None => None,
            };
            let text = spill_text(store, text).await?;
            Body::Answered { turn, text, reasoning, tool_calls, finish, usage }
        }
        Body::Compacted { through, summary, usage } => {
            Body::Compacted { through, summary: spill_text(store, summary).await?, usage }
        }
        body => body,
    })
}

/// What the parts stand for. A content that is no longer in the store is said to be gone.
pub(super) async fn shown(store: &Store, parts: &[Part]) -> Result<Vec<Shown>, StorageError> {
    let mut shown = Vec::with_capacity(parts.len());
    for part in parts {
        shown.push(match part {
            Part::Text { text } => Shown::Text(said(store, text).await?),
            Part::Image { media_type, blob, .. } => match store.blob(*blob).await? {
                Some(bytes) => Shown::Image { media_type: media_type.clone(), bytes },
                None => Shown::Text(GONE.to_owned()),
            },
        });
    }
    Ok(shown)
}

/// The text itself.
pub(super) async fn said(store: &Store, text: &Text) -> Result<String, StorageError> {
    match text {
        Text::Inline(text) => Ok(text.clone()),
        Text::Blob { blob, .. } => {
            let bytes = store.blob(*blob).await?;
            Ok(bytes.map_or_else(|| GONE.to_owned(), |bytes| String::from_utf8_lossy(&bytes).into_owned()))
        }
    }
}

const GONE: &str = "[this content is no longer stored]";

async fn spill_text(store: &Store, text: Text) -> Result<Text, PutError> {
    match text {
        Text::Inline(text) if text.len() > INLINE_BYTES_MAX => stored(store, text).await,
        text => Ok(text),
    }
}

async fn stored(store: &Store, text: String) -> Result<Text, PutError> {
    let bytes = text.len() as u64;
    let blob: BlobId = store.put_blob(Bytes::from(text), now_ms()).await?;
    Ok(Text::Blob { blob, bytes })
}
