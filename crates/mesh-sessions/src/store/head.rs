//! The end of a session's log, as the writer keeps it in memory.

use sqlx::{Row, SqliteConnection};

use super::chain::Checksum;
use super::error::StorageError;
use super::place::{end, number_of, place};
use crate::ids::SessionId;

/// Where a session's next event goes.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) row: i64,
    pub(super) depth: u32,
    pub(super) last: u64,
    pub(super) checksum: Checksum,
    pub(super) epoch: u64,
    pub(super) is_archived: bool,
}

impl Head {
    /// Reads it; none when the session is not here, or hidden.
    pub(super) async fn load(
        connection: &mut SqliteConnection,
        session: SessionId,
    ) -> Result<Option<Self>, StorageError> {
        let sql = "SELECT row, depth, epoch, state FROM sessions WHERE session = ? AND hidden = 0";
        let row = sqlx::query(sql).bind(session.as_bytes().to_vec()).fetch_optional(&mut *connection).await?;
        let Some(found) = row else { return Ok(None) };
        let (row, depth, epoch): (i64, u32, i64) = (found.try_get(0)?, found.try_get(1)?, found.try_get(2)?);
        let state: String = found.try_get(3)?;
        let sql =
            "SELECT place, checksum FROM events WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT 1";
        let last = sqlx::query(sql).bind(place(row, 0)).bind(end(row)).fetch_optional(connection).await?;
        let damaged = |what| StorageError::damaged(format!("session {session} {what}"));
        let last = last.ok_or_else(|| damaged("has no events"))?;
        let checksum: Vec<u8> = last.try_get(1)?;
        Ok(Some(Self {
            row,
            depth,
            last: number_of(last.try_get(0)?),
            checksum: Checksum::from_bytes(&checksum).ok_or_else(|| damaged("has a broken checksum"))?,
            epoch: epoch.cast_unsigned(),
            is_archived: state == "archived",
        }))
    }
}
