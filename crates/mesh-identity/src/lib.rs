//! The trust layer of the QMT mesh: who a node is, what a scope is, and who let whom into it.
//!
//! It opens no socket, spawns nothing, and reads no clock but in [`UnixTime::now`]; only [`key_file`] and the folder of a CA
//! touch the disk. How
//! the signed forms travel, and where redemptions and revocations are stored, is for the crates above it.
//!
//! The way of a node into a scope: someone with [`Authority`] issues an [`InviteToken`]; the joiner verifies it offline,
//! which gives an [`Invite`]; at the issuer [`redeem`] turns it into a [`SignedGrant`], which every peer verifies into a
//! [`Grant`].
//!
//! ```
//! use mesh_identity::{Authority, Founding, InviteOptions, InviteToken, NodeKey, UnixTime};
//!
//! let now = UnixTime::now();
//! let founder = NodeKey::generate();
//! let founding = Founding::new(&founder);
//! let authority = Authority::founder(founder, founding.root)?;
//! let token = authority.issue_invite(&InviteOptions::default(), now)?.to_string();
//!
//! let invite = InviteToken::parse(&token)?.verify(now)?;
//! assert_eq!(invite.issuer(), authority.node_id());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod addr;
mod admission;
mod authority;
mod base58;
pub mod ca;
mod chain;
mod error;
#[cfg(test)]
mod golden;
mod grant;
mod invite;
mod key;
pub mod key_file;
mod lan;
mod ledger;
mod name;
mod node_id;
mod permissions;
pub mod qr;
mod revocation;
mod revocation_set;
mod scope;
mod time;
mod token_text;
pub mod ttl;
mod wire;

pub use addr::{DIRECT_ADDRS_MAX, InvalidNodeAddr, NodeAddr, RELAY_URL_BYTES_MAX};
pub use admission::{AdmissionRequest, DeviceDelegation, redeem};
pub use authority::{Authority, DELEGATION_TTL, InviteOptions, IssueError};
pub use chain::{CHAIN_LINKS_MAX, Chain, ChainError, Delegation};
pub use error::{GrantError, InviteError, LooksLike};
pub use grant::{GRANT_TTL, Grant, SignedGrant};
pub use invite::{InvalidInviteId, Invite, InviteGrant, InviteId, InviteToken};
pub use key::{Domain, NodeKey, Signature};
pub use lan::LanScope;
pub use ledger::{LedgerError, MemoryLedger, RedemptionLedger, Use, UseOutcome};
pub use name::{InvalidNodeName, MESH_NAME_BYTES_MAX, NodeName};
pub use node_id::{InvalidNodeId, NodeId};
pub use permissions::{InvalidRole, Permissions, Role};
pub use revocation::{Revocation, RevocationError, Revoked, SignedRevocation};
pub use revocation_set::{Insertion, REVOCATIONS_MAX, RevocationSet};
pub use scope::{Founding, InvalidScopeId, ScopeId, ScopeRoot};
pub use time::{CLOCK_SKEW, Expiry, UnixTime};
pub use wire::DecodeError;
