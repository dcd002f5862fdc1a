//! What every driver must do. A driver's tests run each of these at a [`Site`] of its own, by [`crate::contract_suite`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_identity::{
    AdmissionRequest, Authority, Founding, InviteError, InviteOptions, InviteToken, NodeAddr, NodeKey,
    NodeName, Permissions, Role, UnixTime,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, broadcast, mpsc},
};

use super::{Mesh, Site, TestNode, until};
use crate::{
    Call, CallError, CallFault, CloseCode, ClosedWhy, Config, DialError, LinkEvent, OpenError, Peer,
    Protocol, RedeemError, Refusal, ResetCode, Stream, StreamFault, handler_fn, serve_call,
};

const ECHO: Protocol = Protocol::new("echo/1");
const SINK: Protocol = Protocol::new("sink/1");
const DEADLINE: Duration = Duration::from_secs(10);

/// Adds one.
#[derive(Debug, Serialize, Deserialize)]
struct Next(u32);

impl Call for Next {
    const PROTOCOL: Protocol = Protocol::new("next/1");
    type Reply = u32;
}

fn serve_next(node: &TestNode) {
    serve_call::<Next, _, _>(&node.transport, |_: Peer, next| async move { Ok(next.0 + 1) });
}

fn serve_echo(node: &TestNode) {
    let echo = handler_fn(|_: Peer, stream: Stream| async move {
        let (mut send, mut recv) = stream.split();
        if tokio::io::copy(&mut recv, &mut send).await.is_ok() {
            drop(send.shutdown().await);
        }
    });
    node.transport.serve(ECHO, echo);
}

async fn pair(site: Arc<dyn Site>) -> Mesh {
    Mesh::start(site, 2, Config::default()).await
}

const FLOOD: Protocol = Protocol::new("flood/1");

/// Writes for ever; counts the bytes and, at the end, the handlers that have ended.
fn serve_flood(node: &TestNode) -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (written, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (written.clone(), ended.clone());
    let flood = handler_fn(move |_: Peer, mut stream: Stream| {
        let (written, ended) = counters.clone();
        async move {
            while let Ok(bytes) = stream.write(&[7; 8192]).await {
                written.fetch_add(bytes, Ordering::SeqCst);
            }
            ended.fetch_add(1, Ordering::SeqCst);
        }
    });
    node.transport.serve(FLOOD, flood);
    (written, ended)
}

/// Waits until the writer is held back: everything on the way to a reader that does not read is full.
async fn held_back(written: &AtomicUsize) {
    let mut before = 0;
    until("the writer is held back", || {
        let now = written.load(Ordering::SeqCst);
        let stands = now > 0 && now == std::mem::replace(&mut before, now);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stands
        }
    })
    .await;
}

/// Who was revoked sends no byte more and gets none, whatever was on its way, by the time that the node has judged again.
pub async fn a_revoked_peer_is_cut_in_mid_byte(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    let (scope, holder, subject) = (mesh.scope(), &mesh[0], &mesh[1]);
    let ((sent_by_holder, ended), (sent_by_subject, _)) = (serve_flood(holder), serve_flood(subject));
    let mut from_subject = holder.transport.open(&scope, &subject.id(), FLOOD).await.expect("opens");
    let mut from_holder = subject.transport.open(&scope, &holder.id(), FLOOD).await.expect("opens");
    let mut piece = [0; 1024];
    from_subject.read_exact(&mut piece).await.expect("a first piece");
    from_holder.read_exact(&mut piece).await.expect("a first piece");
    held_back(&sent_by_subject).await;
    held_back(&sent_by_holder).await;
    let what = mesh_identity::Revoked::Node(subject.id());
    let revocation = mesh.authority().revoke(what, UnixTime::now()).expect("the founder may");
    holder.admission.revoke(&scope, &revocation);
    holder.transport.recheck(&scope);
    let read = from_subject.read(&mut piece).await.expect_err("what had arrived is not read any more");
    let Some(StreamFault::Lost(lost)) = StreamFault::of(&read) else { panic!("{read:?}") };
    assert_eq!(lost.why, ClosedWhy::Local(CloseCode::Revoked));
    assert!(from_subject.write(b"more").await.is_err());
    until("the holder writes no more", || async { ended.load(Ordering::SeqCst) == 1 }).await;
    let mut sink = tokio::io::sink();
    let rest = tokio::io::copy(&mut from_holder, &mut sink);
    tokio::time::timeout(DEADLINE, rest).await.expect("it ends").expect_err("and not as if it were whole");
    mesh.shutdown().await;
}

/// Bytes come back in order, and the end of one direction leaves the other open.
pub async fn echoes_and_half_closes(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    serve_echo(&mesh[1]);
    let stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), ECHO).await.expect("opens");
    let (mut send, mut recv) = stream.split();
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let writing = async {
        send.write_all(&sent).await.expect("writes");
        send.shutdown().await.expect("ends");
    };
    let mut came_back = Vec::new();
    let (_, read) = tokio::join!(writing, recv.read_to_end(&mut came_back));
    read.expect("reads to the end");
    assert!(came_back == sent, "the bytes are the same");
    mesh.shutdown().await;
}

/// The handler holds who called, as the connection and the grant prove it.
pub async fn hands_the_verified_caller_over(site: Arc<dyn Site>) {
    let mut mesh = pair(site).await;
    mesh.add(Permissions { role: Role::Client, ..Permissions::MEMBER }).await;
    let (told, mut callers) = mpsc::channel(1);
    serve_call::<Next, _, _>(&mesh[1].transport, move |peer: Peer, _| {
        let told = told.clone();
        async move {
            drop(told.send(peer).await);
            Ok(0)
        }
    });
    mesh[2].transport.call(&mesh.scope(), &mesh[1].id(), &Next(0), DEADLINE).await.expect("answers");
    let caller = callers.recv().await.expect("was called");
    assert_eq!((caller.id, caller.scope, caller.role), (mesh[2].id(), mesh.scope(), Role::Client));
    assert_eq!(caller.name.as_str(), "node-2");
    mesh.shutdown().await;
}

/// A reader that does not read stops its writer, and nothing is lost when it goes on.
pub async fn holds_a_fast_writer_back(site: Arc<dyn Site>) {
    const TOTAL: usize = 48 << 20;
    let mesh = pair(site).await;
    let go = Arc::new(Notify::new());
    let (told, mut received) = mpsc::channel(1);
    let sink = {
        let go = go.clone();
        handler_fn(move |_: Peer, mut stream: Stream| {
            let (go, told) = (go.clone(), told.clone());
            async move {
                go.notified().await;
                let read = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                told.send(read.ok()).await.expect("the test waits");
            }
        })
    };
    mesh[1].transport.serve(SINK, sink);
    let mut stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), SINK).await.expect("opens");
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let writer = tokio::spawn(async move {
        let block = vec![7; 64 * 1024];
        while counted.load(Ordering::SeqCst) < TOTAL {
            stream.write_all(&block).await.expect("writes");
            counted.fetch_add(block.len(), Ordering::SeqCst);
        }
        stream.shutdown().await.expect("ends");
        stream
    });
    let before = Arc::new(AtomicUsize::new(usize::MAX));
    until("the writer stands still", || async {
        let now = written.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        now > 0 && before.swap(now, Ordering::SeqCst) == now
    })
    .await;
    assert!(written.load(Ordering::SeqCst) < TOTAL, "the writer was held back");
    go.notify_one();
    assert_eq!(received.recv().await.flatten(), Some(TOTAL as u64));
    drop(writer.await.expect("the writer is fine"));
    mesh.shutdown().await;
}

/// A stream dropped half-way reaches the other side as cancelled, never as a clean end.
pub async fn a_dropped_stream_cancels(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    let (told, mut ended) = mpsc::channel(1);
    let handler = handler_fn(move |_: Peer, mut stream: Stream| {
        let told = told.clone();
        async move {
            let mut all = Vec::new();
            let read = stream.read_to_end(&mut all).await;
            stream.cancelled().await;
            drop(told.send((all, read.err().and_then(|error| StreamFault::of(&error).cloned()))).await);
        }
    });
    mesh[1].transport.serve(SINK, handler);
    let mut stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), SINK).await.expect("opens");
    stream.write_all(b"half a mess").await.expect("writes");
    until("the stream has arrived", || async { mesh[1].transport.metrics().streams_served == 1 }).await;
    drop(stream);
    let (_, fault) = ended.recv().await.expect("the handler goes on");
    assert_eq!(fault, Some(StreamFault::Reset(ResetCode::CANCELLED)));
    mesh.shutdown().await;
}

/// A reader that stops fails the writer, with the reader's code.
pub async fn a_stopped_reader_fails_the_writer(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    let refuse = handler_fn(|_: Peer, stream: Stream| async move { stream.reset(ResetCode::NOT_ALLOWED) });
    mesh[1].transport.serve(SINK, refuse);
    let mut stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), SINK).await.expect("opens");
    let block = vec![0; 64 * 1024];
    let failed = loop {
        if let Err(error) = stream.write_all(&block).await {
            break error;
        }
    };
    assert_eq!(StreamFault::of(&failed), Some(&StreamFault::Stopped(ResetCode::NOT_ALLOWED)));
    let read = stream.read_u8().await.expect_err("nothing to read");
    assert_eq!(StreamFault::of(&read), Some(&StreamFault::Reset(ResetCode::NOT_ALLOWED)));
    mesh.shutdown().await;
}

/// Unknown protocols, faults of the server and passed deadlines are different errors.
pub async fn tells_call_errors_apart(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    let (scope, to) = (mesh.scope(), mesh[1].id());
    let call = |deadline| mesh[0].transport.call(&scope, &to, &Next(1), deadline);
    let unknown = call(DEADLINE).await.expect_err("nobody serves it");
    assert!(matches!(unknown, CallError::Open(OpenError::UnknownProtocol(_))), "{unknown:?}");
    serve_call::<Next, _, _>(&mesh[1].transport, |_: Peer, _| async { Err(CallFault::new(7, "no")) });
    let fault = call(DEADLINE).await.expect_err("the server says no");
    assert!(matches!(&fault, CallError::Fault(fault) if fault.code == 7), "{fault:?}");
    serve_call::<Next, _, _>(&mesh[1].transport, |_: Peer, _| std::future::pending());
    let late = call(Duration::from_millis(200)).await.expect_err("the server sleeps");
    assert!(matches!(&late, CallError::Deadline(_)), "{late:?}");
    // Whichever end says it first, the caller hears the same.
    let over = || async { Err(CallFault::new(CallFault::DEADLINE, "over")) };
    serve_call::<Next, _, _>(&mesh[1].transport, move |_: Peer, _| over());
    let late = call(DEADLINE).await.expect_err("the server says that the time is over");
    assert!(matches!(&late, CallError::Deadline(after) if *after == DEADLINE), "{late:?}");
    mesh.shutdown().await;
}

/// Hundreds of calls at once share one link, dialed once.
pub async fn many_calls_share_one_link(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    serve_next(&mesh[1]);
    let (scope, to) = (mesh.scope(), mesh[1].id());
    let calls: Vec<_> = (0..300)
        .map(|n| {
            let transport = mesh[0].transport.clone();
            tokio::spawn(async move { transport.call(&scope, &to, &Next(n), DEADLINE).await })
        })
        .collect();
    for (n, call) in (0..300).zip(calls) {
        assert_eq!(call.await.expect("no panic").expect("answers"), n + 1);
    }
    assert_eq!(mesh[0].transport.metrics().dials_linked, 1);
    assert_eq!(mesh[1].transport.links().len(), 1);
    mesh.shutdown().await;
}

/// Both sides dial at once; the connection that the smaller id dialed is the one that stays.
pub async fn two_dials_become_one_link(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    let (a, b, scope) = (&mesh[0], &mesh[1], mesh.scope());
    serve_next(a);
    serve_next(b);
    let (a_id, b_id) = (a.id(), b.id());
    let from_a = a.transport.call(&scope, &b_id, &Next(1), DEADLINE);
    let from_b = b.transport.call(&scope, &a_id, &Next(2), DEADLINE);
    let (from_a, from_b) = tokio::join!(from_a, from_b);
    assert_eq!((from_a.expect("answers"), from_b.expect("answers")), (2, 3));
    let smaller = a_id.min(b_id);
    until("both use the same connection", || async {
        let by_us = |node: &TestNode| node.transport.links().first().map(|link| link.opened_by_us);
        // If only one connection ever was, whoever dialed it is fine as long as both agree.
        match (by_us(a), by_us(b)) {
            (Some(a_dialed), Some(b_dialed)) if a_dialed != b_dialed => {
                let both = a.transport.metrics().dials_linked + b.transport.metrics().dials_linked == 2;
                !both || a_dialed == (smaller == a_id)
            }
            _ => false,
        }
    })
    .await;
    mesh.shutdown().await;
}

/// A closed link is noticed at both ends, its streams end, and the next call dials again.
pub async fn a_closed_link_is_dialed_again(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    serve_next(&mesh[1]);
    let (scope, to) = (mesh.scope(), mesh[1].id());
    mesh[0].transport.call(&scope, &to, &Next(1), DEADLINE).await.expect("answers");
    let mut events = mesh[0].transport.events();
    mesh[1].transport.disconnect(&scope, &mesh[0].id(), CloseCode::Revoked);
    let (peer, why) = next_down(&mut events).await;
    assert_eq!(peer.id, to);
    assert!(matches!(why, ClosedWhy::Peer { code: CloseCode::Revoked, .. }), "{why:?}");
    assert_eq!(mesh[0].transport.call(&scope, &to, &Next(1), DEADLINE).await.expect("dials again"), 2);
    mesh.shutdown().await;
}

async fn next_down(events: &mut broadcast::Receiver<LinkEvent>) -> (Peer, ClosedWhy) {
    loop {
        match events.recv().await.expect("the transport runs") {
            LinkEvent::Path { .. } => {}
            LinkEvent::Down { peer, why } => return (peer, why),
            event => panic!("down comes first, not {event:?}"),
        }
    }
}

/// Shutdown says goodbye, can be repeated, and leaves nothing to dial.
pub async fn shutdown_says_goodbye(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    serve_next(&mesh[1]);
    let (scope, to) = (mesh.scope(), mesh[1].id());
    mesh[0].transport.call(&scope, &to, &Next(1), DEADLINE).await.expect("answers");
    let mut events = mesh[0].transport.events();
    mesh[1].transport.shutdown().await;
    mesh[1].transport.shutdown().await;
    let (_, why) = next_down(&mut events).await;
    assert!(matches!(why, ClosedWhy::Peer { code: CloseCode::Shutdown, .. }), "{why:?}");
    let closed = mesh[1].transport.link(&scope, &mesh[0].id()).await.expect_err("is shut down");
    assert!(matches!(closed, DialError::Closed), "{closed:?}");
    mesh.shutdown().await;
}

/// Two scopes of the same two nodes are two links, and a handler sees which one it serves.
pub async fn scopes_are_links_of_their_own(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    let founding = Founding::new(&mesh[0].key);
    let other = Authority::founder(mesh[0].key.clone(), founding.root).expect("the founder");
    for (number, node) in mesh.nodes().iter().enumerate() {
        let name = NodeName::new(format!("other-{number}")).expect("a name");
        let grant =
            other.sign_grant(node.id(), name, Permissions::MEMBER, None, UnixTime::now()).expect("may");
        node.admission.join(grant);
    }
    let addr = mesh[1].transport.local_addr(&other.scope());
    mesh[0].transport.book().insert(other.scope(), mesh[1].id(), addr);
    serve_call::<Next, _, _>(&mesh[1].transport, |peer: Peer, _| async move {
        Ok(u32::from(peer.name.as_str() == "other-0"))
    });
    for scope in [mesh.scope(), other.scope()] {
        mesh[0].transport.call(&scope, &mesh[1].id(), &Next(0), DEADLINE).await.expect("answers");
    }
    let scopes: Vec<_> = mesh[1].transport.links().iter().map(|link| link.peer.scope).collect();
    assert_eq!(scopes.len(), 2);
    mesh[1].transport.close_scope(&other.scope());
    until("the other scope's link is gone", || async { mesh[0].transport.links().len() == 1 }).await;
    assert_eq!(mesh[0].transport.links()[0].peer.scope, mesh.scope());
    mesh.shutdown().await;
}

/// A peer without a grant gets a refusal and nothing else, the same for every scope it may name.
pub async fn a_stranger_gets_nothing_but_hello(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    serve_next(&mesh[0]);
    let stranger = mesh.stranger().await;
    let own = Authority::founder(stranger.key.clone(), Founding::new(&stranger.key).root).expect("founds");
    let name = NodeName::new("stranger").expect("a name");
    let grant = own.sign_grant(stranger.id(), name, Permissions::MEMBER, None, UnixTime::now()).expect("may");
    stranger.admission.join(grant);
    let addr = stranger.transport.book().get(&mesh.scope(), &mesh[0].id()).unwrap_or_default();
    stranger.transport.book().insert(own.scope(), mesh[0].id(), addr);
    stranger.admission.join(mesh.grant(mesh[1].id(), "stolen", Permissions::MEMBER));
    for scope in [own.scope(), mesh.scope()] {
        let refused = stranger.transport.link(&scope, &mesh[0].id()).await.expect_err("is refused");
        assert!(matches!(refused, DialError::Refused { refusal: Refusal::NotAdmitted, .. }), "{refused:?}");
    }
    assert!(mesh[0].transport.links().is_empty());
    assert_eq!(mesh[0].transport.metrics().streams_served, 0);
    stranger.transport.shutdown().await;
    mesh.shutdown().await;
}

/// An invite becomes a grant, once for each holder, and the grant a link.
pub async fn an_invite_becomes_a_membership(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    serve_next(&mesh[0]);
    let joiner = mesh.stranger().await;
    let token = invite(&mesh, InviteOptions::default());
    for _ in 0..2 {
        let admitted = redeem(&joiner, &token).await.expect("is admitted");
        assert_eq!(admitted.issuer, mesh[0].id());
        joiner.admission.join(admitted.grant);
    }
    assert_eq!(mesh[0].admission.uses(&token), 1);
    let reply = joiner.transport.call(&mesh.scope(), &mesh[0].id(), &Next(1), DEADLINE).await;
    assert_eq!(reply.expect("is a member"), 2);
    joiner.transport.shutdown().await;
    mesh.shutdown().await;
}

/// Each reason for which an invite is refused reaches the joiner as itself.
pub async fn refused_invites_say_why(site: Arc<dyn Site>) {
    let mesh = pair(site).await;
    let joiner = mesh.stranger().await;
    let refusal = async |token: &InviteToken| match redeem(&joiner, token).await {
        Err(RedeemError::Refused(error)) => error,
        other => panic!("{other:?}"),
    };
    let used_up = invite(&mesh, InviteOptions::default());
    redeem(&mesh[1], &used_up).await.expect("the first use");
    assert_eq!(refusal(&used_up).await, InviteError::UsedUp);
    let revoked = invite(&mesh, InviteOptions::default());
    mesh[0].admission.revoke_invite(&revoked);
    assert_eq!(refusal(&revoked).await, InviteError::Revoked);

    // What the joiner's own check would find is shown to the issuer all the same, by a joiner that does not check.
    let shown = async |text: &str, under: &InviteToken| {
        let invite = under.verify(UnixTime::now()).expect("a good invite to dial by");
        let token = InviteToken::parse(text).expect("reads");
        let request =
            AdmissionRequest { token, node_name: NodeName::new("joiner").expect("a name"), device: None };
        match joiner.transport.redeem(&invite, request).await {
            Err(RedeemError::Refused(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let good = invite(&mesh, InviteOptions { max_uses: 5, ..InviteOptions::default() });
    let long_ago = UnixTime(UnixTime::now().0 - 1_000_000);
    let expired = mesh.authority().issue_invite(&InviteOptions::default(), long_ago).expect("issues");
    assert!(matches!(shown(&expired.to_string(), &good).await, InviteError::Expired { .. }));
    let mut bytes = good.encode();
    *bytes.last_mut().expect("not empty") ^= 1;
    let tampered = InviteToken::decode(&bytes).expect("still reads").to_string();
    assert_eq!(shown(&tampered, &good).await, InviteError::BadSignature);
    let stranger = NodeKey::from_seed([9; 32]);
    let elsewhere = Authority::founder(stranger.clone(), Founding::new(&stranger).root).expect("founds");
    let elsewhere = elsewhere.issue_invite(&InviteOptions::default(), UnixTime::now()).expect("issues");
    assert_eq!(shown(&elsewhere.to_string(), &good).await, InviteError::WrongScope);
    assert_eq!(mesh[0].admission.uses(&good), 0);
    joiner.transport.shutdown().await;
    mesh.shutdown().await;
}

fn invite(mesh: &Mesh, options: InviteOptions) -> InviteToken {
    let hints: NodeAddr = mesh[0].transport.local_addr(&mesh.scope());
    mesh[0].admission.invite(&mesh.scope(), &InviteOptions { hints, ..options })
}

async fn redeem(joiner: &TestNode, token: &InviteToken) -> Result<crate::Admitted, RedeemError> {
    let invite = token.verify(UnixTime::now()).expect("a good invite");
    let node_name = NodeName::new("joiner").expect("a name");
    joiner.transport.redeem(&invite, AdmissionRequest { token: token.clone(), node_name, device: None }).await
}

/// Makes one test of each case of the contract, at the site that the expression gives.
#[macro_export]
macro_rules! contract_suite {
    ($site:expr) => {
        $crate::contract_suite! { @cases $site;
            echoes_and_half_closes, hands_the_verified_caller_over, holds_a_fast_writer_back, a_dropped_stream_cancels,
            a_stopped_reader_fails_the_writer, tells_call_errors_apart, many_calls_share_one_link,
            two_dials_become_one_link, a_closed_link_is_dialed_again, shutdown_says_goodbye,
            scopes_are_links_of_their_own, a_stranger_gets_nothing_but_hello, an_invite_becomes_a_membership,
            refused_invites_say_why, a_revoked_peer_is_cut_in_mid_byte
        }
    };
    (@cases $site:expr; $($case:ident),*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::testing::contract::$case($site.await).await;
            }
        )*
    };
}
