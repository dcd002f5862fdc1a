//! Arbitrary bytes at both ends of a tunnel to an rpc-server, in any portions.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mesh_tunnel::codec(bytes));
