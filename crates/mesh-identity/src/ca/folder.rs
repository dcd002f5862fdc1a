//! A CA on the disk, in the layout of RivetOS meshes.
//!
//! ```text
//! root/root.crt, root.key                        the root; its key belongs elsewhere once the CA is made
//! intermediate/ca.crt, ca.key                    what signs
//! intermediate/ca-chain.pem                      what every node trusts
//! intermediate/crl.pem                           what holds no more
//! issued/<node>.crt, <node>.key                  the certificate of each node; its key only where it was made here
//! issued/index.jsonl                             what was signed and revoked
//! ```
//!
//! Only `intermediate/ca-chain.pem` has to be there to read a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject as _};
use zeroize::Zeroizing;

use super::disk::{self, Lock, Mode};
use super::index::Line;
use super::{
    Authority, By, CaChain, Crl, FolderError, Founding, Index, Issued, Leaf, LeafKey, Options, PublicKey,
    Reason, Request, RevokedSerial, Row, Serial, SignError, Struck,
};
use crate::{NodeId, NodeName, UnixTime};

/// Above this the index is written anew without what is gone: some 4,000 certificates.
const INDEX_BYTES_MAX: usize = 1024 * 1024;

/// Which certificates are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// All of the node with this name.
    Node(NodeName),
    /// The one with this number.
    Serial(Serial),
}

/// What lies in a folder.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// The certificates of nodes, those in the index first.
    pub rows: Vec<Row>,
    /// Files beside them that are none, and why.
    pub strange: Vec<(PathBuf, String)>,
}

/// The folder of a CA. It holds nothing open: every call reads what is there then.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    root: PathBuf,
}

impl Folder {
    /// The folder at `path`, whether or not it is there. The root's key is looked for in `root` below it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { root: path.join("root"), path }
    }

    /// The same, with the root elsewhere.
    #[must_use]
    pub fn with_root(self, root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the root's certificate and key are looked for.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The certificates that nodes trust.
    pub fn chain_path(&self) -> PathBuf {
        self.path.join("intermediate/ca-chain.pem")
    }

    /// The list of revoked certificates.
    pub fn crl_path(&self) -> PathBuf {
        self.path.join("intermediate/crl.pem")
    }

    /// What was signed and revoked.
    pub fn index_path(&self) -> PathBuf {
        self.path.join("issued/index.jsonl")
    }

    /// A node's certificate.
    pub fn certificate_path(&self, name: &NodeName) -> PathBuf {
        self.path.join("issued").join(format!("{name}.crt"))
    }

    /// The key of a certificate that was made here.
    pub fn key_path(&self, name: &NodeName) -> PathBuf {
        self.path.join("issued").join(format!("{name}.key"))
    }

    /// Whether a key that signs is here; it may be one that cannot be used.
    pub fn can_sign(&self) -> bool {
        self.key_of_ca().exists()
    }

    fn key_of_ca(&self) -> PathBuf {
        self.path.join("intermediate/ca.key")
    }

    fn root_file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn lock(&self) -> Result<Lock, FolderError> {
        let swept = [self.path.join("intermediate"), self.path.join("issued"), self.root.clone()];
        Lock::take(&self.path, &swept)
    }

    /// Makes a new CA here.
    ///
    /// # Errors
    /// [`FolderError::Exists`] when there is one, or a key of one; [`FolderError`] otherwise when it cannot be written: what
    /// is there then is no CA, and can be removed.
    pub fn found(&self, options: &Options, now: UnixTime) -> Result<(), FolderError> {
        let taken = [self.chain_path(), self.key_of_ca(), self.root_file("root.key")];
        if let Some(file) = taken.iter().find(|file| file.exists()) {
            let path = file.parent().and_then(Path::parent).unwrap_or(&self.path).to_owned();
            return Err(FolderError::Exists { path });
        }
        let founding = Founding::new(options, now)?;
        disk::create_folder(&self.path, Mode::Public)?;
        disk::create_folder(&self.root, Mode::Secret)?;
        disk::create_folder(&self.path.join("intermediate"), Mode::Public)?;
        disk::create_folder(&self.path.join("issued"), Mode::Public)?;
        let _lock = self.lock()?;
        disk::write(&self.root_file("root.key"), founding.root_key.as_bytes(), Mode::Secret)?;
        disk::write(&self.root_file("root.crt"), founding.root.as_bytes(), Mode::Public)?;
        disk::write(&self.key_of_ca(), founding.intermediate_key.as_bytes(), Mode::Secret)?;
        disk::write(&self.path.join("intermediate/ca.crt"), founding.intermediate.as_bytes(), Mode::Public)?;
        let authority = founding.authority()?;
        self.write_crl(&authority.revoke(now.0, &[], now)?)?;
        // Last, because a folder with a chain is a CA.
        disk::write(&self.chain_path(), founding.chain()?.to_pem().as_bytes(), Mode::Public)
    }

    /// The certificates that nodes trust.
    ///
    /// # Errors
    /// [`FolderError::Missing`] when there is no CA here.
    pub fn chain(&self) -> Result<CaChain, FolderError> {
        let path = self.chain_path();
        let text = disk::read(&path)?.ok_or_else(|| FolderError::Missing { path: self.path.clone() })?;
        CaChain::from_pem(&text).map_err(|source| FolderError::Chain { path, source })
    }

    /// The CA, able to sign.
    ///
    /// # Errors
    /// [`FolderError::NoKey`] where its key is not here, [`FolderError::Exposed`] where others can read it, [`FolderError::Key`]
    /// where it is another one.
    pub fn authority(&self) -> Result<Authority, FolderError> {
        let (chain, path) = (self.chain()?, self.key_of_ca());
        Authority::new(chain, &disk::read_key(&path)?).map_err(|source| FolderError::Key { path, source })
    }

    /// The list of revoked certificates; none where none was ever made.
    ///
    /// # Errors
    /// [`FolderError::Crl`] when the file holds something else, or a list that this CA did not sign.
    pub fn crl(&self) -> Result<Option<Crl>, FolderError> {
        let path = self.crl_path();
        let Some(text) = disk::read(&path)? else { return Ok(None) };
        let wrong = |source| FolderError::Crl { path: path.clone(), source };
        let crl = Crl::from_pem(&text).map_err(wrong)?;
        self.chain()?.vouches_for(&crl).map_err(wrong)?;
        Ok(Some(crl))
    }

    /// What was signed and revoked; empty where no index is.
    ///
    /// # Errors
    /// [`FolderError::Index`] when a line is damaged.
    pub fn index(&self) -> Result<Index, FolderError> {
        let path = self.index_path();
        let text = disk::read(&path)?.unwrap_or_default();
        Index::parse(&text).map_err(|(line, reason)| FolderError::Index { path, line, reason })
    }

    /// Everything here: what the index knows, and what lies in the folder beside it.
    ///
    /// # Errors
    /// As [`Folder::chain`], [`Folder::index`] and [`Folder::crl`].
    pub fn list(&self) -> Result<Listed, FolderError> {
        self.chain()?;
        let index = self.index()?;
        let (crl, issued) = (self.crl()?, self.path.join("issued"));
        let mut listed = Listed { rows: index.rows().to_vec(), strange: Vec::new() };
        let entries = std::fs::read_dir(&issued).into_iter().flatten().flatten();
        let files: BTreeSet<PathBuf> = entries.map(|entry| entry.path()).collect();
        for file in files.into_iter().filter(|file| file.extension().is_some_and(|kind| kind == "crt")) {
            match self.read_certificate(&file) {
                Ok((_, leaf)) if index.knows(&leaf.serial) => {}
                Ok((_, leaf)) => listed.rows.push(Row::found(&leaf)),
                Err(reason) => listed.strange.push((file, reason)),
            }
        }
        for row in listed.rows.iter_mut().filter(|row| row.struck.is_none()) {
            let found = crl.iter().flat_map(Crl::revoked).find(|revoked| revoked.serial == row.serial);
            row.struck = found.map(|found| Struck { at: found.at, reason: found.reason, may_return: false });
        }
        Ok(listed)
    }

    /// The certificate of a node that lies here, in DER, and what it says.
    ///
    /// # Errors
    /// [`FolderError::Unknown`] when there is none, or what lies there is none.
    pub fn certificate(&self, name: &NodeName) -> Result<(Vec<u8>, Leaf), FolderError> {
        self.read_certificate(&self.certificate_path(name))
            .map_err(|reason| FolderError::Unknown { what: format!("called {name} ({reason})") })
    }

    fn read_certificate(&self, path: &Path) -> Result<(Vec<u8>, Leaf), String> {
        let der = read_certificate(path)?;
        let leaf = Leaf::read(&der).map_err(|error| error.to_string())?;
        Ok((der, leaf))
    }

    /// Signs a certificate, notes it, and puts it into `issued`; with `key`, which was made for it here, that too.
    ///
    /// # Errors
    /// [`FolderError::NameTaken`] and [`FolderError::ShutOut`] for a node that enrols under another's name or after its
    /// certificate was revoked; a person who signs by hand decides that alone.
    pub fn issue(
        &self,
        authority: &Authority,
        request: &Request,
        by: By,
        key: Option<&LeafKey>,
        now: UnixTime,
    ) -> Result<Issued, FolderError> {
        let _lock = self.lock()?;
        if by == By::Enrol {
            self.check_enrolment(request, now)?;
        }
        let issued = authority.issue(request, now)?;
        self.note(&[Line::issued(&issued.leaf, by, now)], now)?;
        if let Some(key) = key {
            disk::write(&self.key_path(&request.name), key.to_pem().as_bytes(), Mode::Secret)?;
        }
        disk::write(&self.certificate_path(&request.name), issued.to_pem().as_bytes(), Mode::Public)?;
        Ok(issued)
    }

    /// Signs a new certificate for the key, names and id of the one that lies here, which stays good until its end.
    ///
    /// # Errors
    /// [`FolderError::ShutOut`] when that one was revoked: a key that was given up gets nothing.
    pub fn renew(
        &self,
        authority: &Authority,
        name: &NodeName,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<Issued, FolderError> {
        let (der, leaf) = self.certificate(name)?;
        let row = self.list()?.rows.into_iter().find(|row| row.serial == leaf.serial);
        if let Some(struck) = row.and_then(|row| row.struck) {
            return Err(FolderError::ShutOut { name: leaf.name, at: struck.at });
        }
        let key = PublicKey::of_certificate(&der).map_err(|source| SignError::Key { source })?;
        let request = Request { node: leaf.node, ips: leaf.ips, ..Request::new(leaf.name, key, ttl) };
        self.issue(authority, &request, By::Renew, None, now)
    }

    fn check_enrolment(&self, request: &Request, now: UnixTime) -> Result<(), FolderError> {
        let Some(node) = &request.node else {
            return Err(FolderError::Unknown { what: "for a node without an id".to_owned() });
        };
        let index = self.index()?;
        if let Some(holder) = index.holder(&request.name, node, now) {
            let (name, until) = (holder.name.clone(), holder.until);
            let holder =
                holder.node.map_or("a node without an id".to_owned(), |id| format!("node {}", id.short()));
            return Err(FolderError::NameTaken { name, holder, until });
        }
        match index.shut_out(&request.name, Some(node)) {
            Some(struck) => Err(FolderError::ShutOut { name: request.name.clone(), at: struck.at }),
            None => Ok(()),
        }
    }

    /// Revokes the live certificates that are meant and makes the list of revoked ones anew. With `may_return` their node
    /// can enrol again; saying so of one that is revoked already lets it in again.
    ///
    /// What was revoked is given back; nothing when all of it had been, and the call changed nothing but that.
    ///
    /// # Errors
    /// [`FolderError::Unknown`] when no certificate is meant.
    pub fn revoke(
        &self,
        authority: &Authority,
        which: &Which,
        reason: Reason,
        may_return: bool,
        now: UnixTime,
    ) -> Result<Vec<Row>, FolderError> {
        let _lock = self.lock()?;
        let (index, mut lines, mut struck) = (self.index()?, Vec::new(), Vec::new());
        let meant = |row: &&Row| match which {
            Which::Node(name) => row.name.as_str().eq_ignore_ascii_case(name.as_str()),
            Which::Serial(serial) => row.serial == *serial,
        };
        let listed = self.list()?;
        let rows: Vec<&Row> = listed.rows.iter().filter(meant).collect();
        let Some(last) = rows.last() else {
            let what = match which {
                Which::Node(name) => format!("of a node called {name}"),
                Which::Serial(serial) => format!("numbered {serial}"),
            };
            return Err(FolderError::Unknown { what });
        };
        for row in &rows {
            let lets_in = row.struck.as_ref().is_some_and(|struck| struck.may_return != may_return);
            if !row.is_live(now) && !lets_in && row.serial != last.serial {
                continue;
            }
            if !index.knows(&row.serial) {
                lines.extend(Row { struck: None, ..(*row).clone() }.lines());
            }
            let reason = row.struck.as_ref().map_or(reason, |struck| struck.reason);
            lines.push(Line::Revoked { serial: row.serial.clone(), at: now.0, reason, may_return });
            if row.struck.is_none() {
                struck.push((*row).clone());
            }
        }
        self.note(&lines, now)?;
        self.publish(authority, now)?;
        Ok(struck)
    }

    /// Revokes the live certificates that name this node, because its membership ended. It can enrol again once it is a member
    /// again, unless it was shut out by [`Folder::revoke`].
    ///
    /// What was revoked is given back.
    ///
    /// # Errors
    /// As [`Folder::refresh`].
    pub fn withdraw(
        &self,
        authority: &Authority,
        node: &NodeId,
        now: UnixTime,
    ) -> Result<Vec<Row>, FolderError> {
        let _lock = self.lock()?;
        let index = self.index()?;
        let live = index.rows().iter().filter(|row| row.node.as_ref() == Some(node) && row.is_live(now));
        let live: Vec<Row> = live.cloned().collect();
        if live.is_empty() {
            return Ok(live);
        }
        let struck = |row: &Row| Line::Revoked {
            serial: row.serial.clone(),
            at: now.0,
            reason: Reason::Withdrawn,
            may_return: true,
        };
        self.note(&live.iter().map(struck).collect::<Vec<_>>(), now)?;
        self.publish(authority, now)?;
        Ok(live)
    }

    /// The list of revoked certificates, made anew where none is, half of its time is over, or it lacks something that the
    /// index says was revoked (its writer died between the two). Otherwise the one that is there.
    ///
    /// # Errors
    /// [`FolderError`] when the folder cannot be read or written, or the CA may sign no list.
    pub fn refresh(&self, authority: &Authority, now: UnixTime) -> Result<Crl, FolderError> {
        let _lock = self.lock()?;
        let revoked = self.index()?.revoked(now);
        match self.crl()? {
            Some(crl) if !crl.is_due(now) && revoked.iter().all(|row| crl.revokes(&row.serial)) => Ok(crl),
            _ => self.publish(authority, now),
        }
    }

    /// The list of revoked certificates, made anew whether or not that is due.
    ///
    /// # Errors
    /// As [`Folder::refresh`].
    pub fn republish(&self, authority: &Authority, now: UnixTime) -> Result<Crl, FolderError> {
        let _lock = self.lock()?;
        self.publish(authority, now)
    }

    /// Under the lock.
    fn publish(&self, authority: &Authority, now: UnixTime) -> Result<Crl, FolderError> {
        let (index, before) = (self.index()?, self.crl()?);
        let mut revoked = index.revoked(now);
        // What another program revoked stays revoked: its end is not known here.
        let others = before.iter().flat_map(Crl::revoked).filter(|row| !index.knows(&row.serial));
        revoked.extend(others.cloned().collect::<Vec<RevokedSerial>>());
        let number = before.map_or(0, |crl| crl.number.saturating_add(1)).max(now.0);
        let crl = authority.revoke(number, &revoked, now)?;
        self.write_crl(&crl)?;
        Ok(crl)
    }

    fn write_crl(&self, crl: &Crl) -> Result<(), FolderError> {
        disk::write(&self.crl_path(), crl.to_pem().as_bytes(), Mode::Public)
    }

    fn note(&self, lines: &[Line], now: UnixTime) -> Result<(), FolderError> {
        let path = self.index_path();
        let text = |lines: &[Line]| -> Result<String, FolderError> {
            let mut text = String::new();
            for line in lines {
                let line = serde_json::to_string(line).map_err(std::io::Error::other);
                text.push_str(&line.map_err(FolderError::io(&path, "write"))?);
                text.push('\n');
            }
            Ok(text)
        };
        if disk::read(&path)?.is_some_and(|text| text.len() > INDEX_BYTES_MAX) {
            disk::write(&path, text(&self.index()?.kept(now))?.as_bytes(), Mode::Public)?;
        }
        disk::append(&path, &text(lines)?)
    }

    /// Signs a new certificate for the intermediate's key, which goes on with the same name and constraints.
    ///
    /// # Errors
    /// [`FolderError::NoKey`] where the root's key is not at hand.
    pub fn renew_intermediate(&self, now: UnixTime) -> Result<(), FolderError> {
        let _lock = self.lock()?;
        let authority = self.authority()?;
        let root_path = self.root_file("root.crt");
        let root = disk::read(&root_path)?.ok_or_else(|| FolderError::NoKey { path: root_path.clone() })?;
        let root_key = disk::read_key(&self.root_file("root.key"))?;
        let own_key = disk::read_key(&self.key_of_ca())?;
        let facts = authority.chain().facts();
        let subject = facts.iter().find(|facts| !facts.is_root).map_or("", |facts| &facts.subject);
        let name = subject.strip_prefix("CN=").and_then(|name| name.strip_suffix(" CA"));
        let Some(name) = name else {
            let reason = format!(
                "{subject:?} was not made by `qmt-cli ca init`; renew it with the program that made it"
            );
            return Err(SignError::NotSigned { reason }.into());
        };
        let options = Options {
            name: name.to_owned(),
            constraints: authority.constraints().clone(),
            ..Options::default()
        };
        let next = Founding::intermediate(&root, &root_key, &own_key, &options, now)?;
        let chain = CaChain::from_pem(&[next.as_str(), &root].concat())
            .map_err(|source| FolderError::Chain { path: self.chain_path(), source })?;
        disk::write(&self.path.join("intermediate/ca.crt"), next.as_bytes(), Mode::Public)?;
        disk::write(&self.chain_path(), chain.to_pem().as_bytes(), Mode::Public)
    }

    /// Puts what nodes need into `to`, in the same layout: chain, list, and the certificates of `nodes`, each with its key
    /// where that was made here.
    ///
    /// # Errors
    /// [`FolderError::Unknown`] for a node without a certificate here.
    pub fn export(&self, to: &Path, nodes: &[NodeName]) -> Result<Vec<PathBuf>, FolderError> {
        let there = Self::new(to);
        let mut files = vec![(there.chain_path(), self.chain()?.to_pem(), Mode::Public)];
        files.extend(self.crl()?.map(|crl| (there.crl_path(), crl.to_pem(), Mode::Public)));
        for name in nodes {
            let (der, _) = self.certificate(name)?;
            let pem = super::chain::pem("CERTIFICATE", &der);
            files.push((there.certificate_path(name), pem, Mode::Public));
        }
        disk::create_folder(&to.join("intermediate"), Mode::Public)?;
        disk::create_folder(&to.join("issued"), Mode::Public)?;
        let mut written = Vec::new();
        for (path, text, mode) in files {
            disk::write(&path, text.as_bytes(), mode)?;
            written.push(path);
        }
        for name in nodes.iter().filter(|name| self.key_path(name).exists()) {
            let key = disk::read_key(&self.key_path(name))?;
            disk::write(&there.key_path(name), key.as_bytes(), Mode::Secret)?;
            written.push(there.key_path(name));
        }
        Ok(written)
    }

    /// Moves the root's certificate and key to the folder `to`, for a medium that is then put away: the key is there and
    /// read back before it is gone here.
    ///
    /// # Errors
    /// [`FolderError::NoKey`] where it is not here, [`FolderError::KeyExists`] where one is there.
    pub fn move_root(&self, to: &Path) -> Result<(), FolderError> {
        let _lock = self.lock()?;
        let there = Self { path: self.path.clone(), root: to.to_owned() };
        let key = disk::read_key(&self.root_file("root.key"))?;
        if there.root_file("root.key").exists() {
            return Err(FolderError::KeyExists { path: there.root_file("root.key") });
        }
        let crt_path = self.root_file("root.crt");
        let crt = disk::read(&crt_path)?.ok_or_else(|| FolderError::NoKey { path: crt_path.clone() })?;
        disk::create_folder(to, Mode::Secret)?;
        disk::write(&there.root_file("root.crt"), crt.as_bytes(), Mode::Public)?;
        disk::write(&there.root_file("root.key"), key.as_bytes(), Mode::Secret)?;
        let read_back: Zeroizing<String> = disk::read_key(&there.root_file("root.key"))?;
        if *read_back != *key {
            let source = std::io::Error::other("what was read back differs");
            return Err(FolderError::io(&there.root_file("root.key"), "write")(source));
        }
        let path = self.root_file("root.key");
        std::fs::remove_file(&path).map_err(FolderError::io(&path, "remove"))
    }
}

/// The first certificate in a PEM file, in DER.
///
/// # Errors
/// Why there is none, in words.
pub fn read_certificate(path: &Path) -> Result<Vec<u8>, String> {
    let text = disk::read(path).map_err(|error| error.to_string())?;
    let text = text.ok_or_else(|| "no such file".to_owned())?;
    let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
        pem::Error::NoItemsFound => "there is no certificate in it (PEM)".to_owned(),
        error => error.to_string(),
    })?;
    Ok(der.to_vec())
}
