//! Pages and what stands in them.

use std::path::{Path, PathBuf};

/// Read when the test runs: checkouts that share a target directory share its binaries, whichever of them built those.
pub(crate) fn root() -> PathBuf {
    let tests = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    Path::new(&tests).parent().expect("tests/ lies in the root").to_path_buf()
}

/// One page.
pub(crate) struct Page {
    /// From the root.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn open(path: &str) -> Self {
        let text = std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"));
        Self { path: path.into(), text }
    }

    /// The fenced blocks, in order.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut is_open = false;
        for (index, line) in self.text.lines().enumerate() {
            match line.trim_start().strip_prefix("```") {
                Some(_) if is_open => is_open = false,
                Some(info) => {
                    is_open = true;
                    blocks.push(Block { line: index + 1, info: info.trim().to_owned(), lines: Vec::new() });
                }
                None if is_open => {
                    blocks.last_mut().expect("an open block").lines.push(line.to_owned());
                }
                None => {}
            }
        }
        assert!(!is_open, "{}: a block is not closed", self.path.display());
        blocks
    }

    /// The lines outside of fenced blocks, with their numbers.
    pub(crate) fn prose(&self) -> Vec<(usize, &str)> {
        let mut is_open = false;
        let mut lines = Vec::new();
        for (index, line) in self.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                is_open = !is_open;
            } else if !is_open {
                lines.push((index + 1, line));
            }
        }
        lines
    }
}

/// A fenced block.
pub(crate) struct Block {
    /// Where it begins, counted from 1.
    pub(crate) line: usize,
    /// What stands behind its fence.
    pub(crate) info: String,
    pub(crate) lines: Vec<String>,
}

impl Block {
    /// The first word behind the fence.
    pub(crate) fn language(&self) -> &str {
        self.info.split_whitespace().next().unwrap_or_default()
    }
}

/// Every page that is written for people: the README, all under docs/, the changelog.
pub(crate) fn pages() -> Vec<Page> {
    let mut found = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    files(Path::new("docs"), "md", &mut found);
    found.sort();
    assert!(found.len() > 60, "most pages are not found: {found:?}");
    found.iter().map(|path| Page::open(path)).collect()
}

/// Adds the files below a folder that end so, as paths from the root.
pub(crate) fn files(folder: &Path, ending: &str, found: &mut Vec<String>) {
    let entries = std::fs::read_dir(root().join(folder)).expect("a folder");
    for entry in entries {
        let entry = entry.expect("an entry");
        let path = folder.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|found| found == ending) {
            found.push(path.to_str().expect("text").to_owned());
        }
    }
}

/// Holds a page to what the code makes of it; `WRITE_DOCS=1` writes it.
pub(crate) fn hold(path: &str, made: &str) {
    let file = root().join(path);
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("makes");
        std::fs::write(&file, made).expect("writes");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    if let Some((line, (is, should))) =
        written.lines().zip(made.lines()).enumerate().find(|(_, (is, should))| is != should)
    {
        panic!(
            "{path} is of another version, first in line {}; write it anew with WRITE_DOCS=1\n is      {is}\n should  {should}",
            line + 1
        );
    }
    assert!(
        written == made,
        "{path} is shorter or longer than the code says; write it anew with WRITE_DOCS=1"
    );
}

/// What stands in a cell of a table.
pub(crate) fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}
