//! The agent channel of nodes: by certificate, from node to node, until the certificate is revoked.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mesh_control::{CreateSession, EventsQuery, Happened, PromptPart, PromptSession, SessionItem};
use mesh_identity::ca::Leaf;
use mesh_identity::{NodeName, UnixTime};
use mesh_sessions::channel::{
    AskError, Client, ClientConfig, Credentials, Directory, Heard, JoinError, MessageRequest, Outgoing,
    Place, Target, Tls,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::process::{Folder, Process};
use crate::support::script::{MODEL, Script};
use crate::support::{PATIENCE, until};

/// A CA in a folder of the seed's layout.
struct Ca {
    folder: tempfile::TempDir,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn hours_from_now(hours: i64) -> u64 {
    UnixTime::now().0.checked_add_signed(hours * 3600).unwrap()
}

macro_rules! time {
    ($hours:expr) => {
        date_time_ymd(1970, 1, 1) + Duration::from_secs(hours_from_now($hours))
    };
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "the mesh CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (time!(-100), time!(1000));
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let ca = Self { folder: tempfile::tempdir().unwrap(), pem, issuer: Issuer::new(params, key) };
        for part in ["intermediate", "issued"] {
            fs::create_dir_all(ca.path(part)).unwrap();
        }
        fs::write(ca.path("intermediate/ca-chain.pem"), &ca.pem).unwrap();
        ca
    }

    fn path(&self, part: &str) -> PathBuf {
        self.folder.path().join("rivet-ca").join(part)
    }

    fn issue(&self, name: &str, serial: u64) {
        let mut params =
            CertificateParams::new(vec![format!("{name}.mesh"), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (time!(-2), time!(22));
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        fs::write(self.path(&format!("issued/{name}.key")), key.serialize_pem()).unwrap();
        let owner_alone = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(self.path(&format!("issued/{name}.key")), owner_alone).unwrap();
        fs::write(self.path(&format!("issued/{name}.crt")), pem).unwrap();
    }

    fn revoke(&self, serial: u64) {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: time!(0),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: time!(0),
            next_update: time!(24),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer).unwrap().pem().unwrap();
        fs::write(self.path("intermediate/crl.pem"), pem).unwrap();
    }

    /// A client with the certificate of this node, beside the node itself.
    fn client(&self, name: &str) -> Client {
        let read = |part: &str| fs::read(self.path(part)).unwrap();
        let credentials = Credentials {
            chain_pem: self.pem.clone().into_bytes(),
            cert_pem: read(&format!("issued/{name}.crt")),
            key_pem: read(&format!("issued/{name}.key")),
            crls: Vec::new(),
        };
        let tls = Tls::new(&credentials, Arc::new(UnixTime::now)).unwrap();
        Client::new(tls, Arc::new(Nobody), ClientConfig::default())
    }
}

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

    fn place_of(&self, _: &NodeName) -> Option<Place> {
        None
    }
}

/// A node with an agent, whose channel believes this CA.
fn configure(folder: &Folder, ca: &Ca, script: &Script, name: &str, agent: &str) {
    let text = format!(
        "{}[mesh]\nenabled = false\n[api]\nport = 0\n[[agents]]\nid = \"{agent}\"\nmodel = \"{MODEL}\"\ntools = [\"delegate\"]\n\
         [[agents.policy]]\ntools = [\"*\"]\nthen = \"allow\"\n\
         [agent_channel]\nenabled = true\nnode_name = \"{name}\"\ntls = true\nbind = \"127.0.0.1\"\nagent_channel_port = 0\n\
         host = \"127.0.0.1\"\nrole = \"member\"\nstorage_dir = \"{}\"\n",
        script.as_provider(),
        ca.folder.path().display(),
    );
    folder.configure(&text);
}

/// Where a node's channel listens, as its log says.
async fn place(folder: &Folder) -> Place {
    let port = until("the channel listens", || async {
        let written = folder.written();
        let line = written.lines().rfind(|line| line.contains("agent channel listening"))?;
        let (_, address) = line.split_once("address=127.0.0.1:")?;
        address.split(' ').next()?.parse().ok()
    });
    Place { host: "127.0.0.1".to_owned(), port: port.await }
}

fn target(name: &str, place: &Place) -> Target {
    Target::NodeAt(NodeName::new(name).unwrap(), place.clone())
}

fn order(to: &str, text: &str) -> Outgoing {
    let request = MessageRequest {
        from_agent: "opus".to_owned(),
        to_agent: Some(to.to_owned()),
        message: text.to_owned(),
        context: Some(json!("it is late")),
        ..MessageRequest::default()
    };
    Outgoing { request, chain: None, key: Uuid::now_v7().to_string() }
}

/// As discovery does it.
async fn join(client: &Client, to: &Target, name: &str, at: &Place, agent: &str) {
    let node = json!({"id": name, "name": name, "host": at.host, "port": at.port, "agents": [agent], "status": "online"});
    client.join(to, &node).await.unwrap();
}

async fn prompted(node: &Process, agent: &str, text: &str) -> String {
    let new =
        CreateSession { id: Uuid::now_v7().to_string(), agent: agent.to_owned(), ..CreateSession::default() };
    let session = node.client.create_session(&new).await.unwrap().id;
    let parts = vec![PromptPart::Text { text: text.to_owned() }];
    let prompt = PromptSession { session: session.clone(), prompt: "1".to_owned(), parts };
    node.client.prompt(&prompt).await.unwrap();
    let query = EventsQuery { session, after: 0, past: false };
    let mut events = node.client.session_events(&query).await.unwrap();
    let mut results = String::new();
    loop {
        let item = tokio::time::timeout(PATIENCE, events.next()).await.expect("no event came").unwrap();
        let Some(SessionItem::Event(event)) = item else { panic!("{item:?} after {results}") };
        if event.kind() == "tool_ended" {
            results.push_str(&event.fields["result"].to_string());
        }
        if matches!(event.happened(), Happened::TurnEnded { .. }) {
            return results;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_share_a_ca_alone_delegate_until_one_is_revoked() {
    let (ca, script) = (Ca::new(), Script::start().await);
    let (there, here) = (Folder::new(), Folder::new());
    for (serial, name) in [(10, "ct110"), (11, "ct111"), (12, "ct112")] {
        ca.issue(name, serial);
    }
    configure(&there, &ca, &script, "ct110", "coder");
    configure(&here, &ca, &script, "ct111", "lead");
    let (mut ct110, mut ct111) = tokio::join!(there.start(&[]), here.start(&[]));
    let (at_110, at_111) = tokio::join!(place(&there), place(&here));
    let (to_110, to_111) = (target("ct110", &at_110), target("ct111", &at_111));

    // A third one, which is no node of ours: it joins, asks, and gets the answer as it comes.
    let third = ca.client("ct112");
    let stranger = third.delegate(&to_110, &order("coder", "hello")).await;
    assert!(matches!(stranger, Err(AskError::Refused { status: 403, .. })), "{stranger:?}");
    join(&third, &to_110, "ct112", &Place { host: "127.0.0.1".to_owned(), port: 1 }, "none").await;
    // The channel listens before the agents are at work, and has whoever asks for them wait.
    let open = third.agents(&to_110).await.unwrap().agents;
    assert!(matches!(&open[..], [agent] if agent.id == "coder"), "{open:?}");
    let mut answering = third.delegate(&to_110, &order("coder", "hello")).await.unwrap();
    let (mut text, mut pieces) = (String::new(), 0);
    let done = loop {
        match answering.next().await.unwrap() {
            Heard::Begun { agent, .. } => assert_eq!(agent, "coder"),
            Heard::Text(piece) => {
                text.push_str(&piece);
                pieces += 1;
            }
            Heard::Done(done) => break done,
        }
    };
    assert!(done.response.ends_with("hello") && done.response == text && pieces > 0, "{done:?} {text}");
    let asked = script.asked();
    let asked = asked.last().unwrap()["messages"].to_string();
    assert!(asked.contains("Context from opus@ct112") && asked.contains("it is late"), "{asked}");
    let written = there.written();
    assert!(written.contains("Received mesh delegation peer.cn=ct112 from=opus to=coder"), "{written}");

    // An agent of one node has one of the other do a task: by the registry in the folder that they share, since they share no
    // mesh.
    for (to, name, agent) in [(&to_111, "ct110", "coder"), (&to_110, "ct111", "lead")] {
        until("a node knows the other one's agent", || async {
            let (view, _) = third.registry(to).await.ok()?;
            let node = view["nodes"].as_object()?.values().find(|node| node["name"] == name)?.clone();
            let is_there = node["status"] == "online";
            (is_there && node["agents"].as_array()?.iter().any(|one| one == agent)).then_some(())
        })
        .await;
    }
    let results = prompted(&ct111, "lead", r#"tool delegate {"agent":"coder","task":"hello there"}"#).await;
    assert!(results.contains("heard: hello there"), "{results}");
    assert!(there.written().contains("Received mesh delegation peer.cn=ct111 from=lead to=coder"));
    // And back, and so on, no deeper than is allowed.
    let mut task = "never heard".to_owned();
    for agent in ["coder", "lead", "coder", "lead"] {
        task = format!("tool delegate {}", json!({"agent": agent, "task": task}));
    }
    prompted(&ct110, "coder", &task).await;
    let asked = Value::from(script.asked()).to_string();
    assert!(asked.contains("this task was itself delegated 3 deep"), "{asked}");
    assert!(!asked.contains("heard: never heard"), "{asked}");

    // Revoked, the third one's connection is closed in the middle, and it does not come in again.
    script.hold_from(script.asked().len() + 1);
    let mut answering = third.delegate(&to_110, &order("coder", "wait")).await.unwrap();
    assert!(matches!(answering.next().await.unwrap(), Heard::Begun { .. }));
    ca.revoke(12);
    let broken = async { while answering.next().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, broken).await.expect("its connection is closed");
    script.release();
    assert!(third.ping(&to_110).await.is_err());
    until("it is said why", || async {
        there.written().contains("TLS handshake failed from 127.0.0.1: certificate revoked").then_some(())
    })
    .await;
    ca.client("ct111").ping(&to_110).await.unwrap();

    // A renewed certificate needs no restart.
    ca.issue("ct110", 20);
    until("the new one is shown", || async {
        let (_, leaf) = ca.client("ct111").ping(&to_110).await.ok()?;
        (leaf.serial.to_string() == "14").then_some(())
    })
    .await;
    assert!(ct110.terminate().await.success() && ct111.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_is_no_channel_without_a_certificate() {
    let (ca, script, folder) = (Ca::new(), Script::start().await, Folder::new());
    // Where none can come, the node does not start.
    configure(&folder, &ca, &script, "ct110", "coder");
    let (status, written) = folder.run(&[]);
    assert!(!status.success(), "{written}");
    assert!(
        written.contains("the agent channel cannot start") && written.contains("ct110.key is not there"),
        "{written}"
    );
    // Nor with one that everybody could read the key of, or that is of another CA.
    ca.issue("ct110", 10);
    let key = ca.path("issued/ct110.key");
    let mode = |mode| fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o644);
    let (status, written) = folder.run(&[]);
    assert!(!status.success() && written.contains("chmod 600"), "{written}");
    mode(0o600);
    let chain = ca.path("intermediate/ca-chain.pem");
    fs::write(&chain, Ca::new().pem).unwrap();
    let (status, written) = folder.run(&[]);
    assert!(!status.success() && written.contains("certificate has a bad signature (CN=ct110)"), "{written}");
    // Where one can come it waits, and opens the channel when it does.
    fs::write(&chain, &ca.pem).unwrap();
    fs::rename(&key, ca.path("key")).unwrap();
    let certificate = ca.path("issued/ct110.crt");
    fs::rename(&certificate, ca.path("crt")).unwrap();
    let config = fs::read_to_string(folder.home().join("config.toml")).unwrap();
    folder.configure(&config.replace("[mesh]\nenabled = false\n", ""));
    let mut node = folder.start(&[]).await;
    assert!(folder.written().contains("the agent channel waits for a certificate"), "{}", folder.written());
    fs::rename(ca.path("key"), &key).unwrap();
    fs::rename(ca.path("crt"), &certificate).unwrap();
    let at = place(&folder).await;
    ca.client("ct110").ping(&target("ct110", &at)).await.unwrap();
    assert!(node.terminate().await.success());
}
