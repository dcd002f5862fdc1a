//! What a node keeps of a CA that certifies it: its key and certificate, the CA's chain, the latest list of revoked ones.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::chain::pem;
use super::disk::{self, Mode};
use super::{CaChain, Crl, FolderError, Leaf, LeafKey};

/// A node's certificate with its key.
#[derive(Clone)]
pub struct Held {
    /// Both, in one PEM text: the key first.
    pub pem: Zeroizing<String>,
    /// What the certificate says.
    pub leaf: Leaf,
    /// The certificate, in DER.
    pub der: Vec<u8>,
}

/// The folder in which a node keeps them. Every file is replaced whole; key and certificate are one file, so that they always belong
/// together.
#[derive(Debug, Clone)]
pub struct Wallet {
    path: PathBuf,
}

impl Wallet {
    /// The wallet at `path`, whether or not it is there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file with key and certificate.
    pub fn identity_path(&self) -> PathBuf {
        self.path.join("node.pem")
    }

    /// The CA's chain: the CA that this node believes from the first time on.
    pub fn chain_path(&self) -> PathBuf {
        self.path.join("ca-chain.pem")
    }

    /// The latest list of revoked certificates.
    pub fn crl_path(&self) -> PathBuf {
        self.path.join("crl.pem")
    }

    /// The CA that this node believes; none before it was certified first.
    ///
    /// # Errors
    /// [`FolderError::Chain`] when the file is damaged: another CA must not be believed because of that.
    pub fn chain(&self) -> Result<Option<CaChain>, FolderError> {
        let path = self.chain_path();
        let text = disk::read(&path)?;
        text.map(|text| CaChain::from_pem(&text).map_err(|source| FolderError::Chain { path, source }))
            .transpose()
    }

    /// Key and certificate; none when there are none, or what is there is damaged and has to be asked for anew.
    ///
    /// # Errors
    /// [`FolderError::Exposed`] when others can read the file, [`FolderError::Io`] when it cannot be read.
    pub fn identity(&self) -> Result<Option<Held>, FolderError> {
        let pem = match disk::read_key(&self.identity_path()) {
            Ok(pem) => pem,
            Err(FolderError::NoKey { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return Ok(None) };
        let Ok(leaf) = Leaf::read(&der) else { return Ok(None) };
        Ok(Some(Held { pem, leaf, der: der.to_vec() }))
    }

    /// The latest list that this CA signed; none when there is none, or what is there is none of it.
    ///
    /// # Errors
    /// [`FolderError::Io`] when the file cannot be read.
    pub fn crl(&self, chain: &CaChain) -> Result<Option<Crl>, FolderError> {
        let text = disk::read(&self.crl_path())?;
        let crl = text.and_then(|text| Crl::from_pem(&text).ok());
        Ok(crl.filter(|crl| chain.vouches_for(crl).is_ok()))
    }

    /// Keeps a certificate, its key, and the CA that signed it.
    ///
    /// # Errors
    /// [`FolderError::Io`]; then the old ones stay, or the old certificate stays with the chain renewed.
    pub fn keep(&self, key: &LeafKey, der: &[u8], leaf: &Leaf, chain: &CaChain) -> Result<Held, FolderError> {
        disk::create_folder(&self.path, Mode::Secret)?;
        let text = Zeroizing::new([key.to_pem().as_str(), &pem("CERTIFICATE", der)].concat());
        disk::write(&self.chain_path(), chain.to_pem().as_bytes(), Mode::Public)?;
        disk::write(&self.identity_path(), text.as_bytes(), Mode::Secret)?;
        Ok(Held { pem: text, leaf: leaf.clone(), der: der.to_vec() })
    }

    /// Keeps a list, if this CA signed it and it is later than the one at hand.
    ///
    /// # Errors
    /// [`FolderError::Crl`] for a list of another CA, [`FolderError::Io`] when it cannot be written.
    pub fn keep_crl(&self, chain: &CaChain, crl: &Crl) -> Result<bool, FolderError> {
        let path = self.crl_path();
        chain.vouches_for(crl).map_err(|source| FolderError::Crl { path: path.clone(), source })?;
        if self.crl(chain)?.is_some_and(|held| held.number >= crl.number) {
            return Ok(false);
        }
        disk::create_folder(&self.path, Mode::Secret)?;
        disk::write(&path, crl.to_pem().as_bytes(), Mode::Public)?;
        Ok(true)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
