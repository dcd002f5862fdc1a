//! Invites: what the token carries, and what verifying it proves.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::chain::{CHAIN_BYTES_MAX, Chain};
use crate::key::{Domain, Signature};
use crate::name::{MESH_NAME_BYTES_MAX, put_mesh_name, read_mesh_name};
use crate::wire::{DecodeError, Reader, put_varint, serde_as_encoded, to_hex};
use crate::{Expiry, InviteError, NodeAddr, NodeId, NodeKey, Permissions, ScopeId, UnixTime};

/// The version of the format that this build writes and reads.
pub(crate) const TOKEN_VERSION: u8 = 1;
/// Version, chain, id, permissions, expiry, uses, name, hints, signature at their longest.
const TOKEN_BYTES_MAX: usize =
    1 + CHAIN_BYTES_MAX + 16 + 1 + 6 + 5 + 1 + MESH_NAME_BYTES_MAX + crate::addr::ENCODED_BYTES_MAX + 64;
/// The same in base64url.
pub(crate) const TOKEN_CHARS_MAX: usize = (TOKEN_BYTES_MAX * 4).div_ceil(3);

const DOMAIN: Domain = Domain::new("qmt-mesh/invite/v1");
// blake3 key derivation context, fixed for ever.
const RELAY_CONTEXT: &str = "qmt-mesh 2026-11 relay token of an invite v1";

/// An invite's name: a UUID of version 7, which holds the time of issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct InviteId(Uuid);

/// The text or the bytes are no UUID of version 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an invite id (expected a version 7 uuid)")]
pub struct InvalidInviteId;

impl InviteId {
    /// A new id for an invite that is issued at `now`.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    pub fn generate(now: UnixTime) -> Self {
        let mut random = [0; 10];
        getrandom::fill(&mut random).expect("the operating system gives randomness");
        Self::from_parts(now, random)
    }

    pub(crate) fn from_parts(now: UnixTime, random: [u8; 10]) -> Self {
        let millis = now.0.saturating_mul(1000);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// An id from its 16 bytes.
    ///
    /// # Errors
    /// [`InvalidInviteId`] for a UUID of another version.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, InvalidInviteId> {
        Self::checked(Uuid::from_bytes(bytes))
    }

    fn checked(uuid: Uuid) -> Result<Self, InvalidInviteId> {
        let is_v7 = uuid.get_version_num() == 7 && uuid.get_variant() == uuid::Variant::RFC4122;
        if is_v7 { Ok(Self(uuid)) } else { Err(InvalidInviteId) }
    }

    /// Its 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// When its issuer says that it issued it.
    pub fn issued_at(&self) -> UnixTime {
        let millis = self.0.as_bytes()[..6].iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        UnixTime(millis / 1000)
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_bytes(reader.array()?)
            .map_err(|InvalidInviteId| DecodeError::Invalid { what: "invite id" })
    }
}

impl fmt::Display for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.hyphenated().to_string())
    }
}

impl FromStr for InviteId {
    type Err = InvalidInviteId;

    fn from_str(text: &str) -> Result<Self, InvalidInviteId> {
        Uuid::try_parse(text).map_err(|_| InvalidInviteId).and_then(Self::checked)
    }
}

impl<'de> Deserialize<'de> for InviteId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::checked(Uuid::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// What an invite says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InviteGrant {
    /// The format's version.
    pub version: u8,
    /// The invite's name.
    pub invite_id: InviteId,
    /// Who issued it, and who alone redeems it and counts its uses.
    pub inviter_peer_id: NodeId,
    /// The scope that it opens.
    pub scope: ScopeId,
    /// What the issuer calls the scope: a label at most, 1 to 64 bytes without control or invisible characters.
    pub mesh_name: Option<String>,
    /// When it ends.
    pub expires_at: Expiry,
    /// How many nodes it admits; 0 is no limit.
    pub max_uses: u32,
    /// What those nodes may do.
    pub permissions: Permissions,
    /// Where the issuer can be dialed.
    pub hints: NodeAddr,
}

/// An invite as it is passed around: parsed, not yet verified.
///
/// Whoever holds the text can join, so neither it nor its `Display` belongs in a log; `Debug` shows only the id.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteToken {
    chain: Chain,
    says: InviteGrant,
    signature: Signature,
}

impl InviteToken {
    pub(crate) fn sign(key: &NodeKey, chain: Chain, says: InviteGrant) -> Self {
        let signature = key.sign(DOMAIN, &says.scope, &signed_part(&chain, &says));
        Self { chain, says, signature }
    }

    /// The invite's name, as the unverified token says.
    pub fn id(&self) -> InviteId {
        self.says.invite_id
    }

    /// The scope, as the unverified token says.
    pub fn scope(&self) -> ScopeId {
        self.says.scope
    }

    /// The signed bytes and the signature. 182 bytes for a founder's invite with a 20-letter name and 30 bytes of relay URL.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = signed_part(&self.chain, &self.says);
        out.extend_from_slice(self.signature.as_bytes());
        out
    }

    /// Reads what [`InviteToken::encode`] wrote; no signature is verified yet.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, TOKEN_BYTES_MAX)?;
        let version = reader.byte()?;
        if version != TOKEN_VERSION {
            return Err(DecodeError::WrongVersion { found: version });
        }
        let chain = Chain::read(&mut reader)?;
        let says = InviteGrant {
            version,
            inviter_peer_id: chain.issuer(),
            scope: chain.scope(),
            invite_id: InviteId::read(&mut reader)?,
            permissions: Permissions::from_byte(reader.byte()?)?,
            expires_at: Expiry::read(&mut reader)?,
            max_uses: u32::try_from(reader.varint()?)
                .map_err(|_| DecodeError::Invalid { what: "number of uses" })?,
            mesh_name: read_mesh_name(&mut reader)?,
            hints: NodeAddr::read(&mut reader)?,
        };
        let signature = Signature::read(&mut reader)?;
        reader.finish()?;
        Ok(Self { chain, says, signature })
    }

    /// Proves offline that somebody whom the scope trusts wrote this, and that it has not ended.
    ///
    /// Uses, revocations and whether the issuer can be reached are known only at the issuer.
    ///
    /// # Errors
    /// [`InviteError`] names the first fault: signatures, then widening, then time.
    pub fn verify(&self, now: UnixTime) -> Result<Invite, InviteError> {
        let says = &self.says;
        self.chain.verify_signatures()?;
        let message = signed_part(&self.chain, says);
        if !says.inviter_peer_id.verify(DOMAIN, &says.scope, &message, &self.signature) {
            return Err(InviteError::BadSignature);
        }
        let passes_admin = says.permissions.admin && !self.chain.links.is_empty(); // only the root appoints admins
        if passes_admin
            || !self.chain.may_give(says.permissions)
            || !says.expires_at.is_within(self.chain.expires())
        {
            return Err(InviteError::Widened);
        }
        if says.expires_at.is_over(now) {
            return Err(InviteError::Expired { at: says.expires_at.time().unwrap_or(now) });
        }
        self.chain.verify(now)?;
        Ok(Invite(self.clone()))
    }
}

serde_as_encoded!(InviteToken, "an invite", TOKEN_BYTES_MAX);

impl fmt::Debug for InviteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InviteToken({})", self.id())
    }
}

fn signed_part(chain: &Chain, says: &InviteGrant) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.push(says.version);
    chain.put(&mut out);
    out.extend_from_slice(says.invite_id.as_bytes());
    out.push(says.permissions.to_byte());
    says.expires_at.put(&mut out);
    put_varint(&mut out, u64::from(says.max_uses));
    put_mesh_name(&mut out, says.mesh_name.as_deref());
    says.hints
        .put(&mut out)
        .expect("hints are checked where an invite is issued, and bounded where one is read");
    out
}

/// A verified invite: its issuer had the authority, and it had not ended when it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite(InviteToken);

impl Invite {
    /// What it says.
    pub fn grant(&self) -> &InviteGrant {
        &self.0.says
    }

    /// Who issued it and redeems it.
    pub fn issuer(&self) -> NodeId {
        self.0.says.inviter_peer_id
    }

    /// The issuer's authority.
    pub fn chain(&self) -> &Chain {
        &self.0.chain
    }

    /// The token that was verified.
    pub fn token(&self) -> &InviteToken {
        &self.0
    }

    /// What a holder shows to the scope's own relays before it is a member: 64 hexadecimal digits, derived from the whole
    /// token, from which the token cannot be found.
    pub fn relay_token(&self) -> String {
        to_hex(&blake3::derive_key(RELAY_CONTEXT, &self.0.encode()))
    }
}
