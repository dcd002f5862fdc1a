//! Contents that are too long for an event, and snapshots of states.

use sqlx::{Connection, Row, SqliteConnection};

use super::Store;
use super::error::{ReadError, StorageError};
use super::place::{end, number_of, place};
use super::read::segments;
use crate::ids::{BlobId, EventNumber, SessionId};

/// The longest blob: a prompt of 10 MB three times over.
pub const BLOB_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The longest snapshot.
pub const SNAPSHOT_BYTES_MAX: usize = BLOB_BYTES_MAX;

/// A content was not stored.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// It is longer than [`BLOB_BYTES_MAX`] or [`SNAPSHOT_BYTES_MAX`].
    #[error("{size} bytes are beyond the bound of {BLOB_BYTES_MAX} bytes of a content")]
    TooLarge {
        /// How long it is.
        size: usize,
    },
    /// There is no such session.
    #[error("there is no session {0}")]
    NoSuchSession(SessionId),
    /// The file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Store {
    /// Stores a content, once however often it is given. Returns once it is on the disk. A content that no event names is
    /// swept away some time later.
    ///
    /// # Errors
    /// [`PutError`]; then it was not stored.
    pub async fn put_blob(&self, bytes: bytes::Bytes, at_ms: u64) -> Result<BlobId, PutError> {
        if bytes.len() > BLOB_BYTES_MAX {
            return Err(PutError::TooLarge { size: bytes.len() });
        }
        let (id, bytes) = tokio::task::spawn_blocking(move || (BlobId::of(&bytes), bytes))
            .await
            .map_err(|_| StorageError::Closed)?;
        let at_ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
        self.alone(move |writer| {
            Box::pin(async move { put(&mut writer.connection, id, &bytes, at_ms).await })
        })
        .await?;
        Ok(id)
    }

    /// A content; none when it is not here.
    ///
    /// # Errors
    /// [`StorageError`], also when the bytes are not those that were written.
    pub async fn blob(&self, id: BlobId) -> Result<Option<bytes::Bytes>, StorageError> {
        let sql = "SELECT b.bytes FROM blobs a JOIN blob_bytes b ON b.row = a.row WHERE a.hash = ?";
        let row = sqlx::query(sql).bind(id.0.to_vec()).fetch_optional(&self.inner.read).await;
        let read = async {
            let Some(row) = row? else { return Ok(None) };
            let bytes: Vec<u8> = row.try_get(0)?;
            let checked = tokio::task::spawn_blocking(move || (BlobId::of(&bytes), bytes)).await;
            match checked {
                Ok((found, bytes)) if found == id => Ok(Some(bytes.into())),
                Ok(_) => Err(StorageError::damaged(format!("blob {id} is not what was written"))),
                Err(_) => Err(StorageError::Closed),
            }
        };
        read.await.inspect_err(|error| self.note(error))
    }

    /// Stores a state of the session as it is after event `at`, for [`Store::snapshot`] to find. Older ones are thinned out:
    /// the further
    /// from the end, the greater their gaps.
    ///
    /// # Errors
    /// [`PutError`]; then it was not stored.
    pub async fn put_snapshot(
        &self,
        session: SessionId,
        at: EventNumber,
        bytes: Vec<u8>,
    ) -> Result<(), PutError> {
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(PutError::TooLarge { size: bytes.len() });
        }
        let found = self
            .alone(move |writer| {
                Box::pin(async move {
                    let Some(head) = writer.head(session).await? else { return Ok(false) };
                    put_snapshot(&mut writer.connection, place(head.row, at.0), bytes).await?;
                    Ok(true)
                })
            })
            .await?;
        if found { Ok(()) } else { Err(PutError::NoSuchSession(session)) }
    }

    /// The newest state stored at or before event `at`, of the session or what it is a fork of, and the event that it is
    /// after.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn snapshot(
        &self,
        session: SessionId,
        at: EventNumber,
    ) -> Result<Option<(EventNumber, Vec<u8>)>, ReadError> {
        let mut connection = self.inner.read.acquire().await?;
        let mut newest: Option<(EventNumber, i64)> = None;
        for segment in segments(&mut connection, session, 0).await? {
            let upper = at.0.min(segment.upper);
            let sql = "SELECT place FROM snapshots WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT 1";
            let row = sqlx::query(sql).bind(place(segment.row, 0)).bind(place(segment.row, upper));
            if let Some(row) = row.fetch_optional(&mut *connection).await? {
                let found: i64 = row.try_get(0)?;
                let number = EventNumber(number_of(found));
                newest = newest.max(Some((number, found)));
            }
            if newest.is_some_and(|(number, _)| number.0 >= segment.cut) {
                break;
            }
        }
        let Some((number, place)) = newest else { return Ok(None) };
        let sql = "SELECT bytes FROM snapshots WHERE place = ?";
        let row = sqlx::query(sql).bind(place).fetch_optional(&mut *connection).await?;
        // It may have been thinned out this moment.
        row.map(|row| Ok((number, row.try_get(0)?))).transpose()
    }
}

/// Stores a content, or notes that it was given again.
pub(super) async fn put(
    connection: &mut SqliteConnection,
    id: BlobId,
    bytes: &[u8],
    at_ms: i64,
) -> Result<(), StorageError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let sql = "INSERT INTO blobs (hash, length, touched) VALUES (?, ?, ?) \
         ON CONFLICT DO UPDATE SET touched = max(touched, excluded.touched) \
         RETURNING row, (SELECT count(*) FROM blob_bytes b WHERE b.row = blobs.row)";
    let row = sqlx::query(sql)
        .bind(id.0.to_vec())
        .bind(i64::try_from(bytes.len()).unwrap_or(i64::MAX))
        .bind(at_ms)
        .fetch_one(&mut *transaction)
        .await?;
    let (row, is_stored): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
    if !is_stored {
        let insert = sqlx::query("INSERT INTO blob_bytes (row, bytes) VALUES (?, ?)");
        insert.bind(row).bind(bytes).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

async fn put_snapshot(
    connection: &mut SqliteConnection,
    at: i64,
    bytes: Vec<u8>,
) -> Result<(), StorageError> {
    let row = super::place::row_of(at);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("INSERT OR REPLACE INTO snapshots (place, bytes) VALUES (?, ?)")
        .bind(at)
        .bind(bytes)
        .execute(&mut *transaction)
        .await?;
    let sql = "SELECT place FROM snapshots WHERE place BETWEEN ? AND ? ORDER BY place DESC";
    let rows = sqlx::query(sql).bind(place(row, 0)).bind(end(row)).fetch_all(&mut *transaction).await?;
    let places = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    let numbers: Vec<u64> = places.into_iter().map(number_of).collect();
    for number in superfluous(&numbers) {
        let delete = sqlx::query("DELETE FROM snapshots WHERE place = ?");
        delete.bind(place(row, number)).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// Which of these snapshots, newest first, nobody would miss: those without which the gap is at most half as long as their
/// distance to the end.
fn superfluous(numbers: &[u64]) -> Vec<u64> {
    let Some((&newest, older)) = numbers.split_first() else { return Vec::new() };
    let mut newer = newest;
    let mut superfluous = Vec::new();
    for (index, &number) in older.iter().enumerate() {
        let before = older.get(index + 1).copied().unwrap_or(0);
        if newer - before <= (newest - number) / 2 {
            superfluous.push(number);
        } else {
            newer = number;
        }
    }
    superfluous
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn snapshots_stay_dense_near_the_end_and_sparse_before() {
        let mut kept: Vec<u64> = Vec::new();
        for number in (100..=100_000).step_by(100) {
            kept.insert(0, number);
            let gone = superfluous(&kept);
            kept.retain(|number| !gone.contains(number));
        }
        assert!((8..=40).contains(&kept.len()), "{kept:?}");
        assert_eq!(kept[..2], [100_000, 99_900]);
        // Whoever wants an earlier state folds at most half of what came after it.
        for wanted in (1_000..100_000).step_by(700) {
            let before = kept.iter().copied().find(|number| *number <= wanted).unwrap_or(0);
            assert!(wanted - before <= (100_000 - before) / 2 + 100, "{wanted}: {before} of {kept:?}");
        }
    }
}
