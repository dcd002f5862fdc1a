//! Whether the file holds what was written to it.

use std::collections::BTreeMap;
use std::fmt;

use futures_util::TryStreamExt;
use sqlx::{Connection, Row, SqliteConnection};

use super::Store;
use super::chain::Checksum;
use super::error::StorageError;
use super::place::row_of;
use super::read::{Link, session_id};
use super::retain::blob_id;
use crate::ids::{BlobId, EventNumber, SessionId};

/// Damages that are told one by one; a file that has more is a heap of rubble.
const DAMAGES_MAX: usize = 100;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Check {
    /// Sessions that were looked at, deleted ones that forks need included.
    pub sessions: u64,
    /// Events that are what was written.
    pub events: u64,
    /// Contents that are what was written.
    pub blobs: u64,
    /// What is wrong, the first hundred; empty when nothing is.
    pub damages: Vec<Damage>,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// What SQLite says of the file.
    File(String),
    /// An event, or one that should be there: this session is whole up to the one before.
    Event {
        /// The session.
        session: SessionId,
        /// The first event that is wrong.
        number: EventNumber,
        /// How.
        how: String,
    },
    /// A fork whose parent has no such event.
    Parent {
        /// The fork.
        session: SessionId,
        /// Where it was cut.
        cut: EventNumber,
    },
    /// A content that an event names.
    Blob(BlobId),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(what) => write!(f, "the file: {what}"),
            Self::Event { how, .. } => f.write_str(how),
            Self::Parent { session, cut } => {
                write!(f, "session {session} is a fork at event {cut} of a session that has none")
            }
            Self::Blob(blob) => write!(f, "blob {blob} is missing, or not what was written"),
        }
    }
}

impl Store {
    /// Reads the whole file and says what is not as it was written. It takes a second for some hundred thousand events,
    /// while others read and write.
    ///
    /// # Errors
    /// [`StorageError`] when it could not be read to the end.
    pub async fn check(&self) -> Result<Check, StorageError> {
        let mut connection = self.inner.read.acquire().await?;
        let check = whole(&mut connection).await?;
        if let Some(damage) = check.damages.first() {
            self.note(&StorageError::damaged(damage.to_string()));
        }
        Ok(check)
    }
}

/// Checks the structure of the file alone, or everything; says what is wrong first.
pub(super) async fn damage(
    connection: &mut SqliteConnection,
    everything: bool,
) -> Result<Option<String>, StorageError> {
    let checked = async {
        if everything {
            let check = whole(connection).await?;
            return Ok(check.damages.first().map(ToString::to_string));
        }
        let rows = sqlx::query("PRAGMA quick_check(1)").fetch_all(connection).await?;
        let said = rows.first().map(|row| row.try_get::<String, _>(0)).transpose()?;
        Ok(said.filter(|said| said != "ok"))
    };
    match checked.await {
        Err(StorageError::Damaged { what }) => Ok(Some(what)),
        other => other,
    }
}

/// Checks everything, as it is at one moment.
pub(super) async fn whole(connection: &mut SqliteConnection) -> Result<Check, StorageError> {
    let mut transaction = connection.begin().await?;
    let mut check = Check::default();
    let rows = sqlx::query("PRAGMA integrity_check(20)").fetch_all(&mut *transaction).await?;
    for row in rows {
        let said: String = row.try_get(0)?;
        if said != "ok" {
            check.found(Damage::File(said));
        }
    }
    check.logs(&mut transaction).await?;
    check.contents(&mut transaction).await?;
    transaction.rollback().await?;
    Ok(check)
}

/// A session while its events go by.
struct Walked {
    link: Link,
    parent: Option<i64>,
    cut: u64,
    is_broken: bool,
}

impl Check {
    fn found(&mut self, damage: Damage) {
        if self.damages.len() < DAMAGES_MAX {
            self.damages.push(damage);
        }
    }

    async fn logs(&mut self, connection: &mut SqliteConnection) -> Result<(), StorageError> {
        let mut sessions = BTreeMap::new();
        // An import under way has its checksums already and its id at last.
        let sql = "SELECT row, session, parent, cut FROM sessions WHERE hidden < 2";
        let mut rows = sqlx::query(sql).fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            let (session, cut) = (session_id(row.try_get(1)?)?, row.try_get::<i64, _>(3)?.cast_unsigned());
            let link = Link { session, number: cut, checksum: Some(Checksum::start(session)) };
            sessions.insert(
                row.try_get::<i64, _>(0)?,
                Walked { link, parent: row.try_get(2)?, cut, is_broken: false },
            );
        }
        drop(rows);
        self.sessions = sessions.len() as u64;
        let sql = "SELECT place, at, body, checksum FROM events ORDER BY place";
        let mut rows = sqlx::query(sql).fetch(connection);
        while let Some(row) = rows.try_next().await? {
            let Some(walked) = sessions.get_mut(&row_of(row.try_get(0)?)) else { continue };
            if walked.is_broken {
                continue;
            }
            match walked.link.follow(&row) {
                Ok(_) => self.events += 1,
                Err(error) => {
                    walked.is_broken = true;
                    let Link { session, number, .. } = walked.link;
                    self.found(Damage::Event {
                        session,
                        number: EventNumber(number + 1),
                        how: error.to_string(),
                    });
                }
            }
        }
        for walked in sessions.values() {
            let session = walked.link.session;
            if walked.link.number == walked.cut && !walked.is_broken {
                let how = format!("session {session} has no events");
                self.found(Damage::Event { session, number: EventNumber(walked.cut + 1), how });
            }
            let reaches =
                |parent: &i64| sessions.get(parent).is_some_and(|parent| parent.link.number >= walked.cut);
            if walked.parent.is_some_and(|parent| !reaches(&parent)) {
                self.found(Damage::Parent { session, cut: EventNumber(walked.cut) });
            }
        }
        Ok(())
    }

    async fn contents(&mut self, connection: &mut SqliteConnection) -> Result<(), StorageError> {
        let sql = "SELECT DISTINCT u.hash FROM blob_uses u WHERE NOT EXISTS (SELECT 1 FROM blobs b WHERE b.hash = u.hash)";
        for row in sqlx::query(sql).fetch_all(&mut *connection).await? {
            self.found(Damage::Blob(blob_id(row.try_get(0)?)?));
        }
        let sql = "SELECT a.hash, b.bytes FROM blobs a LEFT JOIN blob_bytes b ON b.row = a.row";
        let mut rows = sqlx::query(sql).fetch(connection);
        while let Some(row) = rows.try_next().await? {
            let (id, bytes) = (blob_id(row.try_get(0)?)?, row.try_get::<Option<Vec<u8>>, _>(1)?);
            let hashed = tokio::task::spawn_blocking(move || bytes.map(|bytes| BlobId::of(&bytes)));
            match hashed.await {
                Ok(Some(found)) if found == id => self.blobs += 1,
                _ => self.found(Damage::Blob(id)),
            }
        }
        Ok(())
    }
}
