//! A CA against the verifier of the handshake, against openssl, and on the disk.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use tempfile::TempDir;

use super::index::Line;
use super::*;
use crate::{NodeId, NodeKey, NodeName, UnixTime};

const NOW: UnixTime = UnixTime(1_795_233_906);
const DAY: Duration = Duration::from_secs(86_400);

fn name(text: &str) -> NodeName {
    NodeName::new(text).expect("a name")
}

fn id(seed: u8) -> NodeId {
    NodeKey::from_seed([seed; 32]).node_id()
}

fn at(seconds: i64) -> UnixTime {
    UnixTime(NOW.0.checked_add_signed(seconds).expect("a time"))
}

fn request(node: &str) -> Request {
    let key = LeafKey::generate().expect("a key");
    Request::new(name(node), key.public(), DAY)
}

fn founding(permitted: &[&str]) -> Founding {
    let mut options = Options { name: "home".to_owned(), ..Options::default() };
    options.constraints.dns.extend(permitted.iter().map(|&name| name.to_owned()));
    Founding::new(&options, NOW).expect("a CA")
}

#[test]
fn a_certificate_says_who_the_node_is_and_passes_its_chain() {
    let ca = founding(&["ct110"]).authority().expect("the CA");
    let mut request = request("CT110");
    request.node = Some(id(7));
    request.ips = vec!["192.168.10.110".parse().expect("one"), "fd00::7".parse().expect("one")];
    let issued = ca.issue(&request, NOW).expect("a certificate");
    for usage in [Usage::Server, Usage::Client] {
        let leaf = ca.chain().verify(&issued.der, usage, &[], NOW).expect("good");
        assert_eq!(leaf, issued.leaf);
    }
    let leaf = issued.leaf;
    assert_eq!((leaf.name.as_str(), leaf.node), ("CT110", Some(id(7))));
    assert_eq!(leaf.dns, ["ct110.mesh", "ct110"]);
    assert_eq!(leaf.ips, request.ips);
    assert!(leaf.is_client && leaf.is_server);
    assert_eq!((leaf.not_before, leaf.not_after), (at(-7200), at(86_400)));
    assert_eq!(leaf.serial.as_bytes().len(), 16);
}

#[test]
fn a_bare_name_is_only_in_where_it_was_permitted() {
    let ca = founding(&[]).authority().expect("the CA");
    assert_eq!(ca.issue(&request("ct110"), NOW).expect("one").leaf.dns, ["ct110.mesh"]);
    let open = Options { constraints: Constraints::default(), ..Options::default() };
    let open = Founding::new(&open, NOW).expect("a CA").authority().expect("it");
    assert_eq!(open.issue(&request("ct110"), NOW).expect("one").leaf.dns, ["ct110.mesh", "ct110"]);
    assert_eq!(open.issue(&request("7"), NOW).expect("one").leaf.dns, ["7.mesh"], "no address");
}

#[test]
fn what_the_ca_may_not_name_is_not_signed() {
    let ca = founding(&[]).authority().expect("the CA");
    let public = Request { ips: vec!["8.8.8.8".parse().expect("one")], ..request("ct110") };
    assert!(matches!(ca.issue(&public, NOW), Err(SignError::Address { .. })));
    for bad in ["-a", "a-", "a..b", ".a"] {
        assert!(matches!(ca.issue(&request(bad), NOW), Err(SignError::NoHostName { .. })), "{bad}");
    }
    let years = at(1095 * 86_400);
    assert!(matches!(ca.issue(&request("ct110"), years), Err(SignError::Ended { .. })));
    let long = Request { ttl: DAY * 4000, ..request("ct110") };
    assert_eq!(ca.issue(&long, NOW).expect("one").leaf.not_after, years, "not longer than the CA");
}

/// A certificate as a stolen intermediate key would sign it, past all checks of ours.
fn forged(founding: &Founding, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let key = KeyPair::from_pem(&founding.intermediate_key).expect("the key");
    let issuer = Issuer::from_ca_cert_pem(&founding.intermediate, key).expect("the CA");
    let mut params = CertificateParams::new(vec!["ct110.mesh".to_owned()]).expect("names");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "ct110");
    params.serial_number = Some(4711_u64.into());
    params.not_before = authority::date(at(-60));
    params.not_after = authority::date(at(60));
    params.is_ca = IsCa::ExplicitNoCa;
    change(&mut params);
    params.signed_by(&KeyPair::generate().expect("a key"), &issuer).expect("signed").der().to_vec()
}

#[test]
fn every_kind_of_bad_certificate_is_refused_for_what_it_is() {
    let founding = founding(&[]);
    let chain = founding.chain().expect("the chain");
    let check = |der: &[u8], usage, now| chain.verify(der, usage, &[], now);
    let good = forged(&founding, |_| {});
    assert!(check(&good, Usage::Client, NOW).is_ok());

    assert_eq!(check(&good, Usage::Client, at(61)), Err(VerifyError::Expired { at: at(60) }));
    assert_eq!(check(&good, Usage::Client, at(-61)), Err(VerifyError::NotYetValid { from: at(-60) }));
    let outside = forged(&founding, |params| {
        params.subject_alt_names.push(SanType::DnsName("example.org".try_into().expect("ascii")));
    });
    assert_eq!(check(&outside, Usage::Client, NOW), Err(VerifyError::Names));
    let public = forged(&founding, |params| {
        params.subject_alt_names.push(SanType::IpAddress("8.8.8.8".parse().expect("one")));
    });
    assert_eq!(check(&public, Usage::Client, NOW), Err(VerifyError::Names));
    let server = forged(&founding, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert_eq!(check(&server, Usage::Client, NOW), Err(VerifyError::WrongUsage));
    assert!(check(&server, Usage::Server, NOW).is_ok());
    let below = forged(&founding, |params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert_eq!(check(&below, Usage::Client, NOW), Err(VerifyError::Leaf(LeafError::IsCa)));
    let other = self::founding(&[]).chain().expect("another CA of the same name");
    assert_eq!(other.verify(&good, Usage::Client, &[], NOW), Err(VerifyError::UnknownIssuer));

    let ca = founding.authority().expect("the CA");
    let revoked =
        RevokedSerial { serial: "1267".parse().expect("4711"), at: NOW, reason: Reason::KeyCompromise };
    let crl = ca.revoke(1, std::slice::from_ref(&revoked), NOW).expect("a list");
    chain.vouches_for(&crl).expect("signed");
    let found = chain.verify(&good, Usage::Client, std::slice::from_ref(&crl), NOW);
    assert_eq!(found, Err(VerifyError::Revoked { serial: revoked.serial }));
    assert_eq!(other.vouches_for(&crl), Err(CrlError::NotSigned));
}

#[test]
fn a_list_of_revoked_certificates_comes_back_as_it_was() {
    let ca = founding(&[]).authority().expect("the CA");
    let row =
        |serial: &str, reason| RevokedSerial { serial: serial.parse().expect("one"), at: at(-5), reason };
    let rows = [row("8001", Reason::Withdrawn), row("ff", Reason::Unspecified)];
    let crl = ca.revoke(7, &rows, NOW).expect("a list");
    let again = Crl::from_pem(&crl.to_pem()).expect("the same");
    assert_eq!(again, crl);
    assert_eq!(crl.number, 7);
    assert_eq!(crl.revoked().cloned().collect::<Vec<_>>(), [rows[0].clone(), rows[1].clone()]);
    assert!(crl.revokes(&rows[1].serial) && !crl.revokes(&"01".parse().expect("one")));
    assert!(!crl.is_due(at(14 * 86_400)) && crl.is_due(at(16 * 86_400)));
}

#[test]
fn a_request_proves_its_key() {
    let key = LeafKey::generate().expect("a key");
    let ips = ["10.0.0.7".parse().expect("one")];
    let der = Csr::make(&key, &name("ct110"), Some(&id(7)), &ips).expect("a request");
    let csr = Csr::read(&der).expect("good");
    assert_eq!((csr.name, csr.node, csr.key), (Some(name("ct110")), Some(id(7)), key.public()));
    assert_eq!(csr.ips, ips);
    // The last byte is of the signature, one in the middle of what is signed.
    for at in [der.len() - 1, der.len() / 2] {
        let mut other = der.clone();
        other[at] ^= 1;
        assert!(Csr::read(&other).is_err(), "{at}");
    }
    let mut moved = der.clone();
    let signature = der.len() - 1;
    moved[signature] ^= 1;
    assert_eq!(Csr::read(&moved), Err(CsrError::NotItsKey));
}

#[test]
fn garbage_never_panics() {
    let founding = founding(&["ct110"]);
    let ca = founding.authority().expect("the CA");
    let key = LeafKey::generate().expect("a key");
    let csr = Csr::make(&key, &name("ct110"), Some(&id(7)), &[]).expect("a request");
    let leaf = ca.issue(&request("ct110"), NOW).expect("one").der;
    let revoked = RevokedSerial { serial: "8001".parse().expect("one"), at: NOW, reason: Reason::Superseded };
    let crl = ca.revoke(7, &[revoked], NOW).expect("a list").der().to_vec();
    for good in [csr, leaf, crl, ca.chain().certificates()[0].to_vec()] {
        for at in 0..good.len() {
            let mut other = good.clone();
            for change in [0x01, 0x80, 0xff] {
                other[at] = good[at] ^ change;
                for bytes in [&other[..], &good[..at]] {
                    let _ = (Leaf::read(bytes), Csr::read(bytes), Crl::read(bytes));
                    let _ = CaChain::from_pem(&chain::pem("CERTIFICATE", bytes));
                }
            }
        }
    }
}

fn folder() -> (TempDir, Folder) {
    let temp = tempfile::tempdir().expect("a folder");
    let folder = Folder::new(temp.path().join("ca"));
    folder.found(&Options { name: "home".to_owned(), ..Options::default() }, NOW).expect("a CA");
    (temp, folder)
}

#[test]
fn a_folder_is_a_ca_from_then_on() {
    let (_temp, folder) = folder();
    let again = folder.found(&Options::default(), NOW);
    assert!(matches!(again, Err(FolderError::Exists { .. })), "{again:?}");
    let ca = folder.authority().expect("the CA");
    let key = LeafKey::generate().expect("a key");
    let request = Request::new(name("ct110"), key.public(), DAY);
    let issued = folder.issue(&ca, &request, By::Issue, Some(&key), NOW).expect("a certificate");
    assert_eq!(folder.certificate(&name("ct110")).expect("it lies there"), (issued.der, issued.leaf.clone()));
    let read = disk::read_key(&folder.key_path(&name("ct110"))).expect("the key");
    assert_eq!(*read, *key.to_pem());
    let rows = folder.index().expect("the index").rows().to_vec();
    assert_eq!((rows.len(), &rows[0].serial, rows[0].by), (1, &issued.leaf.serial, By::Issue));
    assert_eq!(folder.crl().expect("a list").expect("there is one").revoked().count(), 0);
    let facts = ca.chain().facts();
    assert_eq!((facts[0].subject.as_str(), facts[1].subject.as_str()), ("CN=home CA", "CN=home root"));
    assert_eq!(facts[0].constraints, Constraints::mesh());
    assert!(facts[1].is_root && !facts[0].is_root);
}

#[cfg(unix)]
#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_temp, folder) = folder();
    let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
    let key = folder.path().join("intermediate/ca.key");
    assert_eq!((mode(&key), mode(&folder.root().join("root.key"))), (0o600, 0o600));
    assert_eq!((mode(folder.root()), mode(&folder.chain_path())), (0o700, 0o644));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).expect("changed");
    let error = folder.authority().expect_err("refused");
    assert!(error.to_string().ends_with("ca.key can be read by others (mode 0640)"), "{error}");
    assert!(error.mend().expect("a mend").starts_with("run `chmod 600 "), "{error:?}");
    assert!(folder.list().is_ok(), "reading needs no key");
}

#[test]
fn what_is_revoked_is_listed_and_its_node_stays_out_until_it_may_return() {
    let (_temp, folder) = folder();
    let ca = folder.authority().expect("the CA");
    let request = Request { node: Some(id(7)), ..request("ct110") };
    let enrol = |now| folder.issue(&ca, &request, By::Enrol, None, now);
    let first = enrol(NOW).expect("a certificate");
    let second = enrol(at(10)).expect("its renewal");
    let number = folder.crl().expect("a list").expect("one").number;

    let struck =
        folder.revoke(&ca, &Which::Node(name("ct110")), Reason::Withdrawn, false, at(20)).expect("done");
    assert_eq!(struck.len(), 2);
    let crl = folder.crl().expect("a list").expect("one");
    assert!(crl.number > number && crl.revokes(&first.leaf.serial) && crl.revokes(&second.leaf.serial));
    assert!(matches!(enrol(at(30)), Err(FolderError::ShutOut { .. })));
    assert!(matches!(enrol(at(90_000)), Err(FolderError::ShutOut { .. })), "also after its end");

    let again =
        folder.revoke(&ca, &Which::Node(name("ct110")), Reason::Cessation, true, at(40)).expect("done");
    assert!(again.is_empty());
    let rows = folder.index().expect("the index").rows().to_vec();
    assert_eq!(rows[1].struck, Some(Struck { at: at(20), reason: Reason::Withdrawn, may_return: true }));
    let third = enrol(at(50)).expect("it may return");
    assert!(!folder.crl().expect("a list").expect("one").revokes(&third.leaf.serial));
    let unknown = folder.revoke(&ca, &Which::Node(name("ct111")), Reason::Withdrawn, false, NOW);
    assert!(matches!(unknown, Err(FolderError::Unknown { .. })), "{unknown:?}");
}

#[test]
fn a_certificate_is_renewed_for_its_key_unless_it_was_revoked() {
    let (_temp, folder) = folder();
    let ca = folder.authority().expect("the CA");
    let asked =
        Request { node: Some(id(7)), ips: vec!["10.0.0.7".parse().expect("one")], ..request("ct110") };
    let first = folder.issue(&ca, &asked, By::Sign, None, NOW).expect("a certificate");
    let next = folder.renew(&ca, &name("ct110"), DAY, at(43_200)).expect("renewed");
    assert_eq!(
        (next.leaf.node, &next.leaf.ips, &next.leaf.dns),
        (Some(id(7)), &first.leaf.ips, &first.leaf.dns)
    );
    assert_eq!(PublicKey::of_certificate(&next.der).expect("its key"), asked.key);
    assert_eq!(next.leaf.not_after, at(43_200 + 86_400));
    assert_eq!(folder.certificate(&name("ct110")).expect("it").1, next.leaf);
    folder.revoke(&ca, &Which::Node(name("ct110")), Reason::KeyCompromise, true, at(43_201)).expect("done");
    let refused = folder.renew(&ca, &name("ct110"), DAY, at(43_202));
    assert!(matches!(refused, Err(FolderError::ShutOut { .. })), "{refused:?}");
    assert!(matches!(folder.renew(&ca, &name("ct111"), DAY, NOW), Err(FolderError::Unknown { .. })));
}

#[test]
fn a_name_belongs_to_one_node_at_a_time() {
    let (_temp, folder) = folder();
    let ca = folder.authority().expect("the CA");
    let enrol = |name, node, now| {
        folder.issue(&ca, &Request { node: Some(id(node)), ..request(name) }, By::Enrol, None, now)
    };
    enrol("ct110", 7, NOW).expect("the first");
    assert!(matches!(enrol("CT110", 8, at(1)), Err(FolderError::NameTaken { .. })));
    enrol("ct111", 8, at(1)).expect("another name");
    enrol("ct110", 8, at(90_000)).expect("once the first has ended");
    folder.issue(&ca, &request("ct112"), By::Issue, None, NOW).expect("by hand, without an id");
    assert!(matches!(enrol("ct112", 9, at(1)), Err(FolderError::NameTaken { .. })));
    folder.issue(&ca, &request("ct111"), By::Issue, None, at(2)).expect("a person decides alone");
}

#[test]
fn a_writer_that_dies_leaves_a_folder_that_can_be_read() {
    let (_temp, folder) = folder();
    let ca = folder.authority().expect("the CA");
    let request = Request { node: Some(id(7)), ..request("ct110") };
    let issued = folder.issue(&ca, &request, By::Enrol, None, NOW).expect("a certificate");
    // Between writing a draft and its new name; in the middle of a line; between the index and the list.
    let draft = folder.path().join("issued/.ct110.crt.0123456789abcdef.tmp");
    std::fs::write(&draft, "-----BEGIN CERT").expect("written");
    let revoked = Line::Revoked {
        serial: issued.leaf.serial.clone(),
        at: at(5).0,
        reason: Reason::Withdrawn,
        may_return: false,
    };
    let line = serde_json::to_string(&revoked).expect("a line");
    let whole = std::fs::read_to_string(folder.index_path()).expect("the index");
    std::fs::write(folder.index_path(), format!("{whole}{line}\n{{\"event\":\"issu")).expect("written");

    assert_eq!(folder.index().expect("readable").rows().len(), 1);
    assert!(folder.certificate(&name("ct110")).is_ok());
    assert!(!folder.crl().expect("a list").expect("one").revokes(&issued.leaf.serial));
    let crl = folder.refresh(&ca, at(6)).expect("made anew");
    assert!(crl.revokes(&issued.leaf.serial));
    assert!(!draft.exists(), "swept");
    folder.issue(&ca, &self::request("ct111"), By::Issue, None, at(7)).expect("goes on");
    let text = std::fs::read_to_string(folder.index_path()).expect("the index");
    assert!(text.starts_with(&format!("{whole}{line}\n")) && text.lines().count() == 3, "{text}");
    assert_eq!(folder.refresh(&ca, at(8)).expect("the same").number, crl.number, "no new one without need");
    assert!(folder.refresh(&ca, at(16 * 86_400)).expect("a new one").number > crl.number);

    std::fs::write(folder.index_path(), format!("{whole}oops\n{line}\n")).expect("written");
    let damaged = folder.index();
    assert!(matches!(damaged, Err(FolderError::Index { line: 2, .. })), "{damaged:?}");
}

#[test]
fn a_long_index_loses_what_is_gone_and_nothing_else() {
    let (_temp, folder) = folder();
    let ca = folder.authority().expect("the CA");
    let node = Request { node: Some(id(7)), ..request("ct110") };
    folder.issue(&ca, &node, By::Enrol, None, NOW).expect("a certificate");
    folder.revoke(&ca, &Which::Node(name("ct110")), Reason::Withdrawn, false, NOW).expect("done");
    folder.issue(&ca, &request("old"), By::Issue, None, NOW).expect("a certificate");
    let text = std::fs::read_to_string(folder.index_path()).expect("the index");
    let old = text.lines().last().expect("a line");
    let long = text.clone() + &format!("{old}\n").repeat(1 + 1024 * 1024 / old.len());
    std::fs::write(folder.index_path(), long).expect("written");
    let later = at(4 * 86_400);
    folder.issue(&ca, &request("new"), By::Issue, None, later).expect("a certificate");
    let rows = folder.index().expect("the index").rows().to_vec();
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["ct110", "new"]);
    assert!(matches!(folder.issue(&ca, &node, By::Enrol, None, later), Err(FolderError::ShutOut { .. })));
    folder.refresh(&ca, later).expect("a list");
}

#[test]
fn the_root_moves_away_and_is_needed_for_a_new_intermediate() {
    let (temp, folder) = folder();
    let medium = temp.path().join("medium");
    let before = folder.chain().expect("the chain");
    let leaf = folder.issue(&folder.authority().expect("it"), &request("ct110"), By::Issue, None, NOW);
    let leaf = leaf.expect("a certificate");
    folder.move_root(&medium).expect("moved");
    assert!(!folder.root().join("root.key").exists() && medium.join("root.key").exists());
    assert!(matches!(folder.renew_intermediate(NOW), Err(FolderError::NoKey { .. })));
    let year = at(365 * 86_400);
    folder.clone().with_root(&medium).renew_intermediate(year).expect("renewed");
    let after = folder.chain().expect("the chain");
    assert_ne!(before, after);
    assert_eq!(after.facts()[0].not_after, UnixTime(year.0 + 1095 * 86_400));
    assert_eq!(after.facts()[0].constraints, Constraints::mesh());
    assert!(after.verify(&leaf.der, Usage::Client, &[], NOW).is_err(), "the new one begins a year later");
    let now = folder.authority().expect("it").issue(&request("ct110"), year).expect("a certificate");
    assert!(before.verify(&now.der, Usage::Client, &[], year).is_ok(), "the key is the same");
    assert!(matches!(folder.move_root(&medium), Err(FolderError::Exists { .. } | FolderError::NoKey { .. })));
}

#[test]
fn an_export_is_a_folder_that_a_node_can_use() {
    let (temp, folder) = folder();
    let ca = folder.authority().expect("the CA");
    let key = LeafKey::generate().expect("a key");
    let request = Request::new(name("ct110"), key.public(), DAY);
    folder.issue(&ca, &request, By::Issue, Some(&key), NOW).expect("a certificate");
    let share = temp.path().join("share");
    let files = folder.export(&share, &[name("ct110")]).expect("exported");
    assert_eq!(files.len(), 4, "{files:?}");
    let there = Folder::new(&share);
    let (der, _) = there.certificate(&name("ct110")).expect("it");
    let crl = there.crl().expect("a list").expect("one");
    assert!(there.chain().expect("the chain").verify(&der, Usage::Server, &[crl], NOW).is_ok());
    assert!(matches!(there.authority(), Err(FolderError::NoKey { .. })), "the CA's key stays");
    assert!(folder.export(&share, &[name("nobody")]).is_err());
}

#[test]
fn a_wallet_keeps_one_ca_and_the_latest_list() {
    let temp = tempfile::tempdir().expect("a folder");
    let wallet = Wallet::new(temp.path().join("channel"));
    assert!(wallet.chain().expect("readable").is_none() && wallet.identity().expect("readable").is_none());
    let founding = founding(&[]);
    let (ca, other) =
        (founding.authority().expect("the CA"), self::founding(&[]).authority().expect("another"));
    let key = LeafKey::generate().expect("a key");
    let issued = ca.issue(&Request::new(name("ct110"), key.public(), DAY), NOW).expect("a certificate");
    wallet.keep(&key, &issued.der, &issued.leaf, ca.chain()).expect("kept");
    let held = wallet.identity().expect("readable").expect("it");
    assert_eq!((&held.leaf, &held.der), (&issued.leaf, &issued.der));
    assert_eq!(LeafKey::from_pem(&held.pem).expect("the key").public(), key.public());
    assert_eq!(wallet.chain().expect("readable").as_ref(), Some(ca.chain()));

    let list = |authority: &Authority, number| authority.revoke(number, &[], NOW).expect("a list");
    assert!(wallet.keep_crl(ca.chain(), &list(&ca, 7)).expect("kept"));
    assert!(!wallet.keep_crl(ca.chain(), &list(&ca, 6)).expect("an earlier one"));
    let foreign = wallet.keep_crl(ca.chain(), &list(&other, 8));
    assert!(matches!(foreign, Err(FolderError::Crl { source: CrlError::NotSigned, .. })), "{foreign:?}");
    assert_eq!(wallet.crl(ca.chain()).expect("readable").expect("it").number, 7);
    assert!(wallet.crl(other.chain()).expect("readable").is_none());

    std::fs::write(wallet.identity_path(), "-----BEGIN PRIV").expect("written");
    assert!(wallet.identity().expect("damaged, so none").is_none());
    std::fs::write(wallet.chain_path(), "").expect("written");
    assert!(wallet.chain().is_err(), "no other CA is believed because of that");
}

#[test]
fn a_chain_with_a_renewed_intermediate_is_the_same_ca() {
    let (founding, other) = (founding(&[]), founding(&[]));
    let chain = founding.chain().expect("the chain");
    let options = Options { name: "home".to_owned(), ..Options::default() };
    let next = Founding::intermediate(
        &founding.root,
        &founding.root_key,
        &founding.intermediate_key,
        &options,
        at(86_400),
    );
    let next =
        CaChain::from_pem(&[next.expect("renewed").as_str(), &founding.root].concat()).expect("a chain");
    assert!(next != chain && next.has_roots_of(&chain));
    assert_eq!(next.fingerprint(), chain.fingerprint());
    let other = other.chain().expect("another CA");
    assert!(!other.has_roots_of(&chain) && other.fingerprint() != chain.fingerprint());
}

/// openssl with these arguments in `folder`: whether it was content, and all that it said. None where it is missing.
fn openssl(folder: &Path, args: &[&str]) -> Option<(bool, String)> {
    let output = match Command::new("openssl").args(args).current_dir(folder).output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: openssl cannot be run ({error})");
            return None;
        }
    };
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn openssl_reads_it_the_same_way() {
    let now = UnixTime::now();
    let temp = tempfile::tempdir().expect("a folder");
    let folder = Folder::new(temp.path());
    let mut options = Options::default();
    options.constraints.dns.push("ct110".to_owned());
    folder.found(&options, now).expect("a CA");
    let ca = folder.authority().expect("the CA");
    let asked =
        Request { node: Some(id(7)), ips: vec!["192.168.10.110".parse().expect("one")], ..request("ct110") };
    folder.issue(&ca, &asked, By::Issue, None, now).expect("a certificate");
    let verify = |args: &[&str]| {
        let args = [&["verify", "-x509_strict", "-CAfile", "intermediate/ca-chain.pem"], args].concat();
        openssl(temp.path(), &args)
    };
    let Some((good, said)) = verify(&["-purpose", "sslserver", "issued/ct110.crt"]) else { return };
    assert!(good, "{said}");
    let (good, said) = verify(&["-purpose", "sslclient", "issued/ct110.crt"]).expect("it is there");
    assert!(good, "{said}");
    let (_, text) =
        openssl(temp.path(), &["x509", "-in", "issued/ct110.crt", "-noout", "-text"]).expect("it is there");
    let names = format!("DNS:ct110.mesh, DNS:ct110, IP Address:192.168.10.110, URI:qmt:node:{}", id(7));
    for part in
        [names.as_str(), "CN = ct110", "Digital Signature", "TLS Web Server Authentication, TLS Web Client"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let crl = ["-crl_check", "-CRLfile", "intermediate/crl.pem", "issued/ct110.crt"];
    let (good, said) = verify(&crl).expect("it is there");
    assert!(good, "{said}");
    folder.revoke(&ca, &Which::Node(name("ct110")), Reason::KeyCompromise, false, now).expect("done");
    let (good, said) = verify(&crl).expect("it is there");
    assert!(!good && said.contains("certificate revoked"), "{said}");
    let (_, text) = openssl(temp.path(), &["crl", "-in", "intermediate/crl.pem", "-noout", "-text"])
        .expect("it is there");
    assert!(text.contains("Key Compromise") && text.contains("X509v3 CRL Number"), "{text}");

    let key = disk::read_key(&folder.path().join("intermediate/ca.key")).expect("the key");
    let stolen = Founding {
        root: String::new(),
        root_key: String::new().into(),
        intermediate: std::fs::read_to_string(folder.path().join("intermediate/ca.crt")).expect("it"),
        intermediate_key: key,
    };
    let outside = forged(&stolen, |params| {
        params.subject_alt_names.push(SanType::DnsName("example.org".try_into().expect("ascii")));
        params.not_before = authority::date(UnixTime(now.0 - 60));
        params.not_after = authority::date(UnixTime(now.0 + 600));
    });
    std::fs::write(temp.path().join("outside.crt"), chain::pem("CERTIFICATE", &outside)).expect("written");
    let (good, said) = verify(&["outside.crt"]).expect("it is there");
    assert!(!good && said.contains("permitted subtree violation"), "{said}");
}

/// A folder as a person made it by the seed's description: RSA, no index, no root, no list.
const SEED: &str = r#"
set -e
mkdir -p intermediate issued
openssl req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.crt -days 3650 -subj "/CN=rivet root" 2>/dev/null
openssl req -newkey rsa:2048 -nodes -keyout intermediate/ca.key -out ca.csr -subj "/O=rivet/CN=rivet intermediate" 2>/dev/null
printf 'basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n' > ca.ext
openssl x509 -req -in ca.csr -CA root.crt -CAkey root.key -set_serial 2 -days 1825 -extfile ca.ext -out ca.crt 2>/dev/null
cat ca.crt root.crt > intermediate/ca-chain.pem
for n in 110 111; do
  openssl req -newkey rsa:2048 -nodes -keyout issued/ct$n.key -out n.csr -subj "/CN=ct$n" 2>/dev/null
  printf "subjectAltName=DNS:ct$n.mesh,IP:192.168.10.$n\n" > n.ext
  openssl x509 -req -in n.csr -CA ca.crt -CAkey intermediate/ca.key -set_serial 10$n -days 825 -extfile n.ext -out issued/ct$n.crt 2>/dev/null
done
openssl req -newkey rsa:2048 -nodes -keyout a.key -out a.csr -subj "/CN=opus@ct110" 2>/dev/null
openssl x509 -req -in a.csr -CA ca.crt -CAkey intermediate/ca.key -set_serial 7 -days 825 -out issued/opus@ct110.crt 2>/dev/null
chmod 600 intermediate/ca.key
"#;

#[test]
fn a_folder_made_by_hand_is_read_as_it_stands() {
    let temp = tempfile::tempdir().expect("a folder");
    let Some((true, _)) = openssl(temp.path(), &["version"]) else { return };
    let made = Command::new("sh").args(["-c", SEED]).current_dir(temp.path()).output().expect("a shell");
    assert!(made.status.success(), "{made:?}");
    let (now, folder) = (UnixTime::now(), Folder::new(temp.path()));
    let listed = folder.list().expect("readable");
    let names: Vec<&str> = listed.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["ct110", "ct111"]);
    assert_eq!((listed.rows[0].by, listed.rows[0].serial.to_string()), (By::Found, "277e".to_owned()));
    assert!(listed.strange.len() == 1 && listed.strange[0].1.contains("opus@ct110"), "{:?}", listed.strange);
    let (der, leaf) = folder.certificate(&name("ct110")).expect("it");
    assert_eq!((leaf.dns, leaf.node), (vec!["ct110.mesh".to_owned()], None));
    let chain = folder.chain().expect("the chain");
    assert!(chain.verify(&der, Usage::Client, &[], now).is_ok());
    assert_eq!(chain.facts()[0].constraints, Constraints::default());

    // It goes on as a CA of ours: it signs P-256 keys, and revokes what others signed.
    let ca = folder.authority().expect("the CA");
    let issued = folder.issue(&ca, &request("ct112"), By::Issue, None, now).expect("a certificate");
    assert!(chain.verify(&issued.der, Usage::Client, &[], now).is_ok());
    let struck =
        folder.revoke(&ca, &Which::Node(name("ct110")), Reason::Cessation, false, now).expect("done");
    assert_eq!(struck.len(), 1);
    let crl = folder.crl().expect("a list").expect("one");
    assert!(matches!(chain.verify(&der, Usage::Client, &[crl], now), Err(VerifyError::Revoked { .. })));
    let renewed = folder.renew_intermediate(now);
    assert!(renewed.is_err(), "{renewed:?}");
}
