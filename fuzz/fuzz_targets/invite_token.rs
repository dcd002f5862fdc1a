//! Arbitrary text as an invite token, and arbitrary bytes as a grant.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_identity::{InviteToken, SignedGrant};

fuzz_target!(|bytes: &[u8]| {
    let _ = SignedGrant::decode(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = InviteToken::parse(text);
});
