//! Who gets through the handshake, and what the log says of the others.

use std::sync::atomic::Ordering::SeqCst;

use mesh_sessions::channel::{
    AskError, Client, ClientConfig, Credentials, CredentialsError, Limits, Refusal, Target, Tls,
};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::support::*;

/// What a caller with this configuration hears in answer to a ping; nothing when it is refused.
async fn pinged(node: &Node, config: rustls::ClientConfig) -> String {
    match raw_connect(node.server.address(), config).await {
        // In TLS 1.3 a client is done before the server has seen its certificate: it hears of the refusal by reading.
        Ok(mut stream) => say(&mut stream, &request("GET", "/api/mesh/ping", "", "")).await,
        Err(_) => String::new(),
    }
}

#[tokio::test]
async fn everything_but_a_live_certificate_of_the_ca_is_refused_and_logged_with_its_reason() {
    let node = Node::with(Limits::default(), vec![66], std::sync::Arc::default()).await;
    let good = node.ca.issue(&Spec::of("ct111", 10));
    assert!(pinged(&node, raw_config(&node.ca, Some(&good))).await.starts_with("HTTP/1.1 200"));
    assert_eq!(Refusal::ALL.map(|why| node.server.stats().handshakes_refused(why)), [0; 13]);

    let of = |spec: Spec| raw_config(&node.ca, Some(&node.ca.issue(&spec)));
    let stranger = Ca::new("another CA").issue(&Spec::of("ct111", 10));
    let (mut expired, mut early, mut server_only, mut old) =
        (Spec::of("ct111", 11), Spec::of("ct111", 12), Spec::of("ct111", 13), rustls_of_1_2(&node, &good));
    expired.holds = (-2 * HOUR, -HOUR);
    early.holds = (HOUR, 2 * HOUR);
    server_only.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    old.alpn_protocols.clear();
    let refused = [
        (raw_config(&node.ca, None), Refusal::NoCertificate, "peer did not return a certificate"),
        (
            raw_config(&node.ca, Some(&stranger)),
            Refusal::AnotherCa,
            "certificate is not signed by the mesh CA",
        ),
        (of(expired), Refusal::Expired, "certificate has expired"),
        (of(early), Refusal::NotYetValid, "certificate is not yet valid"),
        (of(Spec::of("ct111", 66)), Refusal::Revoked, "certificate revoked"),
        (of(server_only), Refusal::WrongPurpose, "unsupported certificate purpose"),
        (old, Refusal::Protocol, "unsupported protocol (TLS 1.3 is needed)"),
        (
            of(Spec::of("opus@ct111", 14)),
            Refusal::BadCertificate,
            "the certificate's common name \"opus@ct111\" is no node name",
        ),
    ];
    for (config, why, reason) in refused {
        assert_eq!(pinged(&node, config).await, "", "{reason}");
        let line =
            format!("WARN mesh_sessions::channel::server: TLS handshake failed from 127.0.0.1: {reason}");
        until(&line, || node.log.has(&line)).await;
        until("counted", || node.server.stats().handshakes_refused(why) == 1).await;
    }
    assert_eq!(node.server.stats().handshakes, 1);
    node.end().await;
}

fn rustls_of_1_2(node: &Node, good: &Issued) -> rustls::ClientConfig {
    let with_all = raw_config(&node.ca, Some(good));
    let provider = with_all.crypto_provider().clone();
    let mut roots = rustls::RootCertStore::empty();
    let pem = node.ca.pem();
    let anchor = rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap();
    roots.add(anchor).unwrap();
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(with_all.client_auth_cert_resolver.clone())
}

#[tokio::test]
async fn plain_http_gets_no_answer() {
    let node = Node::start().await;
    let mut stream = TcpStream::connect(node.server.address()).await.unwrap();
    let heard = say(&mut stream, &request("GET", "/api/mesh/ping", "", "")).await;
    assert!(!heard.contains("HTTP"), "{heard:?}");
    until("logged", || node.log.has("127.0.0.1: not TLS (there is no plaintext channel)")).await;
    node.end().await;
}

#[tokio::test]
async fn a_session_is_not_resumed_so_that_each_connection_shows_its_certificate() {
    let node = Node::start().await;
    let issued = node.ca.issue(&Spec::of("ct111", 10));
    let config = raw_config(&node.ca, Some(&issued));
    for _ in 0..2 {
        let mut stream = raw_connect(node.server.address(), config.clone()).await.unwrap();
        assert!(
            say(&mut stream, &request("GET", "/api/mesh/ping", "", "")).await.starts_with("HTTP/1.1 200")
        );
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    node.end().await;
}

#[tokio::test]
async fn a_clock_that_is_an_hour_off_changes_nothing() {
    for hour in [-HOUR, HOUR] {
        let node = Node::start().await;
        // The node and the caller disagree by an hour, either way.
        let clock = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(hour));
        let credentials =
            node.ca.credentials(&node.ca.issue(&Spec::of("ct111", 2)), vec![node.ca.crl(1, &[])]);
        let tls = Tls::new(&credentials, shifted(&clock)).unwrap();
        let client = Client::new(tls, node.registry.clone(), ClientConfig::default());
        let (ping, leaf) = client.ping(&node.target()).await.unwrap();
        assert_eq!((ping.node.as_str(), ping.cn.as_str(), leaf.name.as_str()), ("ct110", "ct111", "ct110"));
        node.end().await;
        // The same with the server's clock, a revocation list from the future or long run out included.
        let clock = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(hour));
        let node = Node::with(Limits::default(), vec![66], clock.clone()).await;
        node.client("ct111").ping(&node.target()).await.unwrap();
        clock.store(2 * hour, SeqCst);
        let revoked = node.client_of(&Spec::of("ct112", 66)).ping(&node.target()).await;
        assert!(matches!(revoked, Err(AskError::Handshake { .. } | AskError::BrokenOff(_))), "{revoked:?}");
        node.end().await;
    }
}

#[tokio::test]
async fn a_client_believes_no_server_but_the_node_that_it_asked() {
    let node = Node::start().await;
    let (ct111, address) = (node.client("ct111"), node.server.address());
    let place = mesh_sessions::channel::Place { host: "127.0.0.1".to_owned(), port: address.port() };
    // It is ct110 that listens there.
    let wrong = ct111.ping(&Target::NodeAt(name("ct112"), place.clone())).await;
    assert!(
        matches!(&wrong, Err(AskError::Handshake { reason, .. }) if reason == "certificate is for another host"),
        "{wrong:?}"
    );
    let (_, leaf) = ct111.ping(&Target::Place(place.clone())).await.unwrap();
    assert_eq!(leaf.name.as_str(), "ct110");
    // A name of the mesh needs no DNS: the registry has it.
    node.registry.put("ct110", address);
    ct111.ping(&Target::Node(name("ct110"))).await.unwrap();
    let by_host = mesh_sessions::channel::Place { host: "ct110.mesh".to_owned(), port: address.port() };
    ct111.ping(&Target::Place(by_host)).await.unwrap();
    let unknown = ct111.ping(&Target::Node(name("ct999"))).await;
    assert!(matches!(unknown, Err(AskError::UnknownNode(_))), "{unknown:?}");
    // Of another CA, or revoked, it is not believed either.
    let other = Ca::new("another CA");
    let stranger =
        Client::new(other.tls(&Spec::of("ct111", 2)), node.registry.clone(), ClientConfig::default());
    let refused = stranger.ping(&node.target()).await;
    assert!(
        matches!(&refused, Err(AskError::Handshake { reason, .. }) if reason == "certificate is not signed by the mesh CA"),
        "{refused:?}"
    );
    let credentials = node.ca.credentials(&node.ca.issue(&Spec::of("ct111", 2)), vec![node.ca.crl(2, &[1])]);
    let knowing = Client::new(
        Tls::new(&credentials, shifted(&Default::default())).unwrap(),
        node.registry.clone(),
        ClientConfig::default(),
    );
    let refused = knowing.ping(&node.target()).await;
    assert!(
        matches!(&refused, Err(AskError::Handshake { reason, .. }) if reason == "certificate revoked"),
        "{refused:?}"
    );
    node.end().await;
}

#[tokio::test]
async fn there_is_no_channel_without_a_certificate_that_holds() {
    let ca = Ca::new("the mesh CA");
    let clock = shifted(&Default::default());
    let issued = ca.issue(&Spec::of("ct110", 1));
    let start = |change: fn(&mut Credentials)| {
        let mut credentials = ca.credentials(&issued, vec![]);
        change(&mut credentials);
        Tls::new(&credentials, clock.clone()).map(drop)
    };
    assert!(start(|_| ()).is_ok());
    for (change, what) in [
        ((|c| c.cert_pem.clear()) as fn(&mut Credentials), "the certificate cannot be read: there is none"),
        (|c| c.key_pem.clear(), "the key cannot be read"),
        (|c| c.chain_pem.clear(), "the CA's chain cannot be read: it has 0 certificates"),
        (|c| c.crls.push(vec![0x30, 0x03, 1, 2, 3]), "a revocation list cannot be read"),
        (
            |c| c.key_pem = rcgen::KeyPair::generate().unwrap().serialize_pem().into(),
            "the key is not the one of the certificate",
        ),
        (
            |c| c.chain_pem = Ca::new("another").pem().into(),
            "this node's certificate is not signed by the mesh CA (CN=ct110)",
        ),
    ] {
        let error = start(change).unwrap_err();
        assert!(error.to_string().starts_with(what), "{error}");
        assert!(!error.mend().is_empty());
    }
    let mut expired = Spec::of("ct110", 1);
    expired.holds = (-2 * HOUR, -HOUR);
    let error = Tls::new(&ca.credentials(&ca.issue(&expired), vec![]), clock.clone()).unwrap_err();
    assert_eq!(error.to_string(), "this node's certificate has expired (CN=ct110)");
    assert!(matches!(error, CredentialsError::Refused { .. }));
}

#[tokio::test]
async fn who_shakes_no_hands_is_sent_away() {
    let limits = Limits {
        handshake: std::time::Duration::from_millis(100),
        handshakes_of_one_max: 4,
        ..Limits::default()
    };
    let node = Node::with(limits, vec![], Default::default()).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(node.server.address()).await.unwrap());
    }
    // Those beyond the bound at once, the others when their time is up.
    for stream in &mut silent {
        let closed = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("it is closed");
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }
    until("logged", || node.log.has("TLS handshake failed from 127.0.0.1: no handshake within 0.1 s")).await;
    node.client("ct111").ping(&node.target()).await.unwrap();
    node.end().await;
}
