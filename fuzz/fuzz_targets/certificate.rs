//! Arbitrary bytes as a node's certificate, a request for one, a list of revoked ones, and the chain of a CA.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_identity::ca::{CaChain, Crl, Csr, Leaf, LeafKey, Serial};

fuzz_target!(|bytes: &[u8]| {
    let _ = Leaf::read(bytes);
    let _ = Csr::read(bytes);
    if let Ok(crl) = Crl::read(bytes) {
        assert_eq!(Crl::from_pem(&crl.to_pem()), Ok(crl));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = (CaChain::from_pem(text), LeafKey::from_pem(text), text.parse::<Serial>());
});
