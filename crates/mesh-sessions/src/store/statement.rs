//! Several statements that go to SQLite as one text: each way to its thread and back costs as much as an insert.

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqliteConnection};

/// Rows of one INSERT: with four columns far below SQLite's 32,766 parameters.
const ROWS_PER_INSERT: usize = 500;

/// A text of up to this many rows is kept prepared. A longer one is parsed each time, which takes as long as to write a
/// tenth of its rows.
pub(super) const PREPARED_ROWS_MAX: usize = 128;

/// Beside other statements, of which there are many sorts, up to this many.
const PREPARED_ROWS_BESIDE_MAX: usize = 4;

const INSERT: &str = "INSERT INTO events (place, at, body, checksum) VALUES (?,?,?,?)";

/// A row of the table of events.
#[derive(Debug, Clone)]
pub(super) struct EventRow {
    pub(super) place: i64,
    pub(super) at_ms: i64,
    pub(super) body: String,
    pub(super) checksum: Vec<u8>,
}

/// A value for a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// A statement whose parameters are all `?`: in a text of several, numbered ones would mean those of the first.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) sql: &'static str,
    pub(super) values: Vec<Value>,
}

impl Statement {
    pub(super) fn new(sql: &'static str, values: impl Into<Vec<Value>>) -> Self {
        Self { sql, values: values.into() }
    }
}

/// Writes all of it in one transaction, or nothing. Not to be dropped before it is done.
pub(super) async fn commit(
    connection: &mut SqliteConnection,
    rows: Vec<EventRow>,
    statements: Vec<Statement>,
) -> Result<(), sqlx::Error> {
    if rows.is_empty() && statements.is_empty() {
        return Ok(());
    }
    let prepared = match statements.len() {
        0 => rows.len() <= PREPARED_ROWS_MAX,
        few => few <= 3 && rows.len() <= PREPARED_ROWS_BESIDE_MAX,
    };
    let is_one = statements.is_empty() && rows.len() <= ROWS_PER_INSERT;
    let mut sql = String::with_capacity(64 + rows.len() * 10);
    let mut arguments = SqliteArguments::default();
    if !is_one {
        sql.push_str("BEGIN IMMEDIATE");
    }
    for (index, row) in rows.into_iter().enumerate() {
        let is_first = index % ROWS_PER_INSERT == 0;
        if is_first && !sql.is_empty() {
            sql.push(';');
        }
        sql.push_str(if is_first { INSERT } else { ",(?,?,?,?)" });
        add(&mut arguments, Value::Number(row.place))?;
        add(&mut arguments, Value::Number(row.at_ms))?;
        add(&mut arguments, Value::Text(row.body))?;
        add(&mut arguments, Value::Bytes(row.checksum))?;
    }
    for statement in statements {
        sql.push(';');
        sql.push_str(statement.sql);
        for value in statement.values {
            add(&mut arguments, value)?;
        }
    }
    if !is_one {
        sql.push_str(";COMMIT");
    }
    let query = sqlx::query_with(AssertSqlSafe(sql), arguments).persistent(prepared);
    let done = query.execute(&mut *connection).await;
    if done.is_err() {
        // Fails when SQLite has ended the transaction itself, as it does on a full disk.
        let _ = sqlx::query("ROLLBACK").execute(connection).await;
    }
    done.map(|_| ())
}

fn add(arguments: &mut SqliteArguments, value: Value) -> Result<(), sqlx::Error> {
    match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Number(number) => arguments.add(number),
        Value::Text(text) => arguments.add(text),
        Value::Bytes(bytes) => arguments.add(bytes),
    }
    .map_err(sqlx::Error::Encode)
}
