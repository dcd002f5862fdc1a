//! Revocations: who may, how far they reach, and that the order in which they arrive changes nothing.

use mesh_identity::{
    Authority, Expiry, GrantError, Insertion, InviteId, InviteOptions, Permissions, RevocationError,
    RevocationSet, Revoked, SignedGrant, SignedRevocation, UnixTime,
};
use proptest::prelude::*;

use crate::fixture::{NOW, below, extend, founder, founding, grant, key, name, nothing_revoked, recovery};

const LATER: UnixTime = UnixTime(NOW.0 + 100);
const MUCH_LATER: UnixTime = UnixTime(NOW.0 + 200);

fn node(seed: u8) -> Revoked {
    Revoked::Node(key(seed).node_id())
}

fn set(revocations: &[SignedRevocation]) -> RevocationSet {
    let mut set = nothing_revoked();
    for signed in revocations {
        let revocation = signed.verify(&founding().root.id(), MUCH_LATER).expect("sound");
        assert_eq!(set.insert(revocation), Insertion::Added);
    }
    set
}

fn by(authority: &Authority, what: Revoked) -> SignedRevocation {
    authority.revoke(what, LATER).expect("may")
}

fn holds(grant: &SignedGrant, set: &RevocationSet) -> bool {
    match grant.verify(&founding().root.id(), MUCH_LATER, set) {
        Ok(_) => true,
        Err(GrantError::Revoked) => false,
        Err(error) => panic!("{error}"),
    }
}

fn admin(seed: u8) -> Authority {
    extend(&founder(), founder().appoint_admin(key(seed).node_id(), Expiry::NEVER).expect("root"), seed)
}

#[test]
fn founder_recovery_key_admin_ancestor_and_subject_may_revoke_a_member() {
    let inviter = below(&founder(), 10, Permissions::INVITER);
    let member = grant(&inviter, 20, Permissions::MEMBER);
    let of_self = SignedRevocation::of_self(&key(20), &member, LATER).expect("its own");
    let may = [
        by(&founder(), node(20)),
        by(&recovery(), node(20)),
        by(&admin(30), node(20)),
        by(&inviter, node(20)),
        of_self,
    ];
    for revocation in may {
        assert!(!holds(&member, &set(&[revocation])));
    }
}

#[test]
fn an_inviter_has_no_say_over_members_of_others() {
    let (inviter, stranger) =
        (below(&founder(), 10, Permissions::INVITER), below(&founder(), 11, Permissions::INVITER));
    let revoked = set(&[by(&stranger, node(20)), by(&stranger, node(10)), by(&stranger, node(1))]);
    assert!(holds(&grant(&inviter, 20, Permissions::MEMBER), &revoked));
    assert!(holds(&grant(&founder(), 20, Permissions::MEMBER), &revoked));
    assert!(!holds(&grant(&stranger, 20, Permissions::MEMBER), &revoked));
}

#[test]
fn a_member_can_revoke_only_itself() {
    let member = grant(&founder(), 20, Permissions::MEMBER);
    assert_eq!(SignedRevocation::of_self(&key(21), &member, NOW), Err(RevocationError::NotAllowed));
    // The same words about somebody else, rightly signed.
    let mut bytes = SignedRevocation::of_self(&key(20), &member, NOW).expect("its own").encode();
    bytes.truncate(bytes.len() - 64);
    bytes[2..34].copy_from_slice(key(21).node_id().as_bytes());
    let scope = founding().root.id();
    let signature = key(20).sign(mesh_identity::Domain::new("qmt-mesh/revocation/v1"), &scope, &bytes);
    bytes.extend_from_slice(signature.as_bytes());
    let forged = SignedRevocation::decode(&bytes).expect("well formed");
    assert_eq!(forged.verify(&scope, NOW), Err(RevocationError::NotAllowed));
}

#[test]
fn what_a_revoked_node_issued_falls_with_it_for_ever_unless_signed_again() {
    let inviter = below(&founder(), 10, Permissions::INVITER);
    let below_it = below(&inviter, 11, Permissions::INVITER);
    let revoked = set(&[by(&founder(), node(10))]);
    let issued_later = |authority: &Authority| {
        authority
            .sign_grant(key(20).node_id(), name("node"), Permissions::MEMBER, None, MUCH_LATER)
            .expect("signs")
    };
    assert!(!holds(&grant(&inviter, 20, Permissions::MEMBER), &revoked));
    assert!(!holds(&grant(&below_it, 20, Permissions::MEMBER), &revoked));
    assert!(!holds(&issued_later(&inviter), &revoked), "its authority is dead for ever");
    assert!(!holds(&issued_later(&below_it), &revoked));
    assert!(holds(&grant(&founder(), 20, Permissions::MEMBER), &revoked), "signed again by the founder");
    assert!(revoked.ends_chain(inviter.chain()) && revoked.ends_chain(below_it.chain()));
}

#[test]
fn a_revoked_node_comes_back_by_a_later_grant() {
    let revoked = set(&[by(&founder(), node(20))]);
    let at = |time| {
        founder().sign_grant(key(20).node_id(), name("node"), Permissions::MEMBER, None, time).expect("may")
    };
    assert!(!holds(&at(NOW), &revoked));
    assert!(!holds(&at(LATER), &revoked));
    assert!(holds(&at(MUCH_LATER), &revoked));
    assert_eq!(revoked.node(&key(20).node_id()), Some(LATER));
    assert_eq!(revoked.node(&key(21).node_id()), None);
}

#[test]
fn a_revoked_invite_ends_the_grants_that_came_from_it() {
    let inviter = below(&founder(), 10, Permissions::INVITER);
    let token = inviter.issue_invite(&InviteOptions::default(), NOW).expect("may");
    let invite = token.verify(NOW).expect("sound");
    let from = |id: Option<InviteId>, at| {
        inviter.sign_grant(key(20).node_id(), name("node"), Permissions::MEMBER, id, at).expect("may")
    };
    let stranger = below(&founder(), 11, Permissions::INVITER);
    let unconcerned = set(&[by(&stranger, Revoked::Invite(token.id()))]);
    assert!(holds(&from(Some(token.id()), NOW), &unconcerned) && !unconcerned.ends_invite(&invite));
    for authority in [founder(), inviter.clone(), admin(30)] {
        let revoked = set(&[by(&authority, Revoked::Invite(token.id()))]);
        assert!(revoked.ends_invite(&invite));
        assert!(!holds(&from(Some(token.id()), NOW), &revoked));
        assert!(
            !holds(&from(Some(token.id()), MUCH_LATER), &revoked),
            "a renewal in ignorance saves nothing"
        );
        assert!(holds(&from(None, NOW), &revoked), "signed again without the invite");
    }
}

#[test]
fn nobody_but_the_recovery_key_and_itself_can_revoke_the_founder() {
    let by_founder = grant(&founder(), 20, Permissions::MEMBER);
    let harmless = set(&[by(&admin(30), node(1)), by(&below(&founder(), 10, Permissions::INVITER), node(1))]);
    assert!(holds(&by_founder, &harmless));
    let recovered = set(&[by(&recovery(), node(1))]);
    assert!(!holds(&by_founder, &recovered));
    assert!(holds(&grant(&recovery(), 20, Permissions::MEMBER), &recovered), "the recovery key signs again");
    let useless = set(&[by(&founder(), node(2)), by(&admin(30), node(2))]);
    assert!(
        holds(&grant(&recovery(), 20, Permissions::MEMBER), &useless),
        "the recovery key is nobody's to revoke"
    );
}

#[test]
fn a_revoked_admins_later_revocations_do_nothing_and_its_earlier_ones_stand() {
    let victim = grant(&founder(), 20, Permissions::MEMBER);
    let (early, theft, late) = (LATER, UnixTime(LATER.0 + 10), UnixTime(LATER.0 + 20));
    let admin_gone = founder().revoke(node(30), theft).expect("may");
    let late = admin(30).revoke(node(20), late).expect("signs");
    let early = admin(30).revoke(node(20), early).expect("may");
    assert!(holds(&victim, &set(&[admin_gone.clone(), late.clone()])));
    assert!(holds(&victim, &set(&[late, admin_gone.clone()])), "whichever came first");
    assert!(!holds(&victim, &set(&[early, admin_gone])));
}

#[test]
fn dates_in_the_future_wait_and_ended_authorities_cannot_revoke() {
    let future = founder().revoke(node(20), UnixTime(NOW.0 + 61)).expect("signs");
    let refused = future.verify(&founding().root.id(), NOW);
    assert_eq!(refused, Err(RevocationError::FromTheFuture { at: UnixTime(NOW.0 + 61) }));
    let link = founder().delegate(key(10).node_id(), Permissions::ADMIN, Expiry::at(NOW)).expect("may");
    let admin = extend(&founder(), link, 10);
    assert!(admin.revoke(node(20), MUCH_LATER).is_err());
    let in_time =
        admin.revoke(node(20), NOW).expect("may").verify(&founding().root.id(), UnixTime(NOW.0 * 2));
    assert!(in_time.is_ok(), "a revocation itself does not end");
    let elsewhere =
        founder().revoke(node(20), NOW).expect("may").verify(&mesh_identity::ScopeId::lan(None), NOW);
    assert_eq!(elsewhere, Err(RevocationError::WrongScope));
}

#[test]
fn the_set_is_bounded_and_the_founder_always_has_room() {
    let scope = founding().root.id();
    let flooder = below(&founder(), 10, Permissions::INVITER);
    let mut set = nothing_revoked();
    let insert = |set: &mut RevocationSet, authority: &Authority, nth: u64| {
        let what = Revoked::Invite(InviteId::generate(UnixTime(NOW.0 + nth)));
        set.insert(authority.revoke(what, NOW).expect("may").verify(&scope, NOW).expect("sound"))
    };
    let added = (0..300).filter(|&nth| insert(&mut set, &flooder, nth) == Insertion::Added).count();
    assert_eq!(added, 256);
    assert_eq!(insert(&mut set, &flooder, 300), Insertion::Full);
    assert_eq!(insert(&mut set, &founder(), 301), Insertion::Added);
    assert_eq!((set.len(), set.iter().count()), (257, 257));
    let other = RevocationSet::new(mesh_identity::ScopeId::lan(None));
    let revocation = founder().revoke(node(20), NOW).expect("may").verify(&scope, NOW).expect("sound");
    assert_eq!({ other }.insert(revocation), Insertion::WrongScope);
}

#[test]
fn two_of_one_signer_both_stay_and_nothing_is_passed_on_twice() {
    let scope = founding().root.id();
    let early = founder().revoke(node(20), NOW).expect("may").verify(&scope, LATER).expect("sound");
    let late = founder().revoke(node(20), LATER).expect("may").verify(&scope, LATER).expect("sound");
    for order in [[early.clone(), late.clone()], [late, early]] {
        let mut set = nothing_revoked();
        assert_eq!(order.each_ref().map(|one| set.insert(one.clone())), [Insertion::Added; 2]);
        assert_eq!(order.each_ref().map(|one| set.insert(one.clone())), [Insertion::Known; 2]);
        assert_eq!((set.len(), set.node(&key(20).node_id())), (2, Some(LATER)));
    }
}

#[test]
fn a_thief_cannot_undo_a_revocation_by_repeating_it() {
    let victim = grant(&founder(), 20, Permissions::MEMBER);
    let honest = admin(30).revoke(node(20), LATER).expect("may");
    let announced = founder().revoke(node(30), UnixTime(LATER.0 + 10)).expect("may");
    let repeated = admin(30).revoke(node(20), UnixTime(LATER.0 + 20)).expect("signs");
    assert!(!holds(&victim, &set(&[honest, announced, repeated])));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Signers 1 (founder), 2 (recovery), 10 and 30 (admins), 11 (inviter), 12 (below 11), about any of them and a member,
    /// at any of a few times: every order of arrival ends in the same answers, and what is revoked stays so.
    #[test]
    fn order_changes_nothing(
        drawn in proptest::collection::vec((0usize..6, 0usize..8, 0u64..6), 1..10),
        shuffle in any::<u64>(),
    ) {
        let inviter = below(&founder(), 11, Permissions::INVITER);
        let signers = [founder(), recovery(), admin(10), admin(30), inviter.clone(), below(&inviter, 12, Permissions::INVITER)];
        let subjects = [1u8, 2, 10, 30, 11, 12, 20, 21];
        let scope = founding().root.id();
        let all: Vec<_> = drawn
            .iter()
            .map(|&(signer, subject, at)| {
                let signed = signers[signer].revoke(node(subjects[subject]), UnixTime(NOW.0 + at)).expect("may");
                signed.verify(&scope, MUCH_LATER).expect("sound")
            })
            .collect();
        let mut shuffled = all.clone();
        let mut state = shuffle;
        for at in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(at, usize::try_from(state >> 33).expect("31 bits") % (at + 1));
        }
        let build = |order: &[mesh_identity::Revocation]| {
            let mut set = nothing_revoked();
            for one in order {
                set.insert(one.clone());
            }
            set
        };
        let (one, two) = (build(&all), build(&shuffled));
        prop_assert!(one.iter().eq(two.iter()));
        for issuer in &signers {
            prop_assert_eq!(one.ends_chain(issuer.chain()), two.ends_chain(issuer.chain()));
            for subject in [1, 12, 20] {
                let grant = grant(issuer, subject, Permissions::MEMBER);
                prop_assert_eq!(holds(&grant, &one), holds(&grant, &two));
            }
        }
    }
}
