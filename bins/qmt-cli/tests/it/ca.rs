//! The CA on the command line, checked by openssl where that is there.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{CLI, Ran, cli};

async fn ca(home: &Path, args: &[&str]) -> Ran {
    cli(home, &[&["ca"], args].concat()).run().await
}

async fn json(home: &Path, args: &[&str]) -> Value {
    cli(home, &[&["ca"], args, &["--json"]].concat()).run().await.ok_json()
}

/// openssl in `folder`: whether it was content, and what it said. None where it is missing.
fn openssl(folder: &Path, args: &[&str]) -> Option<(bool, String)> {
    let Ok(output) = Command::new("openssl").args(args).current_dir(folder).output() else {
        println!("skipped: openssl cannot be run");
        return None;
    };
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test]
async fn a_ca_is_made_signs_revokes_and_is_shown() {
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    let none = ca(home, &["list"]).await;
    assert_eq!(none.code, 1, "{none:?}");
    assert!(
        none.err.contains("there is no CA in ") && none.err.contains("mend: make one with `qmt-cli ca init`")
    );

    let made =
        ca(home, &["init", "--name", "home", "--permit-dns", "ct110", "--permit-ip", "203.0.113.0/24"]).await;
    assert_eq!(made.code, 0, "{made:?}");
    assert!(made.out.contains("CN=home root, until ") && made.out.contains("hosts: mesh, ct110"), "{made:?}");
    assert!(made.err.contains("ca export --root-key"), "{made:?}");
    let again = ca(home, &["init", "--json"]).await;
    assert_eq!((again.code, &again.json()["error"]["code"]), (1, &"exists".into()));

    let issued = json(home, &["issue", "ct110", "--ip", "203.0.113.7", "--ttl", "24h"]).await;
    assert_eq!(issued["dns"], serde_json::json!(["ct110.mesh", "ct110"]));
    let key = std::fs::read_to_string(issued["key"].as_str().expect("a path")).expect("the key");
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"));
    let refused = ca(home, &["issue", "ct111", "--ip", "8.8.8.8"]).await;
    assert!(
        refused.code == 1 && refused.err.contains("this CA may not name the address 8.8.8.8"),
        "{refused:?}"
    );
    assert!(refused.err.contains("mend: what a CA may name is fixed"), "{refused:?}");

    let listed = ca(home, &["list"]).await;
    assert!(
        listed
            .out
            .starts_with("NODE   STATE  ENDS     BY     ID  SERIAL\nct110  valid  in 24 h  issue  -   "),
        "{listed:?}"
    );
    let good = ca(home, &["verify", "ct110"]).await;
    assert!(
        good.code == 0 && good.out.starts_with("good: ct110 (ct110.mesh, ct110, 203.0.113.7), until "),
        "{good:?}"
    );

    let renewed = json(home, &["renew", "ct110", "--ttl", "48h"]).await;
    assert_ne!(renewed[0]["serial"], issued["serial"]);
    let old = issued["serial"].as_str().expect("a serial");
    let one = json(home, &["revoke", &old[..12], "--reason", "superseded"]).await;
    assert_eq!(one["revoked"].as_array().expect("a list").len(), 1);
    assert_eq!(ca(home, &["verify", "ct110"]).await.code, 0, "the newer one holds");
    let all = ca(home, &["revoke", "ct110", "--reason", "key-compromise"]).await;
    assert!(
        all.code == 0 && all.out.starts_with("revoked 1 certificate, and it stays out; list "),
        "{all:?}"
    );
    let bad = ca(home, &["verify", "ct110", "--json"]).await;
    assert_eq!((bad.code, &bad.json()["error"]["code"]), (1, &"invalid".into()));
    assert!(
        bad.json()["error"]["message"].as_str().expect("one").contains("it was revoked (serial "),
        "{bad:?}"
    );
    let refused = ca(home, &["renew", "ct110"]).await;
    assert!(
        refused.code == 1 && refused.err.contains("the certificate of ct110 was revoked at "),
        "{refused:?}"
    );

    assert_eq!(json(home, &["list"]).await, Value::Array(Vec::new()));
    let rows = json(home, &["list", "--all"]).await;
    let states: Vec<&str> =
        rows.as_array().expect("rows").iter().filter_map(|row| row["state"].as_str()).collect();
    assert_eq!(states, ["revoked", "revoked"]);
    assert_eq!(rows[1]["revoked"]["reason"], "key-compromise");
    let shown = json(home, &["show"]).await;
    assert_eq!(
        (&shown["live"], &shown["signed"], &shown["crl"]["revoked"]),
        (&0.into(), &2.into(), &2.into())
    );
    let shown = json(home, &["show", "ct110"]).await;
    assert_eq!((&shown["state"], &shown["name"]), (&"revoked".into(), &"ct110".into()));
    let unknown = ca(home, &["revoke", "nobody", "--json"]).await;
    assert_eq!((unknown.code, &unknown.json()["error"]["code"]), (1, &"unknown".into()));
}

#[tokio::test]
async fn openssl_makes_the_request_and_believes_the_answer() {
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    let make =
        ["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "n.key", "-out", "n.csr", "-subj", "/CN=ct111"];
    let names = ["-addext", "subjectAltName=DNS:evil.example,IP:10.0.0.9"];
    let Some((true, _)) = openssl(home, &[&make[..], &names].concat()) else { return };
    json(home, &["init"]).await;
    let request = home.join("n.csr");
    let signed = json(
        home,
        &["sign", request.to_str().expect("text"), "--out", home.join("n.crt").to_str().expect("text")],
    )
    .await;
    assert_eq!(
        signed["dns"],
        serde_json::json!(["ct111.mesh"]),
        "what it asked for beyond its name is not given"
    );
    assert_eq!(signed["ips"], serde_json::json!(["10.0.0.9"]));
    let check = [
        "verify",
        "-x509_strict",
        "-crl_check",
        "-CAfile",
        "ca/intermediate/ca-chain.pem",
        "-CRLfile",
        "ca/intermediate/crl.pem",
        "n.crt",
    ];
    let (good, said) = openssl(home, &check).expect("it is there");
    assert!(good, "{said}");
    json(home, &["revoke", "ct111"]).await;
    let (good, said) = openssl(home, &check).expect("it is there");
    assert!(!good && said.contains("certificate revoked"), "{said}");

    let text = std::fs::read_to_string(&request).expect("the request");
    let piped =
        cli(home, &["ca", "sign", "-", "--name", "ct112", "--json"]).input(&text).run().await.ok_json();
    assert_eq!(piped["name"], "ct112");
    let garbage = cli(home, &["ca", "sign", "-"]).input("hello").run().await;
    assert!(garbage.code == 1 && garbage.err.contains("this is no request for a certificate"), "{garbage:?}");
}

#[tokio::test]
async fn the_root_is_put_away_and_nodes_get_a_folder() {
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    json(home, &["init"]).await;
    json(home, &["issue", "ct110"]).await;
    let (medium, share) = (home.join("medium"), home.join("share"));
    let (medium, share) = (medium.to_str().expect("text"), share.to_str().expect("text"));
    let moved = json(home, &["export", medium, "--root-key"]).await;
    assert_eq!(moved["files"].as_array().expect("files").len(), 2);
    assert_eq!(json(home, &["show"]).await["root_key"], false);
    let without = ca(home, &["renew", "--intermediate"]).await;
    assert!(without.code == 1 && without.err.contains("or name its folder with --root"), "{without:?}");
    let shown = json(home, &["renew", "--intermediate", "--root", medium]).await;
    assert_eq!(shown["certificates"][0]["permitted_dns"], serde_json::json!(["mesh"]));
    let files = json(home, &["export", share, "--node", "ct110"]).await;
    assert_eq!(files["files"].as_array().expect("files").len(), 4);
    let good = ca(home, &["verify", "ct110", "--dir", share]).await;
    assert_eq!(good.code, 0, "{good:?}");
    let cannot = ca(home, &["issue", "ct111", "--dir", share]).await;
    assert!(cannot.code == 1 && cannot.err.contains("ca.key is not here"), "{cannot:?}");
}

#[tokio::test]
async fn a_process_killed_while_it_signs_leaves_a_folder_that_is_whole() {
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path();
    json(home, &["init"]).await;
    for round in 0..20_u64 {
        let mut child = Command::new(CLI)
            .args(["ca", "issue", &format!("n{round}")])
            .env("QMT_HOME", home)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        std::thread::sleep(Duration::from_micros(round * 600));
        child.kill().expect("killed");
        child.wait().expect("gone");
        let rows = json(home, &["list", "--all"]).await;
        assert!(rows.as_array().expect("rows").len() as u64 <= round + 1, "{rows}");
    }
    let last = json(home, &["issue", "last"]).await;
    assert_eq!(last["name"], "last");
    assert_eq!(ca(home, &["verify", "last"]).await.code, 0);
    for folder in ["issued", "intermediate"] {
        let drafts = std::fs::read_dir(home.join("ca").join(folder)).expect("the folder").flatten();
        let drafts: Vec<_> =
            drafts.filter(|file| file.file_name().to_string_lossy().ends_with(".tmp")).collect();
        assert!(drafts.is_empty(), "{drafts:?}");
    }
}

#[tokio::test]
async fn wrong_usage_of_the_ca_is_exit_code_2() {
    let home = tempfile::tempdir().expect("a folder");
    for args in [
        &["issue", "a b"][..],
        &["issue", "ct110", "--ttl", "never"],
        &["issue", "ct110", "--ip", "ct110"],
        &["init", "--permit-ip", "10.1.2.3/8"],
        &["init", "--name", ""],
        &["revoke", "ct110", "--reason", "anger"],
        &["renew"],
        &["export", "there", "--root-key", "--node", "ct110"],
    ] {
        let ran = ca(home.path(), args).await;
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
    }
    assert_eq!(std::fs::read_dir(home.path()).expect("the home").count(), 0, "nothing was made");
}

#[tokio::test]
async fn what_cannot_be_done_says_what_where_and_how_to_mend_it() {
    let home = tempfile::tempdir().expect("a folder");
    let (home, file) = (home.path(), |name: &str| home.path().join(name).display().to_string());
    let other = file("other");
    for args in [&["init"][..], &["init", "--dir", &other], &["issue", "ct110"], &["issue", "ct111"]] {
        assert_eq!(ca(home, args).await.code, 0, "{args:?}");
    }
    ca(home, &["revoke", "ct111", "--reason", "superseded"]).await;
    assert_eq!(ca(home, &["export", "--root-key", &file("medium")]).await.code, 0);
    std::fs::write(home.join("text"), "hello").expect("written");
    let (text, nowhere) = (file("text"), file("nowhere"));
    let of_ca = file("ca/intermediate/ca.crt");
    let certificate = file("ca/issued/ct110.crt");
    let (out, medium) = (file("nowhere/ct110.crt"), file("medium"));
    let cases: &[(&[&str], &str, &str)] = &[
        (&["verify", "ct110", "--dir", &nowhere], "there is no CA in ", "`qmt-cli ca init`"),
        (&["verify", &certificate, "--dir", &other], "ct110.crt: it is not signed by this CA", "--dir"),
        (&["verify", "ct111"], "ct111.crt: it was revoked (serial ", "`qmt-cli ca issue NODE`"),
        (&["verify", &text], "text: there is no certificate in it (PEM)", "name a node"),
        (&["show", &of_ca], "ca.crt: this is the certificate of a CA", "`qmt-cli ca show`"),
        (&["sign", &text], "text: this is no request for a certificate", "openssl req "),
        (&["sign", &nowhere], "cannot read ", "the file with the request"),
        (&["issue", "x", "--ttl", "never"], "a certificate has an end", "24h or 90d"),
        (&["renew", "--intermediate"], "root/root.key is not here", "--root"),
        (&["export", "--root-key", &medium], "root/root.key is not here", "--root"),
        (
            &["export", "--root-key", &medium, "--dir", &other],
            "there is a key ",
            "a key is never overwritten",
        ),
    ];
    for (args, what, mend) in cases {
        let ran = ca(home, args).await;
        assert!(ran.code != 0 && ran.err.contains(what) && ran.err.contains(mend), "{args:?}: {ran:?}");
    }
    // The key of another CA, and no key: which file it is is said.
    let key = home.join("ca/intermediate/ca.key");
    std::fs::copy(Path::new(&other).join("intermediate/ca.key"), &key).expect("copied");
    let foreign = ca(home, &["issue", "x"]).await;
    assert!(foreign.err.contains("ca/intermediate/ca.key cannot be used: none of the CA's"), "{foreign:?}");
    assert!(foreign.err.contains("mend: restore "), "{foreign:?}");
    std::fs::remove_file(&key).expect("removed");
    let without = ca(home, &["issue", "x"]).await;
    assert!(without.err.contains("ca.key is not here\nmend: do this where the CA's key is"), "{without:?}");
    // What was signed is not lost when it cannot be put where it was wanted.
    if let Some((true, _)) = openssl(
        home,
        &[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "k",
            "-out",
            "r",
            "-subj",
            "/CN=ct112",
        ],
    ) {
        let ran = ca(home, &["sign", &file("r"), "--dir", &other, "--out", &out]).await;
        assert!(
            ran.code == 1 && ran.err.contains("mend: the certificate was signed: copy it from "),
            "{ran:?}"
        );
    }
}
