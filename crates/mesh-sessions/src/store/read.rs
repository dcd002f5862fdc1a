//! Reading events, through the parents of a fork, and never anything but what was written.

use futures_util::TryStreamExt;
use mesh_identity::NodeId;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::chain::Checksum;
use super::error::{ReadError, StorageError};
use super::place::{EVENTS_MAX, number_of, place};
use super::{Job, Store};
use crate::event::{Body, Event};
use crate::ids::{BlobId, EventNumber, PromptId, SessionId};

/// How much a read returns at most.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimit {
    /// Events.
    pub events: u32,
    /// Bytes of their JSON; an event that is longer is returned alone.
    pub bytes: usize,
}

impl Default for ReadLimit {
    fn default() -> Self {
        Self { events: 1000, bytes: 1024 * 1024 }
    }
}

/// A piece of a session's history that one row of the table of sessions owns: the numbers `(cut, upper]`.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) row: i64,
    session: SessionId,
    pub(super) cut: u64,
    pub(super) upper: u64,
}

/// A session's row and those of its parents, as far back as events after a number lie, youngest first. Parameters: the
/// greatest number that counts, the session's id or row, and that number.
macro_rules! line {
    ($column:literal) => {
        concat!(
            "WITH RECURSIVE line (row, session, parent, cut, upper) AS (SELECT row, session, parent, cut, ? FROM sessions WHERE ",
            $column,
            " UNION ALL SELECT s.row, s.session, s.parent, s.cut, min(line.upper, line.cut) FROM line \
             JOIN sessions s ON s.row = line.parent WHERE line.cut > ?) "
        )
    };
}

impl Store {
    /// The events after `after`, in order and without gaps, as many as the limit allows; none when there are no more.
    ///
    /// # Errors
    /// [`ReadError`]; a number that does not follow, or a content that is not what was written, is damage.
    pub async fn read(
        &self,
        session: SessionId,
        after: EventNumber,
        limit: ReadLimit,
    ) -> Result<Vec<Event>, ReadError> {
        let read = async {
            let mut connection = self.inner.read.acquire().await?;
            let mut page = Page { events: Vec::new(), left: limit.events.max(1), bytes: limit.bytes };
            for segment in segments(&mut connection, session, after.0).await?.into_iter().rev() {
                page.fill(&mut connection, &segment, after.0.max(segment.cut)).await?;
                let is_whole = page.events.last().map_or(after.0, |event| event.number.0) >= segment.upper;
                if !is_whole {
                    break;
                }
            }
            Ok(page.events)
        };
        let read = read.await;
        if let Err(ReadError::Storage(error)) = &read {
            self.note(error);
        }
        read
    }

    /// The number of the last event of a session.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn last(&self, session: SessionId) -> Result<EventNumber, ReadError> {
        let sql = "SELECT (SELECT place FROM events WHERE place BETWEEN (s.row << 35) AND (s.row << 35) + 34359738367 \
             ORDER BY place DESC LIMIT 1) FROM sessions s WHERE session = ? AND hidden = 0";
        let row = sqlx::query(sql).bind(session.as_bytes().to_vec()).fetch_optional(&self.inner.read).await?;
        let row = row.ok_or(ReadError::NoSuchSession(session))?;
        Ok(EventNumber(number_of(row.try_get(0)?)))
    }

    /// Where the prompt of this id of this node stands in the session, or in what it is a fork of, when its turn had begun
    /// there before the cut.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn prompt_seen(
        &self,
        session: SessionId,
        prompt: &PromptId,
        node: NodeId,
    ) -> Result<Option<EventNumber>, ReadError> {
        let mut connection = self.inner.read.acquire().await?;
        let segments = segments(&mut connection, session, 0).await?;
        let row = segments.first().map_or(0, |segment| segment.row);
        Ok(prompt_at(&mut connection, (row, EVENTS_MAX), (prompt, node)).await?)
    }

    /// Whether an event of the session names the content, or one of what it is a fork of up to the cut.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn names_blob(&self, session: SessionId, blob: BlobId) -> Result<bool, StorageError> {
        let sql = concat!(
            line!("session = ? AND hidden = 0"),
            "SELECT 1 FROM line JOIN blob_uses u ON u.session = line.row AND u.hash = ? WHERE u.first <= line.upper LIMIT 1"
        );
        let found = sqlx::query(sql)
            .bind(EVENTS_MAX.cast_signed())
            .bind(session.as_bytes().to_vec())
            .bind(0_i64)
            .bind(blob.0.to_vec())
            .fetch_optional(&self.inner.read)
            .await?;
        Ok(found.is_some())
    }

    /// Has damage that a reader found remembered for the next opening.
    pub(super) fn note(&self, error: &StorageError) {
        if matches!(error, StorageError::Damaged { .. }) {
            tracing::error!(%error, "the session store is damaged");
            let error = error.clone();
            let note: super::writer::Task =
                Box::new(move |writer| Box::pin(async move { writer.note(&error) }));
            // A full queue holds writes, which find the damage too or the next read does.
            let _ = self.inner.jobs.try_send(Job::Alone(note));
        }
    }
}

/// A session and its parents, as far back as events after `after` lie; the session itself is first.
pub(super) async fn segments(
    connection: &mut SqliteConnection,
    session: SessionId,
    after: u64,
) -> Result<Vec<Segment>, ReadError> {
    let sql = concat!(line!("session = ? AND hidden = 0"), "SELECT row, session, cut, upper FROM line");
    let rows = sqlx::query(sql)
        .bind(EVENTS_MAX.cast_signed())
        .bind(session.as_bytes().to_vec())
        .bind(after.cast_signed())
        .fetch_all(connection)
        .await?;
    if rows.is_empty() {
        return Err(ReadError::NoSuchSession(session));
    }
    let segment = |row: &SqliteRow| {
        let (cut, upper): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
        let session = session_id(row.try_get(1)?)?;
        let (cut, upper) = (cut.cast_unsigned(), upper.cast_unsigned());
        Ok(Segment { row: row.try_get(0)?, session, cut, upper })
    };
    rows.iter().map(segment).collect()
}

/// Where a prompt stands in the row or its parents, up to a number.
pub(super) async fn prompt_at(
    connection: &mut SqliteConnection,
    (row, upper): (i64, u64),
    (prompt, node): (&PromptId, NodeId),
) -> Result<Option<EventNumber>, sqlx::Error> {
    // One that waited at the cut was never answered in the fork. The session itself has no cut above it.
    let sql = concat!(
        line!("row = ?"),
        "SELECT p.number FROM line JOIN prompts p ON p.session = line.row AND p.prompt = ? AND p.node = ? \
         WHERE p.number <= line.upper AND (line.upper = 34359738367 OR p.started <= line.upper) LIMIT 1"
    );
    let found = sqlx::query(sql)
        .bind(upper.cast_signed())
        .bind(row)
        .bind(0_i64)
        .bind(prompt.as_str())
        .bind(node.to_string())
        .fetch_optional(connection)
        .await?;
    let number: Option<i64> = found.map(|row| row.try_get(0)).transpose()?;
    Ok(number.map(|number| EventNumber(number.cast_unsigned())))
}

/// An id out of a column.
pub(super) fn session_id(bytes: Vec<u8>) -> Result<SessionId, StorageError> {
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| StorageError::damaged("a session's id"))?;
    Ok(SessionId::from_uuid(uuid::Uuid::from_bytes(bytes)))
}

/// Events on their way out.
struct Page {
    events: Vec<Event>,
    left: u32,
    bytes: usize,
}

impl Page {
    /// Adds events after `after` that the segment owns, until the page is full.
    async fn fill(
        &mut self,
        connection: &mut SqliteConnection,
        segment: &Segment,
        after: u64,
    ) -> Result<(), ReadError> {
        if after >= segment.upper || self.left == 0 || self.bytes == 0 {
            return Ok(());
        }
        let mut link = Link { session: segment.session, number: after, checksum: None };
        let mut from = place(segment.row, after);
        if after == segment.cut {
            link.checksum = Some(Checksum::start(segment.session));
            from += 1;
        }
        // The event before the first comes along, for its checksum.
        let sql =
            "SELECT place, at, body, checksum FROM events WHERE place BETWEEN ? AND ? ORDER BY place LIMIT ?";
        let rows = sqlx::query(sql)
            .bind(from)
            .bind(place(segment.row, segment.upper))
            .bind(i64::from(self.left) + i64::from(link.checksum.is_none()));
        let mut rows = rows.fetch(connection);
        while let Some(row) = rows.try_next().await? {
            let Some((event, bytes)) = link.follow(&row)? else { continue };
            if !self.events.is_empty() && bytes > self.bytes {
                self.bytes = 0;
                return Ok(());
            }
            self.bytes = self.bytes.saturating_sub(bytes);
            self.left -= 1;
            self.events.push(event);
            if self.left == 0 || self.bytes == 0 {
                return Ok(());
            }
        }
        let is_own = segment.upper == EVENTS_MAX;
        if !is_own && link.number < segment.upper {
            return Err(link.damaged("is missing").into());
        }
        Ok(())
    }
}

/// The event last seen.
pub(super) struct Link {
    pub(super) session: SessionId,
    pub(super) number: u64,
    /// None until the event itself has come.
    pub(super) checksum: Option<Checksum>,
}

impl Link {
    /// The next event, when it follows from this one; none for the event itself, which is read for its checksum.
    pub(super) fn follow(&mut self, row: &SqliteRow) -> Result<Option<(Event, usize)>, StorageError> {
        let (number, at_ms): (u64, i64) = (number_of(row.try_get(0)?), row.try_get(1)?);
        let (body, checksum): (&str, &[u8]) = (row.try_get(2)?, row.try_get(3)?);
        let stored = Checksum::from_bytes(checksum);
        let Some(before) = self.checksum else {
            if number != self.number || stored.is_none() {
                return Err(self.damaged("is missing"));
            }
            self.checksum = stored;
            return Ok(None);
        };
        if number != self.number + 1 {
            return Err(self.damaged("is missing"));
        }
        let checksum = before.next(number, at_ms, body);
        if stored != Some(checksum) {
            return Err(self.damaged("is not what was written"));
        }
        let parsed: Body = serde_json::from_str(body).map_err(|_| self.damaged("cannot be read"))?;
        (self.number, self.checksum) = (number, Some(checksum));
        let event = Event { number: EventNumber(number), at_ms: at_ms.cast_unsigned(), body: parsed };
        Ok(Some((event, body.len())))
    }

    fn damaged(&self, how: &str) -> StorageError {
        let number = self.number + u64::from(self.checksum.is_some());
        StorageError::damaged(format!("event {number} of session {} {how}", self.session))
    }
}
