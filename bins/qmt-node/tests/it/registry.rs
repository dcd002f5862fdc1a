//! Nodes that share no folder find each other by each way of discovery, and go on when the one they met at is gone.

use std::path::PathBuf;

use mesh_control::NodeState;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::process::{Folder, Process};
use crate::support::until;

/// A CA's folder, as nodes that were given certificates by hand have it.
struct Ca {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        for sub in ["intermediate", "issued"] {
            std::fs::create_dir(folder.path().join(sub)).unwrap();
        }
        std::fs::write(folder.path().join("intermediate/ca-chain.pem"), certificate.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: &str) {
        let mut params = CertificateParams::new(vec![format!("{name}.mesh")]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let issued = self.folder.path().join("issued");
        std::fs::write(issued.join(format!("{name}.crt")), certificate.pem()).unwrap();
        let path = issued.join(format!("{name}.key"));
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
}

/// A node with a certificate and a registry of its own.
struct Node {
    folder: Folder,
    process: Process,
}

impl Node {
    async fn start(ca: &Ca, name: &str, more: &str) -> Self {
        Self::start_at(ca, name, "bind = \"127.0.0.1\"\n", more).await
    }

    async fn start_at(ca: &Ca, name: &str, bind: &str, more: &str) -> Self {
        ca.issue(name);
        let folder = Folder::new();
        let shared = folder.beside("shared");
        folder.configure(&format!(
            "[api]\nport = 0\n[mesh]\nenabled = false\nnode_name = {name:?}\n[agent_channel]\nenabled = true\ntls = true\n\
             agent_channel_port = 0\n{bind}ca_dir = {:?}\nstorage_dir = {shared:?}\nrole = \"member\"\n\
             heartbeat_interval_ms = 300\nstale_threshold_ms = 3000\n{more}",
            ca.folder.path(),
        ));
        let process = folder.start(&[]).await;
        Self { folder, process }
    }

    fn registry(&self) -> PathBuf {
        self.folder.beside("shared").join("mesh.json")
    }

    /// Where its agent channel is, by its own word.
    async fn port(&self, name: &str) -> u64 {
        until("it registers itself", || async {
            let text = std::fs::read_to_string(self.registry()).ok()?;
            serde_json::from_str::<Value>(&text).unwrap()["nodes"][name]["port"].as_u64()
        })
        .await
    }

    async fn sees(&self, name: &str, state: NodeState) {
        until(&format!("{name} is seen as {state}"), || async {
            let nodes = self.process.client.nodes().await.unwrap();
            nodes.into_iter().find(|node| node.name == name && node.state == state)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_meet_at_a_seed_or_a_peer_and_go_on_when_it_is_killed() {
    let ca = Ca::new();
    let seed = Node::start(&ca, "seed", "").await;
    let port = seed.port("seed").await;
    let at_seed = format!(
        "[agent_channel.discovery]\nmode = \"seed\"\nseed_host = \"127.0.0.1\"\nseed_port = {port}\n"
    );
    let one = Node::start(&ca, "one", &at_seed).await;
    let peer =
        format!("[[agent_channel.discovery.peers]]\nname = \"seed\"\nhost = \"127.0.0.1\"\nport = {port}\n");
    let two = Node::start(&ca, "two", &peer).await;
    for (node, others) in [(&seed, ["one", "two"]), (&one, ["seed", "two"]), (&two, ["one", "seed"])] {
        for other in others {
            node.sees(other, NodeState::Alive).await;
        }
    }
    let mut seed = seed;
    seed.process.kill();
    for (node, other) in [(&one, "two"), (&two, "one")] {
        node.sees("seed", NodeState::Suspect).await;
        node.sees(other, NodeState::Alive).await;
    }
    let port = one.port("one").await;
    let peer =
        format!("[[agent_channel.discovery.peers]]\nname = \"one\"\nhost = \"127.0.0.1\"\nport = {port}\n");
    let late = Node::start(&ca, "late", &peer).await;
    late.sees("two", NodeState::Alive).await;
    two.sees("late", NodeState::Alive).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_network_meet_by_mdns_alone() {
    let ca = Ca::new();
    let mdns = "[agent_channel.discovery]\nmode = \"mdns\"\n";
    // At all addresses: what is told of a loopback address alone is heard by nobody else in real life either.
    let here = Node::start_at(&ca, "here", "", mdns).await;
    let there = Node::start_at(&ca, "there", "", mdns).await;
    here.sees("there", NodeState::Alive).await;
    there.sees("here", NodeState::Alive).await;
}
