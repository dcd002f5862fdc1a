//! What a node may do in a scope.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::wire::DecodeError;

/// What a node is in a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything that the scope offers.
    Member,
    /// Uses what is shared with clients; opens no tunnels and changes nothing at others.
    Client,
}

/// `member` or `client`.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Member => "member",
            Self::Client => "client",
        })
    }
}

/// The text names no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("unknown role (expected member or client)")]
pub struct InvalidRole;

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        match text {
            "member" => Ok(Self::Member),
            "client" => Ok(Self::Client),
            _ => Err(InvalidRole),
        }
    }
}

/// A role and what it may do to the membership of others. One byte on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Permissions {
    /// What the node is.
    pub role: Role,
    /// Whether it may sign invites, and admit whoever redeems them.
    pub can_invite: bool,
    /// Whether it may admit, and revoke any node but the founder. Members only.
    pub admin: bool,
}

const CLIENT_BIT: u8 = 1;
const CAN_INVITE_BIT: u8 = 2;
const ADMIN_BIT: u8 = 4;

impl Permissions {
    /// A member that invites nobody.
    pub const MEMBER: Self = Self { role: Role::Member, can_invite: false, admin: false };
    /// A client that invites nobody.
    pub const CLIENT: Self = Self { role: Role::Client, can_invite: false, admin: false };
    /// A member that may invite.
    pub const INVITER: Self = Self { role: Role::Member, can_invite: true, admin: false };
    /// All there is: an admin, or what the founder itself has.
    pub const ADMIN: Self = Self { role: Role::Member, can_invite: true, admin: true };

    /// Whether the holder may admit others.
    pub fn may_admit(self) -> bool {
        self.can_invite || self.admin
    }

    /// Whether these give nothing that `parent` lacks.
    pub fn is_within(self, parent: Self) -> bool {
        (self.role == Role::Client || parent.role == Role::Member)
            && (!self.can_invite || parent.may_admit())
            && (!self.admin || parent.admin)
    }

    /// Whether they can stand on the wire: an admin is a member.
    pub(crate) fn are_consistent(self) -> bool {
        !self.admin || self.role == Role::Member
    }

    pub(crate) fn to_byte(self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.role == Role::Client, CLIENT_BIT)
            | bit(self.can_invite, CAN_INVITE_BIT)
            | bit(self.admin, ADMIN_BIT)
    }

    pub(crate) fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        let permissions = Self {
            role: if byte & CLIENT_BIT == 0 { Role::Member } else { Role::Client },
            can_invite: byte & CAN_INVITE_BIT != 0,
            admin: byte & ADMIN_BIT != 0,
        };
        if permissions.to_byte() != byte || !permissions.are_consistent() {
            return Err(DecodeError::Invalid { what: "permissions" });
        }
        Ok(permissions)
    }
}

/// Such as `member`, `client, may invite` or `member, may invite, admin`.
impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.role)?;
        if self.can_invite {
            f.write_str(", may invite")?;
        }
        if self.admin { f.write_str(", admin") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_byte() -> impl Iterator<Item = Permissions> {
        (0..=u8::MAX).filter_map(|byte| Permissions::from_byte(byte).ok())
    }

    #[test]
    fn six_bytes_are_permissions_and_each_is_its_own_form() {
        assert_eq!(every_byte().count(), 6);
        assert!(
            every_byte().all(|permissions| Permissions::from_byte(permissions.to_byte()) == Ok(permissions))
        );
    }

    #[test]
    fn within_is_an_order_below_admin() {
        for a in every_byte() {
            assert!(a.is_within(a) && a.is_within(Permissions::ADMIN));
            for b in every_byte() {
                for c in every_byte() {
                    assert!(!(a.is_within(b) && b.is_within(c)) || a.is_within(c), "{a} {b} {c}");
                }
            }
        }
        assert!(!Permissions::MEMBER.is_within(Permissions::CLIENT));
        assert!(!Permissions::INVITER.is_within(Permissions::MEMBER));
        assert!(!Permissions::ADMIN.is_within(Permissions::INVITER));
    }

    #[test]
    fn roles_have_text_forms() {
        for role in [Role::Member, Role::Client] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert_eq!("admin".parse::<Role>(), Err(InvalidRole));
        assert_eq!(Permissions::ADMIN.to_string(), "member, may invite, admin");
    }
}
