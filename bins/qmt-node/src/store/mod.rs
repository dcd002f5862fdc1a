//! `node.db`: what a node must remember about its scopes, invites, peers and revocations, and the trail of their changes.
//!
//! SQLite in WAL mode with `synchronous=FULL`: a call that returned is on disk. One connection writes, so writes are in
//! order; reads have their own. The file's mode is 0600.

pub mod audit;
mod invites;
mod peers;
mod scopes;

#[cfg(test)]
mod tests;

use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Row, SqlStr, Sqlite, SqlitePool, Transaction};

pub use invites::{IssuedInvite, Recorded};
pub use peers::{PEERS_MAX, SeenPeer};
pub use scopes::ScopeRow;

/// Readers at a time: the control API, gossip and the console; each read takes tens of microseconds.
const READERS: u32 = 2;

/// How long a write waits for another process that holds the file, such as `sqlite3` in somebody's shell.
const BUSY: Duration = Duration::from_secs(5);

/// The node's database; clones share it.
///
/// Cancel safety of every method: a dropped future may or may not have taken effect, in whole; reads change nothing. All
/// writes name an end state and can be repeated.
#[derive(Debug, Clone)]
pub struct Store {
    write: SqlitePool,
    read: SqlitePool,
}

/// The database failed. A write that failed changed nothing, unless the file itself is broken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be made or its mode not be set.
    #[error("cannot open the node's database {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file was written by a newer version of qmt-node. Nothing was changed.
    #[error("{} was written by a newer qmt-node (schema {version}); run that version, or move the file away", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema's version in it.
        version: i64,
    },
    /// The schema could not be brought up to date.
    #[error("cannot bring the node's database up to date")]
    Migrate(#[source] MigrateError),
    /// SQLite failed: a full disk, a broken file, a lock that did not end.
    #[error("the node's database failed")]
    Sqlite(#[from] sqlx::Error),
    /// A stored value is not what was written.
    #[error("the node's database holds a damaged {what}")]
    Damaged {
        /// What it should be.
        what: &'static str,
    },
}

impl Store {
    /// Opens the database at `path`, making it when it is not there; the folder must be.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing is left open.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        private_file(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let pool =
            || SqlitePoolOptions::new().idle_timeout(None).max_lifetime(None).acquire_timeout(BUSY * 2);
        let write = pool()
            .min_connections(1)
            .max_connections(1)
            // SQLite itself ends a transaction that finds the disk full, and sqlx then waits for its end for ever: such a
            // connection is replaced. The pool has waited for rollbacks under way before it asks this.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options.clone().optimize_on_close(true, None))
            .await?;
        match migrator().run(&write).await {
            Ok(()) => {}
            Err(MigrateError::VersionMissing(version)) => {
                return Err(StoreError::Newer { path: path.to_owned(), version });
            }
            Err(error) => return Err(StoreError::Migrate(error)),
        }
        let read = pool().max_connections(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { write, read })
    }

    /// Closes the database after the calls under way; later calls fail. Idempotent.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// A small value, such as the last bound port.
    pub async fn kv(&self, key: &str) -> Result<Option<String>, StoreError> {
        let row =
            sqlx::query("SELECT value FROM kv WHERE key = ?").bind(key).fetch_optional(&self.read).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Sets a small value; none removes it.
    pub async fn set_kv(&self, key: &str, value: Option<&str>) -> Result<(), StoreError> {
        match value {
            Some(value) => {
                let sql = "INSERT INTO kv (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value";
                sqlx::query(sql).bind(key).bind(value).execute(&self.write).await?
            }
            None => sqlx::query("DELETE FROM kv WHERE key = ?").bind(key).execute(&self.write).await?,
        };
        Ok(())
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.write.begin_with("BEGIN IMMEDIATE").await
    }
}

fn private_file(path: &Path) -> io::Result<()> {
    // SQLite gives its -wal and -shm files the mode of the database.
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

fn migrator() -> Migrator {
    let step = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    };
    Migrator::with_migrations(vec![
        step(1, "init", include_str!("migrations/0001_init.sql")),
        step(2, "scope invite", include_str!("migrations/0002_scope_invite.sql")),
        step(3, "audit", include_str!("migrations/0003_audit.sql")),
    ])
}

/// A fixed number of bytes out of a column.
fn bytes<const N: usize>(value: Vec<u8>, what: &'static str) -> Result<[u8; N], StoreError> {
    value.try_into().map_err(|_| StoreError::Damaged { what })
}

/// A count or a time; SQLite's integers are signed.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A time for SQLite; beyond its range it is the end of time.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
