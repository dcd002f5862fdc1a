//! What an event changes outside the log: all that can be made again from the log alone.

use std::collections::BTreeSet;

use super::place::place;
use super::statement::{Statement, Value};
use crate::content::{Part, Text};
use crate::event::{Body, Party, Right, Share, ShareWith};
use crate::ids::BlobId;

/// Has an event indexed some time later.
pub(super) const TO_INDEX: &str = "INSERT INTO to_index (place) VALUES (?)";

/// What an event changes in the other tables, in the transaction that writes it.
pub(super) fn effects(row: i64, number: u64, at_ms: i64, body: &Body) -> Vec<Statement> {
    let mut statements = facts(row, number, at_ms, body);
    if matches!(
        body,
        Body::Prompted { .. }
            | Body::Posted { .. }
            | Body::Steered { .. }
            | Body::Answered { .. }
            | Body::Named { .. }
    ) {
        let place = Value::Number(place(row, number));
        statements.push(Statement::new(TO_INDEX, [place]));
    }
    for blob in blobs(body) {
        let sql = "INSERT INTO blob_uses (hash, session, first) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
        let first = Value::Number(number.cast_signed());
        statements.push(Statement::new(sql, [Value::Bytes(blob.0.to_vec()), Value::Number(row), first]));
    }
    statements
}

/// What an event changes in the session's row and among the prompts seen.
fn facts(row: i64, number: u64, at_ms: i64, body: &Body) -> Vec<Statement> {
    let row = Value::Number(row);
    let one = |sql, values: Vec<Value>| vec![Statement::new(sql, values)];
    match body {
        Body::Created { agent, owner } => one(
            "UPDATE sessions SET agent = ?, owner = ?, state = 'created' WHERE row = ?",
            vec![Value::Text(agent.as_str().to_owned()), party(owner), row],
        ),
        Body::Forked { owner, .. } => {
            let sql = "UPDATE sessions SET owner = ?, state = 'forked', name = NULL, labels = '{}', turn = NULL, waiting = 0, \
                 archived = NULL, epoch = 1, host = NULL, undelivered = 0 WHERE row = ?";
            // Of a fork that is written as one log: what waited waits in the parent.
            let waited = "DELETE FROM prompts WHERE session = ? AND started IS NULL";
            vec![
                Statement::new(sql, [party(owner), row.clone()]),
                Statement::new(waited, [row.clone()]),
                Statement::new(UNSHARE, [row]),
            ]
        }
        Body::Named { name } => {
            let name = name.as_ref().map_or(Value::Null, |name| Value::Text(name.as_str().to_owned()));
            one("UPDATE sessions SET name = ? WHERE row = ?", vec![name, row])
        }
        Body::Labelled { labels } => {
            let labels = serde_json::to_string(labels).unwrap_or_else(|_| "{}".to_owned());
            one("UPDATE sessions SET labels = ? WHERE row = ?", vec![Value::Text(labels), row])
        }
        Body::Shared { shares } => {
            let unshare = Statement::new(UNSHARE, [row.clone()]);
            std::iter::once(unshare).chain(shares.iter().map(|share| shared(row.clone(), share))).collect()
        }
        Body::Prompted { prompt, by, .. } => {
            let seen = vec![
                row.clone(),
                Value::Text(prompt.as_str().to_owned()),
                Value::Text(by.node.to_string()),
                Value::Number(number.cast_signed()),
            ];
            let waits = "UPDATE sessions SET waiting = waiting + 1, \
                 state = CASE state WHEN 'suspended' THEN state ELSE 'active' END WHERE row = ?";
            vec![
                Statement::new(
                    "INSERT INTO prompts (session, prompt, node, number) VALUES (?, ?, ?, ?)",
                    seen,
                ),
                Statement::new(waits, [row]),
            ]
        }
        Body::Posted { post, by, .. } => {
            let seen = "INSERT INTO prompts (session, prompt, node, number, started) VALUES (?, ?, ?, ?, ?)";
            let number = Value::Number(number.cast_signed());
            let (post, node) = (Value::Text(post.as_str().to_owned()), Value::Text(by.node.to_string()));
            let goes_on = "UPDATE sessions SET state = CASE state WHEN 'suspended' THEN state ELSE 'active' END WHERE row = ?";
            vec![
                // Nothing has to follow from it.
                Statement::new(seen, [row.clone(), post, node, number.clone(), number]),
                Statement::new(goes_on, [row]),
            ]
        }
        Body::TurnStarted { turn, prompt } => {
            let sql =
                "UPDATE sessions SET turn = ?, waiting = max(waiting - 1, 0), state = 'active' WHERE row = ?";
            // Of two nodes' prompts of one id the first is meant, as everywhere.
            let started = "UPDATE prompts SET started = ? WHERE session = ? AND prompt = ? AND number = \
                 (SELECT min(number) FROM prompts WHERE session = ? AND prompt = ? AND started IS NULL)";
            let (number, prompt) =
                (Value::Number(number.cast_signed()), Value::Text(prompt.as_str().to_owned()));
            vec![
                Statement::new(sql, [Value::Number(i64::from(turn.0)), row.clone()]),
                Statement::new(started, [number, row.clone(), prompt.clone(), row, prompt]),
            ]
        }
        Body::TurnEnded { .. } => one("UPDATE sessions SET turn = NULL WHERE row = ?", vec![row]),
        Body::Suspended { .. } => one("UPDATE sessions SET state = 'suspended' WHERE row = ?", vec![row]),
        Body::Resumed => one("UPDATE sessions SET state = 'active' WHERE row = ?", vec![row]),
        Body::Archived { .. } => one(
            "UPDATE sessions SET state = 'archived', archived = ?, turn = NULL, waiting = 0 WHERE row = ?",
            vec![Value::Number(at_ms), row],
        ),
        Body::HandedOver { epoch, to } => one(
            "UPDATE sessions SET epoch = ?, host = ?, undelivered = 1 WHERE row = ?",
            vec![Value::Number(epoch.cast_signed()), Value::Bytes(to.as_bytes().to_vec()), row],
        ),
        Body::TakenOver { from, .. } => one(
            "UPDATE sessions SET undelivered = 0, \
             owner = CASE WHEN json_extract(owner, '$.scope') IS NULL THEN ? ELSE owner END WHERE row = ?",
            vec![party(from), row],
        ),
        _ => Vec::new(),
    }
}

const UNSHARE: &str = "DELETE FROM shares WHERE session = ?";

fn shared(row: Value, share: &Share) -> Statement {
    let (node, scope, role) = match &share.with {
        ShareWith::Node(node) => (Value::Text(node.to_string()), Value::Null, Value::Null),
        ShareWith::Role(scope, role) => {
            (Value::Null, Value::Text(scope.to_string()), Value::Text(role.to_string()))
        }
    };
    let level = Value::Number(level(share.right));
    let sql = "INSERT INTO shares (session, node, scope, role, level) VALUES (?, ?, ?, ?, ?)";
    Statement::new(sql, [row, node, scope, role, level])
}

/// A right as the table keeps it.
fn level(right: Right) -> i64 {
    match right {
        Right::Watch => 1,
        Right::Prompt => 2,
        Right::Own => 3,
    }
}

/// The right out of the table.
pub(super) fn right(level: i64) -> Option<Right> {
    [Right::Watch, Right::Prompt, Right::Own].into_iter().find(|right| self::level(*right) == level)
}

/// A party as the table keeps it.
pub(super) fn party(party: &Party) -> Value {
    Value::Text(serde_json::to_string(party).unwrap_or_else(|_| "{}".to_owned()))
}

/// The blobs that an event names, each once.
pub(super) fn blobs(body: &Body) -> BTreeSet<BlobId> {
    let text = |text: &Text| match text {
        Text::Inline(_) => None,
        Text::Blob { blob, .. } => Some(*blob),
    };
    let part = |part: &Part| match part {
        Part::Text { text: said } => text(said),
        Part::Image { blob, .. } => Some(*blob),
    };
    match body {
        Body::Prompted { parts, .. } | Body::Posted { parts, .. } | Body::Steered { parts, .. } => {
            parts.iter().filter_map(part).collect()
        }
        Body::ToolEnded { result, .. } => result.parts.iter().filter_map(part).collect(),
        Body::Answered { text: said, reasoning, .. } => {
            text(said).into_iter().chain(reasoning.as_ref().and_then(text)).collect()
        }
        Body::Compacted { summary, .. } => text(summary).into_iter().collect(),
        _ => BTreeSet::new(),
    }
}
