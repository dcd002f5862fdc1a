//! The invites that this node issued, and the ledger of their uses.

use mesh_identity::{
    Expiry, Invite, InviteId, InviteToken, LedgerError, NodeId, Permissions, RedemptionLedger, Role, ScopeId,
    UnixTime, Use, UseOutcome,
};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::audit::{Entry, append};
use super::{Store, StoreError, bytes, signed, unsigned};

/// An invite that this node issued, with what became of it.
#[derive(Debug, Clone)]
pub struct IssuedInvite {
    /// Its id.
    pub id: InviteId,
    /// The scope it admits to.
    pub scope: ScopeId,
    /// The invite itself.
    pub token: InviteToken,
    /// The name in it.
    pub name: Option<String>,
    /// When it was issued.
    pub created_at: UnixTime,
    /// When it ends.
    pub expires_at: Expiry,
    /// How many different nodes it admits; 0 for any number.
    pub max_uses: u32,
    /// The role it gives.
    pub role: Role,
    /// Whether those who join may invite others.
    pub can_invite: bool,
    /// When it was revoked; none when it was not.
    pub revoked_at: Option<UnixTime>,
    /// Who used it and when, in order of use.
    pub uses: Vec<(NodeId, UnixTime)>,
}

impl Store {
    /// Stores an invite that was just issued. Must be done before the token is shown to anybody.
    pub async fn put_invite(&self, invite: &Invite, now: UnixTime, entry: &Entry) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let grant = invite.grant();
        let Permissions { role, can_invite, .. } = grant.permissions;
        let sql = "INSERT INTO invites (invite, scope, token, name, created, expires, max_uses, role, can_invite) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING";
        let done = sqlx::query(sql)
            .bind(grant.invite_id.as_bytes().to_vec())
            .bind(grant.scope.as_bytes().to_vec())
            .bind(invite.token().encode())
            .bind(&grant.mesh_name)
            .bind(signed(now.0))
            .bind(signed(grant.expires_at.time().map_or(0, |time| time.0)))
            .bind(i64::from(grant.max_uses))
            .bind(role.to_string())
            .bind(can_invite)
            .execute(&mut *transaction)
            .await?;
        if done.rows_affected() > 0 {
            append(&mut transaction, entry).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The invites of this node, newest first, with their uses.
    pub async fn invites(&self) -> Result<Vec<IssuedInvite>, StoreError> {
        let sql = "SELECT i.*, e.at AS ended FROM invites i LEFT JOIN ended_invites e USING (invite) ORDER BY i.invite DESC";
        let rows = sqlx::query(sql).fetch_all(&self.read).await?;
        let mut invites = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut invite = issued(row)?;
            invite.uses = self.uses(&invite.id).await?;
            invites.push(invite);
        }
        Ok(invites)
    }

    /// Who used an invite and when, in order of use.
    pub async fn uses(&self, invite: &InviteId) -> Result<Vec<(NodeId, UnixTime)>, StoreError> {
        let sql = "SELECT holder, at FROM redemptions WHERE invite = ? ORDER BY seq";
        let rows = sqlx::query(sql).bind(invite.as_bytes().to_vec()).fetch_all(&self.read).await?;
        let entry = |row: &SqliteRow| {
            let holder = NodeId::from_bytes(&bytes(row.try_get(0)?, "holder's id")?);
            let holder = holder.map_err(|_| StoreError::Damaged { what: "holder's id" })?;
            Ok((holder, UnixTime(unsigned(row.try_get(1)?))))
        };
        rows.iter().map(entry).collect()
    }

    /// Ends an invite here: the ledger admits nobody with it any more. Ending it again keeps the first time.
    pub async fn end_invite(
        &self,
        invite: &InviteId,
        now: UnixTime,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query("INSERT INTO ended_invites (invite, at) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(invite.as_bytes().to_vec())
            .bind(signed(now.0))
            .execute(&mut *transaction)
            .await?;
        if done.rows_affected() > 0 {
            append(&mut transaction, entry).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// [`RedemptionLedger::record`] with the store's own error. A use that admits is written to the trail in one step
    /// with it.
    async fn record_use(&self, wish: Use, entry: Entry) -> Result<UseOutcome, StoreError> {
        let (invite, holder) = (wish.invite.as_bytes().to_vec(), wish.holder.as_bytes().to_vec());
        let mut transaction = self.begin().await?; // rolled back when dropped
        let sql = "SELECT (SELECT count(*) FROM ended_invites WHERE invite = ?1), \
             (SELECT count(*) FROM redemptions WHERE invite = ?1 AND holder = ?2), \
             (SELECT count(*) FROM redemptions WHERE invite = ?1)";
        let row = sqlx::query(sql).bind(&invite).bind(&holder).fetch_one(&mut *transaction).await?;
        let (ended, mine, all): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if ended > 0 {
            return Ok(UseOutcome::Revoked);
        }
        if mine > 0 {
            append(&mut transaction, &entry.with("again", true)).await?;
            transaction.commit().await?;
            return Ok(UseOutcome::Repeated);
        }
        if wish.max_uses != 0 && all >= i64::from(wish.max_uses) {
            return Ok(UseOutcome::UsedUp);
        }
        sqlx::query("INSERT INTO redemptions (invite, holder, at) VALUES (?, ?, ?)")
            .bind(&invite)
            .bind(&holder)
            .bind(signed(wish.at.0))
            .execute(&mut *transaction)
            .await?;
        append(&mut transaction, &entry.with("use", all + 1)).await?;
        transaction.commit().await?;
        Ok(UseOutcome::First { uses: u32::try_from(all + 1).unwrap_or(u32::MAX) })
    }
}

/// The ledger, for one admission: what the trail will say of it.
#[derive(Debug)]
pub struct Recorded<'a> {
    /// The database.
    pub store: &'a Store,
    /// The row, written when the use admits.
    pub entry: Entry,
}

impl RedemptionLedger for Recorded<'_> {
    async fn record(&self, wish: Use) -> Result<UseOutcome, LedgerError> {
        let recorded = self.store.record_use(wish, self.entry.clone()).await;
        recorded.map_err(|error| {
            tracing::warn!(error = %crate::node::chain(&error), "the use of an invite could not be recorded; nobody was admitted");
            LedgerError(Box::new(error))
        })
    }
}

fn issued(row: &SqliteRow) -> Result<IssuedInvite, StoreError> {
    let damaged = |what| StoreError::Damaged { what };
    let token: Vec<u8> = row.try_get("token")?;
    let role: String = row.try_get("role")?;
    let expires = UnixTime(unsigned(row.try_get("expires")?));
    let ended: Option<i64> = row.try_get("ended")?;
    Ok(IssuedInvite {
        id: InviteId::from_bytes(bytes(row.try_get("invite")?, "invite's id")?)
            .map_err(|_| damaged("invite's id"))?,
        scope: ScopeId::from_bytes(bytes(row.try_get("scope")?, "scope's id")?),
        token: InviteToken::decode(&token).map_err(|_| damaged("invite"))?,
        name: row.try_get("name")?,
        created_at: UnixTime(unsigned(row.try_get("created")?)),
        expires_at: if expires.0 == 0 { Expiry::NEVER } else { Expiry::at(expires) },
        max_uses: u32::try_from(row.try_get::<i64, _>("max_uses")?).map_err(|_| damaged("invite's uses"))?,
        role: role.parse().map_err(|_| damaged("role"))?,
        can_invite: row.try_get("can_invite")?,
        revoked_at: ended.map(|at| UnixTime(unsigned(at))),
        uses: Vec::new(),
    })
}
