//! Arbitrary bytes as a GGUF file, alone and after a good header.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mesh_inference::gguf::parse;

fuzz_target!(|bytes: &[u8]| {
    let _ = parse(bytes, Path::new("fuzz.gguf"), bytes.len() as u64);
    let headed = [b"GGUF\x03\0\0\0".as_slice(), bytes].concat();
    if let Ok(facts) = parse(headed.as_slice(), Path::new("fuzz.gguf"), headed.len() as u64) {
        assert!(
            facts.weight_bytes == 0
                || facts.tensors.iter().all(|tensor| tensor.offset + tensor.bytes <= facts.file_bytes)
        );
        let _ = (facts.quantization(), facts.parameters());
    }
});
