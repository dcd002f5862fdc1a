//! `list`: what is in a folder.

use std::ops::ControlFlow;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::files::{Fault, Files, Work};
use super::output::Report;
use super::walk::{Cut, Glob, Walk, plain, shown};

/// The most entries of one listing; one that needs more is better narrowed down.
const ENTRIES_MAX: usize = 1000;
/// As deep as a glob looks when no depth is named.
const GLOB_DEPTH: usize = 32;

pub(crate) struct List;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arguments {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    depth: Option<usize>,
    #[serde(default)]
    glob: Option<String>,
}

impl Work for List {
    const NAME: &'static str = "list";
    const DESCRIPTION: &'static str = "Lists a folder of the workspace: folders end in /, files have their size in bytes. \
        With `depth` or `glob` it goes into the folders below, except those that ignore files such as .gitignore name.";
    const ONLY_READS: bool = true;
    type Arguments = Arguments;

    fn parameters() -> (Value, Value) {
        let properties = json!({
            "path": {"type": "string", "description": "Path of the folder, from the workspace's root on (default: the root)"},
            "depth": {"type": "integer", "minimum": 1, "description": "How many levels to show (default 1; with a glob, all)"},
            "glob": {"type": "string", "description": "Only files that fit, such as *.rs or src/**/*.toml"},
        });
        (properties, json!([]))
    }

    fn work(files: &Files, asked: Arguments, cancel: &CancellationToken) -> Result<String, Fault> {
        let path = asked.path.as_deref().unwrap_or(".");
        let (dir, relative) = files.workspace.dir(path)?;
        let root = files.workspace.root_dir();
        let glob = Glob::new(asked.glob.as_deref())?;
        let has_glob = asked.glob.as_deref().is_some_and(|glob| !glob.is_empty());
        let depth_max = asked.depth.unwrap_or(if has_glob { GLOB_DEPTH } else { 1 }).max(1);
        let deadline = files.deadline();
        let walk = Walk { depth_max, skips_ignored: depth_max > 1, cancel, deadline };
        let mut report = Report::new(files.limits.result_bytes);
        let mut count = 0;
        let walked = walk.run(root, &dir, &plain(root, &relative), &mut |found| {
            let is_dir = found.kind.is_dir();
            if has_glob && (is_dir || !glob.is_match(found.path, false)) {
                return ControlFlow::Continue(());
            }
            let name = shown(found.path);
            let line = match () {
                () if is_dir => format!("{name}/"),
                () if found.kind.is_symlink() => {
                    let to = found.dir.read_link_contents(found.name);
                    format!("{name} -> {}", to.unwrap_or_default().to_string_lossy())
                }
                () if found.kind.is_file() => {
                    let bytes = found.dir.symlink_metadata(found.name).map_or(0, |metadata| metadata.len());
                    format!("{name}  {bytes}")
                }
                () => format!("{name}  (no file)"),
            };
            if count == ENTRIES_MAX || !report.line(&files.secrets.redact(&line)) {
                return ControlFlow::Break(());
            }
            count += 1;
            ControlFlow::Continue(())
        });
        let mut note = match walked.cut {
            Some(Cut::Cancelled) => return Err(Fault::Cancelled),
            Some(Cut::Enough) => format!("[more than these {count}; name a folder below or a glob]"),
            Some(Cut::Late) => format!("[not all: time was up after {count}]"),
            None if count == 0 && has_glob => "[no file fits the glob]".to_owned(),
            None if count == 0 => "[the folder is empty]".to_owned(),
            None => String::new(),
        };
        note.push_str(&walked.note());
        Ok(report.close((!note.is_empty()).then_some(note.as_str())))
    }
}
