use mesh_identity::{Authority, Founding, InviteOptions, NodeKey, Permissions, UnixTime};
use proptest::prelude::*;

use super::*;

const DEADLINE: Duration = Duration::from_secs(5);

struct Fixture {
    authority: Authority,
    grant: Box<SignedGrant>,
    now: Instant,
}

fn fixture() -> Fixture {
    let key = NodeKey::from_seed([1; 32]);
    let authority = Authority::founder(key.clone(), Founding::new(&key).root).expect("founds");
    let name = NodeName::new("node").expect("a name");
    let grant =
        authority.sign_grant(key.node_id(), name, Permissions::MEMBER, None, UnixTime::now()).expect("may");
    Fixture { authority, grant: Box::new(grant), now: Instant::now() }
}

fn local(instance: u64) -> Local {
    Local { instance, features: vec!["f".into()], deadline: DEADLINE }
}

impl Fixture {
    fn dialer(&self) -> Dialer {
        Dialer::new(local(1), self.authority.scope(), &Shown::Grant(self.grant.clone()), None, self.now)
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::new(local(2), self.now)
    }

    fn hello(&self) -> Vec<u8> {
        sent(self.dialer().poll_output())
    }
}

fn sent(output: Option<Output>) -> Vec<u8> {
    match output {
        Some(Output::Send(bytes)) => bytes,
        other => panic!("wanted a frame, got {other:?}"),
    }
}

fn done(output: Option<Output>) -> Outcome {
    match output {
        Some(Output::Done(outcome)) => outcome,
        other => panic!("wanted the end, got {other:?}"),
    }
}

#[test]
fn two_members_link_in_one_round_trip() {
    let f = fixture();
    let (mut dialer, mut acceptor) = (f.dialer(), f.acceptor());
    acceptor.handle(Input::Frame(sent(dialer.poll_output())), f.now).expect("a good hello");
    let Some(Output::Judge(Judge::Dialer { scope, shown: Shown::Grant(_) })) = acceptor.poll_output() else {
        panic!("the grant is to be judged")
    };
    assert_eq!(scope, f.authority.scope());
    let welcome = Verdict::Welcome { grant: f.grant.clone(), issued: None };
    acceptor.handle(Input::Verdict(welcome), f.now).expect("own verdict");
    let answer = sent(acceptor.poll_output());
    let linked = done(acceptor.poll_output());
    assert_eq!(linked, Outcome::Linked { version: 1, instance: 1, features: vec!["f".into()] });
    dialer.handle(Input::Frame(answer), f.now).expect("a good answer");
    assert!(matches!(dialer.poll_output(), Some(Output::Judge(Judge::Acceptor { issued: None, .. }))));
    dialer.handle(Input::Verdict(Verdict::Content), f.now).expect("own verdict");
    let linked = done(dialer.poll_output());
    assert_eq!(linked, Outcome::Linked { version: 1, instance: 2, features: vec!["f".into()] });
    assert_eq!((dialer.next_deadline(), acceptor.next_deadline()), (None, None));
}

#[test]
fn every_refusal_arrives_as_itself() {
    let f = fixture();
    let token = f.authority.issue_invite(&InviteOptions::default(), UnixTime::now()).expect("issues");
    let invite = token.verify(UnixTime::now()).expect("good").grant().clone();
    let refusals = [
        Refusal::NotAdmitted,
        Refusal::GrantExpired,
        Refusal::GrantRevoked,
        Refusal::Busy,
        Refusal::Malformed,
        Refusal::Invite(InviteError::UsedUp),
        Refusal::Invite(InviteError::Revoked),
        Refusal::Invite(InviteError::WrongScope),
        Refusal::Invite(InviteError::BadSignature),
        Refusal::Invite(InviteError::Expired { at: invite.expires_at.time().expect("ends") }),
        Refusal::Other(77),
    ];
    for refusal in refusals {
        let node_name = NodeName::new("joiner").expect("a name");
        let request = AdmissionRequest { token: token.clone(), node_name, device: None };
        let shown = Shown::Invite(Box::new(request));
        let mut dialer = Dialer::new(local(1), f.authority.scope(), &shown, Some(invite.clone()), f.now);
        let mut acceptor = f.acceptor();
        acceptor.handle(Input::Frame(sent(dialer.poll_output())), f.now).expect("a good hello");
        assert!(matches!(acceptor.poll_output(), Some(Output::Judge(Judge::Dialer { .. }))));
        acceptor.handle(Input::Verdict(Verdict::Refuse(refusal.clone())), f.now).expect("own verdict");
        let answer = sent(acceptor.poll_output());
        assert!(answer.len() < 400, "a refusal is short");
        assert_eq!(done(acceptor.poll_output()), Outcome::Refused(refusal.clone()));
        dialer.handle(Input::Frame(answer), f.now).expect("a good answer");
        assert_eq!(done(dialer.poll_output()), Outcome::Refused(refusal));
    }
}

#[test]
fn silence_ends_at_the_deadline_and_not_before() {
    let f = fixture();
    let (mut dialer, mut acceptor) = (f.dialer(), f.acceptor());
    drop(dialer.poll_output());
    let end = f.now + DEADLINE;
    assert_eq!((dialer.next_deadline(), acceptor.next_deadline()), (Some(end), Some(end)));
    for now in [f.now, end - Duration::from_millis(1)] {
        dialer.handle(Input::Tick, now).expect("own tick");
        acceptor.handle(Input::Tick, now).expect("own tick");
        assert!(dialer.poll_output().is_none() && acceptor.poll_output().is_none());
    }
    dialer.handle(Input::Tick, end).expect("own tick");
    acceptor.handle(Input::Tick, end).expect("own tick");
    assert_eq!(done(dialer.poll_output()), Outcome::TimedOut);
    assert_eq!(done(acceptor.poll_output()), Outcome::TimedOut);
}

#[test]
fn a_frame_out_of_turn_ends_hello() {
    let f = fixture();
    let mut acceptor = f.acceptor();
    acceptor.handle(Input::Frame(f.hello()), f.now).expect("a good hello");
    assert_eq!(acceptor.handle(Input::Frame(f.hello()), f.now), Err(PeerFault::OutOfTurn));
    assert_eq!(acceptor.next_deadline(), None);
}

#[test]
fn a_version_from_the_future_is_refused_with_ours() {
    let f = fixture();
    let preamble = Preamble { magic: wire::MAGIC, version_min: 9, version_max: 12 };
    let mut acceptor = f.acceptor();
    acceptor.handle(Input::Frame(frame::encode(&preamble).expect("encodes")), f.now).expect("readable");
    let answer = sent(acceptor.poll_output());
    let refusal = Refusal::Version { min: wire::VERSION_MIN, max: wire::VERSION_MAX };
    assert_eq!(done(acceptor.poll_output()), Outcome::Refused(refusal.clone()));
    let mut dialer = f.dialer();
    drop(dialer.poll_output());
    dialer.handle(Input::Frame(answer), f.now).expect("a good answer");
    assert_eq!(done(dialer.poll_output()), Outcome::Refused(refusal));
}

#[test]
fn fields_that_a_later_version_appends_are_skipped() {
    let f = fixture();
    let mut hello = f.hello();
    hello.extend_from_slice(b"appended");
    let mut acceptor = f.acceptor();
    acceptor.handle(Input::Frame(hello), f.now).expect("still a good hello");
    assert!(matches!(acceptor.poll_output(), Some(Output::Judge(_))));
}

#[test]
fn too_many_features_are_a_fault() {
    let f = fixture();
    let many = Local { features: vec!["f".into(); wire::FEATURES_MAX + 1], ..local(1) };
    let mut dialer = Dialer::new(many, f.authority.scope(), &Shown::Grant(f.grant.clone()), None, f.now);
    let hello = sent(dialer.poll_output());
    assert_eq!(f.acceptor().handle(Input::Frame(hello), f.now), Err(PeerFault::Unreadable));
}

proptest! {
    #[test]
    fn any_bytes_are_a_fault_or_a_question_and_never_a_link(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let f = fixture();
        let (mut dialer, mut acceptor) = (f.dialer(), f.acceptor());
        drop(dialer.poll_output());
        let _ = acceptor.handle(Input::Frame(bytes.clone()), f.now);
        let _ = dialer.handle(Input::Frame(bytes), f.now);
        for output in [acceptor.poll_output(), dialer.poll_output()] {
            let linked = matches!(output, Some(Output::Done(Outcome::Linked { .. })));
            prop_assert!(!linked);
        }
    }

    #[test]
    fn a_damaged_hello_never_links_by_itself(at in 0usize..200, flip in 1u8..) {
        let f = fixture();
        let mut hello = f.hello();
        let at = at % hello.len();
        hello[at] ^= flip;
        let mut acceptor = f.acceptor();
        let _ = acceptor.handle(Input::Frame(hello), f.now);
        let linked = matches!(acceptor.poll_output(), Some(Output::Done(Outcome::Linked { .. })));
        prop_assert!(!linked);
    }
}
