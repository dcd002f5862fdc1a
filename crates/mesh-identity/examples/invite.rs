//! From a new scope to a member of it, without any network: `cargo run --release -p mesh-identity --example invite`.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use mesh_identity::{
    AdmissionRequest, Authority, Founding, InviteOptions, InviteToken, MemoryLedger, NodeKey, NodeName,
    RevocationSet, Revoked, UnixTime, qr, redeem,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let now = UnixTime::now();

    // The founder makes a scope and an invite for one node. The recovery key belongs on paper, not here.
    let founder_key = NodeKey::generate();
    let Founding { root, recovery } = Founding::new(&founder_key);
    let founder = Authority::founder(founder_key, root)?;
    let options = InviteOptions { name: Some("home".to_owned()), ..InviteOptions::default() };
    let text = founder.issue_invite(&options, now)?.to_url();
    println!(
        "{}\n{text}\n{} characters, QR version {}",
        qr::terminal(&text)?,
        text.len(),
        qr::version(&text)?
    );

    // The joiner verifies it without asking anybody.
    let joiner = NodeKey::generate();
    let token = InviteToken::parse(&text)?;
    let invite = token.verify(now)?;
    println!(
        "\n{} is invited to scope {} by {}",
        joiner.node_id(),
        invite.grant().scope.short(),
        invite.issuer()
    );

    // The issuer redeems it for the key that the link has proved, as often as that key asks, and for no second one.
    let (ledger, mut revoked) = (MemoryLedger::new(), RevocationSet::new(root.id()));
    let request = AdmissionRequest { token, node_name: NodeName::new("laptop")?, device: None };
    let signed = run(redeem(&founder, &request, joiner.node_id(), &ledger, &revoked, now))?;
    let second = run(redeem(&founder, &request, NodeKey::generate().node_id(), &ledger, &revoked, now));
    println!("a second node: {}", second.expect_err("the invite had one use"));

    // Every peer verifies the grant into a membership.
    let grant = signed.verify_for(&joiner.node_id(), &root.id(), now, &revoked)?;
    println!(
        "{} is a {} until {}, to be renewed at {}",
        grant.name,
        grant.role,
        grant.expires_at,
        grant.renew_at()
    );

    // Whoever holds the recovery key can end it, as the founder can.
    let statement = Authority::founder(recovery, root)?.revoke(Revoked::Node(joiner.node_id()), now)?;
    revoked.insert(statement.verify(&root.id(), now)?);
    println!(
        "after its revocation: {}",
        signed.verify(&root.id(), now, &revoked).expect_err("it is revoked")
    );
    Ok(())
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
