//! Invites, joining, leaving, revoking.

use serde::{Deserialize, Serialize};

use super::node::Role;

/// Body of `POST /api/invites`. Without `scope` it is for the only scope of the node; a node in no scope founds one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteRequest {
    /// Name of the mesh, at most 64 bytes; names a scope that is founded by this request, else a label in the invite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long it lives: `90m`, `24h`, `7d`, `never`. Default `24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// How many different nodes may use it, 0 for any number. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// Role of those who join. Default `member`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Whether those who join may invite others. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub can_invite: Option<bool>,
    /// Scope by id, unique prefix of the id, or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// A new invite. The only answer that carries a token: whoever holds it may join.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteCreated {
    /// The bare token, base64url.
    pub token: String,
    /// The same as `qmt://mesh/join/<token>`.
    pub url: String,
    /// Its id, a UUID.
    pub invite_id: String,
    /// Id of the scope it admits to, 64 hex digits.
    pub scope: String,
    /// Name of that scope; may be empty.
    #[serde(default)]
    pub scope_name: String,
    /// When it ends, Unix seconds; none for never.
    #[serde(default)]
    pub expires_at: Option<u64>,
    /// How many different nodes may use it; 0 for any number.
    pub max_uses: u32,
    /// Version (size) of the smallest QR code at level L that holds the token.
    pub qr_version: u8,
    /// Where the recovery key was written, when this request founded the scope. Its owner moves it to a safe place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_key_file: Option<String>,
}

impl std::fmt::Debug for InviteCreated {
    /// Leaves the token out: invites are never logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InviteCreated")
            .field("invite_id", &self.invite_id)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// One invite that the answering node issued.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteView {
    /// Its id, a UUID.
    pub id: String,
    /// Id of the scope, 64 hex digits.
    pub scope: String,
    /// Name of the scope; may be empty.
    #[serde(default)]
    pub scope_name: String,
    /// The name written into the invite; none without one.
    #[serde(default)]
    pub name: Option<String>,
    /// When it was issued, Unix seconds.
    pub created_at: u64,
    /// When it ends, Unix seconds; none for never.
    #[serde(default)]
    pub expires_at: Option<u64>,
    /// How many different nodes may use it; 0 for any number.
    pub max_uses: u32,
    /// How many did.
    pub uses: u32,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Role of those who join.
    pub role: Role,
    /// Whether those who join may invite others.
    #[serde(default)]
    pub can_invite: bool,
    /// Ids of the nodes that used it, in order of use.
    #[serde(default)]
    pub holders: Vec<String>,
}

/// Body of `POST /api/revoke`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RevokeRequest {
    /// An invite's id or a unique prefix of it, or a node's id or name.
    pub subject: String,
    /// Scope by id, unique prefix or name, when the subject is in several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// Body of `POST /api/recovery/revoke`: a revocation by a scope's recovery key, which reaches everybody, its founder too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RecoverRequest {
    /// A node's id or name.
    pub subject: String,
    /// Scope by id, unique prefix or name, when the subject is in several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The file of the recovery key, as the answering node sees it.
    pub recovery_key_file: String,
}

/// Body of `POST /api/admins`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AppointRequest {
    /// The member to appoint: its id or name.
    pub node: String,
    /// Scope by id, unique prefix or name, when the node is in several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The file of the recovery key, as the answering node sees it; without it the answering node must be the founder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_key_file: Option<String>,
}

/// A new admin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Appointed {
    /// Id of the node.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Id of the scope, 64 hex digits.
    pub scope: String,
    /// When its grant ends unless renewed, Unix seconds.
    pub until: u64,
}

/// What a revocation ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Revoked {
    /// Whether an invite or a node was revoked.
    pub kind: RevokedKind,
    /// Its full id.
    pub id: String,
    /// Name of the node, or the name in the invite; may be empty.
    #[serde(default)]
    pub name: String,
    /// Id of the scope in which it holds, 64 hex digits.
    pub scope: String,
}

/// What was revoked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RevokedKind {
    /// An invite: nobody joins with it any more, and whoever did is out again.
    Invite,
    /// A node: its membership ended.
    Node,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Body of `POST /api/join`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct JoinRequest {
    /// The invite: a bare token or a `qmt://mesh/join/` URL.
    pub token: String,
}

impl std::fmt::Debug for JoinRequest {
    /// Leaves the token out: invites are never logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").finish_non_exhaustive()
    }
}

/// A membership gained. Joining a scope again with a valid invite is no error and renews the grant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Joined {
    /// Id of the scope, 64 hex digits.
    pub scope: String,
    /// Its name; may be empty.
    pub name: String,
    /// The role of the answering node in it.
    pub role: Role,
    /// Id of the node that let it in.
    pub issuer: String,
}

/// Body of `POST /api/leave`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeaveRequest {
    /// Scope by id, unique prefix of the id, or name.
    pub scope: String,
}

/// A membership given up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Left {
    /// Id of the scope, 64 hex digits.
    pub scope: String,
    /// Its name; may be empty.
    #[serde(default)]
    pub name: String,
}
