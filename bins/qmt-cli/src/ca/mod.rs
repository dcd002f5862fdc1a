//! `ca`: the mesh CA, on this machine's disk; no node has to run.

mod args;
mod view;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_identity::ca::{
    By, Cidr, Constraints, Csr, Folder, FolderError, LeafKey, Options, Reason, Request, Row, VerifyError,
    Which,
};
use mesh_identity::{NodeName, UnixTime};
use serde::Serialize;

use crate::failure::{Failure, chain};
use crate::screen::Screen;
use crate::units;

pub(crate) use args::CaArgs;
use args::{CaCommand, Shown, Wish};
use view::{CaView, Certificate, RowView};

/// A request has at most 16 KiB in DER, which is 22 KiB in PEM.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;

pub(crate) fn ca(home: &Path, screen: &Screen, args: CaArgs) -> Result<(), Failure> {
    let folder = Folder::new(args.dir.unwrap_or_else(|| home.join("ca")));
    let folder = match args.root {
        Some(root) => folder.with_root(root),
        None => folder,
    };
    let desk = Desk { folder, screen, now: UnixTime::now() };
    match args.what {
        CaCommand::Init { name, permit_dns, permit_ip } => desk.init(name, permit_dns, permit_ip),
        CaCommand::Issue { node, wish } => desk.issue(node, wish),
        CaCommand::Sign { request, name, wish, out } => desk.sign(&request, name, wish, out.as_deref()),
        CaCommand::Renew { nodes, ttl, intermediate, crl } => desk.renew(&nodes, ttl, intermediate, crl),
        CaCommand::Revoke { subject, reason, may_return } => desk.revoke(&subject, reason, may_return),
        CaCommand::List { all } => desk.list(all),
        CaCommand::Verify { subject, usage } => desk.verify(&subject, usage),
        CaCommand::Show { subject: Some(subject) } => desk.show_certificate(&subject),
        CaCommand::Show { subject: None } => desk.show(),
        CaCommand::Export { to, root_key: true, .. } => desk.move_root(&to),
        CaCommand::Export { to, nodes, .. } => desk.export(&to, &nodes),
    }
}

/// Where a person works at a CA.
struct Desk<'a> {
    folder: Folder,
    screen: &'a Screen,
    now: UnixTime,
}

impl Desk<'_> {
    fn init(&self, name: String, dns: Vec<NodeName>, ips: Vec<Cidr>) -> Result<(), Failure> {
        if name.is_empty() || name.len() > 40 || name.chars().any(char::is_control) {
            return Err(Failure::usage("the name of a CA has 1 to 40 characters"));
        }
        let mut constraints = Constraints::mesh();
        constraints.dns.extend(dns.iter().map(|name| name.as_str().to_ascii_lowercase()));
        constraints.ips.extend(ips);
        self.folder.found(&Options { name, constraints, ..Options::default() }, self.now)?;
        self.show()?;
        let root = self.folder.root().join("root.key");
        self.screen.note(&format!(
            "the root's key {} signs intermediates only: put it away with `qmt-cli ca export --root-key MEDIUM`",
            root.display()
        ));
        Ok(())
    }

    fn issue(&self, node: NodeName, wish: Wish) -> Result<(), Failure> {
        let authority = self.folder.authority()?;
        let key = LeafKey::generate().map_err(|error| Failure::new("key", error.to_string()))?;
        let request = Request {
            node: wish.node_id,
            ips: wish.ips,
            ..Request::new(node.clone(), key.public(), wish.ttl)
        };
        let issued = self.folder.issue(&authority, &request, By::Issue, Some(&key), self.now)?;
        let mut shown = Certificate::new(&issued.leaf, self.now);
        shown.certificate = Some(self.folder.certificate_path(&node));
        shown.key = Some(self.folder.key_path(&node));
        self.screen.show(&shown, Certificate::described)?;
        self.screen.note(
            "the node alone should have this key: move it there, and let nodes of a mesh ask for their own",
        );
        Ok(())
    }

    fn sign(
        &self,
        file: &Path,
        name: Option<NodeName>,
        wish: Wish,
        out: Option<&Path>,
    ) -> Result<(), Failure> {
        let csr = Csr::read_pem(&read_request(file)?).map_err(|error| {
            let failure = Failure::new("request", format!("{}: {}", file.display(), chain(&error)));
            mended(failure, error.mend())
        })?;
        let name = name.or(csr.name).ok_or_else(|| {
            Failure::new("request", "the request has no common name").with_mend("name the node with --name")
        })?;
        if let Some(claimed) = csr.node.filter(|claimed| wish.node_id.as_ref() != Some(claimed)) {
            let mend = format!("if the request did come from that node, add --node-id {claimed}");
            let message = format!("the request says that it comes from node {claimed}");
            return Err(Failure::new("request", message).with_mend(mend));
        }
        let ips = if wish.ips.is_empty() { csr.ips } else { wish.ips };
        let request = Request { node: wish.node_id, ips, ..Request::new(name.clone(), csr.key, wish.ttl) };
        let authority = self.folder.authority()?;
        let issued = self.folder.issue(&authority, &request, By::Sign, None, self.now)?;
        if let Some(out) = out {
            std::fs::write(out, issued.to_pem()).map_err(|error| {
                let there = self.folder.certificate_path(&name);
                Failure::new("io", format!("cannot write {}: {error}", out.display()))
                    .with_mend(format!("the certificate was signed: copy it from {}", there.display()))
            })?;
        }
        let mut shown = Certificate::new(&issued.leaf, self.now);
        shown.certificate = Some(out.map_or_else(|| self.folder.certificate_path(&name), Path::to_path_buf));
        self.screen.show(&shown, Certificate::described)
    }

    fn renew(&self, nodes: &[NodeName], ttl: Duration, intermediate: bool, crl: bool) -> Result<(), Failure> {
        if intermediate {
            self.folder.renew_intermediate(self.now)?;
        }
        let authority = self.folder.authority()?;
        if crl {
            self.folder.republish(&authority, self.now)?;
        }
        let mut renewed = Vec::new();
        for node in nodes {
            let issued = self.folder.renew(&authority, node, ttl, self.now)?;
            let mut shown = Certificate::new(&issued.leaf, self.now);
            shown.certificate = Some(self.folder.certificate_path(node));
            renewed.push(shown);
        }
        if nodes.is_empty() {
            return self.show();
        }
        self.screen.show(&renewed, |renewed| renewed.iter().map(Certificate::described).collect())
    }

    fn revoke(&self, subject: &str, reason: Reason, may_return: bool) -> Result<(), Failure> {
        let which = self.which(subject)?;
        let authority = self.folder.authority()?;
        let struck = self.folder.revoke(&authority, &which, reason, may_return, self.now)?;
        let crl = self.folder.crl()?;
        let shown = Revoked {
            revoked: struck.iter().map(|row| RowView::new(row, self.now)).collect(),
            may_return,
            crl: self.folder.crl_path(),
            number: crl.map_or(0, |crl| crl.number),
        };
        self.screen.show(&shown, |shown| {
            let what = units::count(shown.revoked.len(), "certificate");
            let stays = if shown.may_return { "it may enrol again" } else { "it stays out" };
            format!("revoked {what}, and {stays}; list {} is {}", shown.number, shown.crl.display())
        })?;
        self.screen.note(
            "nodes that read this folder know within two seconds; elsewhere the list belongs beside the chain",
        );
        Ok(())
    }

    /// A name if a certificate has it, else a serial or the only one that begins so.
    fn which(&self, subject: &str) -> Result<Which, Failure> {
        let rows = self.folder.list()?.rows;
        if let Ok(name) = NodeName::new(subject)
            && rows.iter().any(|row| row.name.as_str().eq_ignore_ascii_case(subject))
        {
            return Ok(Which::Node(name));
        }
        let digits = subject.replace(':', "").to_ascii_lowercase();
        let found: Vec<&Row> = rows
            .iter()
            .filter(|row| {
                let serial = row.serial.to_string();
                digits.len() >= 4 && (serial.starts_with(&digits) || serial.trim_start_matches('0') == digits)
            })
            .collect();
        match found[..] {
            [row] => Ok(Which::Serial(row.serial.clone())),
            [] => {
                Err(FolderError::Unknown { what: format!("{subject:?}, neither by name nor by serial") }
                    .into())
            }
            _ => Err(Failure::new("ambiguous", format!("several serials begin with {subject}"))),
        }
    }

    fn list(&self, all: bool) -> Result<(), Failure> {
        let listed = self.folder.list()?;
        let shown = listed.rows.iter().filter(|row| all || row.is_live(self.now));
        let rows: Vec<RowView> = shown.map(|row| RowView::new(row, self.now)).collect();
        self.screen.show(&rows, |rows| view::table(rows, self.now))?;
        for (file, reason) in &listed.strange {
            self.screen.note(&format!("{} is left out: {reason}", file.display()));
        }
        let hidden = listed.rows.len() - rows.len();
        if rows.is_empty() && hidden == 0 {
            self.screen.note("this CA has signed nothing yet");
        } else if hidden > 0 {
            let what = units::count(hidden, "certificate");
            self.screen.note(&format!("{what} revoked or over; --all shows them too"));
        }
        Ok(())
    }

    fn verify(&self, subject: &str, usage: Option<Shown>) -> Result<(), Failure> {
        let chain = self.folder.chain()?;
        let (file, der) = self.find(subject)?;
        let crl = self.folder.crl()?;
        let lists = crl.as_slice();
        let usages = usage.map_or_else(|| vec![Shown::Server, Shown::Client], |usage| vec![usage]);
        let mut leaf = None;
        for usage in usages {
            leaf = Some(chain.verify(&der, usage.usage(), lists, self.now).map_err(|error| {
                let failure = Failure::new("invalid", format!("{}: {}", file.display(), self::chain(&error)));
                mended(failure, error.mend())
            })?);
        }
        let Some(leaf) = leaf else { return Ok(()) };
        let shown = Certificate::new(&leaf, self.now).of_file(file);
        let listed = crl.is_some();
        self.screen.show(&shown, |shown| format!("good: {}", shown.in_a_line()))?;
        if !listed {
            self.screen
                .note("there is no list of revoked certificates here; `qmt-cli ca renew --crl` makes one");
        }
        Ok(())
    }

    fn show_certificate(&self, subject: &str) -> Result<(), Failure> {
        let (file, der) = self.find(subject)?;
        let leaf = mesh_identity::ca::Leaf::read(&der).map_err(|error| {
            let failure = Failure::new("invalid", format!("{}: {error}", file.display()));
            mended(failure, VerifyError::from(error).mend())
        })?;
        let mut shown = Certificate::new(&leaf, self.now).of_file(file);
        if let Ok(Some(crl)) = self.folder.crl()
            && crl.revokes(&leaf.serial)
        {
            shown.state = "revoked";
        }
        self.screen.show(&shown, Certificate::described)
    }

    /// The certificate of a node here, or in a file.
    fn find(&self, subject: &str) -> Result<(PathBuf, Vec<u8>), Failure> {
        let path = Path::new(subject);
        let named = NodeName::new(subject).ok().filter(|name| self.folder.certificate_path(name).exists());
        if let Some(name) = named {
            return Ok((self.folder.certificate_path(&name), self.folder.certificate(&name)?.0));
        }
        if !path.exists() {
            self.folder.chain()?; // without a CA nobody has a name here
            return Err(FolderError::Unknown {
                what: format!("called {subject}, and there is no such file"),
            }
            .into());
        }
        let der = mesh_identity::ca::read_certificate(path).map_err(|reason| {
            Failure::new("invalid", format!("{subject}: {reason}"))
                .with_mend("name a node, or the file with its certificate")
        })?;
        Ok((path.to_owned(), der))
    }

    fn show(&self) -> Result<(), Failure> {
        self.screen.show(&CaView::of(&self.folder, self.now)?, CaView::described)
    }

    fn export(&self, to: &Path, nodes: &[NodeName]) -> Result<(), Failure> {
        let files = self.folder.export(to, nodes)?;
        self.screen.show(&Exported { files }, Exported::described)
    }

    fn move_root(&self, to: &Path) -> Result<(), Failure> {
        self.folder.move_root(to)?;
        let files = ["root.crt", "root.key"].map(|file| to.join(file)).into();
        self.screen.show(&Exported { files }, Exported::described)?;
        self.screen
            .note("the root's key is no longer here; when it is needed, say where it is with --root DIR");
        Ok(())
    }
}

#[derive(Serialize)]
struct Exported {
    files: Vec<PathBuf>,
}

impl Exported {
    fn described(&self) -> String {
        self.files.iter().map(|file| format!("{}\n", file.display())).collect()
    }
}

#[derive(Serialize)]
struct Revoked {
    revoked: Vec<RowView>,
    may_return: bool,
    crl: PathBuf,
    number: u64,
}

fn mended(failure: Failure, mend: Option<&str>) -> Failure {
    match mend {
        Some(mend) => failure.with_mend(mend),
        None => failure,
    }
}

fn read_request(file: &Path) -> Result<String, Failure> {
    let failed = |error| {
        Failure::new("io", format!("cannot read {}: {error}", file.display()))
            .with_mend("name the file with the request, or - for standard input")
    };
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().take(REQUEST_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    } else {
        let opened = std::fs::File::open(file).map_err(failed)?;
        opened.take(REQUEST_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    }
    Ok(text)
}

impl From<FolderError> for Failure {
    fn from(error: FolderError) -> Self {
        let code = match &error {
            FolderError::Missing { .. } => "no_ca",
            FolderError::Exists { .. } | FolderError::KeyExists { .. } => "exists",
            FolderError::Exposed { .. } => "exposed_key",
            FolderError::NoKey { .. } => "no_key",
            FolderError::Key { .. }
            | FolderError::Chain { .. }
            | FolderError::Crl { .. }
            | FolderError::Index { .. } => "damaged",
            FolderError::NameTaken { .. } | FolderError::ShutOut { .. } | FolderError::Sign { .. } => {
                "refused"
            }
            FolderError::Unknown { .. } => "unknown",
            FolderError::Busy { .. } => "busy",
            _ => "io",
        };
        let failure = Self::new(code, chain(&error));
        mended(failure, error.mend().as_deref())
    }
}
