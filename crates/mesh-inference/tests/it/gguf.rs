use std::io::BufReader;
use std::path::Path;

use mesh_inference::gguf::tiny::TinyModel;
use mesh_inference::gguf::{Fault, parse, read_metadata};
use proptest::prelude::*;

fn parsed(bytes: &[u8]) -> Result<mesh_inference::gguf::Metadata, mesh_inference::gguf::GgufError> {
    parse(BufReader::with_capacity(777, bytes), Path::new("test.gguf"), bytes.len() as u64)
}

#[test]
fn facts_of_the_tiny_model() {
    let bytes = TinyModel::default().to_bytes();
    assert!((1_000_000..2_000_000).contains(&bytes.len()), "{} bytes", bytes.len());
    let facts = parsed(&bytes).unwrap();
    assert_eq!(facts.architecture, "llama");
    assert_eq!(facts.name.as_deref(), Some("tiny"));
    assert_eq!(facts.context_length, Some(2048));
    assert_eq!(facts.block_count, Some(6));
    assert_eq!((facts.head_count, facts.head_count_kv, facts.key_length), (Some(4), Some(4), Some(16)));
    assert_eq!(facts.quantization(), "F32");
    assert_eq!(facts.weight_bytes, facts.parameters() * 4);
    let tokenizer = facts.tokenizer.unwrap();
    assert_eq!(
        (tokenizer.model.as_str(), tokenizer.vocabulary, tokenizer.chat_template),
        ("llama", 259, true)
    );
    assert_eq!(facts.tensors.iter().filter(|tensor| tensor.layer() == Some(5)).count(), 9);
    let last = facts.tensors.last().unwrap();
    assert_eq!(last.offset + last.bytes, bytes.len() as u64);
}

#[test]
fn the_same_seed_writes_the_same_model() {
    assert_eq!(TinyModel::default().to_bytes(), TinyModel::default().to_bytes());
    assert_ne!(TinyModel::default().to_bytes(), TinyModel { seed: 2, ..TinyModel::default() }.to_bytes());
}

#[test]
fn equal_vocabularies_have_equal_hashes() {
    let hash = |model: TinyModel| parsed(&model.to_bytes()).unwrap().tokenizer.unwrap().hash;
    assert_eq!(hash(TinyModel::default()), hash(TinyModel { seed: 9, layers: 2, ..TinyModel::default() }));
    assert_ne!(hash(TinyModel::default()), hash(TinyModel { extra_tokens: 1, ..TinyModel::default() }));
}

#[test]
fn a_split_model_is_read_from_any_of_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel::default();
    let path = |number| folder.path().join(format!("tiny-{number:05}-of-00003.gguf"));
    for (number, bytes) in (1..).zip(model.to_split_bytes(3)) {
        std::fs::write(path(number), bytes).unwrap();
    }
    let facts = read_metadata(&path(2)).unwrap();
    let whole = parsed(&model.to_bytes()).unwrap();
    assert_eq!(facts.files.len(), 3);
    assert_eq!(facts.weight_bytes, whole.weight_bytes);
    assert_eq!(facts.tensors.len(), whole.tensors.len());
    assert_eq!(facts.tokenizer, whole.tokenizer);
    assert_eq!(facts.tensors.last().unwrap().file, 2);
    std::fs::remove_file(path(3)).unwrap();
    let error = read_metadata(&path(1)).unwrap_err();
    assert!(matches!(error.fault, Fault::PartMissing { number: 3, count: 3, .. }), "{error:?}");
}

#[test]
fn a_cut_off_file_says_so() {
    let bytes = TinyModel::default().to_bytes();
    let error = parsed(&bytes[..bytes.len() - 1]).unwrap_err();
    assert!(matches!(error.fault, Fault::CutOff { needed, .. } if needed == bytes.len() as u64), "{error:?}");
    assert!(error.to_string().contains("tensor output.weight"), "{error}");
    let error = parsed(&bytes[..100]).unwrap_err();
    assert!(matches!(error.fault, Fault::CutOff { .. }), "{error:?}");
}

#[test]
fn foreign_files_are_told_apart() {
    let fault = |bytes: &[u8]| parsed(bytes).unwrap_err().fault;
    assert!(matches!(fault(b"PK\x03\x04 and so on"), Fault::NotGguf(_)));
    assert!(matches!(fault(b"GGUF\x01\0\0\0"), Fault::Version(1)));
    assert!(matches!(fault(b"GGUF\0\0\0\x03"), Fault::BigEndian));
    assert!(matches!(fault(b""), Fault::CutOff { .. }));
}

/// A header that announces far more than there is, followed by nothing.
#[test]
fn announced_sizes_are_not_believed() {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    assert!(matches!(parsed(&bytes).unwrap_err().fault, Fault::TooLarge { .. }));
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.push(b'k');
    bytes.extend(9u32.to_le_bytes());
    bytes.extend(10u32.to_le_bytes());
    bytes.extend(u64::MAX.to_le_bytes());
    assert!(matches!(parsed(&bytes).unwrap_err().fault, Fault::TooLarge { .. }));
}

fn small() -> Vec<u8> {
    TinyModel { layers: 1, embedding: 32, feed_forward: 32, ..TinyModel::default() }.to_bytes()
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = parsed(&tail);
        let _ = parsed(&[b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
    }

    #[test]
    fn damaged_models_never_panic(changes in proptest::collection::vec((0usize..9000, any::<u8>()), 1..8), cut in 0usize..20_000) {
        let mut bytes = small();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = parsed(&bytes);
        bytes.truncate(cut);
        let _ = parsed(&bytes);
    }
}

#[test]
fn a_catalogue_reads_the_facts_of_a_file_once() {
    let folder = tempfile::tempdir().unwrap();
    TinyModel::default().write(&folder.path().join("tiny.gguf")).unwrap();
    let catalogue = mesh_inference::catalogue::Catalogue::scan(&[folder.path().to_owned()]);
    let model = catalogue.resolve("tiny").unwrap();
    let facts = catalogue.facts(&model).unwrap();
    assert_eq!(facts.block_count, Some(6));
    assert!(std::sync::Arc::ptr_eq(&facts, &catalogue.facts(&model).unwrap()));
    assert!(std::sync::Arc::ptr_eq(&facts, &catalogue.rescan().facts(&model).unwrap()));
}
