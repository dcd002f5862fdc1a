//! The channel as openssl and curl see it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use rcgen::ExtendedKeyUsagePurpose;

use crate::support::*;

/// The files that the documentation tells people to use.
struct Files(tempfile::TempDir);

impl Files {
    fn of(node: &Node) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put("ca-chain.pem", &node.ca.pem());
        files
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::File::create(self.0.path().join(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn issue(&self, name: &str, issued: &Issued) {
        self.put(&format!("{name}.crt"), &issued.cert);
        self.put(&format!("{name}.key"), &issued.key);
    }
}

/// Whether the program is on this machine; says so when it is not.
fn is_here(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    if !found {
        eprintln!("SKIPPED: {program} is not installed here");
    }
    found
}

async fn run(program: &str, folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may have ended by itself.
    let _ = tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await;
    // s_client leaves when its input ends, and has to hear the answer first.
    let waiting = async {
        let out = child.wait_with_output().await.unwrap();
        drop(stdin);
        out
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it ends")
}

#[tokio::test]
async fn openssl_is_told_why_it_is_refused() {
    if !is_here("openssl") {
        return;
    }
    let node = Node::with(Default::default(), vec![66], Default::default()).await;
    let files = Files::of(&node);
    let (mut expired, mut early, mut server_only) =
        (Spec::of("ct111", 11), Spec::of("ct111", 12), Spec::of("ct111", 13));
    expired.holds = (-2 * HOUR, -HOUR);
    early.holds = (HOUR, 2 * HOUR);
    server_only.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    files.issue("good", &node.ca.issue(&Spec::of("ct111", 10)));
    files.issue("expired", &node.ca.issue(&expired));
    files.issue("early", &node.ca.issue(&early));
    files.issue("server", &node.ca.issue(&server_only));
    files.issue("revoked", &node.ca.issue(&Spec::of("ct111", 66)));
    files.issue("stranger", &Ca::new("another CA").issue(&Spec::of("ct111", 10)));
    let address = node.server.address().to_string();
    let shake = async |certificate: Option<&str>, more: &[&str]| {
        let names = certificate.map(|name| (format!("{name}.crt"), format!("{name}.key")));
        let mut arguments = vec![
            "s_client",
            "-connect",
            &address,
            "-servername",
            "ct110.mesh",
            "-CAfile",
            "ca-chain.pem",
            "-verify_return_error",
            "-quiet",
        ];
        if let Some((cert, key)) = &names {
            arguments.extend(["-cert", cert.as_str(), "-key", key.as_str()]);
        }
        arguments.extend(more);
        let output =
            run("openssl", files.0.path(), &arguments, &request("GET", "/api/mesh/ping", "", "")).await;
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
    };
    let good = shake(Some("good"), &[]).await;
    assert!(good.contains("HTTP/1.1 200 OK") && good.contains("\"cn\":\"ct111\""), "{good}");
    for (certificate, more, alert, reason) in [
        (None, &[] as &[&str], "certificate required", "peer did not return a certificate"),
        (Some("stranger"), &[], "unknown ca", "certificate is not signed by the mesh CA"),
        (Some("expired"), &[], "certificate expired", "certificate has expired"),
        (Some("early"), &[], "certificate expired", "certificate is not yet valid"),
        (Some("revoked"), &[], "certificate revoked", "certificate revoked"),
        (Some("server"), &[], "unsupported certificate", "unsupported certificate purpose"),
        (Some("good"), &["-tls1_2"], "protocol version", "unsupported protocol (TLS 1.3 is needed)"),
    ] {
        let heard = shake(certificate, more).await;
        assert!(!heard.contains("HTTP/1.1") && heard.contains(alert), "{certificate:?} {more:?}: {heard}");
        let line = format!("TLS handshake failed from 127.0.0.1: {reason}");
        until(&line, || node.log.has(&line)).await;
    }
    node.end().await;
}

#[tokio::test]
async fn curl_asks_with_the_documented_flags() {
    if !is_here("curl") {
        return;
    }
    let node = Node::start().await;
    let files = Files::of(&node);
    files.issue("ct111", &node.ca.issue(&Spec::of("ct111", 10)));
    let port = node.server.address().port();
    let resolve = format!("ct110.mesh:{port}:127.0.0.1");
    let curl = async |path: &str, more: &[&str]| {
        let url = format!("https://ct110.mesh:{port}{path}");
        let mut arguments = vec![
            "-sS",
            "--cacert",
            "ca-chain.pem",
            "--cert",
            "ct111.crt",
            "--key",
            "ct111.key",
            "--resolve",
            &resolve,
            &url,
        ];
        arguments.extend(more);
        let output = run("curl", files.0.path(), &arguments, "").await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(curl("/api/mesh/ping", &[]).await.contains("\"node\":\"ct110\""));
    assert!(curl("/api/mesh", &[]).await.contains("\"version\":1"));
    let joined =
        curl("/api/mesh/join", &["--json", r#"{"name":"ct111","host":"10.0.0.11","port":3000}"#]).await;
    assert!(joined.contains("ct111"));
    assert!(curl("/api/agents", &[]).await.contains("\"agents\":[{\"id\":\"echo\"}"));
    let task = r#"{"fromAgent":"opus@ct111","toAgent":"echo","message":"Summarise"}"#;
    let answer = curl("/api/message", &["--json", task]).await;
    assert!(
        answer.contains("\"response\":\"Summarise\"") && answer.contains("\"status\":\"completed\""),
        "{answer}"
    );
    let streamed = curl("/api/message", &["-N", "--json", task, "-H", "Accept: text/event-stream"]).await;
    assert!(streamed.contains("event: text\n") && streamed.contains("event: done\n"), "{streamed}");
    let forged = task.replace("ct111", "ct112");
    let refused = curl("/api/message", &["--json", &forged, "-w", "%{http_code}"]).await;
    assert!(refused.ends_with("403") && refused.contains("not_you"), "{refused}");
    node.end().await;
}
