//! Redeeming: once for each use, whatever crashes, repeats or runs at once.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use mesh_identity::{
    AdmissionRequest, Authority, DeviceDelegation, Expiry, InviteError, InviteOptions, InviteToken,
    LedgerError, MemoryLedger, NodeId, Permissions, RedemptionLedger, Revoked, SignedGrant, UnixTime, Use,
    UseOutcome, redeem,
};
use proptest::prelude::*;

use crate::fixture::{DAY, NOW, below, founder, founding, key, name, nothing_revoked, run};

fn invite(issuer: &Authority, max_uses: u32) -> InviteToken {
    issuer.issue_invite(&InviteOptions { max_uses, ..InviteOptions::default() }, NOW).expect("may")
}

fn request(token: &InviteToken) -> AdmissionRequest {
    AdmissionRequest { token: token.clone(), node_name: name("laptop"), device: None }
}

fn try_redeem(
    authority: &Authority,
    request: &AdmissionRequest,
    seed: u8,
    ledger: &impl RedemptionLedger,
) -> Result<SignedGrant, InviteError> {
    run(redeem(authority, request, key(seed).node_id(), ledger, &nothing_revoked(), NOW))
}

#[test]
fn a_redeemed_invite_is_a_grant_for_the_proved_key() {
    let (ledger, token) = (MemoryLedger::new(), invite(&founder(), 1));
    let signed = try_redeem(&founder(), &request(&token), 20, &ledger).expect("admitted");
    let grant = signed.verify(&founding().root.id(), NOW, &nothing_revoked()).expect("sound");
    assert_eq!(
        (grant.subject, grant.name.as_str(), grant.invite),
        (key(20).node_id(), "laptop", Some(token.id()))
    );
    assert_eq!(grant.expires_at, UnixTime(NOW.0 + 30 * DAY), "a membership outlives its invite");
}

#[test]
fn the_same_node_again_is_the_same_use_and_another_is_not() {
    let (ledger, token) = (MemoryLedger::new(), invite(&founder(), 1));
    for _ in 0..3 {
        assert!(try_redeem(&founder(), &request(&token), 20, &ledger).is_ok());
    }
    assert_eq!(try_redeem(&founder(), &request(&token), 21, &ledger), Err(InviteError::UsedUp));
    assert_eq!(ledger.holders(&token.id()), BTreeSet::from([key(20).node_id()]));
}

#[test]
fn zero_uses_is_no_limit() {
    let (ledger, token) = (MemoryLedger::new(), invite(&founder(), 0));
    assert!((20..40).all(|seed| try_redeem(&founder(), &request(&token), seed, &ledger).is_ok()));
}

#[test]
fn many_at_once_share_the_uses_there_are() {
    let (ledger, token) = (MemoryLedger::new(), invite(&founder(), 3));
    let attempt = |seed| try_redeem(&founder(), &request(&token), seed, &ledger).is_ok();
    let attempt = &attempt;
    let admitted = std::thread::scope(|scope| {
        let threads: Vec<_> = (20..36).map(|seed| scope.spawn(move || attempt(seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).filter(|ok| *ok).count()
    });
    assert_eq!((admitted, ledger.holders(&token.id()).len()), (3, 3));
}

#[test]
fn only_the_issuer_redeems() {
    let (ledger, token) = (MemoryLedger::new(), invite(&founder(), 1));
    let member = below(&founder(), 10, Permissions::INVITER);
    assert_eq!(try_redeem(&member, &request(&token), 20, &ledger), Err(InviteError::WrongIssuer));
    let other = mesh_identity::Founding::with_recovery(&key(1), key(3));
    let other = Authority::founder(key(1), other.root).expect("the founder");
    assert_eq!(try_redeem(&other, &request(&token), 20, &ledger), Err(InviteError::WrongScope));
    let of_member = invite(&member, 1);
    assert!(try_redeem(&member, &request(&of_member), 20, &ledger).is_ok());
    assert_eq!(try_redeem(&member, &request(&of_member), 21, &ledger), Err(InviteError::UsedUp));
}

#[test]
fn refusals_take_no_use() {
    let (ledger, token) = (MemoryLedger::new(), invite(&founder(), 1));
    let late = UnixTime(NOW.0 + 2 * DAY);
    let refused =
        run(redeem(&founder(), &request(&token), key(20).node_id(), &ledger, &nothing_revoked(), late));
    assert!(matches!(refused, Err(InviteError::Expired { .. })));
    assert!(ledger.holders(&token.id()).is_empty());
    assert!(try_redeem(&founder(), &request(&token), 21, &ledger).is_ok());
}

#[test]
fn an_authority_that_was_narrowed_gives_no_more_than_it_has() {
    let wide = below(&founder(), 10, Permissions::INVITER);
    let clients = Permissions { role: mesh_identity::Role::Client, can_invite: true, admin: false };
    let narrow = below(&founder(), 10, clients);
    let token = invite(&wide, 1);
    assert_eq!(try_redeem(&narrow, &request(&token), 20, &MemoryLedger::new()), Err(InviteError::NotAllowed));
}

#[test]
fn a_revoked_invite_issuer_or_joiner_is_refused() {
    let issuer = below(&founder(), 10, Permissions::INVITER);
    let token = invite(&issuer, 0);
    for what in
        [Revoked::Invite(token.id()), Revoked::Node(key(10).node_id()), Revoked::Node(key(20).node_id())]
    {
        let mut revoked = nothing_revoked();
        let signed = founder().revoke(what, NOW).expect("may");
        revoked.insert(signed.verify(&founding().root.id(), NOW).expect("sound"));
        let ledger = MemoryLedger::new();
        let refused = run(redeem(&issuer, &request(&token), key(20).node_id(), &ledger, &revoked, NOW));
        assert_eq!(refused, Err(InviteError::Revoked));
        assert!(ledger.holders(&token.id()).is_empty());
    }
    let ledger = MemoryLedger::new();
    ledger.revoke(token.id());
    assert_eq!(try_redeem(&issuer, &request(&token), 20, &ledger), Err(InviteError::Revoked));
}

#[test]
fn a_revoked_node_comes_back_only_by_an_invite_issued_since() {
    let mut revoked = nothing_revoked();
    let signed = founder().revoke(Revoked::Node(key(20).node_id()), NOW).expect("may");
    revoked.insert(signed.verify(&founding().root.id(), NOW).expect("sound"));
    let later = UnixTime(NOW.0 + 1);
    let fresh = founder().issue_invite(&InviteOptions::default(), later).expect("may");
    let admitted =
        run(redeem(&founder(), &request(&fresh), key(20).node_id(), &MemoryLedger::new(), &revoked, later));
    let grant = admitted.expect("admitted again");
    assert!(grant.verify(&founding().root.id(), later, &revoked).is_ok());
}

#[test]
fn a_throw_away_key_and_its_lasting_key_are_one_use() {
    let (ledger, token, scope) = (MemoryLedger::new(), invite(&founder(), 1), founding().root.id());
    let until = UnixTime(NOW.0 + DAY);
    let endorsed = |device: u8, lasting: u8| AdmissionRequest {
        device: Some(DeviceDelegation::sign(
            &key(lasting),
            &key(device).node_id(),
            &scope,
            Expiry::at(until),
        )),
        ..request(&token)
    };
    let signed = try_redeem(&founder(), &endorsed(30, 20), 30, &ledger).expect("admitted");
    let grant = signed.verify(&scope, NOW, &nothing_revoked()).expect("sound");
    assert_eq!((grant.subject, grant.holder), (key(30).node_id(), Some(key(20).node_id())));
    assert_eq!(grant.expires_at, until, "no longer than the lasting key said");
    assert!(try_redeem(&founder(), &endorsed(31, 20), 31, &ledger).is_ok());
    assert!(try_redeem(&founder(), &request(&token), 20, &ledger).is_ok());
    assert_eq!(try_redeem(&founder(), &endorsed(32, 21), 32, &ledger), Err(InviteError::UsedUp));
    assert_eq!(
        try_redeem(&founder(), &endorsed(30, 20), 33, &ledger),
        Err(InviteError::BadDevice),
        "another's words"
    );
    let mut revoked = nothing_revoked();
    let revocation = founder().revoke(Revoked::Node(key(20).node_id()), NOW).expect("may");
    revoked.insert(revocation.verify(&scope, NOW).expect("sound"));
    assert!(signed.verify(&scope, NOW, &revoked).is_err(), "it falls with the lasting key");
}

#[test]
fn a_throw_away_key_is_renewed_only_by_its_lasting_keys_new_word() {
    let (ledger, token, scope) = (MemoryLedger::new(), invite(&founder(), 1), founding().root.id());
    let said = |lasting: u8, device: u8, until| {
        DeviceDelegation::sign(&key(lasting), &key(device).node_id(), &scope, Expiry::at(until))
    };
    let (until, later) = (UnixTime(NOW.0 + DAY), UnixTime(NOW.0 + 2 * DAY));
    let asked = AdmissionRequest { device: Some(said(20, 30, until)), ..request(&token) };
    let signed = try_redeem(&founder(), &asked, 30, &ledger).expect("admitted");
    let held = signed.verify(&scope, NOW, &nothing_revoked()).expect("sound");
    let renewed_until = |device: Option<DeviceDelegation>| {
        let next = founder().renew(&held, device.as_ref(), NOW).expect("may");
        next.verify(&scope, NOW, &nothing_revoked()).expect("sound").expires_at
    };
    assert_eq!(renewed_until(Some(said(20, 30, later))), later);
    assert_eq!(renewed_until(None), until);
    assert_eq!(renewed_until(Some(said(21, 30, later))), until, "another lasting key's word");
    assert_eq!(renewed_until(Some(said(20, 31, later))), until, "a word for another key");
}

/// A ledger on a disk that the test can crash: before the write, after it, or slowly enough for others to run between.
struct Disk {
    holders: Mutex<BTreeSet<NodeId>>,
    fate: Mutex<Fate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// All goes well.
    Answered,
    /// The process dies before the use is on disk.
    LostBefore,
    /// The process dies after the use is on disk and before anybody hears of it.
    LostAfter,
    /// The answer is sent and lost on its way.
    AnswerLost,
}

/// Lets everybody else run once.
async fn step_aside() {
    let mut waited = false;
    poll_fn(|_| if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

impl RedemptionLedger for Disk {
    async fn record(&self, wish: Use) -> Result<UseOutcome, LedgerError> {
        let died = |when: &str| LedgerError(when.to_owned().into());
        let fate = *self.fate.lock().expect("no panic");
        step_aside().await;
        if fate == Fate::LostBefore {
            return Err(died("before the write"));
        }
        let outcome = {
            let mut holders = self.holders.lock().expect("no panic");
            let uses = u32::try_from(holders.len()).expect("few");
            if holders.contains(&wish.holder) {
                UseOutcome::Repeated
            } else if wish.max_uses != 0 && uses >= wish.max_uses {
                UseOutcome::UsedUp
            } else {
                holders.insert(wish.holder);
                UseOutcome::First { uses: uses + 1 }
            }
        };
        step_aside().await;
        if fate == Fate::LostAfter { Err(died("after the write")) } else { Ok(outcome) }
    }
}

type Attempt<'a> = Pin<Box<dyn Future<Output = Result<SignedGrant, InviteError>> + 'a>>;

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![Just(Fate::Answered), Just(Fate::LostBefore), Just(Fate::LostAfter), Just(Fate::AnswerLost)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Attempts by a few holders start, take steps in any order, are dropped half way, and meet crashes. At the end everybody
    /// tries again on a sound disk.
    #[test]
    fn no_schedule_admits_more_than_max_uses(
        max_uses in 1u32..4,
        schedule in proptest::collection::vec((0u8..6, fate(), any::<u8>()), 1..24),
    ) {
        let (authority, revoked) = (founder(), nothing_revoked());
        let request = request(&invite(&authority, max_uses));
        let disk = Disk { holders: Mutex::default(), fate: Mutex::new(Fate::Answered) };
        let mut running: Vec<(u8, Fate, Attempt<'_>)> = Vec::new();
        let mut admitted = BTreeSet::new();
        let mut owed = BTreeSet::new(); // on disk, and has not heard of it
        for (holder, fate, choice) in schedule {
            *disk.fate.lock().expect("no panic") = fate;
            let holder_id = key(40 + holder).node_id();
            running.push((holder, fate, Box::pin(redeem(&authority, &request, holder_id, &disk, &revoked, NOW))));
            for turn in 0..=choice % 4 {
                let at = usize::from(choice / 4 + turn) % running.len();
                let (holder, fate, attempt) = &mut running[at];
                let outcome = match attempt.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Pending if choice % 16 == 15 => None, // the process dies here
                    Poll::Pending => continue,
                    Poll::Ready(outcome) => Some(outcome),
                };
                let holder_id = key(40 + *holder).node_id();
                match (outcome, fate) {
                    (Some(Ok(_)), Fate::AnswerLost) => { owed.insert(holder_id); }
                    (Some(Ok(_)), _) => { admitted.insert(holder_id); }
                    (Some(Err(InviteError::UsedUp | InviteError::LedgerUnavailable)) | None, _) => {}
                    (Some(Err(error)), _) => prop_assert!(false, "{error}"),
                }
                drop(running.swap_remove(at));
                if running.is_empty() { break; }
            }
        }
        drop(running);
        *disk.fate.lock().expect("no panic") = Fate::Answered;
        let on_disk = disk.holders.lock().expect("no panic").clone();
        for holder in on_disk.iter().chain(&owed).chain(&admitted) {
            let retried = run(redeem(&authority, &request, *holder, &disk, &revoked, NOW));
            prop_assert!(retried.is_ok(), "whoever has a use is admitted when it asks again");
        }
        for holder in 40..46 {
            if run(redeem(&authority, &request, key(holder).node_id(), &disk, &revoked, NOW)).is_ok() {
                admitted.insert(key(holder).node_id());
            }
        }
        admitted.extend(owed);
        prop_assert_eq!(admitted.len(), usize::try_from(max_uses).expect("few"), "every use was given, and none twice");
    }
}

#[test]
fn an_invite_of_the_second_of_the_revocation_readmits() {
    let mut revoked = nothing_revoked();
    let mesh = founding().root.id();
    let signed = founder().revoke(Revoked::Node(key(20).node_id()), NOW).expect("may");
    revoked.insert(signed.verify(&mesh, NOW).expect("sound"));
    let ahead = UnixTime(NOW.0 + 3_600);
    let signed = founder().revoke(Revoked::Node(key(21).node_id()), ahead).expect("may");
    revoked.insert(signed.verify(&mesh, ahead).expect("sound"));
    assert_eq!(revoked.after(NOW), UnixTime(NOW.0 + 1), "what nobody believes yet moves nothing");
    let fresh = founder().issue_invite(&InviteOptions::default(), revoked.after(NOW)).expect("may");
    let admitted =
        run(redeem(&founder(), &request(&fresh), key(20).node_id(), &MemoryLedger::new(), &revoked, NOW));
    let grant = admitted.expect("admitted again");
    assert!(grant.verify(&mesh, NOW, &revoked).is_ok(), "and not cut off by what it came back from");
}
