//! Certificates over the mesh: joining brings one, half its time renews it, a revocation reaches every node.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_identity::UnixTime;
use mesh_identity::ca::{
    By, Folder, Held, LeafKey, Options, PublicKey, Reason, Request, Usage, Wallet, Which,
};
use qmt_node::config::{AgentChannel, Config, Listener};

use crate::support::{Host, Place, mode, stop_both, until};

/// Half a day and more: a certificate of 24 hours that is this old is due.
const OLD: u64 = 13 * 3600;

fn with_channel(config: &mut Config) {
    let mut channel = AgentChannel::at(&config.home, config.node_name.clone());
    channel.storage_dir = config.home.join("shared");
    channel.tls = qmt_node::config::ChannelTls::in_folder(&channel.storage_dir, &config.node_name);
    channel.listener = Listener { addr: SocketAddr::from(([127, 0, 0, 1], 0)), asked: true };
    config.agent_channel = Some(channel);
}

/// A CA in the home of a node that is to start.
fn found(place: &Place, at: UnixTime) -> Folder {
    let folder = Folder::new(place.home().join("ca"));
    folder.found(&Options::default(), at).unwrap();
    folder
}

fn wallet(place: &Place) -> Wallet {
    Wallet::new(place.home().join("channel"))
}

async fn certificate(place: &Place, holds: impl Fn(&Held) -> bool) -> Held {
    let wallet = wallet(place);
    until("a certificate comes", || async { wallet.identity().unwrap().filter(&holds) }).await
}

/// Two nodes with a channel, of which the first has a CA; the second has joined it.
async fn pair(desk: &Place, lap: &Place) -> (Host, Host) {
    let (first, second) = tokio::join!(desk.start_with(with_channel), lap.start_with(with_channel));
    second.join(&first.invite().await.token).await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_brings_a_certificate_and_a_revocation_takes_it() {
    let (desk, lap) = (Place::new("desk"), Place::new("lap"));
    let folder = found(&desk, UnixTime::now());
    let (first, second) = pair(&desk, &lap).await;
    let own = certificate(&desk, |_| true).await;
    let held = certificate(&lap, |_| true).await;
    let chain = wallet(&lap).chain().unwrap().unwrap();
    assert_eq!(chain, folder.chain().unwrap());
    for (held, host, name) in [(&own, &first, "desk"), (&held, &second, "lap")] {
        for usage in [Usage::Server, Usage::Client] {
            let leaf = chain.verify(&held.der, usage, &[], UnixTime::now()).unwrap();
            assert_eq!((leaf.name.as_str(), leaf.node), (name, Some(host.node.id())));
        }
        let key = LeafKey::from_pem(&held.pem).unwrap();
        assert_eq!(PublicKey::of_certificate(&held.der).unwrap(), key.public());
    }
    assert_eq!(mode(&wallet(&lap).identity_path()), 0o600);
    let names = |by| folder.index().unwrap().rows().iter().filter(|row| row.by == by).count();
    assert_eq!((names(By::Enrol), folder.index().unwrap().rows().len()), (2, 2));
    assert!(!folder.key_path(&"lap".parse().unwrap()).exists(), "its key is where it was made");

    // As `qmt-cli ca revoke lap` does while the node runs.
    let (authority, since) = (folder.authority().unwrap(), Instant::now());
    let which = Which::Node("lap".parse().unwrap());
    folder.revoke(&authority, &which, Reason::Withdrawn, false, UnixTime::now()).unwrap();
    let listed =
        |place: &Place| wallet(place).crl(&chain).unwrap().is_some_and(|crl| crl.revokes(&held.leaf.serial));
    until("both know", || async { (listed(&desk) && listed(&lap)).then_some(()) }).await;
    println!("revoked and known at both after {:?}", since.elapsed());
    assert_eq!(names(By::Enrol), 2, "it gets no other one");

    folder.revoke(&authority, &which, Reason::Withdrawn, true, UnixTime::now()).unwrap();
    let next = certificate(&lap, |next| next.leaf.serial != held.leaf.serial).await;
    assert_ne!(PublicKey::of_certificate(&next.der).unwrap(), PublicKey::of_certificate(&held.der).unwrap());
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_at_half_of_its_time_and_another_ca_is_not_believed() {
    let (desk, lap) = (Place::new("desk"), Place::new("lap"));
    let then = UnixTime(UnixTime::now().0 - OLD);
    let folder = found(&desk, then);
    let (first, second) = pair(&desk, &lap).await;
    certificate(&lap, |_| true).await;
    let id = second.node.id();
    stop_both(first, second).await;

    let authority = folder.authority().unwrap();
    let key = LeafKey::generate().unwrap();
    let request = Request {
        node: Some(id),
        ..Request::new("lap".parse().unwrap(), key.public(), Duration::from_secs(86_400))
    };
    let old = folder.issue(&authority, &request, By::Enrol, None, then).unwrap();
    wallet(&lap).keep(&key, &old.der, &old.leaf, authority.chain()).unwrap();
    let (first, second) = tokio::join!(desk.start_with(with_channel), lap.start_with(with_channel));
    let next = certificate(&lap, |held| held.leaf.serial != old.leaf.serial).await;
    assert!(next.leaf.not_after > old.leaf.not_after);
    stop_both(first, second).await;

    // The CA is replaced by one that the node does not know: it keeps what it has, and says what to do.
    std::fs::rename(desk.home().join("ca"), desk.home().join("old-ca")).unwrap();
    let other = found(&desk, then);
    wallet(&lap).keep(&key, &old.der, &old.leaf, authority.chain()).unwrap();
    let tab = Place::new("tab");
    let (first, second, third) = tokio::join!(
        desk.start_with(with_channel),
        lap.start_with(with_channel),
        tab.start_with(with_channel)
    );
    third.join(&first.invite().await.token).await;
    certificate(&tab, |_| true).await;
    second.sees(&first, mesh_control::NodeState::Alive).await;
    let believes = |place: &Place, folder: &Folder| {
        wallet(place).chain().unwrap().unwrap().has_roots_of(&folder.chain().unwrap())
    };
    assert!(believes(&tab, &other) && !believes(&lap, &other));
    assert_eq!(wallet(&lap).identity().unwrap().unwrap().leaf, old.leaf);
    let signed = other.index().unwrap().rows().iter().any(|row| row.name.as_str() == "lap");
    assert!(!signed, "it was not asked");
    tokio::join!(first.stop(), second.stop(), third.stop());
}
