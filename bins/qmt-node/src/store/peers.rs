//! Members seen, with the addresses at which they may be found again after a restart.

use mesh_identity::{NodeAddr, NodeId, NodeName, ScopeId, UnixTime};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError, bytes, signed, unsigned};

/// Most peers remembered for one scope, those seen last; as many as gossip keeps members.
pub const PEERS_MAX: u32 = 2048;

/// A member as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPeer {
    /// The scope.
    pub scope: ScopeId,
    /// The node.
    pub node: NodeId,
    /// The name in its grant.
    pub name: NodeName,
    /// Where it could be dialed.
    pub addr: NodeAddr,
    /// When it was last seen alive.
    pub seen_at: UnixTime,
}

impl Store {
    /// Stores peers, all or none, replacing what was known of each; beyond [`PEERS_MAX`] the longest unseen are forgotten.
    pub async fn put_peers(&self, peers: &[SeenPeer]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for peer in peers {
            let addr = peer.addr.encode().map_err(|_| StoreError::Damaged { what: "address" })?;
            let sql = "INSERT INTO peers (scope, node, name, addr, seen_at) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE \
                 SET name = excluded.name, addr = excluded.addr, seen_at = excluded.seen_at";
            sqlx::query(sql)
                .bind(peer.scope.as_bytes().to_vec())
                .bind(peer.node.as_bytes().to_vec())
                .bind(peer.name.as_str())
                .bind(addr)
                .bind(signed(peer.seen_at.0))
                .execute(&mut *transaction)
                .await?;
        }
        let mut scopes: Vec<ScopeId> = peers.iter().map(|peer| peer.scope).collect();
        scopes.sort_unstable();
        scopes.dedup();
        for scope in scopes {
            let sql = "DELETE FROM peers WHERE scope = ?1 AND node IN \
                 (SELECT node FROM peers WHERE scope = ?1 ORDER BY seen_at DESC, node LIMIT -1 OFFSET ?2)";
            sqlx::query(sql)
                .bind(scope.as_bytes().to_vec())
                .bind(PEERS_MAX)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// The peers of a scope, last seen first.
    pub async fn peers(&self, scope: &ScopeId) -> Result<Vec<SeenPeer>, StoreError> {
        let sql = "SELECT node, name, addr, seen_at FROM peers WHERE scope = ? ORDER BY seen_at DESC, node";
        let rows = sqlx::query(sql).bind(scope.as_bytes().to_vec()).fetch_all(&self.read).await?;
        rows.iter().map(|row| peer(scope, row)).collect()
    }

    /// Forgets a peer. Says whether it was known.
    pub async fn remove_peer(&self, scope: &ScopeId, node: &NodeId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM peers WHERE scope = ? AND node = ?")
            .bind(scope.as_bytes().to_vec())
            .bind(node.as_bytes().to_vec())
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn peer(scope: &ScopeId, row: &SqliteRow) -> Result<SeenPeer, StoreError> {
    let damaged = |what| StoreError::Damaged { what };
    let addr: Vec<u8> = row.try_get("addr")?;
    let name: String = row.try_get("name")?;
    Ok(SeenPeer {
        scope: *scope,
        node: NodeId::from_bytes(&bytes(row.try_get("node")?, "node's id")?)
            .map_err(|_| damaged("node's id"))?,
        name: NodeName::new(name).map_err(|_| damaged("node's name"))?,
        addr: NodeAddr::decode(&addr).map_err(|_| damaged("address"))?,
        seen_at: UnixTime(unsigned(row.try_get("seen_at")?)),
    })
}
