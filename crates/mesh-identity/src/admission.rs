//! Redeeming an invite at its issuer.

use serde::{Deserialize, Serialize};

use crate::authority::{Authority, Subject};
use crate::key::{Domain, Signature};
use crate::ledger::{RedemptionLedger, Use, UseOutcome};
use crate::wire::{DecodeError, Reader, serde_as_encoded};
use crate::{
    Expiry, Invite, InviteError, InviteToken, NodeId, NodeKey, NodeName, RevocationSet, ScopeId, SignedGrant,
    UnixTime,
};

const DEVICE_DOMAIN: Domain = Domain::new("qmt-mesh/device/v1");
/// Lasting key, expiry, signature.
const DEVICE_BYTES_MAX: usize = 32 + 6 + 64;

/// What a joiner asks of an invite's issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmissionRequest {
    /// The invite.
    pub token: InviteToken,
    /// The name that the grant shall carry.
    pub node_name: NodeName,
    /// For a throw-away key: the lasting key's word for it.
    pub device: Option<DeviceDelegation>,
}

/// A lasting key's statement that a throw-away key is its own. An invite counts both as one holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceDelegation {
    /// The key that lasts, kept in `QMT_HOME`.
    pub lasting: NodeId,
    /// When the statement, and every grant that rests on it, ends.
    pub expires: Expiry,
    signature: Signature,
}

impl DeviceDelegation {
    /// `lasting` says that `device` acts for it in this scope until then.
    pub fn sign(lasting: &NodeKey, device: &NodeId, scope: &ScopeId, expires: Expiry) -> Self {
        let signature = lasting.sign(DEVICE_DOMAIN, scope, &device_statement(device, expires));
        Self { lasting: lasting.node_id(), expires, signature }
    }

    /// Proves it for the key that the link has proved.
    ///
    /// # Errors
    /// [`InviteError::BadDevice`] when it is about another key or scope, ended, or not signed by the lasting key.
    pub fn verify(&self, device: &NodeId, scope: &ScopeId, now: UnixTime) -> Result<(), InviteError> {
        let statement = device_statement(device, self.expires);
        let is_signed = self.lasting.verify(DEVICE_DOMAIN, scope, &statement, &self.signature);
        if is_signed && !self.expires.is_over(now) { Ok(()) } else { Err(InviteError::BadDevice) }
    }

    /// The encoding, at most 102 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.lasting.as_bytes().to_vec();
        self.expires.put(&mut out);
        out.extend_from_slice(self.signature.as_bytes());
        out
    }

    /// Reads what [`DeviceDelegation::encode`] wrote; nothing is verified yet.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, DEVICE_BYTES_MAX)?;
        let lasting = NodeId::read(&mut reader)?;
        let expires = Expiry::read(&mut reader)?;
        let signature = Signature::read(&mut reader)?;
        reader.finish()?;
        Ok(Self { lasting, expires, signature })
    }
}

serde_as_encoded!(DeviceDelegation, "a lasting key's statement", DEVICE_BYTES_MAX);

fn device_statement(device: &NodeId, expires: Expiry) -> Vec<u8> {
    let mut out = device.as_bytes().to_vec();
    expires.put(&mut out);
    out
}

/// Admits the node that the link has proved, if its invite is this authority's and a use is left for it.
///
/// The use is durable before the grant exists. The same holder asking again, because an answer was lost or it lost its
/// grant, takes nothing more and gets a new grant, as long as the invite holds.
///
/// Cancel safe: dropped at any point, the holder has at most taken the use that its next attempt finds.
///
/// # Errors
/// [`InviteError`]; no use is taken, except that after [`InviteError::LedgerUnavailable`] one may be, for this holder.
pub async fn redeem<L: RedemptionLedger>(
    authority: &Authority,
    request: &AdmissionRequest,
    proved: NodeId,
    ledger: &L,
    revoked: &RevocationSet,
    now: UnixTime,
) -> Result<SignedGrant, InviteError> {
    let invite = request.token.verify(now)?;
    check_issuer(authority, &invite, now)?;
    let holder = match &request.device {
        Some(device) => {
            device.verify(&proved, &authority.scope(), now)?;
            Some(device.lasting)
        }
        None => None,
    };
    if is_revoked(&invite, &[proved, holder.unwrap_or(proved)], revoked)
        || revoked.ends_chain(authority.chain())
    {
        return Err(InviteError::Revoked);
    }
    let says = invite.grant();
    let wish =
        Use { invite: says.invite_id, holder: holder.unwrap_or(proved), max_uses: says.max_uses, at: now };
    match ledger.record(wish).await {
        Ok(UseOutcome::First { .. } | UseOutcome::Repeated) => {}
        Ok(UseOutcome::UsedUp) => return Err(InviteError::UsedUp),
        Ok(UseOutcome::Revoked) => return Err(InviteError::Revoked),
        Err(_) => return Err(InviteError::LedgerUnavailable),
    }
    let subject = Subject { id: proved, name: request.node_name.clone(), holder };
    let end = request.device.as_ref().map_or(Expiry::NEVER, |device| device.expires);
    authority
        .sign_grant_until(subject, says.permissions, Some(says.invite_id), end, revoked.after(now))
        .map_err(|_| InviteError::NotAllowed)
}

/// Only the issuer counts an invite's uses, and only with an authority that still covers what the invite gives.
fn check_issuer(authority: &Authority, invite: &Invite, now: UnixTime) -> Result<(), InviteError> {
    if authority.scope() != invite.grant().scope {
        return Err(InviteError::WrongScope);
    }
    if authority.node_id() != invite.issuer() {
        return Err(InviteError::WrongIssuer);
    }
    authority.chain().verify(now)?;
    if authority.chain().may_give(invite.grant().permissions) { Ok(()) } else { Err(InviteError::NotAllowed) }
}

/// A revoked node comes back only by an invite that was issued after its revocation.
fn is_revoked(invite: &Invite, joiners: &[NodeId], revoked: &RevocationSet) -> bool {
    let issued_at = invite.grant().invite_id.issued_at();
    revoked.ends_invite(invite)
        || joiners.iter().any(|node| revoked.node_below(node, invite.chain()) >= Some(issued_at))
}
