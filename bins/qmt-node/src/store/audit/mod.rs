//! The audit trail: who let whom in, when, and what a revocation ended.
//!
//! Rows are only ever added, in the transaction of the change that they tell of, and each holds the hash of the one
//! before it. `docs/protocols/audit.md` says what the trail proves and what it does not.

mod chain;
mod read;

#[cfg(test)]
mod tests;

use mesh_identity::{NodeId, Revoked, ScopeId, UnixTime};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

pub use chain::{Break, Chain, Fault};
pub use read::{Search, Trail, TrailRow};

use super::{Store, StoreError, bytes, signed, unsigned};
use chain::Raw;

/// Rows kept: at some ten changes a day decades, and about 50 MB.
pub const ROWS_MAX: u64 = 100_000;
/// Longest details of a row, bytes of JSON; writers cut their lists to fit well within.
const DETAILS_BYTES_MAX: usize = 16 * 1024;
/// The same answer given again within this time is no second event, seconds: a peer that repeats a request writes nothing.
const REPEATED_SECS: u64 = 3_600;
/// Rows that a member can cause in a day by coming and going as it likes.
const OBSERVED_PER_DAY: i64 = 20;
const DAY_SECS: u64 = 86_400;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// This node founded the scope.
    Founded,
    /// This node issued an invite.
    Invited,
    /// This node ended an invite: its ledger admits nobody by it any more.
    Ended,
    /// This node let a node in by an invite of its own.
    Admitted,
    /// This node joined.
    Joined,
    /// A member that somebody else let in was seen for the first time.
    Seen,
    /// A grant was renewed: this node's own, or by this node.
    Renewed,
    /// The founder or the recovery key made a node an admin.
    Appointed,
    /// A node or an invite was revoked, here or elsewhere.
    Revoked,
    /// The CA at this node revoked the certificates of a node whose membership was revoked.
    Uncertified,
    /// A membership ended without renewal.
    Expired,
    /// A node left.
    Left,
}

impl Kind {
    /// The word in the table, in JSON and on the screen.
    pub fn word(self) -> &'static str {
        match self {
            Self::Founded => "founded",
            Self::Invited => "invited",
            Self::Ended => "ended",
            Self::Admitted => "admitted",
            Self::Joined => "joined",
            Self::Seen => "seen",
            Self::Renewed => "renewed",
            Self::Appointed => "appointed",
            Self::Revoked => "revoked",
            Self::Uncertified => "uncertified",
            Self::Expired => "expired",
            Self::Left => "left",
        }
    }
}

/// A row to be written.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When.
    pub at: UnixTime,
    /// What.
    pub kind: Kind,
    /// Where.
    pub scope: ScopeId,
    /// What this node calls that scope.
    pub scope_name: String,
    /// The node or the invite that it is about.
    pub subject: Revoked,
    /// The subject's name; empty when not known.
    pub subject_name: String,
    /// Who did it, or whose signature says so; none when not known.
    pub actor: Option<NodeId>,
    /// The actor's name; empty when not known.
    pub actor_name: String,
    /// The rest, for people and programs.
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl Entry {
    /// An entry without names and details.
    pub fn new(
        kind: Kind,
        scope: ScopeId,
        scope_name: impl Into<String>,
        subject: Revoked,
        at: UnixTime,
    ) -> Self {
        Self {
            at,
            kind,
            scope,
            scope_name: scope_name.into(),
            subject,
            subject_name: String::new(),
            actor: None,
            actor_name: String::new(),
            details: serde_json::Map::new(),
        }
    }

    /// Names the subject.
    #[must_use]
    pub fn called(mut self, name: impl Into<String>) -> Self {
        self.subject_name = name.into();
        self
    }

    /// Says who did it.
    #[must_use]
    pub fn by(mut self, actor: NodeId, name: impl Into<String>) -> Self {
        self.actor = Some(actor);
        self.actor_name = name.into();
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }

    fn subject_bytes(&self) -> Vec<u8> {
        match &self.subject {
            Revoked::Node(node) => node.as_bytes().to_vec(),
            Revoked::Invite(invite) => invite.as_bytes().to_vec(),
        }
    }
}

impl Store {
    /// Writes a row for something that changes nothing else in the database. Says whether it was news.
    pub async fn note(&self, entry: &Entry) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let is_new = append(&mut transaction, entry).await?;
        transaction.commit().await?;
        Ok(is_new)
    }

    /// The trail of this database, to be read.
    pub fn trail(&self) -> Trail {
        Trail::of(self.read.clone())
    }
}

/// Adds a row in a transaction under way, unless it says again what the trail says already.
pub(super) async fn append(connection: &mut SqliteConnection, entry: &Entry) -> Result<bool, StoreError> {
    append_keeping(connection, entry, ROWS_MAX).await
}

async fn append_keeping(
    connection: &mut SqliteConnection,
    entry: &Entry,
    rows_max: u64,
) -> Result<bool, StoreError> {
    if is_repeated(connection, entry).await? {
        return Ok(false);
    }
    let (noted, previous) = end_of(connection, "last").await?.unwrap_or((0, UNKNOWN));
    let newest: Option<i64> =
        sqlx::query("SELECT max(number) FROM audit").fetch_one(&mut *connection).await?.try_get(0)?;
    let last = noted.max(newest.unwrap_or(0)); // the same, unless somebody was at the table
    let mut details = serde_json::to_string(&entry.details).unwrap_or_default();
    if details.len() > DETAILS_BYTES_MAX || details.is_empty() {
        details = "{}".to_owned();
    }
    let mut raw = Raw {
        number: last + 1,
        at: signed(entry.at.0),
        kind: entry.kind.word().to_owned(),
        scope: entry.scope.as_bytes().to_vec(),
        scope_name: entry.scope_name.clone(),
        subject: entry.subject_bytes(),
        subject_name: entry.subject_name.clone(),
        actor: entry.actor.map_or_else(Vec::new, |actor| actor.as_bytes().to_vec()),
        actor_name: entry.actor_name.clone(),
        details,
        previous: previous.to_vec(),
        hash: Vec::new(),
    };
    raw.hash = raw.digest().to_vec();
    raw.insert(connection).await?;
    set_end(connection, "last", raw.number, &raw.hash).await?;
    prune(connection, raw.number, rows_max).await?;
    Ok(true)
}

/// Whether the row would say nothing new, or come from a peer that has said enough for today.
async fn is_repeated(connection: &mut SqliteConnection, entry: &Entry) -> Result<bool, StoreError> {
    let of_subject = |sql| sqlx::query(sql).bind(entry.scope.as_bytes().to_vec()).bind(entry.subject_bytes());
    let is_observed = match entry.kind {
        Kind::Seen => true,
        Kind::Left | Kind::Expired => entry.details.contains_key("observed"),
        Kind::Renewed | Kind::Admitted => false,
        _ => return Ok(false),
    };
    let sql = "SELECT kind, at FROM audit WHERE scope = ? AND subject = ? ORDER BY number DESC LIMIT 1";
    let Some(row) = of_subject(sql).fetch_optional(&mut *connection).await? else { return Ok(false) };
    let (kind, at): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
    let is_recent = entry.at.0 < unsigned(at).saturating_add(REPEATED_SECS);
    match entry.kind {
        Kind::Seen if matches!(kind.as_str(), "seen" | "admitted" | "joined" | "renewed" | "appointed") => {
            return Ok(true);
        }
        Kind::Left | Kind::Expired if kind == entry.kind.word() => return Ok(true),
        Kind::Renewed | Kind::Admitted => return Ok(kind == entry.kind.word() && is_recent),
        _ if !is_observed => return Ok(false),
        _ => {}
    }
    let sql = "SELECT count(*) FROM audit WHERE scope = ? AND subject = ? AND kind IN ('seen', 'left', 'expired') AND at > ?";
    let count: i64 = of_subject(sql)
        .bind(signed(entry.at.0.saturating_sub(DAY_SECS)))
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    Ok(count >= OBSERVED_PER_DAY)
}

/// Forgets the oldest rows beyond `rows_max`; the hash of the last of them stays, so that the rest still proves itself.
async fn prune(connection: &mut SqliteConnection, last: i64, rows_max: u64) -> Result<(), StoreError> {
    let until = last.saturating_sub(signed(rows_max));
    let pruned = end_of(connection, "pruned").await?.map_or(0, |(number, _)| number);
    if until <= pruned {
        return Ok(());
    }
    let sql = "SELECT number, hash FROM audit WHERE number <= ? ORDER BY number DESC LIMIT 1";
    let Some(row) = sqlx::query(sql).bind(until).fetch_optional(&mut *connection).await? else {
        return Ok(());
    };
    let (number, hash): (i64, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
    sqlx::query("DELETE FROM audit WHERE number <= ?").bind(number).execute(&mut *connection).await?;
    set_end(connection, "pruned", number, &hash).await
}

/// The hash of a row that is not known any more: whatever follows it is seen to be detached.
const UNKNOWN: [u8; 32] = [0; 32];

async fn end_of(
    connection: &mut SqliteConnection,
    side: &str,
) -> Result<Option<(i64, [u8; 32])>, StoreError> {
    let sql = "SELECT number, hash FROM audit_ends WHERE side = ?";
    let row = sqlx::query(sql).bind(side).fetch_optional(&mut *connection).await?;
    let end = |row: SqliteRow| Ok((row.try_get(0)?, bytes(row.try_get(1)?, "end of the audit trail")?));
    row.map(end).transpose()
}

async fn set_end(
    connection: &mut SqliteConnection,
    side: &str,
    number: i64,
    hash: &[u8],
) -> Result<(), StoreError> {
    let sql = "INSERT INTO audit_ends (side, number, hash) VALUES (?, ?, ?) \
         ON CONFLICT DO UPDATE SET number = excluded.number, hash = excluded.hash";
    sqlx::query(sql).bind(side).bind(number).bind(hash).execute(&mut *connection).await?;
    Ok(())
}
