//! The chain of hashes: what a row's hash covers, and whether all rows follow each other.

use std::fmt;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::super::StoreError;

/// Sets these hashes apart from every other use of BLAKE3.
const CONTEXT: &str = "qmt-mesh 2026-11 audit row v1";

/// A row as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub(super) number: i64,
    pub(super) at: i64,
    pub(super) kind: String,
    pub(super) scope: Vec<u8>,
    pub(super) scope_name: String,
    pub(super) subject: Vec<u8>,
    pub(super) subject_name: String,
    pub(super) actor: Vec<u8>,
    pub(super) actor_name: String,
    pub(super) details: String,
    pub(super) previous: Vec<u8>,
    pub(super) hash: Vec<u8>,
}

impl Raw {
    /// The columns in the order of [`Raw::read`].
    pub(super) const COLUMNS: &'static str = "number, at, kind, scope, scope_name, subject, subject_name, actor, \
         actor_name, details, previous, hash";

    pub(super) fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            number: row.try_get(0)?,
            at: row.try_get(1)?,
            kind: row.try_get(2)?,
            scope: row.try_get(3)?,
            scope_name: row.try_get(4)?,
            subject: row.try_get(5)?,
            subject_name: row.try_get(6)?,
            actor: row.try_get(7)?,
            actor_name: row.try_get(8)?,
            details: row.try_get(9)?,
            previous: row.try_get(10)?,
            hash: row.try_get(11)?,
        })
    }

    pub(super) async fn insert(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let sql = "INSERT INTO audit (number, at, kind, scope, scope_name, subject, subject_name, actor, actor_name, \
             details, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        sqlx::query(sql)
            .bind(self.number)
            .bind(self.at)
            .bind(&self.kind)
            .bind(&self.scope)
            .bind(&self.scope_name)
            .bind(&self.subject)
            .bind(&self.subject_name)
            .bind(&self.actor)
            .bind(&self.actor_name)
            .bind(&self.details)
            .bind(&self.previous)
            .bind(&self.hash)
            .execute(connection)
            .await?;
        Ok(())
    }

    /// The hash that the row must have. It covers, each with its length before it as 32 bits big-endian: the hash of the row
    /// before, number and time as 64 bits big-endian, the texts (kind, names of scope, subject and actor, details) and the
    /// ids (scope, subject, actor).
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        let mut put = |field: &[u8]| {
            let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
            hasher.update(&len.to_be_bytes()).update(field);
        };
        put(&self.previous);
        put(&self.number.to_be_bytes());
        put(&self.at.to_be_bytes());
        for field in [&self.kind, &self.scope_name, &self.subject_name, &self.actor_name, &self.details] {
            put(field.as_bytes());
        }
        for field in [&self.scope, &self.subject, &self.actor] {
            put(field);
        }
        *hasher.finalize().as_bytes()
    }
}

/// What the check of a trail found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Number of the first row that is kept; one more than the last when none is.
    pub first: u64,
    /// Number of the last row.
    pub last: u64,
    /// Hash of the last row. Whoever notes it elsewhere can tell later whether all rows up to it were rewritten.
    pub hash: [u8; 32],
    /// Where it breaks first; none when every row follows from the one before.
    pub broken: Option<Break>,
    /// At how many places it breaks.
    pub breaks: u64,
}

/// A place at which the chain does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Break {
    /// The row.
    pub number: u64,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its hash is not that of its content.
    Changed,
    /// It holds another hash than the row before it has.
    Detached,
    /// It is not there, nor are the rows up to this one.
    Missing {
        /// The last missing row.
        until: u64,
    },
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, fault } = self;
        match fault {
            Fault::Changed => write!(f, "row {number} was changed after it was written"),
            Fault::Detached => {
                write!(f, "row {number} does not follow the row before it: one of them was replaced")
            }
            Fault::Missing { until } if until == number => write!(f, "row {number} is missing"),
            Fault::Missing { until } => write!(f, "rows {number} to {until} are missing"),
        }
    }
}

/// Walks a trail in order. After a break it goes on from what the row itself says, so that each fault counts once.
#[derive(Debug)]
pub(super) struct Walk {
    chain: Chain,
    next: i64,
    previous: Vec<u8>,
}

impl Walk {
    /// Begins after the last pruned row.
    pub(super) fn after(pruned: i64, hash: [u8; 32]) -> Self {
        let next = pruned.saturating_add(1);
        let chain = Chain { first: number(next), last: number(pruned), hash, broken: None, breaks: 0 };
        Self { chain, next, previous: hash.to_vec() }
    }

    pub(super) fn take(&mut self, row: &Raw) {
        if row.number < self.next {
            return self.fault(row.number, Fault::Detached); // a row that was pruned, or one that never was
        }
        if row.number > self.next {
            self.fault(self.next, Fault::Missing { until: number(row.number.saturating_sub(1)) });
        } else if row.previous != self.previous {
            self.fault(row.number, Fault::Detached);
        }
        if row.hash != row.digest() {
            self.fault(row.number, Fault::Changed);
        }
        self.next = row.number.saturating_add(1);
        self.previous.clone_from(&row.hash);
    }

    /// Compares with the end that was noted when the last row was written.
    pub(super) fn finish(mut self, last: i64, hash: [u8; 32]) -> Chain {
        if self.next <= last {
            self.fault(self.next, Fault::Missing { until: number(last) });
        } else if self.previous != hash {
            self.fault(self.next.saturating_sub(1), Fault::Detached);
        }
        self.chain.last = number(self.next.saturating_sub(1).max(last));
        self.chain.hash = hash;
        self.chain
    }

    fn fault(&mut self, at: i64, fault: Fault) {
        self.chain.breaks += 1;
        self.chain.broken.get_or_insert(Break { number: number(at), fault });
    }
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
