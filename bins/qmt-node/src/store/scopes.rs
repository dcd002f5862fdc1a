//! The scopes that this node is in, and their revocations.

use mesh_identity::{
    InviteToken, NodeId, Revocation, ScopeId, ScopeRoot, SignedGrant, SignedRevocation, UnixTime,
};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::audit::{Entry, append};
use super::{Store, StoreError, bytes, signed, unsigned};

/// A scope that this node is in.
#[derive(Debug, Clone)]
pub struct ScopeRow {
    /// Founder and nonce; the scope's id follows from them.
    pub root: ScopeRoot,
    /// Its name; may be empty.
    pub name: String,
    /// Whether this node founded it.
    pub founded: bool,
    /// Our grant; none for the founder.
    pub grant: Option<SignedGrant>,
    /// A chain of authority that was given after the grant, as bytes.
    pub delegation: Option<Vec<u8>>,
    /// When we joined or founded it.
    pub joined_at: UnixTime,
    /// The invite by which we joined.
    pub invite: Option<InviteToken>,
}

impl ScopeRow {
    /// The scope's id.
    pub fn id(&self) -> ScopeId {
        self.root.id()
    }
}

impl Store {
    /// Every scope, in the order of joining.
    pub async fn scopes(&self) -> Result<Vec<ScopeRow>, StoreError> {
        let sql = "SELECT founder, nonce, name, founded, grant_form, delegation, joined_at, invite FROM scopes ORDER BY joined_at, scope";
        sqlx::query(sql).fetch_all(&self.read).await?.iter().map(scope).collect()
    }

    /// Stores a scope, replacing what was known of it but the time of joining.
    pub async fn put_scope(&self, row: &ScopeRow, entry: &Entry) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let sql = "INSERT INTO scopes (scope, founder, nonce, name, founded, grant_form, delegation, joined_at, invite) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET name = excluded.name, founded = excluded.founded, \
             grant_form = excluded.grant_form, delegation = excluded.delegation, invite = excluded.invite";
        sqlx::query(sql)
            .bind(row.id().as_bytes().to_vec())
            .bind(row.root.founder.as_bytes().to_vec())
            .bind(row.root.nonce.to_vec())
            .bind(&row.name)
            .bind(row.founded)
            .bind(row.grant.as_ref().map(SignedGrant::encode))
            .bind(&row.delegation)
            .bind(signed(row.joined_at.0))
            .bind(row.invite.as_ref().map(InviteToken::encode))
            .execute(&mut *transaction)
            .await?;
        append(&mut transaction, entry).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Forgets a scope and its peers. Its invites, their uses and its revocations stay: they must hold when it is joined
    /// again. Says whether we were in it.
    pub async fn remove_scope(&self, scope: &ScopeId, entry: &Entry) -> Result<bool, StoreError> {
        let id = scope.as_bytes().to_vec();
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM peers WHERE scope = ?").bind(&id).execute(&mut *transaction).await?;
        let done =
            sqlx::query("DELETE FROM scopes WHERE scope = ?").bind(&id).execute(&mut *transaction).await?;
        if done.rows_affected() > 0 {
            append(&mut transaction, entry).await?;
        }
        transaction.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Stores a verified revocation. Says whether it was new.
    pub async fn put_revocation(&self, revocation: &Revocation, entry: &Entry) -> Result<bool, StoreError> {
        let form = revocation.signed();
        let mut transaction = self.begin().await?;
        let done = sqlx::query("INSERT INTO revocations (scope, form) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(form.scope().as_bytes().to_vec())
            .bind(form.encode())
            .execute(&mut *transaction)
            .await?;
        let is_new = done.rows_affected() > 0;
        if is_new {
            append(&mut transaction, entry).await?;
        }
        transaction.commit().await?;
        Ok(is_new)
    }

    /// The revocations of a scope in the order of their coming, to be verified again.
    pub async fn revocations(&self, scope: &ScopeId) -> Result<Vec<SignedRevocation>, StoreError> {
        let sql = "SELECT form FROM revocations WHERE scope = ? ORDER BY seq";
        let rows = sqlx::query(sql).bind(scope.as_bytes().to_vec()).fetch_all(&self.read).await?;
        let form = |row: &SqliteRow| {
            let form: Vec<u8> = row.try_get(0)?;
            SignedRevocation::decode(&form).map_err(|_| StoreError::Damaged { what: "revocation" })
        };
        rows.iter().map(form).collect()
    }
}

fn scope(row: &SqliteRow) -> Result<ScopeRow, StoreError> {
    let founder = NodeId::from_bytes(&bytes(row.try_get("founder")?, "founder's id")?);
    let grant: Option<Vec<u8>> = row.try_get("grant_form")?;
    let grant = grant.map(|form| SignedGrant::decode(&form)).transpose();
    let invite: Option<Vec<u8>> = row.try_get("invite")?;
    let invite = invite.map(|form| InviteToken::decode(&form)).transpose();
    Ok(ScopeRow {
        root: ScopeRoot {
            founder: founder.map_err(|_| StoreError::Damaged { what: "founder's id" })?,
            nonce: bytes(row.try_get("nonce")?, "scope's nonce")?,
        },
        name: row.try_get("name")?,
        founded: row.try_get("founded")?,
        grant: grant.map_err(|_| StoreError::Damaged { what: "grant" })?,
        delegation: row.try_get("delegation")?,
        joined_at: UnixTime(unsigned(row.try_get("joined_at")?)),
        invite: invite.map_err(|_| StoreError::Damaged { what: "invite" })?,
    })
}
