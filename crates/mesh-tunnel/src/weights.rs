//! Weights that both ends of a tunnel have on disk, named by their bytes.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::Arc;

/// The BLAKE3 hash of a weight's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightId(pub [u8; 32]);

impl fmt::Debug for WeightId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..5].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One tensor of a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// Its bytes, hashed.
    pub id: WeightId,
    /// The same bytes by [`Fnv`]: what a llama-server asks by.
    pub fnv: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Its name in the file.
    pub name: String,
}

/// The tensors of a model that this machine has on disk. Calls block on the disk: they are made from blocking threads, but for
/// `file` and `list`.
pub trait Weights: Send + Sync + 'static {
    /// The model file's name, for people.
    fn file(&self) -> String;

    /// What can be read now: without the weights of a file that has changed since, or that were forgotten.
    fn list(&self) -> Arc<[Weight]>;

    /// Fills the buffer with the weight's bytes from `offset` on.
    ///
    /// # Errors
    /// When the file cannot be read or has changed since it was indexed; its weights are not listed any more then.
    fn read(&self, weight: &WeightId, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Lists the weight no more: its bytes were read and are not those of its id.
    fn forget(&self, weight: &WeightId);
}

/// FNV-1a of 64 bits, by which llama.cpp names bytes. Not collision resistant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Takes more bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The hash of all bytes so far.
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// The host's own weights, found by what a frame says of them.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) ids: HashSet<WeightId>,
    by_name: HashMap<String, Vec<(u64, WeightId)>>,
    by_fnv: HashMap<u64, Vec<(String, WeightId, u64)>>,
}

impl Known {
    pub(crate) fn of(weights: &[Weight]) -> Self {
        let mut known = Self::default();
        for weight in weights {
            known.ids.insert(weight.id);
            known.by_name.entry(weight.name.clone()).or_default().push((weight.bytes, weight.id));
            let named = (weight.name.clone(), weight.id, weight.bytes);
            known.by_fnv.entry(weight.fnv).or_default().push(named);
        }
        known
    }

    /// Those of this name and size: more than one where two models have a tensor of one name.
    pub(crate) fn by_name(&self, name: &str, bytes: u64) -> impl Iterator<Item = WeightId> {
        let named = self.by_name.get(name).map(Vec::as_slice).unwrap_or_default();
        named.iter().filter(move |(found, _)| *found == bytes).map(|(_, id)| *id)
    }

    /// The one of this hash and name, and its size. The name too, since the hash alone may be another tensor's.
    pub(crate) fn by_fnv(&self, fnv: u64, name: &str) -> Option<(WeightId, u64)> {
        let named = self.by_fnv.get(&fnv)?.iter().find(|(found, ..)| found == name)?;
        Some((named.1, named.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_is_that_of_its_authors() {
        let fnv = |bytes: &[u8]| {
            let mut hash = Fnv::default();
            bytes.iter().for_each(|byte| hash.update(&[*byte]));
            hash.finish()
        };
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_weight_is_found_by_its_whole_description_only() {
        let weight =
            |id: u8, name: &str, bytes, fnv| Weight { id: WeightId([id; 32]), fnv, bytes, name: name.into() };
        let known = Known::of(&[
            weight(1, "a", 10, 7),
            weight(2, "a", 20, 8),
            weight(3, "a", 10, 9),
            weight(4, "b", 10, 7),
        ]);
        assert_eq!(known.by_name("a", 10).collect::<Vec<_>>(), [WeightId([1; 32]), WeightId([3; 32])]);
        assert_eq!(known.by_name("a", 11).count() + known.by_name("c", 10).count(), 0);
        assert_eq!(known.by_fnv(7, "b"), Some((WeightId([4; 32]), 10)));
        assert_eq!(known.by_fnv(8, "b"), None);
        assert_eq!(known.ids.len(), 4);
    }
}
