//! Opening the file: the lock, the schema, the connections.

use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, SqlStr, SqliteConnection, SqlitePool};

use super::Config;
use super::check;
use super::error::{OpenError, StorageError};
use super::lock::{Left, Lock};
use super::repair::{self, Repair};
use super::statement::PREPARED_ROWS_MAX;

/// How long anything waits for another program that holds the file, such as `sqlite3` in somebody's shell.
const BUSY: Duration = Duration::from_secs(5);

/// How long a read waits for its turn: a thousand followers that all have fallen behind take turns.
const READ_TURN: Duration = Duration::from_secs(60);

/// Pages of the log after which SQLite copies them to the file, four times its own default: commits of many sessions touch
/// a page of each, and with a copy every 15 commits 64 of them at once were written at two thirds of this speed. The log
/// then takes up to 16 MiB beside the file, which an opening after a crash reads once.
const CHECKPOINT_PAGES: &str = "4000";

/// What an open store is made of.
pub(super) struct Opened {
    pub(super) connection: SqliteConnection,
    pub(super) read: SqlitePool,
    pub(super) lock: Lock,
    /// What was done to the file, when it was broken.
    pub(super) repair: Option<Repair>,
}

/// Opens the file, making it when it is not there, and repairing it when it is broken.
pub(super) async fn open(path: &Path, config: &Config) -> Result<Opened, OpenError> {
    let file = |what, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { what, path, source }
    };
    let beside = beside(path, ".lock");
    let locked = Lock::take(&beside).map_err(file("lock", &beside))?;
    let (lock, left) = locked.ok_or_else(|| OpenError::InUse { path: path.to_owned() })?;
    repair::finish(path).map_err(file("put the repaired file in the place of", path))?;
    private_file(path).map_err(file("open", path))?;
    let (connection, repair) = match whole(path, config, left).await? {
        Ok(connection) => (connection, None),
        Err(why) => {
            tracing::error!(file = %path.display(), why, "the session store is broken; what is whole is being saved");
            let repair = repair::repair(path, why).await?;
            (connect(path).await?, Some(repair))
        }
    };
    lock.mark_open().map_err(file("write", &beside))?;
    let read = SqlitePoolOptions::new()
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(READ_TURN)
        .test_before_acquire(false)
        .max_connections(config.readers.max(1))
        .connect_with(options(path).read_only(true))
        .await
        .map_err(|source| storage(path, source))?;
    Ok(Opened { connection, read, lock, repair })
}

/// The writer's connection, when the file is whole; or what is wrong with it.
async fn whole(
    path: &Path,
    config: &Config,
    left: Left,
) -> Result<Result<SqliteConnection, String>, OpenError> {
    let mut connection = match connect(path).await {
        Ok(connection) => connection,
        Err(OpenError::Storage { source: StorageError::Damaged { what }, .. }) => return Ok(Err(what)),
        Err(error) => return Err(error),
    };
    let bytes = std::fs::metadata(path).map_or(0, |facts| facts.len());
    let is_checked = match left {
        Left::Clean => false,
        Left::Open => bytes <= config.check_bytes_max,
        Left::Damaged => true,
    };
    if is_checked {
        let damage = check::damage(&mut connection, left == Left::Damaged).await;
        let damage = damage.map_err(|source| OpenError::Storage { path: path.to_owned(), source })?;
        if let Some(why) = damage {
            // It is not written to any more.
            let _ = connection.close().await;
            return Ok(Err(why));
        }
    }
    Ok(Ok(connection))
}

/// The writer's connection, with the schema brought up to date.
pub(super) async fn connect(path: &Path) -> Result<SqliteConnection, OpenError> {
    let options = options(path)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .statement_cache_capacity(PREPARED_ROWS_MAX * 2);
    let mut connection = options.connect().await.map_err(|source| storage(path, source))?;
    match Migrator::with_migrations(migrations()).run_direct(None, &mut connection, false).await {
        Ok(()) => Ok(connection),
        Err(MigrateError::VersionMissing(version)) => {
            Err(OpenError::Newer { path: path.to_owned(), version })
        }
        Err(MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) => {
            Err(storage(path, source))
        }
        Err(source) => Err(OpenError::Migrate { path: path.to_owned(), source }),
    }
}

pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY)
        .disable_statement_logging()
}

fn storage(path: &Path, source: sqlx::Error) -> OpenError {
    OpenError::Storage { path: path.to_owned(), source: StorageError::from(source) }
}

/// The file of this name and ending.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

pub(super) fn private_file(path: &Path) -> io::Result<()> {
    // SQLite gives its -wal and -shm files the mode of the database.
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// The steps of the schema, oldest first.
pub(super) fn migrations() -> Vec<Migration> {
    let step = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    };
    vec![
        step(1, "init", include_str!("migrations/0001_init.sql")),
        step(2, "rights", include_str!("migrations/0002_rights.sql")),
        step(3, "hand over", include_str!("migrations/0003_hand_over.sql")),
    ]
}
