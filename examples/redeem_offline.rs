//! An invite from its text to a membership with mesh-identity alone: no socket, no disk, no runtime.
//!
//! The joiner's half needs nobody: the text is parsed, its signatures are verified, and what it says can be read. The
//! issuer's half counts uses in a ledger, here one in memory. Then every way in which an invite can fail, with what a
//! person is told and what mends it.
//!
//! `cargo run --release -p qmt-examples --example redeem_offline`

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mesh_identity::{
    AdmissionRequest, Authority, DeviceDelegation, Expiry, Founding, InviteError, InviteOptions, InviteToken,
    LedgerError, MemoryLedger, NodeKey, NodeName, Permissions, RedemptionLedger, RevocationSet, ScopeId,
    SignedGrant, UnixTime, Use, UseOutcome, redeem,
};

const DAY: Duration = Duration::from_secs(86_400);

fn main() -> Result<()> {
    let now = UnixTime::now();
    let founder = Issuer::new()?;
    let options = InviteOptions { name: Some("home".to_owned()), max_uses: 2, ..InviteOptions::default() };
    let text = founder.authority.issue_invite(&options, now)?.to_url();

    // The joiner, offline: the text proves itself.
    let token = InviteToken::parse(&text)?;
    let invite = token.verify(now)?;
    let says = invite.grant();
    println!("{} characters invite to {}", text.len(), says.mesh_name.as_deref().unwrap_or("a mesh"));
    println!("  as a {} until {}, {} uses", says.permissions.role, says.expires_at, says.max_uses);
    println!("  issued by {}", invite.issuer());

    // The issuer: as many nodes as it has uses, each as often as it asks.
    let (laptop, tablet, phone) = (NodeKey::generate(), NodeKey::generate(), NodeKey::generate());
    for (name, key) in [("laptop", &laptop), ("laptop", &laptop), ("tablet", &tablet), ("phone", &phone)] {
        match founder.redeem(&token, key, name, now) {
            Ok(grant) => {
                let grant = grant.verify_for(&key.node_id(), &says.scope, now, &founder.revoked)?;
                println!("{name}: {} until {}", grant.role, grant.expires_at);
            }
            Err(refused) => println!("{name}: {refused}"),
        }
    }

    println!("\nWhat can be wrong with an invite:");
    for error in faults(&founder, &token, now)? {
        println!("{:>3}  {error}\n     mend: {}", error.code(), error.mend());
    }
    Ok(())
}

/// Whoever may admit to a scope: its authority, its count of uses, and what it knows to be revoked.
struct Issuer<L> {
    authority: Authority,
    ledger: L,
    revoked: RevocationSet,
}

impl Issuer<MemoryLedger> {
    fn new() -> Result<Self> {
        let key = NodeKey::generate();
        let authority = Authority::founder(key.clone(), Founding::new(&key).root)?;
        let revoked = RevocationSet::new(authority.scope());
        Ok(Self { authority, ledger: MemoryLedger::new(), revoked })
    }
}

impl<L: RedemptionLedger> Issuer<L> {
    fn redeem(
        &self,
        token: &InviteToken,
        by: &NodeKey,
        name: &str,
        now: UnixTime,
    ) -> Result<SignedGrant, InviteError> {
        self.redeem_for(token, by, name, None, now)
    }

    /// `by` is the key that a link would have proved; nothing in the request can name another one.
    fn redeem_for(
        &self,
        token: &InviteToken,
        by: &NodeKey,
        name: &str,
        device: Option<DeviceDelegation>,
        now: UnixTime,
    ) -> Result<SignedGrant, InviteError> {
        let request =
            AdmissionRequest { token: token.clone(), node_name: NodeName::from_lossy(name), device };
        run(redeem(&self.authority, &request, by.node_id(), &self.ledger, &self.revoked, now))
    }
}

/// A ledger whose disk is full. Nobody is admitted by a use that was not written down.
struct FullDisk;

impl RedemptionLedger for FullDisk {
    async fn record(&self, _: Use) -> Result<UseOutcome, LedgerError> {
        Err(LedgerError(std::io::Error::from(std::io::ErrorKind::StorageFull).into()))
    }
}

/// One invite for each way to fail, in the order of the codes.
fn faults(founder: &Issuer<MemoryLedger>, good: &InviteToken, now: UnixTime) -> Result<Vec<InviteError>> {
    let text = good.to_string();
    let joiner = NodeKey::generate();
    let issue = |options: &InviteOptions| founder.authority.issue_invite(options, now);

    let mut found = Vec::new();
    // The text.
    let damaged = format!("{}!{}", &text[..40], &text[41..]);
    let texts = [
        String::new(),
        "A".repeat(5_000),
        joiner.node_id().to_string(),
        "192.0.2.1:9000".to_owned(),
        "${QMT_INVITE}".to_owned(),
        damaged,
        text[..text.len() - 8].to_owned(),
        format!("{text}AAAA"),
        format!("Ag{}", &text[2..]),
    ];
    for text in texts {
        found.push(InviteToken::parse(&text).err().context("a wrong text was parsed")?);
    }
    // What it says, and when.
    let forged = format!("{}{}", &text[..text.len() - 12], "A".repeat(12));
    found.push(refused(InviteToken::parse(&forged)?.verify(now))?);
    found.push(refused(good.verify(now.plus(2 * DAY)))?);
    // The issuer's answer.
    let other = Issuer::new()?;
    found.push(refused(founder.redeem(good, &joiner, "late", now))?);
    let ended = issue(&InviteOptions::default())?;
    founder.ledger.revoke(ended.id());
    found.push(refused(founder.redeem(&ended, &joiner, "laptop", now))?);
    found.push(refused(other.redeem(good, &joiner, "laptop", now))?);
    found.push(refused(admin_of(founder, now)?.redeem(good, &joiner, "laptop", now))?);
    let fresh = issue(&InviteOptions::default())?;
    let elsewhere = ScopeId::lan(None);
    let statement =
        DeviceDelegation::sign(&NodeKey::generate(), &joiner.node_id(), &elsewhere, Expiry::NEVER);
    found.push(refused(founder.redeem_for(&fresh, &joiner, "laptop", Some(statement), now))?);
    let full =
        Issuer { authority: founder.authority.clone(), ledger: FullDisk, revoked: founder.revoked.clone() };
    found.push(refused(full.redeem(&fresh, &joiner, "laptop", now))?);
    Ok(found)
}

/// Another node that may admit to the same scope, by the founder's grant.
fn admin_of(founder: &Issuer<MemoryLedger>, now: UnixTime) -> Result<Issuer<MemoryLedger>> {
    let key = NodeKey::generate();
    let name = NodeName::new("admin")?;
    let grant = founder.authority.sign_grant(key.node_id(), name, Permissions::ADMIN, None, now)?;
    let authority = Authority::from_grant(key, &grant).context("an admin's grant lets it admit")?;
    Ok(Issuer { authority, ledger: MemoryLedger::new(), revoked: founder.revoked.clone() })
}

fn refused<T>(result: Result<T, InviteError>) -> Result<InviteError> {
    match result {
        Ok(_) => bail!("an invite held that should not"),
        Err(error) => Ok(error),
    }
}

/// The memory ledger never waits, so no runtime is needed.
fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}
