//! The mesh CA: who may speak on the agent channel, as X.509 certificates that curl and openssl understand.
//!
//! A root that can lie in a drawer signs an intermediate, which signs the certificates of nodes and the list of revoked
//! ones. The intermediate may only name hosts below `mesh` and addresses of private networks (and what was permitted
//! beside them), so that its key, which lies on a machine that runs, is of no use against the rest of the world.
//!
//! Everything takes the time as an argument and does no I/O, but for [`Folder`], which keeps a CA on the disk in the layout
//! of RivetOS meshes, so that a folder made there by hand is read as it stands.
//!
//! ```
//! use std::time::Duration;
//! use mesh_identity::UnixTime;
//! use mesh_identity::ca::{Founding, LeafKey, Options, Request, Usage};
//!
//! let now = UnixTime::now();
//! let ca = Founding::new(&Options::default(), now)?.authority()?;
//! let key = LeafKey::generate()?;
//! let request = Request::new("ct110".parse()?, key.public(), Duration::from_secs(86_400));
//! let issued = ca.issue(&request, now)?;
//! let leaf = ca.chain().verify(&issued.der, Usage::Client, &[], now)?;
//! assert_eq!(leaf.dns, ["ct110.mesh"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod authority;
mod chain;
mod constraints;
mod crl;
mod csr;
mod disk;
mod error;
mod folder;
mod founding;
mod index;
mod key;
mod leaf;
mod serial;
#[cfg(test)]
mod tests;
mod wallet;

pub use authority::{Authority, Issued, Request, SKEW_SECONDS};
pub use chain::{CaChain, CaFacts, Usage};
pub use constraints::{Cidr, Constraints, InvalidCidr};
pub use crl::{CRL_BYTES_MAX, CRL_TTL, Crl, Reason, RevokedSerial};
pub use csr::{CSR_BYTES_MAX, Csr};
pub use error::{ChainError, CrlError, CsrError, FolderError, KeyError, SignError, VerifyError};
pub use folder::{Folder, Listed, Which, read_certificate};
pub use founding::{Founding, Options};
pub use index::{By, Index, Row, Struck};
pub use key::{LeafKey, PublicKey};
pub use leaf::{LEAF_BYTES_MAX, Leaf, LeafError, NODE_URI_PREFIX};
pub use serial::{InvalidSerial, Serial};
pub use wallet::{Held, Wallet};
