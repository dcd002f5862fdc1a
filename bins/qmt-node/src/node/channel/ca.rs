//! `ca/1` at the CA's node: certificates for members, and the list of revoked ones.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_gossip::Audience;
use mesh_identity::ca::{By, CaChain, Crl, Csr, Folder, FolderError, Request};
use mesh_identity::{NodeId, Revoked, ScopeId, UnixTime};
use mesh_transport::{Call, CallFault, Member, Protocol, serve_call};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::super::facts::put;
use super::super::{Node, chain};
use crate::store::audit::Kind;

/// Of the record: which CA a member has, and the number of its list.
const KEY: &str = "ca";
/// How long a certificate holds. It is renewed at half of that.
pub(super) const TTL: Duration = Duration::from_secs(24 * 3600);
/// Requests that are answered at once: each costs a signature and some writes that wait for the disk.
const AT_ONCE: usize = 8;
/// Addresses that a certificate carries at most; a node announces no more.
pub(super) const ADDRESSES_MAX: usize = 16;
/// How often the list is checked for its age and for revocations that are not on it.
pub(super) const REFRESH: Duration = Duration::from_secs(60);
/// Serials that a row of the audit trail names; the count is always whole.
const SERIALS_NAMED_MAX: usize = 64;

/// Busy: ask again later.
const BUSY: u16 = 1;
/// The CA's folder cannot be used now.
const BROKEN: u16 = 2;

/// What a member asks the CA's node for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// A certificate for this request (PKCS #10, DER).
    Enrol { csr: Vec<u8> },
    /// The list of revoked certificates, if its number is higher.
    List { above: u64 },
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Given {
    /// The certificate (DER), the CA's chain (PEM), its list (DER).
    Certificate { certificate: Vec<u8>, chain: String, crl: Vec<u8> },
    /// The list (DER).
    List { crl: Option<Vec<u8>> },
}

impl Call for Ask {
    const PROTOCOL: Protocol = Protocol::new("ca/1");
    type Reply = Given;
}

/// What a member says of its CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) ca: String,
    pub(super) crl: u64,
}

impl Told {
    pub(super) fn of(member: &mesh_gossip::Member) -> Option<Self> {
        let text = std::str::from_utf8(member.value(KEY)?).ok()?;
        let (ca, crl) = text.split_once(':')?;
        let is_fingerprint = ca.len() == 16 && ca.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Self { ca: ca.to_owned(), crl: crl.parse().ok().filter(|_| is_fingerprint)? })
    }
}

/// Answers `ca/1`. The folder of a CA may be there at start, or be made while the node runs.
pub(in super::super) fn serve(node: &Node) {
    let Some(config) = &node.config().agent_channel else { return };
    let folder = Folder::new(&config.ca_dir);
    let (scopes, slots) = (node.scopes().clone(), Arc::new(Semaphore::new(AT_ONCE)));
    serve_call::<Ask, _, _>(node.transport(), move |peer: Member, ask| {
        let (folder, scopes, slots) = (folder.clone(), scopes.clone(), slots.clone());
        async move {
            let may = scopes
                .get(&peer.scope)
                .is_some_and(|scope| scope.authority.is_some() && scope.uninvited.is_none());
            if !may {
                return Err(CallFault::not_allowed("this node has no CA for this mesh"));
            }
            let Ok(slot) = slots.try_acquire_owned() else {
                return Err(CallFault::new(BUSY, "the CA is busy"));
            };
            let answered = tokio::task::spawn_blocking(move || {
                let _slot = slot;
                answer(&folder, &peer, &ask, UnixTime::now())
            });
            answered.await.unwrap_or_else(|_| Err(CallFault::new(BROKEN, "the CA failed")))
        }
    });
}

/// Blocking.
fn answer(folder: &Folder, peer: &Member, ask: &Ask, now: UnixTime) -> Result<Given, CallFault> {
    match ask {
        Ask::List { above } => {
            let crl = folder.crl().map_err(|error| broken(&error))?;
            Ok(Given::List { crl: crl.filter(|crl| crl.number > *above).map(|crl| crl.der().to_vec()) })
        }
        Ask::Enrol { csr } => enrol(folder, peer, csr, now),
    }
}

/// A certificate for the node at the other end of the link, under the name of its grant; for nobody and nothing else.
fn enrol(folder: &Folder, peer: &Member, csr: &[u8], now: UnixTime) -> Result<Given, CallFault> {
    let csr = Csr::read(csr).map_err(|error| CallFault::new(CallFault::BAD_REQUEST, error.to_string()))?;
    if csr.node != Some(peer.id) {
        return Err(CallFault::not_allowed("the request is not for the node that the link proved"));
    }
    if csr.name.as_ref() != Some(&peer.name) {
        return Err(CallFault::not_allowed(format!(
            "the request is not for {}, the name in the grant",
            peer.name
        )));
    }
    if !csr.key.is_p256() {
        return Err(CallFault::not_allowed("the request's key is not P-256"));
    }
    let authority = folder.authority().map_err(|error| broken(&error))?;
    let may_name = |ip: &IpAddr| authority.constraints().permits_ip(*ip);
    let ips = csr.ips.into_iter().filter(may_name).take(ADDRESSES_MAX).collect();
    let request = Request { node: csr.node, ips, ..Request::new(peer.name.clone(), csr.key, TTL) };
    let issued = folder.issue(&authority, &request, By::Enrol, None, now).map_err(|error| match &error {
        FolderError::NameTaken { .. } | FolderError::ShutOut { .. } | FolderError::Sign { .. } => {
            let mend = error.mend().map(|mend| format!("; {mend}")).unwrap_or_default();
            tracing::warn!(node = %peer.id.short(), name = %peer.name, error = %chain(&error), "a member got no certificate");
            CallFault::not_allowed(format!("{}{mend}", chain(&error)))
        }
        _ => broken(&error),
    })?;
    let crl = folder.refresh(&authority, now).map_err(|error| broken(&error))?;
    tracing::info!(node = %peer.id.short(), name = %peer.name, until = %issued.leaf.not_after, "certificate signed for a member");
    Ok(Given::Certificate {
        certificate: issued.der,
        chain: authority.chain().to_pem(),
        crl: crl.der().to_vec(),
    })
}

fn broken(error: &FolderError) -> CallFault {
    if matches!(error, FolderError::Missing { .. } | FolderError::NoKey { .. }) {
        return CallFault::not_allowed("this node has no CA");
    }
    tracing::warn!(error = %chain(error), mend = error.mend(), "the CA's folder cannot be used");
    CallFault::new(BROKEN, "the CA's folder cannot be used now")
}

/// The CA of this node, as its folder was last seen.
#[derive(Debug, Clone)]
pub(super) struct LocalCa {
    pub(super) folder: Folder,
    pub(super) chain: CaChain,
    pub(super) crl: Option<Crl>,
    /// The nodes whose ids stand in certificates that hold.
    pub(super) holders: BTreeSet<NodeId>,
}

/// Looks at the folder of this node's CA.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked: Option<(Looks, Instant)>,
    seen: Option<LocalCa>,
    failed: Option<String>,
}

/// How files looked; they are read again when they look otherwise.
type Looks = [Option<(u64, SystemTime)>; 3];

impl Watch {
    /// The CA as it is now: the folder is read when it changed, and once in a while the list is looked after.
    pub(super) async fn look(&mut self, folder: &Folder) -> Option<&LocalCa> {
        let reading = folder.clone();
        let looks = tokio::task::spawn_blocking(move || looks(&reading)).await.unwrap_or_default();
        let is_fresh = self.looked.is_some_and(|(seen, at)| seen == looks && at.elapsed() < REFRESH);
        if !is_fresh {
            let reading = folder.clone();
            let read = tokio::task::spawn_blocking(move || read(&reading)).await;
            self.looked = Some((looks, Instant::now()));
            match read {
                Ok(Ok(ca)) => (self.seen, self.failed) = (Some(ca), None),
                Ok(Err(error)) => self.tell(&error),
                Err(error) => tracing::warn!(%error, "the CA's folder could not be read"),
            }
        }
        self.seen.as_ref()
    }

    /// Once for each reason.
    fn tell(&mut self, error: &FolderError) {
        let text = chain(error);
        if self.failed.as_ref() != Some(&text) {
            tracing::warn!(error = %text, mend = error.mend(), "the CA's folder cannot be used");
            self.failed = Some(text);
        }
    }
}

fn looks(folder: &Folder) -> Looks {
    [folder.chain_path(), folder.crl_path(), folder.index_path()].map(|path: std::path::PathBuf| look(&path))
}

fn look(path: &Path) -> Option<(u64, SystemTime)> {
    let facts = std::fs::metadata(path).ok()?;
    Some((facts.len(), facts.modified().ok()?))
}

/// A folder without the CA's key is read only.
fn read(folder: &Folder) -> Result<LocalCa, FolderError> {
    let crl = match folder.authority() {
        Ok(authority) => Some(folder.refresh(&authority, UnixTime::now())?),
        Err(FolderError::NoKey { .. }) => folder.crl()?,
        Err(error) => return Err(error),
    };
    let (index, now) = (folder.index()?, UnixTime::now());
    let holders = index.rows().iter().filter(|row| row.is_live(now)).filter_map(|row| row.node).collect();
    Ok(LocalCa { folder: folder.clone(), chain: folder.chain()?, crl, holders })
}

impl Node {
    /// The folder of this node's CA; none while no key of one is there.
    pub(super) fn ca_folder(&self) -> Option<Folder> {
        let folder = Folder::new(&self.config().agent_channel.as_ref()?.ca_dir);
        folder.can_sign().then_some(folder)
    }

    /// Tells the members of every mesh that this node may admit to of its CA.
    pub(super) async fn tell_ca(&self, ca: &LocalCa) {
        let number = ca.crl.as_ref().map_or(0, |crl| crl.number);
        let value = format!("{}:{number}", ca.chain.fingerprint()).into_bytes();
        for scope in self.ca_scopes() {
            if let Some(gossip) = self.gossip(&scope) {
                put(&gossip, KEY, Audience::Members, value.clone()).await;
            }
        }
    }

    /// Revokes the certificates of nodes whose memberships were revoked, since this node's CA signed them for members. It is
    /// told by the folder and what is revoked now, so that nothing is missed while the node does not run.
    pub(super) async fn withdraw_certificates(&self, ca: &LocalCa) -> Result<(), FolderError> {
        for node in &ca.holders {
            let Some(scope) = self.shut_out(node) else { continue };
            let (folder, id) = (ca.folder.clone(), *node);
            let withdrawn = tokio::task::spawn_blocking(move || {
                folder.withdraw(&folder.authority()?, &id, UnixTime::now())
            });
            // A task that was ended is tried again by the next run.
            let rows = withdrawn.await.unwrap_or_else(|_| Ok(Vec::new()))?;
            let Some(row) = rows.last() else { continue };
            let serials: Vec<String> = rows.iter().map(|row| row.serial.to_string()).collect();
            tracing::info!(
                node = %node.short(), name = %row.name, count = rows.len(),
                "certificates revoked: the membership of their node was revoked"
            );
            let named = json!({ "count": serials.len(), "ids": serials.iter().take(SERIALS_NAMED_MAX).collect::<Vec<_>>() });
            let entry = self.own_entry(Kind::Uncertified, &scope, Revoked::Node(*node));
            self.note(&entry.called(row.name.as_str()).with("certificates", named)).await;
        }
        Ok(())
    }

    fn ca_scopes(&self) -> Vec<ScopeId> {
        let scopes = self.scopes().list();
        let may = scopes.iter().filter(|scope| scope.authority.is_some() && scope.uninvited.is_none());
        may.map(super::super::scopes::Scope::id).collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use mesh_identity::ca::{Leaf, LeafKey, Options, Reason, Which};
    use mesh_identity::{NodeKey, NodeName, Permissions, Role};
    use mesh_transport::Peer;

    use super::*;

    fn id(seed: u8) -> NodeId {
        NodeKey::from_seed([seed; 32]).node_id()
    }

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn peer(seed: u8, called: &str) -> Member {
        let scope = mesh_identity::Founding::new(&NodeKey::from_seed([9; 32])).root.id();
        let (role, permissions) = (Role::Member, Permissions::MEMBER);
        Member::of(Peer { id: id(seed), scope, role, name: name(called), permissions }).unwrap()
    }

    fn folder() -> (tempfile::TempDir, Folder) {
        let temp = tempfile::tempdir().unwrap();
        let folder = Folder::new(temp.path());
        folder.found(&Options::default(), UnixTime::now()).unwrap();
        (temp, folder)
    }

    fn csr(node: Option<NodeId>, called: &str, ips: &[&str]) -> Vec<u8> {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        Csr::make(&LeafKey::generate().unwrap(), &name(called), node.as_ref(), &ips).unwrap()
    }

    fn ask(folder: &Folder, peer: &Member, csr: Vec<u8>) -> Result<Leaf, CallFault> {
        match answer(folder, peer, &Ask::Enrol { csr }, UnixTime::now())? {
            Given::Certificate { certificate, .. } => Ok(Leaf::read(&certificate).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_member_is_certified_as_what_its_link_and_grant_say_and_as_nothing_else() {
        let (_temp, folder) = folder();
        let lap = peer(1, "lap");
        let leaf = ask(&folder, &lap, csr(Some(id(1)), "lap", &["192.168.1.7", "8.8.8.8"])).unwrap();
        assert_eq!((leaf.name.as_str(), leaf.node), ("lap", Some(id(1))));
        assert_eq!(
            leaf.ips,
            ["192.168.1.7".parse::<IpAddr>().unwrap()],
            "what the CA may not name is left out"
        );
        for (csr, reason) in [
            (csr(Some(id(2)), "lap", &[]), "not for the node that the link proved"),
            (csr(None, "lap", &[]), "not for the node that the link proved"),
            (csr(Some(id(1)), "desk", &[]), "not for lap, the name in the grant"),
        ] {
            let refused = ask(&folder, &lap, csr).unwrap_err();
            assert_eq!(refused.code, CallFault::NOT_ALLOWED);
            assert!(refused.message.contains(reason), "{refused}");
        }
        let garbage = ask(&folder, &lap, b"hello".to_vec()).unwrap_err();
        assert_eq!(garbage.code, CallFault::BAD_REQUEST);
        assert_eq!(folder.index().unwrap().rows().len(), 1);
    }

    #[test]
    fn another_node_does_not_get_the_name_and_a_revoked_one_stays_out() {
        let (_temp, folder) = folder();
        ask(&folder, &peer(1, "lap"), csr(Some(id(1)), "lap", &[])).unwrap();
        let taken = ask(&folder, &peer(2, "lap"), csr(Some(id(2)), "lap", &[])).unwrap_err();
        assert!(taken.message.contains("the name lap is in use: node "), "{taken}");
        let (authority, now) = (folder.authority().unwrap(), UnixTime::now());
        let revoke = |may_return| {
            folder.revoke(&authority, &Which::Node(name("lap")), Reason::Withdrawn, may_return, now).unwrap();
        };
        revoke(false);
        let out = ask(&folder, &peer(1, "lap"), csr(Some(id(1)), "lap", &[])).unwrap_err();
        assert!(out.message.contains("the certificate of lap was revoked at "), "{out}");
        assert!(out.message.contains("qmt-cli ca revoke lap --may-return"), "{out}");
        revoke(true);
        ask(&folder, &peer(1, "lap"), csr(Some(id(1)), "lap", &[])).unwrap();
    }

    #[test]
    fn the_list_is_given_to_who_has_an_earlier_one() {
        let (temp, folder) = folder();
        let number = folder.crl().unwrap().unwrap().number;
        let list = |above| answer(&folder, &peer(1, "lap"), &Ask::List { above }, UnixTime::now());
        let Ok(Given::List { crl: Some(crl) }) = list(number - 1) else { panic!("no list") };
        assert_eq!(Crl::read(&crl).unwrap().number, number);
        assert!(matches!(list(number), Ok(Given::List { crl: None })));
        let nowhere = Folder::new(temp.path().join("nowhere"));
        let none = answer(&nowhere, &peer(1, "lap"), &Ask::List { above: 0 }, UnixTime::now());
        assert!(matches!(none, Ok(Given::List { crl: None })), "where there is no list none is given");
    }
}
