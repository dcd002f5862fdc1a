//! Reading the trail: by a running node, and from its file when none runs.

use std::path::Path;

use futures_util::TryStreamExt;
use mesh_identity::{InviteId, NodeId, ScopeId, UnixTime};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{QueryBuilder, Row, Sqlite, SqlitePool};

use super::super::{BUSY, StoreError, unsigned};
use super::chain::{Chain, Raw, Walk};
use super::{UNKNOWN, end_of};

/// What to look for; nothing set finds everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// In one scope.
    pub scope: Option<ScopeId>,
    /// From then on.
    pub since: Option<UnixTime>,
    /// About or by one of these nodes, or naming one as ended; empty for anybody.
    pub nodes: Vec<NodeId>,
    /// At most so many, the newest.
    pub limit: u32,
}

/// A row of the trail. Ids that somebody spoilt in the file are left as their hex digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrailRow {
    /// Its number.
    pub number: u64,
    /// When.
    pub at: UnixTime,
    /// What: the word of a [`super::Kind`].
    pub kind: String,
    /// Where.
    pub scope: ScopeId,
    /// What the scope was called.
    pub scope_name: String,
    /// The node or invite that it is about.
    pub subject: String,
    /// True for an invite.
    pub is_invite: bool,
    /// The subject's name; may be empty.
    pub subject_name: String,
    /// Who did it; empty when not known.
    pub actor: String,
    /// The actor's name; may be empty.
    pub actor_name: String,
    /// The rest, a JSON object.
    pub details: String,
    /// Hash of the row before it.
    pub previous: [u8; 32],
    /// Its own hash.
    pub hash: [u8; 32],
}

/// The trail in a database, to be read.
#[derive(Debug, Clone)]
pub struct Trail {
    pool: SqlitePool,
}

impl Trail {
    pub(super) fn of(pool: SqlitePool) -> Self {
        Self { pool }
    }

    /// The trail in a database that no node has open. Changes nothing. None when there is no database, or one from before
    /// there was a trail.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub async fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        if !path.exists() {
            return Ok(None);
        }
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(BUSY * 2);
        let pool = pool.connect_with(options).await?;
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'audit'";
        let tables: i64 = sqlx::query(sql).fetch_one(&pool).await?.try_get(0)?;
        Ok((tables > 0).then_some(Self { pool }))
    }

    /// The newest rows that fit, oldest first.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub async fn rows(&self, search: &Search) -> Result<Vec<TrailRow>, StoreError> {
        let columns = Raw::COLUMNS;
        let mut sql: QueryBuilder<Sqlite> = QueryBuilder::new(format!("SELECT {columns} FROM audit WHERE 1"));
        if let Some(scope) = &search.scope {
            sql.push(" AND scope = ").push_bind(scope.as_bytes().to_vec());
        }
        if let Some(since) = search.since {
            sql.push(" AND at >= ").push_bind(super::signed(since.0));
        }
        for (at, node) in search.nodes.iter().enumerate() {
            let id = node.as_bytes().to_vec();
            sql.push(if at == 0 { " AND (subject = " } else { " OR subject = " }).push_bind(id.clone());
            sql.push(" OR actor = ").push_bind(id);
            sql.push(" OR instr(details, ").push_bind(node.to_string()).push(") > 0");
        }
        if !search.nodes.is_empty() {
            sql.push(")");
        }
        sql.push(" ORDER BY number DESC LIMIT ").push_bind(i64::from(search.limit));
        let rows = sql.build().fetch_all(&self.pool).await?;
        let mut rows = rows
            .iter()
            .map(|row| TrailRow::of(Raw::read(row)?))
            .collect::<Result<Vec<TrailRow>, StoreError>>()?;
        rows.reverse();
        Ok(rows)
    }

    /// The scopes that the trail names, by the names they had.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub async fn scopes(&self) -> Result<Vec<(ScopeId, String)>, StoreError> {
        let sql = "SELECT DISTINCT scope, scope_name FROM audit";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        let scope = |row: &sqlx::sqlite::SqliteRow| {
            Ok((ScopeId::from_bytes(super::bytes(row.try_get(0)?, "scope's id")?), row.try_get(1)?))
        };
        rows.iter().map(scope).collect()
    }

    /// The nodes that the trail names as subject or actor, by the names they had.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub async fn nodes(&self) -> Result<Vec<(NodeId, String)>, StoreError> {
        let sql = "SELECT subject, subject_name FROM audit WHERE length(subject) = 32 \
             UNION SELECT actor, actor_name FROM audit WHERE length(actor) = 32";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        let mut nodes = Vec::with_capacity(rows.len());
        for row in &rows {
            if let Ok(node) = NodeId::from_bytes(&super::bytes(row.try_get(0)?, "node's id")?) {
                nodes.push((node, row.try_get(1)?));
            }
        }
        Ok(nodes)
    }

    /// Checks every row against the one before it, as they stand at this moment: some 200,000 a second.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails; a broken chain is none.
    pub async fn check(&self) -> Result<Chain, StoreError> {
        let mut reading = self.pool.begin().await?; // one picture of rows and ends
        let (pruned, hash) = end_of(&mut reading, "pruned").await?.unwrap_or((0, UNKNOWN));
        let (last, last_hash) = end_of(&mut reading, "last").await?.unwrap_or((0, UNKNOWN));
        let mut walk = Walk::after(pruned, hash);
        let columns = Raw::COLUMNS;
        let mut sql: QueryBuilder<Sqlite> =
            QueryBuilder::new(format!("SELECT {columns} FROM audit ORDER BY number"));
        {
            let mut rows = sql.build().fetch(&mut *reading);
            while let Some(row) = rows.try_next().await? {
                walk.take(&Raw::read(&row)?);
            }
        }
        Ok(walk.finish(last, last_hash))
    }
}

impl TrailRow {
    fn of(raw: Raw) -> Result<Self, StoreError> {
        let is_invite = raw.subject.len() == 16;
        let fixed = |value: Vec<u8>| super::bytes(value, "hash in the audit trail");
        Ok(Self {
            number: unsigned(raw.number),
            at: UnixTime(unsigned(raw.at)),
            kind: raw.kind,
            scope: ScopeId::from_bytes(super::bytes(raw.scope, "scope's id")?),
            scope_name: raw.scope_name,
            subject: id_text(&raw.subject),
            is_invite,
            subject_name: raw.subject_name,
            actor: id_text(&raw.actor),
            actor_name: raw.actor_name,
            details: raw.details,
            previous: fixed(raw.previous)?,
            hash: fixed(raw.hash)?,
        })
    }
}

fn id_text(id: &[u8]) -> String {
    let known = match id.len() {
        32 => id.try_into().ok().and_then(|id| NodeId::from_bytes(&id).ok()).map(|node| node.to_string()),
        16 => {
            id.try_into().ok().and_then(|id| InviteId::from_bytes(id).ok()).map(|invite| invite.to_string())
        }
        _ => None,
    };
    known.unwrap_or_else(|| id.iter().map(|byte| format!("{byte:02x}")).collect())
}
