//! Why something of a CA was refused or could not be done.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{CRL_BYTES_MAX, CSR_BYTES_MAX, LeafError, Serial};
use crate::{NodeName, UnixTime};

/// Why a key cannot be used. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The operating system made none.
    #[error("no key could be made: {reason}")]
    NotMade {
        /// What it said.
        reason: String,
    },
    /// A private key in a form of before PKCS #8.
    #[error("the key is in an old form (PKCS #1 or SEC 1), and only PKCS #8 is read")]
    OldForm,
    /// A private key under a password.
    #[error("the key is under a password, and a node that restarts has nobody to ask for it")]
    Encrypted,
    /// No private key.
    #[error("this is no private key in PEM: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// A public key that is none, or is of a kind that verifiers refuse.
    #[error("the public key cannot be used: {reason}")]
    Unusable {
        /// What is wrong.
        reason: String,
    },
}

/// Why a request for a certificate is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CsrError {
    /// It is longer than any.
    #[error("the request has {bytes} bytes; one has at most {CSR_BYTES_MAX}")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// The bytes are none, or say what none may say.
    #[error("this is no request for a certificate: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// Its key cannot be used.
    #[error("the request's key does not do")]
    Key {
        /// Why.
        source: KeyError,
    },
    /// Whoever made it does not have the private key.
    #[error("the request is not signed by the key that it is for")]
    NotItsKey,
    /// It could not be made.
    #[error("the request could not be made: {reason}")]
    NotMade {
        /// Why.
        reason: String,
    },
}

/// Why certificates are not those of a CA.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// There is none.
    #[error("there is no certificate in it")]
    Empty,
    /// More than any CA has.
    #[error("there are too many certificates in it")]
    TooMany,
    /// One cannot be read.
    #[error("a certificate in it is damaged: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// One is of no CA: trusting it would let its owner vouch for itself alone, which is never meant.
    #[error("the certificate of {subject} in it is not of a CA")]
    NotCa {
        /// Whose it is.
        subject: String,
    },
}

/// Why a list of revoked certificates does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CrlError {
    /// It is longer than any.
    #[error("the list has {bytes} bytes; one has at most {CRL_BYTES_MAX}")]
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// The bytes are none.
    #[error("this is no list of revoked certificates: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// None of the CAs signed it.
    #[error("the list of revoked certificates is not signed by this CA")]
    NotSigned,
}

/// Why a CA signed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignError {
    /// A key cannot be read.
    #[error("the CA's key cannot be used")]
    Key {
        /// Why.
        source: KeyError,
    },
    /// Its certificates cannot be read.
    #[error("the CA's certificates cannot be used")]
    Chain {
        /// Why.
        source: ChainError,
    },
    /// The key is of another CA.
    #[error("none of the CA's certificates is for its key")]
    NotInChain,
    /// The CA's own certificate has ended.
    #[error("the CA ended at {at}")]
    Ended {
        /// When.
        at: UnixTime,
    },
    /// The name makes no host name.
    #[error("{name}.mesh is no host name")]
    NoHostName {
        /// The node's name.
        name: NodeName,
    },
    /// The CA may not name this host.
    #[error("this CA may not name the host {host}; it may name {permitted} and what is below")]
    Host {
        /// The host.
        host: String,
        /// What it may name.
        permitted: String,
    },
    /// The CA may not name this address.
    #[error(
        "this CA may not name the address {ip}: it is in none of the ranges that were permitted when it was made"
    )]
    Address {
        /// The address.
        ip: IpAddr,
    },
    /// What was signed does not pass its own chain.
    #[error("a certificate like this would be refused")]
    NotPermitted {
        /// Why.
        source: VerifyError,
    },
    /// It could not be signed.
    #[error("it could not be signed: {reason}")]
    NotSigned {
        /// Why.
        reason: String,
    },
}

/// Why a certificate does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It is none of a node.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// Another CA signed it, or nobody.
    #[error("it is not signed by this CA")]
    UnknownIssuer,
    /// It has ended.
    #[error("it expired at {at}")]
    Expired {
        /// When.
        at: UnixTime,
    },
    /// It has not begun.
    #[error("it does not hold before {from}")]
    NotYetValid {
        /// When it begins.
        from: UnixTime,
    },
    /// It was revoked.
    #[error("it was revoked (serial {serial})")]
    Revoked {
        /// Its number.
        serial: Serial,
    },
    /// It is for something else.
    #[error("it may not be shown for this use (extended key usage)")]
    WrongUsage,
    /// It names what its CA may not name.
    #[error("it carries a name or an address that its CA may not give (name constraints)")]
    Names,
    /// Anything else, in the verifier's words.
    #[error("it does not hold: {reason}")]
    Other {
        /// What.
        reason: String,
    },
}

/// Why the folder of a CA could not be read or changed. Unless a variant says otherwise nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FolderError {
    /// There is no CA.
    #[error("there is no CA in {}", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// There is one already.
    #[error("there is a CA in {} already", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// Others can read a key.
    #[error("the key {} can be read by others (mode {mode:04o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key is not here: the CA can be used for reading only.
    #[error("the key {} is not here", path.display())]
    NoKey {
        /// Where it should be.
        path: PathBuf,
    },
    /// The key is here and is not the CA's, or no key.
    #[error("the key {} cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SignError,
    },
    /// There is a key where one should go.
    #[error("there is a key {} already", path.display())]
    KeyExists {
        /// The file.
        path: PathBuf,
    },
    /// A file holds something else.
    #[error("{} cannot be used", path.display())]
    Chain {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ChainError,
    },
    /// The list of revoked certificates holds something else.
    #[error("{} cannot be used", path.display())]
    Crl {
        /// The file.
        path: PathBuf,
        /// Why.
        source: CrlError,
    },
    /// A row of the index is damaged.
    #[error("line {line} of {} is damaged: {reason}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Nothing was signed.
    #[error("nothing was signed")]
    Sign {
        /// Why.
        source: SignError,
    },
    /// The name belongs to another node.
    #[error("the name {name} is in use: {holder} has a certificate for it until {until}")]
    NameTaken {
        /// The name.
        name: NodeName,
        /// Who has it.
        holder: String,
        /// Until when.
        until: UnixTime,
    },
    /// The node was revoked, and nobody let it in again.
    #[error("the certificate of {name} was revoked at {at}")]
    ShutOut {
        /// The node.
        name: NodeName,
        /// When.
        at: UnixTime,
    },
    /// No such certificate.
    #[error("no certificate here is {what}")]
    Unknown {
        /// What was asked for.
        what: String,
    },
    /// Somebody else is at work on the folder.
    #[error("another process has been changing {} for {seconds} s", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The operating system refused. What had been written before stays, and is whole.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl FolderError {
    /// What a person can do about it, where that is known.
    pub fn mend(&self) -> Option<String> {
        let quoted = crate::key_file::quoted;
        Some(match self {
            Self::Missing { .. } => {
                "make one with `qmt-cli ca init`, or name its folder with --dir".to_owned()
            }
            Self::Exists { .. } => "choose another folder with --dir; a CA is never overwritten".to_owned(),
            Self::Exposed { path, .. } => format!(
                "run `chmod 600 {}`; if somebody else may have read it, replace the key (docs/ca.md)",
                quoted(path)
            ),
            Self::NoKey { path } if path.file_name().is_some_and(|name| name == "ca.key") => {
                "do this where the CA's key is, or name the folder of that CA with --dir".to_owned()
            }
            Self::NoKey { path } => format!("bring {} here, or name its folder with --root", quoted(path)),
            Self::Key { path, source } => {
                let restored = || format!("restore {} from a backup", quoted(path));
                return Some(source.mend().unwrap_or_else(restored));
            }
            Self::KeyExists { .. } => "name another folder; a key is never overwritten".to_owned(),
            Self::Chain { path, .. } | Self::Crl { path, .. } | Self::Index { path, .. } => {
                format!("restore {} from a backup", quoted(path))
            }
            Self::Sign { source } => return source.mend(),
            Self::NameTaken { name, .. } => {
                format!(
                    "give the node another name, or run `qmt-cli ca revoke {name} --may-return` at the CA"
                )
            }
            Self::ShutOut { name, .. } => {
                format!("if it may come back, run `qmt-cli ca revoke {name} --may-return` at the CA")
            }
            Self::Unknown { .. } => "`qmt-cli ca list --all` shows every certificate".to_owned(),
            Self::Busy { .. } => "wait until it is done, or end it".to_owned(),
            Self::Io { path, .. } => {
                format!("check that the user who runs this owns {} and its folder", quoted(path))
            }
        })
    }

    pub(super) fn io<'a>(path: &'a Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { path: path.to_owned(), doing, source }
    }
}

impl From<SignError> for FolderError {
    fn from(source: SignError) -> Self {
        Self::Sign { source }
    }
}

impl CsrError {
    /// What a person can do about it, where that is known.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Malformed { .. } => Some(
                "a request is made at the node by `openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout NODE.key -out NODE.csr -subj /CN=NODE`",
            ),
            Self::Key { .. } => Some("make the request for a new key: P-256, or RSA of 2048 bits and more"),
            Self::NotItsKey => Some("make the request anew with the key that it is for"),
            Self::TooLong { .. } | Self::NotMade { .. } => None,
        }
    }
}

impl VerifyError {
    /// What a person can do about it, where that is known.
    pub fn mend(&self) -> Option<&'static str> {
        match self {
            Self::Leaf(LeafError::IsCa) => {
                Some("`qmt-cli ca show` shows the CA; name a node or its certificate here")
            }
            Self::UnknownIssuer => {
                Some("name the folder of the CA that signed it with --dir, or have this one issue another")
            }
            Self::Expired { .. } => Some("sign it again: `qmt-cli ca renew NODE`"),
            Self::NotYetValid { .. } => Some("see that this machine's clock is right"),
            Self::Revoked { .. } => {
                Some("`qmt-cli ca list --all` says why; `qmt-cli ca issue NODE` makes another one")
            }
            Self::WrongUsage | Self::Leaf(_) => Some("have the CA issue one: `qmt-cli ca issue NODE`"),
            Self::Names => {
                Some("what a CA may name is fixed when it is made: have one issued without these names")
            }
            Self::Other { .. } => None,
        }
    }
}

impl SignError {
    fn mend(&self) -> Option<String> {
        Some(match self {
            Self::Key { source: KeyError::OldForm } => {
                "convert it with `openssl pkcs8 -topk8 -nocrypt -in KEY -out KEY.new`".to_owned()
            }
            Self::Key { source: KeyError::Encrypted } => {
                "take the password off with `openssl pkcs8 -topk8 -nocrypt -in KEY -out KEY.new`".to_owned()
            }
            Self::Ended { .. } => "run `qmt-cli ca renew --intermediate` with the root's key at hand".to_owned(),
            Self::NoHostName { .. } => {
                "choose a name of letters, digits and hyphens, with no hyphen at an end".to_owned()
            }
            Self::Address { .. } | Self::Host { .. } => {
                "what a CA may name is fixed when it is made: `qmt-cli ca init --permit-ip RANGE --permit-dns NAME`"
                    .to_owned()
            }
            _ => return None,
        })
    }
}
