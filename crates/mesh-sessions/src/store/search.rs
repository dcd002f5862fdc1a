//! Finding sessions by what was said in them.
//!
//! The index is filled after the log, a few texts at a time while nothing is written, and before each search: a word is
//! found as soon as its event is acknowledged, and no event waits for the index.

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::Store;
use super::error::StorageError;
use super::list::push_level;
use super::place::number_of;
use super::read::session_id;
use super::statement::{self, Statement, Value};
use super::writer::Writer;
use crate::content::{Part, Text};
use crate::event::{Body, Party};
use crate::ids::{BlobId, EventNumber, SessionId, SessionName};

/// Texts that are indexed at a time, in a few milliseconds.
const STEP: usize = 64;

/// Bytes of a text that are indexed: of a long file that somebody pasted the first quarter of a megabyte.
const INDEXED_BYTES_MAX: usize = 256 * 1024;

/// The most hits of a search.
pub const HITS_MAX: u32 = 200;

/// Words of a search that count.
const WORDS_MAX: usize = 32;

/// Letters around the first word that a hit shows.
const EXCERPT_CHARS: usize = 80;

/// An event in which somebody said it.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The session that wrote the event; its forks have it too.
    pub session: SessionId,
    /// What people call it.
    pub name: Option<SessionName>,
    /// The event.
    pub number: EventNumber,
    /// When it was written.
    pub at_ms: u64,
    /// What stands around the first of the words; empty when that stands in a blob.
    pub excerpt: String,
}

impl Store {
    /// The prompts, answers and names in which all these words stand, those first that were written by the session which
    /// came into the store last: of sessions that the party may watch, and of all when none is given. `limit` is at most
    /// [`HITS_MAX`].
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn search(
        &self,
        words: &str,
        seen_by: Option<&Party>,
        limit: u32,
    ) -> Result<Vec<Hit>, StorageError> {
        let words: Vec<&str> =
            words.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).collect();
        let words = &words[..words.len().min(WORDS_MAX)];
        if words.is_empty() {
            return Ok(Vec::new());
        }
        while self.alone(|writer| Box::pin(index(writer))).await? == STEP {}
        let quoted: Vec<String> =
            words.iter().map(|word| format!("\"{}\"", word.replace('"', "\"\""))).collect();
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT e.place, e.at, e.body, s.session, s.name FROM texts t JOIN events e ON e.place = t.rowid \
             JOIN sessions s ON s.row = e.place >> 35 AND s.hidden = 0 WHERE texts MATCH ",
        );
        query.push_bind(quoted.join(" "));
        if let Some(party) = seen_by {
            query.push(" AND ");
            push_level(&mut query, party);
            query.push(" > 0");
        }
        query.push(" ORDER BY t.rowid DESC LIMIT ").push_bind(limit.min(HITS_MAX));
        let rows = query.build().fetch_all(&self.inner.read).await?;
        let hit = |row: &sqlx::sqlite::SqliteRow| {
            let body: Body = serde_json::from_str(row.try_get(2)?).unwrap_or(Body::Resumed);
            let at: i64 = row.try_get(1)?;
            Ok(Hit {
                session: session_id(row.try_get(3)?)?,
                name: row.try_get::<Option<String>, _>(4)?.and_then(|name| name.try_into().ok()),
                number: EventNumber(number_of(row.try_get(0)?)),
                at_ms: at.cast_unsigned(),
                excerpt: excerpt(&inline(&body), words[0]),
            })
        };
        rows.iter().map(hit).collect()
    }
}

/// Indexes the next texts and says how many.
pub(super) async fn index(writer: &mut Writer) -> Result<usize, StorageError> {
    let connection = &mut writer.connection;
    let sql = "SELECT t.place, e.body FROM to_index t LEFT JOIN events e ON e.place = t.place ORDER BY t.place LIMIT ?";
    let limit = i64::try_from(STEP).unwrap_or(1);
    let rows = sqlx::query(sql).bind(limit).fetch_all(&mut *connection).await?;
    let mut statements = Vec::with_capacity(rows.len() * 2);
    for row in &rows {
        let (place, body): (i64, Option<&str>) = (row.try_get(0)?, row.try_get(1)?);
        // An event that cannot be read is damage, and its readers say so.
        if let Some(body) = body.and_then(|body| serde_json::from_str::<Body>(body).ok()) {
            let said = said(connection, &body).await?;
            let values = [Value::Number(place), Value::Text(said)];
            statements.push(Statement::new("INSERT INTO texts (rowid, said) VALUES (?, ?)", values));
        }
        statements.push(Statement::new("DELETE FROM to_index WHERE place = ?", [Value::Number(place)]));
    }
    if !statements.is_empty() {
        statement::commit(connection, Vec::new(), statements).await?;
    }
    writer.unindexed = writer.unindexed.saturating_sub(rows.len());
    Ok(rows.len())
}

/// What an event says, blobs included.
async fn said(connection: &mut SqliteConnection, body: &Body) -> Result<String, StorageError> {
    let mut said = inline(body);
    for text in texts(body) {
        if let Text::Blob { blob, .. } = text {
            said.push('\n');
            said.push_str(&stored(connection, *blob).await?);
        }
    }
    said.truncate(said.floor_char_boundary(INDEXED_BYTES_MAX));
    Ok(said)
}

/// The beginning of a text in a blob; nothing when it is no text or not here.
async fn stored(connection: &mut SqliteConnection, blob: BlobId) -> Result<String, StorageError> {
    let sql = "SELECT substr(b.bytes, 1, ?) FROM blobs a JOIN blob_bytes b ON b.row = a.row WHERE a.hash = ?";
    let limit = i64::try_from(INDEXED_BYTES_MAX).unwrap_or(0);
    let row = sqlx::query(sql).bind(limit).bind(blob.0.to_vec()).fetch_optional(connection).await?;
    let Some(row) = row else { return Ok(String::new()) };
    Ok(String::from_utf8_lossy(row.try_get(0)?).into_owned())
}

fn texts(body: &Body) -> Vec<&Text> {
    match body {
        Body::Prompted { parts, .. } | Body::Posted { parts, .. } | Body::Steered { parts, .. } => {
            let texts = parts.iter().filter_map(|part| match part {
                Part::Text { text } => Some(text),
                Part::Image { .. } => None,
            });
            texts.collect()
        }
        Body::Answered { text, .. } => vec![text],
        _ => Vec::new(),
    }
}

/// What stands in the event itself.
fn inline(body: &Body) -> String {
    if let Body::Named { name: Some(name) } = body {
        return name.as_str().to_owned();
    }
    let inline = |text: &&Text| match text {
        Text::Inline(text) => Some(text.clone()),
        Text::Blob { .. } => None,
    };
    texts(body).iter().filter_map(inline).collect::<Vec<_>>().join("\n")
}

/// What stands around a word.
fn excerpt(text: &str, word: &str) -> String {
    let found = text.to_lowercase().find(&word.to_lowercase()).unwrap_or(0).min(text.len());
    let found = text.floor_char_boundary(found);
    let before = text[..found].char_indices().rev().nth(EXCERPT_CHARS / 2).map_or(0, |(at, _)| at);
    let after = text[found..]
        .char_indices()
        .nth(EXCERPT_CHARS / 2 + word.len())
        .map_or(text.len(), |(at, _)| found + at);
    let mut shown = text[before..after].replace(char::is_control, " ");
    if before > 0 {
        shown.insert(0, '…');
    }
    if after < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn an_excerpt_shows_the_word_and_never_cuts_a_letter() {
        assert_eq!(excerpt("say Hello", "hello"), "say Hello");
        let long = format!("{}needle{}", "ä".repeat(200), "ö".repeat(200));
        let shown = excerpt(&long, "NEEDLE");
        assert!(shown.contains("needle") && shown.starts_with('…') && shown.ends_with('…'), "{shown}");
        assert!(shown.chars().count() < 120, "{shown}");
        // Lower case may be longer than upper case.
        assert!(excerpt("İİİİİİİİ x", "x").contains('x'));
        assert_eq!(excerpt("", "x"), "");
    }
}
