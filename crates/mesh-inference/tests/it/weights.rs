//! The index of a model's weights: right, kept, and never of another file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_inference::gguf::{read_metadata, tiny::TinyModel};
use mesh_inference::weights::{IndexError, WeightIndex};
use mesh_tunnel::{Fnv, WeightId, Weights};
use tokio_util::sync::CancellationToken;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self) -> PathBuf {
        let model = self.path("tiny.gguf");
        TinyModel::default().write(&model).unwrap();
        model
    }

    fn open(&self, model: &Path) -> Arc<WeightIndex> {
        WeightIndex::open(&[model.to_owned()], &self.path("kept"), &CancellationToken::new()).unwrap()
    }
}

fn read(index: &WeightIndex, number: usize) -> std::io::Result<Vec<u8>> {
    let weight = index.list()[number].clone();
    let mut bytes = vec![0; usize::try_from(weight.bytes).unwrap()];
    index.read(&weight.id, 0, &mut bytes).map(|()| bytes)
}

#[test]
fn every_tensor_is_found_by_its_bytes() {
    let place = Place::new();
    let model = place.model();
    let (index, file) = (place.open(&model), fs::read(&model).unwrap());
    let metadata = read_metadata(&model).unwrap();
    let listed = index.list();
    assert_eq!((index.file().as_str(), listed.len()), ("tiny.gguf", metadata.tensors.len()));
    for (number, (weight, tensor)) in listed.iter().zip(&metadata.tensors).enumerate() {
        let bytes =
            &file[usize::try_from(tensor.offset).unwrap()..][..usize::try_from(tensor.bytes).unwrap()];
        let mut fnv = Fnv::default();
        fnv.update(bytes);
        assert_eq!((&weight.name, weight.bytes, weight.fnv), (&tensor.name, tensor.bytes, fnv.finish()));
        assert_eq!(weight.id, WeightId(*blake3::hash(bytes).as_bytes()));
        assert_eq!(read(&index, number).unwrap(), bytes);
    }
    let mut two = [0; 2];
    index.read(&listed[0].id, 5, &mut two).unwrap();
    assert_eq!(two, read(&index, 0).unwrap()[5..7]);
    assert!(index.read(&listed[0].id, listed[0].bytes - 1, &mut two).is_err(), "beyond its end");
    assert!(index.read(&listed[0].id, u64::MAX, &mut two).is_err());
    assert!(index.read(&WeightId([0; 32]), 0, &mut two).is_err());
}

#[test]
fn the_hashes_are_kept_beside_the_model_and_used() {
    let place = Place::new();
    let model = place.model();
    let first = place.open(&model).list();
    let kept = place.path("tiny.gguf.weights");
    assert_eq!(fs::metadata(&kept).unwrap().len(), 6 + 32 + 8 + 24 + 40 * first.len() as u64);
    // A kept hash is believed as long as file and sum say so: this one is not of the model, so it shows that it is used.
    let mut bytes = fs::read(&kept).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let sum = *blake3::hash(&bytes[38..]).as_bytes();
    bytes[6..38].copy_from_slice(&sum);
    fs::write(&kept, &bytes).unwrap();
    assert_ne!(place.open(&model).list().last(), first.last());
    // One that is damaged is not.
    bytes[50] ^= 1;
    fs::write(&kept, &bytes).unwrap();
    assert_eq!(place.open(&model).list(), first);
    for garbage in [&b""[..], b"QMTW1\n", &[0xff; 100_000]] {
        fs::write(&kept, garbage).unwrap();
        assert_eq!(place.open(&model).list(), first);
    }
    let others = fs::read_dir(place.folder.path()).unwrap().count();
    assert_eq!(others, 2, "nothing else is left beside the model");
}

#[test]
fn a_folder_that_cannot_be_written_has_its_hashes_elsewhere() {
    let place = Place::new();
    let model = place.model();
    // Root may write everywhere, so the name itself is taken by what no file replaces.
    fs::create_dir(place.path("tiny.gguf.weights")).unwrap();
    let first = place.open(&model).list();
    let kept: Vec<_> = fs::read_dir(place.path("kept")).unwrap().collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(place.open(&model).list(), first);
}

#[test]
fn another_version_of_the_file_is_indexed_anew() {
    let place = Place::new();
    let first = place.open(&place.model()).list();
    let model = place.path("tiny.gguf");
    TinyModel { seed: 2, ..TinyModel::default() }.write(&model).unwrap();
    let second = place.open(&model).list();
    assert_eq!(first.len(), second.len());
    assert_ne!(first, second);
}

#[test]
fn a_file_that_changes_is_listed_no_more() {
    for truncated in [false, true] {
        let place = Place::new();
        let model = place.model();
        let index = place.open(&model);
        let (first, file) = (index.list()[0].clone(), File::options().write(true).open(&model).unwrap());
        if truncated {
            file.set_len(1000).unwrap();
        } else {
            file.write_all_at(&[1], 900_000).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
        let error = index.read(&first.id, 0, &mut [0; 16]).unwrap_err();
        assert!(error.to_string().ends_with("tiny.gguf has changed since it was indexed"), "{error}");
        assert!(index.list().is_empty());
    }
    let place = Place::new();
    let index = place.open(&place.model());
    File::options().append(true).open(place.path("tiny.gguf")).unwrap().write_all(b"x").unwrap();
    assert!(index.list().is_empty(), "without a read in between");
}

#[test]
fn a_file_that_is_replaced_is_read_as_it_was() {
    let place = Place::new();
    let index = place.open(&place.model());
    let before = read(&index, 3).unwrap();
    TinyModel { seed: 2, ..TinyModel::default() }.write(&place.path("new")).unwrap();
    fs::rename(place.path("new"), place.path("tiny.gguf")).unwrap();
    assert_eq!(read(&index, 3).unwrap(), before);
}

#[test]
fn a_forgotten_weight_is_listed_no_more() {
    let place = Place::new();
    let index = place.open(&place.model());
    let all = index.list();
    index.forget(&all[0].id);
    assert_eq!(index.list()[..], all[1..]);
}

#[test]
fn the_parts_of_a_split_model_and_a_draft_model_are_one_list() {
    let place = Place::new();
    let parts = TinyModel::default().to_split_bytes(3);
    for (number, part) in parts.iter().enumerate() {
        fs::write(place.path(&format!("m-0000{}-of-00003.gguf", number + 1)), part).unwrap();
    }
    let draft = place.path("draft.gguf");
    TinyModel { seed: 9, layers: 1, ..TinyModel::default() }.write(&draft).unwrap();
    let models = [place.path("m-00002-of-00003.gguf"), draft.clone()];
    let index = WeightIndex::open(&models, &place.path("kept"), &CancellationToken::new()).unwrap();
    let whole = place.open(&place.model()).list();
    let only_draft = place.open(&draft).list();
    assert_eq!(index.list()[..], [&whole[..], &only_draft[..]].concat());
    for number in 0..index.list().len() {
        let bytes = read(&index, number).unwrap();
        assert_eq!(index.list()[number].id, WeightId(*blake3::hash(&bytes).as_bytes()));
    }
}

#[test]
fn what_is_no_model_or_is_not_wanted_any_more_is_an_error() {
    let place = Place::new();
    let open = |path: PathBuf, cancel: &CancellationToken| {
        WeightIndex::open(&[path], &place.path("kept"), cancel).unwrap_err()
    };
    fs::write(place.path("x.gguf"), b"GGUF").unwrap();
    let cancelled = CancellationToken::new();
    assert!(matches!(open(place.path("x.gguf"), &cancelled), IndexError::Gguf(_)));
    assert!(matches!(open(place.path("none.gguf"), &cancelled), IndexError::Gguf(_)));
    cancelled.cancel();
    assert!(matches!(open(place.model(), &cancelled), IndexError::Cancelled));
    assert!(!place.path("tiny.gguf.weights").exists());
}
