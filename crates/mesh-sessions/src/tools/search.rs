//! `search`: lines of files that match a regular expression.

use std::ops::ControlFlow;
use std::path::Path;

use regex::bytes::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::files::{Fault, Files, Work};
use super::output::{Report, cut_line};
use super::read_file::is_binary;
use super::walk::{Cut, Glob, Walk, Walked, plain, shown};
use super::workspace::{PathError, open_file, read_bounded};

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;
const CONTEXT_MAX: usize = 20;
/// The longest line that is shown whole.
const LINE_BYTES_MAX: usize = 500;
/// Longer expressions are no search that a model means.
const PATTERN_BYTES_MAX: usize = 4096;

pub(crate) struct Search;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arguments {
    pattern: String,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    glob: Option<String>,
    #[serde(default)]
    ignore_case: Option<bool>,
    #[serde(default)]
    files_only: Option<bool>,
    #[serde(default)]
    context: Option<usize>,
    #[serde(default)]
    limit: Option<usize>,
}

impl Work for Search {
    const NAME: &'static str = "search";
    const DESCRIPTION: &'static str = "Searches the text files of the workspace for lines that match a regular expression \
        (Rust syntax, no look-around). Shows path:line:text. Files that ignore files such as .gitignore name, binary and \
        very large files are left out.";
    const ONLY_READS: bool = true;
    type Arguments = Arguments;

    fn parameters() -> (Value, Value) {
        let properties = json!({
            "pattern": {"type": "string", "description": "The regular expression"},
            "path": {"type": "string", "description": "File or folder to search in, from the workspace's root on (default: the root)"},
            "glob": {"type": "string", "description": "Only in files that fit, such as *.rs or src/**/*.toml"},
            "ignore_case": {"type": "boolean", "description": "Upper and lower case count the same (default false)"},
            "files_only": {"type": "boolean", "description": "Show only the files that have a match (default false)"},
            "context": {"type": "integer", "minimum": 0, "maximum": CONTEXT_MAX, "description": "Lines to show before and after each match (default 0)"},
            "limit": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "description": "The most matches to show (default 100)"},
        });
        (properties, json!(["pattern"]))
    }

    fn work(files: &Files, asked: Arguments, cancel: &CancellationToken) -> Result<String, Fault> {
        let mut searching = Searching::new(files, &asked)?;
        let path = asked.path.as_deref().unwrap_or(".");
        let relative = files.workspace.relative(path)?;
        let root = files.workspace.root_dir();
        let walked = match files.workspace.dir(path) {
            Ok((dir, _)) => {
                let walk =
                    Walk { depth_max: usize::MAX, skips_ignored: true, cancel, deadline: files.deadline() };
                let glob = Glob::new(asked.glob.as_deref())?;
                walk.run(root, &dir, &plain(root, &relative), &mut |found| {
                    if !found.kind.is_file() || !glob.is_match(found.path, false) {
                        return ControlFlow::Continue(());
                    }
                    let name = shown(found.path);
                    searching.file(open_file(found.dir, Path::new(found.name), &name), &name)
                })
            }
            Err(PathError::NotAFolder { .. }) => {
                let opened = files.workspace.file(path)?;
                let _ = searching.file(Ok(opened), &shown(&relative));
                Walked::default()
            }
            Err(error) => return Err(error.into()),
        };
        if walked.cut == Some(Cut::Cancelled) {
            return Err(Fault::Cancelled);
        }
        Ok(searching.finish(&walked))
    }
}

struct Searching<'a> {
    files: &'a Files,
    regex: Regex,
    files_only: bool,
    context: usize,
    limit: usize,
    report: Report,
    matches: usize,
    left_out: usize,
}

impl<'a> Searching<'a> {
    fn new(files: &'a Files, asked: &Arguments) -> Result<Self, String> {
        if asked.pattern.is_empty() || asked.pattern.len() > PATTERN_BYTES_MAX {
            return Err(format!("the pattern has to have 1 to {PATTERN_BYTES_MAX} bytes"));
        }
        let mut builder = RegexBuilder::new(&asked.pattern);
        builder.multi_line(true).crlf(true).case_insensitive(asked.ignore_case == Some(true));
        let regex =
            builder.build().map_err(|error| format!("the pattern is no regular expression: {error}"))?;
        Ok(Self {
            files,
            regex,
            files_only: asked.files_only == Some(true),
            context: asked.context.unwrap_or(0).min(CONTEXT_MAX),
            limit: asked.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MAX),
            report: Report::new(files.limits.result_bytes),
            matches: 0,
            left_out: 0,
        })
    }

    fn file(&mut self, opened: Result<(std::fs::File, u64), PathError>, name: &str) -> ControlFlow<()> {
        let read =
            opened.and_then(|(file, bytes)| read_bounded(file, bytes, self.files.limits.file_bytes, name));
        let Ok(content) = read else {
            self.left_out += 1;
            return ControlFlow::Continue(());
        };
        if is_binary(&content) {
            self.left_out += 1;
            return ControlFlow::Continue(());
        }
        if !self.regex.is_match(&content) {
            return ControlFlow::Continue(());
        }
        let lines = Lines::new(&content);
        let mut hits = self.hits(&content, &lines);
        let is_over = hits.len() > self.limit - self.matches;
        hits.truncate(self.limit - self.matches);
        if self.files_only && !hits.is_empty() {
            self.matches += 1;
            return self.show(name);
        }
        self.matches += hits.len();
        self.show_hits(name, &lines, &hits)?;
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The lines that match, one more than may be shown at most.
    fn hits(&self, content: &[u8], lines: &Lines<'_>) -> Vec<usize> {
        let (mut hits, mut at) = (Vec::new(), 0);
        while at < content.len() && hits.len() <= self.limit - self.matches {
            let Some(found) = self.regex.find_at(content, at) else { break };
            // An empty match after the last line break is in no line.
            if found.start() == content.len() && content.ends_with(b"\n") {
                break;
            }
            let line = lines.number_at(found.start());
            hits.push(line);
            at = lines.end(line) + 1;
        }
        hits
    }

    fn show_hits(&mut self, name: &str, lines: &Lines<'_>, hits: &[usize]) -> ControlFlow<()> {
        // The first line that is not shown yet.
        let mut next = 0;
        for (index, &hit) in hits.iter().enumerate() {
            let from = hit.saturating_sub(self.context).max(next);
            if self.context > 0 && index > 0 && from > next {
                self.show("--")?;
            }
            let following = hits.get(index + 1).copied().unwrap_or(usize::MAX);
            let to = (hit + self.context).min(lines.last()).min(following - 1);
            for line in from..=to {
                let mark = if line == hit { ':' } else { '-' };
                let text = String::from_utf8_lossy(lines.text(line));
                let text = self.files.secrets.redact(&text);
                let text = cut_line(&text, LINE_BYTES_MAX);
                self.show(&format!("{name}{mark}{}{mark}{text}", line + 1))?;
            }
            next = to + 1;
        }
        ControlFlow::Continue(())
    }

    fn show(&mut self, line: &str) -> ControlFlow<()> {
        let line = self.files.secrets.redact(line);
        if self.report.line(&line) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn finish(self, walked: &Walked) -> String {
        let mut note = match walked.cut {
            Some(Cut::Late) => format!("[not all: time was up after {} matches]", self.matches),
            Some(_) => format!("[more than these {} matches; narrow it down]", self.matches),
            None if self.matches == 0 => "[no match]".to_owned(),
            None => String::new(),
        };
        if self.left_out > 0 {
            note.push_str(&format!("[{} binary or very large files left out]", self.left_out));
        }
        note.push_str(&walked.note());
        self.report.close((!note.is_empty()).then_some(note.as_str()))
    }
}

/// The lines of a text by number from 0, found as far as they are asked for.
struct Lines<'a> {
    content: &'a [u8],
    /// Where each line begins.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(content: &'a [u8]) -> Self {
        let breaks = memchr::memchr_iter(b'\n', content).map(|at| at + 1);
        let starts = std::iter::once(0).chain(breaks.filter(|at| *at < content.len())).collect();
        Self { content, starts }
    }

    fn last(&self) -> usize {
        self.starts.len() - 1
    }

    fn number_at(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at) - 1
    }

    /// Where the line's break stands, or the text ends.
    fn end(&self, line: usize) -> usize {
        self.starts.get(line + 1).map_or(self.content.len(), |next| next - 1)
    }

    fn text(&self, line: usize) -> &'a [u8] {
        let text = &self.content[self.starts[line]..self.end(line)];
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        text.strip_suffix(b"\r").unwrap_or(text)
    }
}
