//! Walks through the folders of a workspace.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cap_std::fs::{Dir, FileType};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use tokio_util::sync::CancellationToken;

use super::workspace::{open_file, read_bounded};

/// Deeper folders are left out: each level holds a file descriptor.
const DEPTH_MAX: usize = 64;
/// The most names that are taken from one folder; it bounds memory, not what a person would have there.
const NAMES_MAX: usize = 100_000;
/// The longest file of ignore rules that counts.
const RULES_BYTES_MAX: u64 = 256 * 1024;

/// How far a walk goes.
pub(crate) struct Walk<'a> {
    /// 1 is the folder's own entries.
    pub(crate) depth_max: usize,
    /// Whether what the ignore files name is left out.
    pub(crate) skips_ignored: bool,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) deadline: Instant,
}

/// Something that a walk came by.
pub(crate) struct Found<'a> {
    /// The folder that it is in.
    pub(crate) dir: &'a Dir,
    pub(crate) name: &'a OsString,
    /// From the workspace's root on.
    pub(crate) path: &'a Path,
    pub(crate) kind: FileType,
}

/// Why a walk ended before everything was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The visitor had enough.
    Enough,
    /// Time is up.
    Late,
    Cancelled,
}

/// What a walk tells at its end.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    pub(crate) cut: Option<Cut>,
    /// Folders that could not be read.
    pub(crate) unreadable: usize,
    /// Folders that are too deep, or have too many names to be seen whole.
    pub(crate) left_out: usize,
}

impl Walked {
    /// What the walk did not see, for the end of a result.
    pub(crate) fn note(&self) -> String {
        let mut note = String::new();
        if self.left_out > 0 {
            note.push_str(&format!("[{} folders too deep or too large to be seen whole]", self.left_out));
        }
        if self.unreadable > 0 {
            note.push_str(&format!("[{} folders could not be read]", self.unreadable));
        }
        note
    }
}

impl Walk<'_> {
    /// Visits what is in `dir`, whose path from the workspace's root is `path`, in order of names. Links are shown and not
    /// followed. `.git` and its content are left out.
    pub(crate) fn run(
        &self,
        root: &Dir,
        dir: &Dir,
        path: &Path,
        visit: &mut dyn FnMut(&Found<'_>) -> ControlFlow<()>,
    ) -> Walked {
        let mut walked = Walked::default();
        let mut rules = Vec::new();
        let path = path.strip_prefix(".").unwrap_or(path);
        if self.skips_ignored {
            // The rules of the folders above hold here too.
            for above in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
                let opened =
                    if above.as_os_str().is_empty() { root.open_dir(".") } else { root.open_dir(above) };
                rules.extend(opened.ok().and_then(|dir| rules_in(&dir, above)));
            }
        }
        if let ControlFlow::Break(cut) = self.folder(dir, path, 1, &mut rules, visit, &mut walked) {
            walked.cut = Some(cut);
        }
        walked
    }

    fn folder(
        &self,
        dir: &Dir,
        path: &Path,
        depth: usize,
        rules: &mut Vec<Gitignore>,
        visit: &mut dyn FnMut(&Found<'_>) -> ControlFlow<()>,
        walked: &mut Walked,
    ) -> ControlFlow<Cut> {
        let Ok(entries) = dir.entries() else {
            walked.unreadable += 1;
            return ControlFlow::Continue(());
        };
        let rules_above = rules.len();
        if self.skips_ignored {
            rules.extend(rules_in(dir, path));
        }
        let mut names: Vec<(OsString, FileType)> = entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name(), entry.file_type().ok()?)))
            .filter(|(name, _)| name != ".git")
            .take(NAMES_MAX + 1)
            .collect();
        walked.left_out += usize::from(names.len() > NAMES_MAX);
        names.truncate(NAMES_MAX);
        names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        for (name, kind) in &names {
            self.go_on()?;
            let path = path.join(name);
            let is_dir = kind.is_dir();
            if self.skips_ignored && is_ignored(rules, &path, is_dir) {
                continue;
            }
            if visit(&Found { dir, name, path: &path, kind: *kind }).is_break() {
                return ControlFlow::Break(Cut::Enough);
            }
            if !is_dir || depth >= self.depth_max {
                continue;
            }
            if depth == DEPTH_MAX {
                walked.left_out += 1;
                continue;
            }
            // Should a link stand there by now, it leads no further than the folder that it is in.
            match dir.open_dir(name) {
                Ok(below) => self.folder(&below, &path, depth + 1, rules, visit, walked)?,
                Err(_) => walked.unreadable += 1,
            }
        }
        rules.truncate(rules_above);
        ControlFlow::Continue(())
    }

    fn go_on(&self) -> ControlFlow<Cut> {
        if self.cancel.is_cancelled() {
            return ControlFlow::Break(Cut::Cancelled);
        }
        if Instant::now() >= self.deadline {
            return ControlFlow::Break(Cut::Late);
        }
        ControlFlow::Continue(())
    }
}

/// The ignore rules that stand in a folder.
fn rules_in(dir: &Dir, path: &Path) -> Option<Gitignore> {
    let mut builder = GitignoreBuilder::new(path);
    let mut lines = 0;
    for name in [".gitignore", ".ignore"] {
        let read = open_file(dir, Path::new(name), name)
            .and_then(|(file, bytes)| read_bounded(file, bytes, RULES_BYTES_MAX, name));
        for line in String::from_utf8_lossy(&read.unwrap_or_default()).lines() {
            // A line that is no rule is left out, as git does.
            if builder.add_line(None, line).is_ok() {
                lines += 1;
            }
        }
    }
    if lines == 0 { None } else { builder.build().ok() }
}

/// The rules of the deepest folder that say something decide.
fn is_ignored(rules: &[Gitignore], path: &Path, is_dir: bool) -> bool {
    let says = |rules: &Gitignore| match rules.matched(path, is_dir) {
        ignore::Match::None => None,
        ignore::Match::Ignore(_) => Some(true),
        ignore::Match::Whitelist(_) => Some(false),
    };
    rules.iter().rev().find_map(says).unwrap_or(false)
}

/// Files whose path fits a glob in the way of ignore files: `*.rs` anywhere, `src/**/*.rs` from the root on.
pub(crate) struct Glob(Option<Gitignore>);

impl Glob {
    pub(crate) fn new(glob: Option<&str>) -> Result<Self, String> {
        let Some(glob) = glob.filter(|glob| !glob.is_empty()) else { return Ok(Self(None)) };
        let bad = |error: ignore::Error| format!("{glob:?} is not a glob: {error}");
        let mut builder = GitignoreBuilder::new("");
        builder.add_line(None, glob).map_err(bad)?;
        Ok(Self(Some(builder.build().map_err(bad)?)))
    }

    pub(crate) fn is_match(&self, path: &Path, is_dir: bool) -> bool {
        self.0.as_ref().is_none_or(|glob| glob.matched(path, is_dir).is_ignore())
    }
}

/// The folder that a path names, to people.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.is_empty() { ".".to_owned() } else { text.into_owned() }
}

/// The path as a walk knows it: from the workspace's root on, without `.` and `..`.
pub(crate) fn plain(root: &Dir, path: &Path) -> PathBuf {
    root.canonicalize(path).unwrap_or_else(|_| path.to_owned())
}
