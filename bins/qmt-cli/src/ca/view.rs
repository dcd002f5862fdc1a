//! What is shown of a CA and its certificates.

use std::net::IpAddr;
use std::path::PathBuf;

use mesh_identity::ca::{By, CaFacts, Folder, FolderError, Leaf, Reason, Row, Serial};
use mesh_identity::{NodeId, NodeName, UnixTime};
use serde::Serialize;

use crate::table::Table;
use crate::units;

/// What a node's certificate says.
#[derive(Serialize)]
pub(super) struct Certificate {
    pub(super) name: NodeName,
    pub(super) state: &'static str,
    serial: Serial,
    node: Option<NodeId>,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
    not_before: u64,
    not_after: u64,
    server: bool,
    client: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<PathBuf>,
}

impl Certificate {
    pub(super) fn new(leaf: &Leaf, now: UnixTime) -> Self {
        Self {
            name: leaf.name.clone(),
            state: match () {
                () if now < leaf.not_before => "not_yet_valid",
                () if now > leaf.not_after => "expired",
                () => "valid",
            },
            serial: leaf.serial.clone(),
            node: leaf.node,
            dns: leaf.dns.clone(),
            ips: leaf.ips.clone(),
            not_before: leaf.not_before.0,
            not_after: leaf.not_after.0,
            server: leaf.is_server,
            client: leaf.is_client,
            certificate: None,
            key: None,
        }
    }

    /// The same, with where it lies.
    pub(super) fn of_file(self, file: PathBuf) -> Self {
        Self { certificate: Some(file), ..self }
    }

    fn names(&self) -> String {
        let ips = self.ips.iter().map(IpAddr::to_string);
        self.dns.iter().cloned().chain(ips).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn in_a_line(&self) -> String {
        let until = UnixTime(self.not_after);
        format!("{} ({}), until {until}, serial {}", self.name, self.names(), self.serial)
    }

    pub(super) fn described(&self) -> String {
        let mut table = Table::without_head();
        let usage = match (self.server, self.client) {
            (true, true) => "server and client",
            (true, false) => "server only",
            (false, true) => "client only",
            (false, false) => "nothing here",
        };
        let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
        row("node", self.name.to_string());
        row("id", self.node.map_or_else(String::new, |id| id.to_string()));
        row("names", self.names());
        row("state", self.state.replace('_', " "));
        row("from", UnixTime(self.not_before).to_string());
        row("until", UnixTime(self.not_after).to_string());
        row("for", usage.to_owned());
        row("serial", self.serial.to_string());
        for (what, file) in [("certificate", &self.certificate), ("key", &self.key)] {
            if let Some(file) = file {
                row(what, file.display().to_string());
            }
        }
        table.to_string()
    }
}

/// A row of `ca list`.
#[derive(Serialize)]
pub(super) struct RowView {
    name: NodeName,
    state: &'static str,
    serial: Serial,
    node: Option<NodeId>,
    signed_at: u64,
    not_after: u64,
    by: By,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<RevokedView>,
}

#[derive(Serialize)]
struct RevokedView {
    at: u64,
    reason: Reason,
    may_return: bool,
}

impl RowView {
    pub(super) fn new(row: &Row, now: UnixTime) -> Self {
        Self {
            name: row.name.clone(),
            state: match &row.struck {
                Some(_) => "revoked",
                None if now > row.until => "expired",
                None => "valid",
            },
            serial: row.serial.clone(),
            node: row.node,
            signed_at: row.at.0,
            not_after: row.until.0,
            by: row.by,
            revoked: row.struck.as_ref().map(|struck| RevokedView {
                at: struck.at.0,
                reason: struck.reason,
                may_return: struck.may_return,
            }),
        }
    }
}

pub(super) fn table(rows: &[RowView], now: UnixTime) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["NODE", "STATE", "ENDS", "BY", "ID", "SERIAL"]);
    for row in rows {
        let state = match &row.revoked {
            Some(revoked) => format!("revoked ({})", revoked.reason),
            None => row.state.to_owned(),
        };
        // Ids of nodes begin alike, so their end is shown.
        let id = row.node.map(|id| id.to_string()).unwrap_or_default();
        let id: String = id.chars().skip(id.chars().count().saturating_sub(6)).collect();
        table.row([
            row.name.to_string(),
            state,
            units::end(Some(row.not_after), now.0),
            row.by.to_string(),
            if id.is_empty() { id } else { format!("..{id}") },
            row.serial.to_string(),
        ]);
    }
    table.to_string()
}

/// The CA itself.
#[derive(Serialize)]
pub(super) struct CaView {
    dir: PathBuf,
    certificates: Vec<CaCertificate>,
    /// Whether the intermediate's key is here.
    can_sign: bool,
    /// Whether the root's key is here.
    root_key: bool,
    crl: Option<CrlView>,
    live: usize,
    signed: usize,
}

#[derive(Serialize)]
struct CaCertificate {
    subject: String,
    root: bool,
    serial: Serial,
    not_before: u64,
    not_after: u64,
    permitted_dns: Vec<String>,
    permitted_ips: Vec<String>,
}

#[derive(Serialize)]
struct CrlView {
    number: u64,
    revoked: usize,
    this_update: u64,
    next_update: Option<u64>,
}

impl CaCertificate {
    fn new(facts: CaFacts) -> Self {
        Self {
            subject: facts.subject,
            root: facts.is_root,
            serial: facts.serial,
            not_before: facts.not_before.0,
            not_after: facts.not_after.0,
            permitted_dns: facts.constraints.dns,
            permitted_ips: facts.constraints.ips.iter().map(ToString::to_string).collect(),
        }
    }
}

impl CaView {
    pub(super) fn of(folder: &Folder, now: UnixTime) -> Result<Self, FolderError> {
        let chain = folder.chain()?;
        let listed = folder.list()?;
        let can_sign = match folder.authority() {
            Ok(_) => true,
            Err(FolderError::NoKey { .. }) => false,
            Err(error) => return Err(error),
        };
        Ok(Self {
            dir: folder.path().to_owned(),
            certificates: chain.facts().into_iter().map(CaCertificate::new).collect(),
            can_sign,
            root_key: folder.root().join("root.key").exists(),
            crl: folder.crl()?.map(|crl| CrlView {
                number: crl.number,
                revoked: crl.revoked().count(),
                this_update: crl.this_update.0,
                next_update: crl.next_update.map(|time| time.0),
            }),
            live: listed.rows.iter().filter(|row| row.is_live(now)).count(),
            signed: listed.rows.len(),
        })
    }

    pub(super) fn described(&self) -> String {
        let mut table = Table::without_head();
        let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
        row("folder", self.dir.display().to_string());
        for ca in &self.certificates {
            let until = UnixTime(ca.not_after);
            row(if ca.root { "root" } else { "CA" }, format!("{}, until {until}", ca.subject));
            if !ca.root {
                let any =
                    |list: &[String]| if list.is_empty() { "anything".to_owned() } else { list.join(", ") };
                row("may name", format!("hosts: {}", any(&ca.permitted_dns)));
                row("", format!("addresses: {}", any(&ca.permitted_ips)));
            }
        }
        row(
            "keys here",
            match (self.can_sign, self.root_key) {
                (true, true) => "the CA's and the root's",
                (true, false) => "the CA's; the root's is elsewhere",
                (false, true) => "the root's only",
                (false, false) => "none: this copy signs nothing",
            }
            .to_owned(),
        );
        row("certificates", format!("{} hold now, {} signed", self.live, self.signed));
        row(
            "revoked",
            match &self.crl {
                Some(crl) => {
                    let next = crl.next_update.map_or("never".to_owned(), |next| UnixTime(next).to_string());
                    format!("{} on list {}, the next one by {next}", crl.revoked, crl.number)
                }
                None => "no list was made yet".to_owned(),
            },
        );
        table.to_string()
    }
}
