//! Deleting sessions, and with them what only they needed.
//!
//! A deleted session is gone for everybody at once. Its rows go in small steps between other writes, or when its last fork
//! does; what a crash interrupts, the next deletion ends.

use sqlx::{Row, SqliteConnection};

use super::Store;
use super::error::StorageError;
use super::place::{end, place};
use super::statement::{self, Statement, Value};
use super::writer::Writer;
use crate::ids::{BlobId, SessionId};

/// Events that one step deletes: some ten milliseconds, for which appends wait.
const STEP: i64 = 2_000;

/// Contents that one step deletes.
const BLOBS_STEP: i64 = 8;

/// Pages that one step gives back to the disk.
const PAGES_STEP: i64 = 2_000;

/// How long a content stays that no event names: whoever has put it is about to name it.
const UNUSED_MS: u64 = 60 * 60 * 1000;

/// What to keep.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// Sessions that were archived before this time, in milliseconds since 1970, are deleted; none keeps all.
    pub archived_before_ms: Option<u64>,
    /// While the file holds more bytes, the session that was archived first is deleted; none for no bound. Sessions that
    /// are not archived stay however large they are.
    pub bytes_max: Option<u64>,
}

/// What was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    /// The sessions.
    pub deleted: Vec<SessionId>,
    /// Bytes that the file holds now.
    pub bytes: u64,
}

impl Store {
    /// Deletes a session, whatever state it is in; false when it was not there. Its forks keep what they have of it.
    ///
    /// # Errors
    /// [`StorageError`]; then it may be deleted and not yet cleared away, which the next deletion does.
    pub async fn delete(&self, session: SessionId) -> Result<bool, StorageError> {
        let deleted = self.alone(move |writer| Box::pin(hide(writer, session))).await?;
        self.purge().await?;
        Ok(deleted)
    }

    /// Deletes what is not to be kept, and contents that no event has named for an hour.
    ///
    /// # Errors
    /// [`StorageError`]; then part of it is done.
    pub async fn retain(&self, retention: Retention, now_ms: u64) -> Result<Retained, StorageError> {
        let mut retained = Retained::default();
        let before = retention.archived_before_ms.map(|before| i64::try_from(before).unwrap_or(i64::MAX));
        while let Some(before) = before
            && let Some(session) = self.first_archived(before).await?
        {
            self.delete(session).await?;
            retained.deleted.push(session);
        }
        let unused = now_ms.saturating_sub(UNUSED_MS).cast_signed();
        while self.alone(move |writer| Box::pin(sweep(&mut writer.connection, unused))).await? {}
        self.purge().await?;
        while let Some(bytes_max) = retention.bytes_max
            && self.bytes().await? > bytes_max
            && let Some(session) = self.first_archived(i64::MAX).await?
        {
            self.delete(session).await?;
            retained.deleted.push(session);
            // Its contents are not those that somebody is about to name.
            while self.alone(move |writer| Box::pin(sweep(&mut writer.connection, unused))).await? {}
        }
        retained.bytes = self.bytes().await?;
        Ok(retained)
    }

    /// How many bytes the file holds; space that it has and does not use counts not.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn bytes(&self) -> Result<u64, StorageError> {
        let sql = "SELECT (p.page_count - f.freelist_count) * s.page_size \
             FROM pragma_page_count p, pragma_freelist_count f, pragma_page_size s";
        let bytes: i64 = sqlx::query(sql).fetch_one(&self.inner.read).await?.try_get(0)?;
        Ok(bytes.cast_unsigned())
    }

    async fn first_archived(&self, before: i64) -> Result<Option<SessionId>, StorageError> {
        let sql =
            "SELECT session FROM sessions WHERE hidden = 0 AND archived < ? ORDER BY archived, row LIMIT 1";
        let row = sqlx::query(sql).bind(before).fetch_optional(&self.inner.read).await?;
        row.map(|row| super::read::session_id(row.try_get(0)?)).transpose()
    }

    /// Clears away what is deleted, step by step.
    pub(super) async fn purge(&self) -> Result<(), StorageError> {
        while self.alone(|writer| Box::pin(purge_step(writer))).await? {}
        while self.alone(|writer| Box::pin(shrink(&mut writer.connection))).await? {}
        Ok(())
    }
}

async fn hide(writer: &mut Writer, session: SessionId) -> Result<bool, StorageError> {
    let sql = "UPDATE sessions SET hidden = 1, name = NULL WHERE session = ? AND hidden = 0";
    let update = sqlx::query(sql).bind(session.as_bytes().to_vec());
    let hidden = update.execute(&mut writer.connection).await?.rows_affected() > 0;
    writer.heads.remove(&session);
    writer.topics.delete(session);
    Ok(hidden)
}

/// Deletes some of a session that is hidden and that no fork needs; false when there is none.
async fn purge_step(writer: &mut Writer) -> Result<bool, StorageError> {
    let sql = "SELECT row FROM sessions s WHERE hidden > 0 \
         AND NOT EXISTS (SELECT 1 FROM sessions f WHERE f.parent = s.row) ORDER BY row";
    let rows = sqlx::query(sql).fetch_all(&mut writer.connection).await?;
    let rows = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    let Some(row) = rows.into_iter().find(|row| !writer.imports.contains(row)) else { return Ok(false) };
    let (first, last) = (Value::Number(place(row, 0)), Value::Number(end(row)));
    let sql = "SELECT place FROM events WHERE place BETWEEN ? AND ? ORDER BY place LIMIT 1 OFFSET ?";
    let beyond = sqlx::query(sql).bind(place(row, 0)).bind(end(row)).bind(STEP);
    let beyond = beyond.fetch_optional(&mut writer.connection).await?;
    let range = match &beyond {
        Some(beyond) => [first, Value::Number(beyond.try_get::<i64, _>(0)? - 1)],
        None => [first, last],
    };
    let row = Value::Number(row);
    let mut statements = vec![
        Statement::new("DELETE FROM events WHERE place BETWEEN ? AND ?", range.clone()),
        Statement::new("DELETE FROM to_index WHERE place BETWEEN ? AND ?", range.clone()),
        Statement::new("DELETE FROM texts WHERE rowid BETWEEN ? AND ?", range.clone()),
        Statement::new("DELETE FROM snapshots WHERE place BETWEEN ? AND ?", range),
    ];
    if beyond.is_none() {
        writer.ids = None;
        for sql in [
            "DELETE FROM prompts WHERE session = ?",
            "DELETE FROM shares WHERE session = ?",
            "DELETE FROM blob_uses WHERE session = ?",
            "DELETE FROM sessions WHERE row = ?",
        ] {
            statements.push(Statement::new(sql, [row.clone()]));
        }
    }
    statement::commit(&mut writer.connection, Vec::new(), statements).await?;
    Ok(true)
}

/// Deletes some contents that no event names and that were last given before a time; false when there is none.
async fn sweep(connection: &mut SqliteConnection, before: i64) -> Result<bool, StorageError> {
    let sql = "SELECT hash FROM blobs b WHERE touched < ? \
         AND NOT EXISTS (SELECT 1 FROM blob_uses u WHERE u.hash = b.hash) LIMIT ?";
    let rows = sqlx::query(sql).bind(before).bind(BLOBS_STEP).fetch_all(&mut *connection).await?;
    let mut statements = Vec::new();
    for row in &rows {
        statements.extend(delete_blob(row.try_get(0)?));
    }
    if !statements.is_empty() {
        statement::commit(connection, Vec::new(), statements).await?;
    }
    Ok(!rows.is_empty())
}

/// What deletes a content.
pub(super) fn delete_blob(hash: Vec<u8>) -> [Statement; 2] {
    let hash = Value::Bytes(hash);
    let bytes = "DELETE FROM blob_bytes WHERE row = (SELECT row FROM blobs WHERE hash = ?)";
    [Statement::new(bytes, [hash.clone()]), Statement::new("DELETE FROM blobs WHERE hash = ?", [hash])]
}

/// Gives some unused pages back to the disk; false when there are none.
async fn shrink(connection: &mut SqliteConnection) -> Result<bool, StorageError> {
    let free = |row: sqlx::sqlite::SqliteRow| row.try_get::<i64, _>(0);
    let before = free(sqlx::query("PRAGMA freelist_count").fetch_one(&mut *connection).await?)?;
    if before == 0 {
        return Ok(false);
    }
    let sql = sqlx::AssertSqlSafe(format!("PRAGMA incremental_vacuum({PAGES_STEP})"));
    sqlx::query(sql).fetch_all(&mut *connection).await?;
    let after = free(sqlx::query("PRAGMA freelist_count").fetch_one(connection).await?)?;
    Ok(after > 0 && after < before)
}

/// The hash in a column.
pub(super) fn blob_id(hash: Vec<u8>) -> Result<BlobId, StorageError> {
    hash.try_into().map(BlobId).map_err(|_| StorageError::damaged("a blob's hash"))
}
