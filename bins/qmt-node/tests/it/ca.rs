//! Certificates over the mesh: joining brings one, half its time renews it, a revocation reaches every node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mesh_control::{AuditQuery, NodeState, RevokeRequest};
use mesh_identity::ca::Leaf;
use mesh_identity::ca::{
    By, Folder, Held, LeafKey, Options, PublicKey, Reason, Request, Usage, Wallet, Which,
};
use mesh_identity::{NodeName, Role, UnixTime};
use mesh_sessions::channel::{
    AskError, Client, ClientConfig, Credentials, Directory, JoinError, Place as At, Target, Tls,
};
use qmt_node::config::{AgentChannel, Config, Listener};
use serde_json::{Value, json};

use crate::support::http::over_socket;
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

/// A caller with a certificate of this CA.
fn caller(chain: &[u8], cert: &[u8], key: &[u8]) -> (Client, Tls) {
    let credentials = Credentials {
        chain_pem: chain.to_vec(),
        cert_pem: cert.to_vec(),
        key_pem: key.to_vec(),
        crls: Vec::new(),
    };
    let tls = Tls::new(&credentials, Arc::new(UnixTime::now)).unwrap();
    (Client::new(tls.clone(), Arc::new(Nobody), ClientConfig::default()), tls)
}

/// Where a node's channel is, by its own registry.
async fn channel_of(place: &Place, name: &str) -> Target {
    let registry = place.home().join("shared/mesh.json");
    let port = until("the channel is in the registry", || async {
        let view: Value = serde_json::from_slice(&std::fs::read(&registry).ok()?).ok()?;
        view["nodes"][name]["port"].as_u64()
    });
    let at = At { host: "127.0.0.1".to_owned(), port: u16::try_from(port.await).unwrap() };
    Target::NodeAt(NodeName::new(name).unwrap(), at)
}

/// A line of a node's metrics.
async fn metric(host: &Host, line: &str) -> f64 {
    let answer = over_socket(&host.node.control_socket(), "GET", "/metrics", "").await.whole().await;
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {line} in {text}")).parse().unwrap()
}

const OPEN: &str = r#"mesh_channel_connections{by="others"}"#;
const CUT: &str = "mesh_channel_connections_cut_total";

struct Nobody;

impl Directory for Nobody {
    fn view(&self) -> Value {
        Value::Null
    }

    fn knows(&self, _: &NodeName) -> bool {
        false
    }

    fn join(&self, _: &Leaf, _: Value) -> BoxFuture<'static, Result<Value, JoinError>> {
        std::future::ready(Ok(Value::Null)).boxed()
    }

    fn place_of(&self, _: &NodeName) -> Option<At> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_at_the_ca_closes_connections_at_other_nodes() {
    let (desk, lap) = (Place::new("desk"), Place::new("lap"));
    let folder = found(&desk, UnixTime::now());
    let (first, second) = pair(&desk, &lap).await;
    // Somebody who is in no mesh, with a certificate by hand.
    let (authority, key, now) = (folder.authority().unwrap(), LeafKey::generate().unwrap(), UnixTime::now());
    let guest: NodeName = "guest".parse().unwrap();
    let request = Request::new(guest.clone(), key.public(), Duration::from_secs(86_400));
    let issued = folder.issue(&authority, &request, By::Issue, Some(&key), now).unwrap();
    let chain = std::fs::read(folder.chain_path()).unwrap();
    let (client, _tls) = caller(&chain, issued.to_pem().as_bytes(), key.to_pem().as_bytes());
    let to = channel_of(&lap, "lap").await;
    client.ping(&to).await.unwrap();
    until("it is counted", || async { (metric(&second, OPEN).await >= 1.0).then_some(()) }).await;
    assert!(metric(&second, "mesh_channel_certificate_seconds").await > 23.0 * 3600.0);
    assert!(metric(&second, "mesh_channel_handshakes_total").await >= 1.0);

    // As `qmt-cli ca revoke guest` does while the node runs.
    let since = Instant::now();
    folder.revoke(&authority, &Which::Node(guest), Reason::KeyCompromise, false, now).unwrap();
    until("it is closed at the other node", || async { (metric(&second, CUT).await == 1.0).then_some(()) })
        .await;
    println!("revoked and closed at the other node after {:?}", since.elapsed());
    assert!(client.ping(&to).await.is_err());
    let refused = r#"mesh_channel_handshakes_refused_total{reason="revoked"}"#;
    assert!(metric(&second, refused).await >= 1.0);
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_a_member_no_more_is_refused_everywhere_and_loses_its_certificate() {
    let (desk, lap, tab) = (Place::new("desk"), Place::new("lap"), Place::new("tab"));
    // What certificates without an id may do is nothing for those with one.
    let with_role = |config: &mut Config| {
        with_channel(config);
        config.agent_channel.as_mut().unwrap().role = Some(Role::Member);
    };
    let folder = found(&desk, UnixTime::now());
    let (first, second, third) =
        tokio::join!(desk.start_with(with_role), lap.start_with(with_role), tab.start_with(with_role));
    for host in [&second, &third] {
        host.join(&first.invite().await.token).await;
    }
    let held = certificate(&tab, |_| true).await;
    let chain = std::fs::read(wallet(&tab).chain_path()).unwrap();
    let (client, _tls) = caller(&chain, held.pem.as_bytes(), held.pem.as_bytes());
    second.sees(&third, NodeState::Alive).await;
    let at = [channel_of(&desk, "desk").await, channel_of(&lap, "lap").await];
    for to in &at {
        client.join(to, &json!({"id": "tab", "name": "tab", "host": "127.0.0.1", "port": 1})).await.unwrap();
        until("it is a member there", || async { client.agents(to).await.ok() }).await;
    }
    let before = [metric(&first, CUT).await, metric(&second, CUT).await];

    let revoke = RevokeRequest { subject: "tab".to_owned(), scope: None };
    first.client.revoke(&revoke).await.unwrap();
    for (host, before) in [(&first, before[0]), (&second, before[1])] {
        until("what it has open is closed", || async { (metric(host, CUT).await > before).then_some(()) })
            .await;
    }
    for to in &at {
        let refused = client.ping(to).await;
        assert!(matches!(refused, Err(AskError::Handshake { .. } | AskError::BrokenOff(_))), "{refused:?}");
    }
    let row = until("the CA has revoked its certificate", || async {
        let rows = folder.index().unwrap().rows().to_vec();
        rows.into_iter().find(|row| row.serial == held.leaf.serial && row.struck.is_some())
    })
    .await;
    let struck = row.struck.unwrap();
    assert_eq!((struck.reason, struck.may_return), (Reason::Withdrawn, true));
    let told = until("the trail tells it", || async {
        let entries = first.client.audit(&AuditQuery::default()).await.unwrap().entries;
        entries.into_iter().find(|entry| entry.kind == "uncertified")
    })
    .await;
    assert_eq!((told.subject_name.as_str(), told.actor_name.as_str()), ("tab", "desk"));
    assert_eq!(told.details["certificates"]["ids"], json!([held.leaf.serial.to_string()]));
    let listed = wallet(&lap).chain().unwrap().unwrap();
    until("the other node has the list", || async {
        wallet(&lap).crl(&listed).unwrap().filter(|crl| crl.revokes(&held.leaf.serial))
    })
    .await;
    // Its own node stays what it was to everybody: the CA's and the other one's certificates hold.
    let rows = folder.index().unwrap().rows().to_vec();
    assert_eq!(rows.iter().filter(|row| row.is_live(UnixTime::now())).count(), 2, "{rows:?}");

    // Invited again it is a member again, with another certificate.
    until("it hears that it is out", || async {
        let warnings = third.client.status().await.unwrap().warnings;
        warnings.into_iter().find(|warning| warning.contains("was revoked"))
    })
    .await;
    third.join(&first.invite().await.token).await;
    let next = certificate(&tab, |next| next.leaf.serial != held.leaf.serial).await;
    let (client, _tls) = caller(&chain, next.pem.as_bytes(), next.pem.as_bytes());
    for to in &at {
        until("it is served again", || async { client.ping(to).await.ok() }).await;
    }
    tokio::join!(first.stop(), second.stop(), third.stop());
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
