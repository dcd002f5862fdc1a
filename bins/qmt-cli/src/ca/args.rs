//! The commands of the CA and their arguments.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use mesh_identity::ca::{Cidr, Reason, Usage};
use mesh_identity::{NodeId, NodeName, ttl};

#[derive(Debug, Args)]
pub(crate) struct CaArgs {
    /// Folder of the CA [default: ca in QMT_HOME].
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
    /// Folder with the root's root.crt and root.key [default: root in the CA's folder].
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) what: CaCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Make a CA: a root, and the intermediate that signs.
    ///
    /// The intermediate may name hosts below `mesh` and addresses of private networks. What it may name cannot be changed later.
    Init {
        /// What people call it.
        #[arg(long, default_value = "mesh")]
        name: String,
        /// It may name this host too, and what is below it: for a node's bare name, such as ct110.
        #[arg(long, value_name = "NAME")]
        permit_dns: Vec<NodeName>,
        /// It may name the addresses of this range too, such as 203.0.113.0/24.
        #[arg(long, value_name = "RANGE")]
        permit_ip: Vec<Cidr>,
    },
    /// Make a key and a certificate for a node, here: for nodes that cannot ask for theirs.
    Issue {
        /// The node's name.
        node: NodeName,
        #[command(flatten)]
        wish: Wish,
    },
    /// Sign the request of somebody who has the key.
    Sign {
        /// File with the request (PKCS #10, in PEM), or - for standard input.
        #[arg(value_name = "FILE")]
        request: PathBuf,
        /// The node's name [default: the request's common name].
        #[arg(long)]
        name: Option<NodeName>,
        #[command(flatten)]
        wish: Wish,
        /// Write the certificate there too.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Sign the certificates of nodes again, each for its key; or the intermediate's, or the list of revoked ones.
    Renew {
        /// Their names.
        #[arg(required_unless_present_any = ["intermediate", "crl"])]
        nodes: Vec<NodeName>,
        /// How long they hold: 24h, 90d.
        #[arg(long, value_parser = duration, default_value = "90d")]
        ttl: Duration,
        /// The intermediate's, by the root's key.
        #[arg(long)]
        intermediate: bool,
        /// The list of revoked certificates, which says that it is the latest for 30 days.
        #[arg(long)]
        crl: bool,
    },
    /// Revoke every certificate of a node, or one by its serial.
    Revoke {
        /// The node's name, or a serial or the beginning of one.
        #[arg(value_name = "NODE|SERIAL")]
        subject: String,
        /// Why: unspecified, key-compromise, superseded, cessation, withdrawn.
        #[arg(long, default_value = "unspecified")]
        reason: Reason,
        /// The node may enrol again, with another key; without this it stays out until this is said.
        #[arg(long)]
        may_return: bool,
    },
    /// List the certificates of nodes.
    List {
        /// Those too that have ended or were revoked.
        #[arg(long)]
        all: bool,
    },
    /// Check a certificate as a node of the agent channel does; a bad one is a failure (exit code 1).
    Verify {
        /// A node's name, or a file.
        #[arg(value_name = "NODE|FILE")]
        subject: String,
        /// What it is shown for [default: both].
        #[arg(long)]
        usage: Option<Shown>,
    },
    /// Show the CA, or what a certificate says.
    Show {
        /// A node's name, or a file.
        #[arg(value_name = "NODE|FILE")]
        subject: Option<String>,
    },
    /// Put what nodes need into a folder: chain, list of revoked certificates, and the certificates of the nodes named.
    Export {
        /// The folder.
        to: PathBuf,
        /// With this node's certificate, and its key if that was made here.
        #[arg(long = "node", value_name = "NODE")]
        nodes: Vec<NodeName>,
        /// Move the root's certificate and key there instead: onto a medium that is put away.
        #[arg(long, conflicts_with = "nodes")]
        root_key: bool,
    },
}

/// What a certificate is to hold beside its name.
#[derive(Debug, Args)]
pub(super) struct Wish {
    /// An address at which the node serves.
    #[arg(long = "ip", value_name = "ADDRESS")]
    pub(super) ips: Vec<IpAddr>,
    /// The node's id: its certificate then has the role of its grant.
    #[arg(long, value_name = "ID")]
    pub(super) node_id: Option<NodeId>,
    /// How long it holds: 24h, 90d.
    #[arg(long, value_parser = duration, default_value = "90d")]
    pub(super) ttl: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Shown {
    /// By who calls.
    Client,
    /// By who is called.
    Server,
}

impl Shown {
    pub(super) fn usage(self) -> Usage {
        match self {
            Self::Client => Usage::Client,
            Self::Server => Usage::Server,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match ttl::parse(text) {
        Ok(Some(ttl)) => Ok(ttl),
        Ok(None) => Err("a certificate has an end: say how long it holds, such as 24h or 90d".to_owned()),
        Err(_) => Err(format!("not a length of time: {text:?} (expected such as 90m, 24h, 7d or 2w)")),
    }
}
