//! The files of the channel's certificate.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mesh_sessions::channel::Credentials;

use crate::config::AgentChannel;

/// Larger files are none of a certificate; revocation lists of a mesh have some kilobytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Where a node keeps what it got by enrolment, in its home.
pub(crate) const CHANNEL_FOLDER: &str = "channel";
/// A CA's list of what it revoked, beside its chain.
const CRL_FILE: &str = "crl.pem";

/// Where the parts of the credentials are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    /// Lists that are read when they are there.
    crls: Vec<PathBuf>,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// One is missing.
    #[error("{} is not there", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// One cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One is far too large.
    #[error("{} has more than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Everybody on the machine may read the key.
    #[error("{} can be read by everybody on this machine: `chmod 600 {}`", path.display(), path.display())]
    Open {
        /// Which.
        path: PathBuf,
    },
}

/// How the files looked when they were read; they are read again when they look otherwise.
pub(super) type Looks = Vec<Option<(u64, u64, SystemTime)>>;

impl Files {
    /// Those that the configuration names.
    pub(super) fn of(channel: &AgentChannel, home: &Path) -> Self {
        let tls = &channel.tls;
        let beside = tls.ca_path.parent().map(|folder| folder.join(CRL_FILE));
        let mut crls: Vec<PathBuf> = beside.into_iter().collect();
        crls.push(home.join(CHANNEL_FOLDER).join(CRL_FILE));
        Self { ca: tls.ca_path.clone(), cert: tls.cert_path.clone(), key: tls.key_path.clone(), crls }
    }

    /// The certificate's own path, for people.
    pub(super) fn cert(&self) -> &Path {
        &self.cert
    }

    /// Whether somebody has put a certificate there, with its key: the folder of a CA has those of nodes that enrolled without.
    pub(super) fn are_there(&self) -> bool {
        self.cert.exists() && self.key.exists()
    }

    /// Blocking.
    pub(super) fn looks(&self) -> Looks {
        let look = |path: &PathBuf| {
            let facts = fs::metadata(path).ok()?;
            Some((facts.len(), facts.ino(), facts.modified().ok()?))
        };
        [&self.ca, &self.cert, &self.key].into_iter().chain(&self.crls).map(look).collect()
    }

    /// All of it. Blocking.
    pub(super) fn read(&self) -> Result<Credentials, FilesError> {
        let key_pem = read(&self.key)?;
        let mode = fs::metadata(&self.key).map(|facts| facts.permissions().mode()).unwrap_or_default();
        if mode & 0o004 != 0 {
            return Err(FilesError::Open { path: self.key.clone() });
        }
        if mode & 0o040 != 0 {
            tracing::warn!(key = %self.key.display(), "the group of the certificate's key may read it");
        }
        let lists = self.crls.iter().filter(|path| path.exists());
        Ok(Credentials {
            chain_pem: read(&self.ca)?,
            cert_pem: read(&self.cert)?,
            key_pem,
            crls: lists.map(|path| read(path)).collect::<Result<_, _>>()?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => FilesError::Missing { path: path.to_owned() },
        _ => FilesError::Unreadable { path: path.to_owned(), source },
    };
    if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(FilesError::TooLarge { path: path.to_owned() });
    }
    fs::read(path).map_err(unreadable)
}
