//! Names of the files of a split model: `name-00001-of-00003.gguf`.

use std::path::{Path, PathBuf};

/// A file name that says which part of how many it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SplitName {
    pub(crate) stem: String,
    /// From 1.
    pub(crate) number: u16,
    pub(crate) count: u16,
}

impl SplitName {
    /// `None` for a model in one file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let rest = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        if number.len() != 5 || count.len() != 5 {
            return None;
        }
        let (number, count) = (number.parse().ok()?, count.parse().ok()?);
        (number >= 1 && number <= count).then(|| Self { stem: stem.to_owned(), number, count })
    }

    pub(crate) fn path(&self, folder: &Path, number: u16) -> PathBuf {
        folder.join(format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count))
    }
}
