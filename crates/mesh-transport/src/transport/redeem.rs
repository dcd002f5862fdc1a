//! The joiner's side of an invite.

use std::sync::Arc;

use mesh_identity::{AdmissionRequest, Invite};

use super::{
    Admitted, Inner,
    dial::{CloseOnDrop, connect, connection_permit},
    hello::{self, HelloFailure},
};
use crate::{
    connection::DialVia,
    error::{CloseCode, DialError, RedeemError, Refusal},
    proto::hello::Shown,
};

/// A lost reply is asked for again this often: the issuer counts one use.
const ATTEMPTS: usize = 3;

pub(super) async fn redeem(
    inner: &Arc<Inner>,
    invite: &Invite,
    request: AdmissionRequest,
) -> Result<Admitted, RedeemError> {
    let after = inner.config.redeem_timeout;
    let work = async {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match attempt(inner, invite, request.clone()).await {
                Err(RedeemError::Unreachable(DialError::Lost { .. })) if left > 0 => {}
                done => return done,
            }
        }
    };
    let node = invite.issuer();
    let timed_out = || Err(RedeemError::Unreachable(DialError::TimedOut { node, after }));
    tokio::time::timeout(after, work).await.unwrap_or_else(|_| timed_out())
}

async fn attempt(inner: &Inner, invite: &Invite, request: AdmissionRequest) -> Result<Admitted, RedeemError> {
    let issuer = invite.issuer();
    if issuer == inner.me {
        return Err(RedeemError::Unreachable(DialError::Oneself));
    }
    if inner.is_closing() {
        return Err(RedeemError::Unreachable(DialError::Closed));
    }
    let _permit = connection_permit(inner).map_err(RedeemError::Unreachable)?;
    let (scope, hints) = (invite.grant().scope, invite.grant().hints.clone());
    let via = DialVia { relay_token: Some(invite.relay_token()), direct_only: false };
    let at = inner.book.with_found(&issuer, hints.clone());
    let conn = connect(inner, inner.drivers_for(&scope), &scope, issuer, &at, via).await;
    let conn = conn.map_err(RedeemError::Unreachable)?;
    let _closer = CloseOnDrop(Some(conn.clone()));
    let shown = Shown::Invite(Box::new(request));
    let linked = match hello::as_dialer(inner, &conn, scope, &shown, Some(invite.grant().clone())).await {
        Ok(linked) => linked,
        Err(failure) => {
            conn.close(failure.close_code(), "hello failed");
            return Err(match failure {
                HelloFailure::Refused(Refusal::Invite(error)) => RedeemError::Refused(error),
                HelloFailure::Refused(refusal) | HelloFailure::Untrusted(refusal) => {
                    RedeemError::Hello(refusal)
                }
                HelloFailure::BadIssue(error) => RedeemError::BadGrant(error),
                other => RedeemError::Unreachable(other.into_dial_error(issuer, inner)),
            });
        }
    };
    conn.close(CloseCode::Done, "redeemed");
    let grant = linked.issued.ok_or(RedeemError::Hello(Refusal::NotAdmitted))?;
    Ok(Admitted { grant: *grant, issuer, issuer_addr: hints })
}
