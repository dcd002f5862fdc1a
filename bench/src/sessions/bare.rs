//! SQLite alone: what no store on it can be faster than.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};

/// A connection to a file with one table.
pub(super) struct Bare {
    connection: SqliteConnection,
    next: i64,
    body: String,
}

impl Bare {
    pub(super) async fn open(folder: &Path) -> Result<Self> {
        let mut connection = SqliteConnectOptions::new()
            .filename(folder.join("bare.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging()
            .connect()
            .await?;
        let sql = "CREATE TABLE IF NOT EXISTS events (place INTEGER PRIMARY KEY, at INTEGER NOT NULL, body TEXT NOT NULL, checksum BLOB NOT NULL)";
        sqlx::query(sql).execute(&mut connection).await?;
        let body = serde_json::to_string(&super::piece(1))?;
        Ok(Self { connection, next: 1, body })
    }

    /// One durable insert of so many rows.
    pub(super) async fn insert(&mut self, rows: usize) -> Result<()> {
        let values = vec!["(?,?,?,?)"; rows].join(",");
        let sql = AssertSqlSafe(format!("INSERT INTO events (place, at, body, checksum) VALUES {values}"));
        let mut query = sqlx::query(sql);
        for _ in 0..rows {
            query = query
                .bind(self.next)
                .bind(1_700_000_000_000_i64)
                .bind(self.body.clone())
                .bind(vec![7_u8; 16]);
            self.next += 1;
        }
        query.execute(&mut self.connection).await?;
        Ok(())
    }

    /// Rows a second, inserted so many at a time for so long.
    pub(super) async fn rate(&mut self, rows: usize, time: Duration) -> Result<f64> {
        let (start, mut inserted) = (Instant::now(), 0);
        while start.elapsed() < time {
            self.insert(rows).await?;
            inserted += rows;
        }
        Ok(inserted as f64 / start.elapsed().as_secs_f64())
    }

    pub(super) async fn close(self) -> Result<()> {
        Ok(self.connection.close().await?)
    }
}
