//! Values that nobody outside may see, taken out of what tools return.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::model::{Shown, ToolSpec};
use crate::tool::{Ran, Tool, ToolRun};

/// What stands where a secret stood.
pub const MARK: &str = "[secret]";

/// Shorter values are not looked for: they would be found in every second text, and guessed as fast.
pub const SECRET_BYTES_MIN: usize = 8;

/// The lines of a secret with several, such as a key file, are looked for one by one from this length on.
const LINE_BYTES_MIN: usize = 16;

/// Secret values, and how they may be written in a text.
#[derive(Clone, Default)]
pub struct Secrets(Option<Arc<Patterns>>);

struct Patterns {
    /// Sorted.
    all: Vec<Vec<u8>>,
    longest: usize,
    automaton: AhoCorasick,
}

/// Shows how many there are, and nothing of them.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.as_ref().map_or(0, |patterns| patterns.all.len()))
    }
}

impl Secrets {
    /// These values; ones shorter than [`SECRET_BYTES_MIN`] are left out. Each is looked for as it is, as it stands in
    /// JSON, and, when it has several lines, by its lines.
    ///
    /// # Panics
    /// When their bytes together come near 4 GiB.
    pub fn new(values: impl IntoIterator<Item = String>) -> Self {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for value in values {
            let value = value.trim();
            let in_json = Value::from(value).to_string();
            let in_json = in_json.trim_matches('"').to_owned();
            let is_long = |line: &&str| line.len() >= LINE_BYTES_MIN && !line.starts_with("-----");
            let lines = value.lines().map(str::trim).filter(is_long);
            all.extend([value, &in_json].into_iter().chain(lines).map(|text| text.as_bytes().to_vec()));
        }
        all.retain(|pattern| pattern.len() >= SECRET_BYTES_MIN);
        all.sort();
        all.dedup();
        if all.is_empty() {
            return Self(None);
        }
        let mut builder = AhoCorasick::builder();
        let automaton = builder.match_kind(MatchKind::LeftmostLongest).build(&all);
        let automaton = automaton.expect("secrets are far smaller than an automaton's bound");
        let longest = all.iter().map(Vec::len).max().unwrap_or_default();
        Self(Some(Arc::new(Patterns { all, longest, automaton })))
    }

    /// The text with [`MARK`] in place of each secret.
    pub fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.0 {
            Some(patterns) if patterns.automaton.is_match(text) => {
                let marks = vec![MARK; patterns.all.len()];
                Cow::Owned(patterns.automaton.replace_all(text, &marks))
            }
            _ => Cow::Borrowed(text),
        }
    }

    /// Whether one of them is in these bytes.
    pub fn are_in(&self, bytes: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|patterns| patterns.automaton.is_match(bytes))
    }

    /// The same for a text that comes in pieces.
    pub(crate) fn stream(&self) -> Redactor {
        Redactor { secrets: self.clone(), held: Vec::new() }
    }

    /// The tool, with secrets taken out of what it prints and returns.
    pub fn keep_from(&self, tool: Arc<dyn Tool>) -> Arc<dyn Tool> {
        Arc::new(Discreet { secrets: self.clone(), tool })
    }

    pub(crate) fn redact_shown(&self, parts: Vec<Shown>) -> Vec<Shown> {
        let redact = |part| match part {
            Shown::Text(text) => Shown::Text(self.redact(&text).into_owned()),
            other => other,
        };
        parts.into_iter().map(redact).collect()
    }
}

/// Takes secrets out of bytes that come in pieces, also where one is cut in two.
#[derive(Debug)]
pub(crate) struct Redactor {
    secrets: Secrets,
    /// The end of what came: it may be the beginning of a secret.
    held: Vec<u8>,
}

impl Redactor {
    /// More bytes; gives what is certain by now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let Some(patterns) = &self.secrets.0 else { return std::mem::take(&mut self.held) };
        let from = (self.held.len() + 1).saturating_sub(patterns.longest);
        let open = (from..self.held.len()).find(|&at| patterns.may_go_on(&self.held[at..]));
        self.release(open.unwrap_or(self.held.len()))
    }

    /// The end of the bytes; gives the rest.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        self.release(self.held.len())
    }

    /// Gives what stands before `end`, and a secret that begins there to its end.
    fn release(&mut self, end: usize) -> Vec<u8> {
        let Some(patterns) = &self.secrets.0 else { return std::mem::take(&mut self.held) };
        let (mut out, mut done) = (Vec::new(), 0);
        for found in patterns.automaton.find_iter(&self.held).take_while(|found| found.start() < end) {
            out.extend_from_slice(&self.held[done..found.start()]);
            out.extend_from_slice(MARK.as_bytes());
            done = found.end();
        }
        if done < end {
            out.extend_from_slice(&self.held[done..end]);
            done = end;
        }
        self.held.drain(..done);
        out
    }
}

impl Patterns {
    /// Whether these bytes are the beginning of a secret, and not all of it.
    fn may_go_on(&self, bytes: &[u8]) -> bool {
        // All that begin with the bytes stand together.
        let from = self.all.partition_point(|pattern| pattern.as_slice() < bytes);
        let mut beginning = self.all[from..].iter().take_while(|pattern| pattern.starts_with(bytes));
        beginning.any(|pattern| pattern.len() > bytes.len())
    }
}

/// A tool that keeps secrets.
struct Discreet {
    secrets: Secrets,
    tool: Arc<dyn Tool>,
}

impl Tool for Discreet {
    fn spec(&self) -> ToolSpec {
        self.tool.spec()
    }

    fn only_reads(&self, arguments: &Value) -> bool {
        self.tool.only_reads(arguments)
    }

    fn run(&self, mut run: ToolRun) -> BoxFuture<'static, Ran> {
        let secrets = self.secrets.clone();
        let printed = run.printed.clone();
        let print = move |bytes: Vec<u8>| {
            if !bytes.is_empty() {
                printed(&String::from_utf8_lossy(&bytes));
            }
        };
        let stream = Arc::new(Mutex::new(secrets.stream()));
        let (piece, through) = (print.clone(), stream.clone());
        run.printed = Arc::new(move |text| {
            piece(through.lock().unwrap_or_else(PoisonError::into_inner).push(text.as_bytes()));
        });
        let ran = self.tool.run(run);
        Box::pin(async move {
            let Ran { outcome, parts } = ran.await;
            print(stream.lock().unwrap_or_else(PoisonError::into_inner).finish());
            Ran { outcome, parts: secrets.redact_shown(parts) }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secrets() -> Secrets {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n-----END KEY-----";
        let values = ["sk-live-123456", "sk-live-12345678", "pass\"word\\x", key, "short"];
        Secrets::new(values.map(str::to_owned))
    }

    #[test]
    fn secrets_are_found_as_they_are_in_json_and_by_line() {
        let redact = |text: &str| secrets().redact(text).into_owned();
        assert_eq!(redact("key=sk-live-123456."), "key=[secret].");
        assert_eq!(redact("sk-live-12345678"), "[secret]", "the longest one");
        assert_eq!(redact(r#"{"p":"pass\"word\\x"}"#), r#"{"p":"[secret]"}"#);
        assert_eq!(redact("   3\tMIIEvQIBADANBgkqhkiG\n"), "   3\t[secret]\n");
        assert_eq!(redact("short stays"), "short stays");
        assert_eq!(format!("{:?}", secrets()), "Secrets(7)");
        assert_eq!(Secrets::default().redact("anything"), "anything");
    }

    #[test]
    fn what_cannot_be_a_secret_is_not_held_back() {
        let mut stream = secrets().stream();
        assert_eq!(stream.push(b"building\n"), b"building\n");
        assert_eq!(stream.push(b"x sk-li"), b"x ");
        assert_eq!(stream.push(b"fe"), b"sk-life");
        assert_eq!(stream.push(b" sk-live-123456"), b" ");
        assert_eq!(stream.push(b"9"), b"[secret]9");
        assert_eq!(stream.push(b"sk-live-1234567"), b"");
        assert_eq!(stream.finish(), b"[secret]7");
    }

    proptest! {
        #[test]
        fn pieces_are_redacted_like_the_whole(
            words in prop::collection::vec(
                prop::sample::select(vec!["sk-live-", "123456", "78", "pass\"wo", "rd\\x", " ", "s", "-----"]), 0..20,
            ),
            cuts in prop::collection::vec(1..9usize, 0..40),
        ) {
            let text = words.concat();
            let (mut stream, mut out, mut rest) = (secrets().stream(), Vec::new(), text.as_bytes());
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                out.extend(stream.push(piece));
                rest = more;
            }
            out.extend(stream.push(rest));
            out.extend(stream.finish());
            prop_assert_eq!(String::from_utf8(out).expect("text"), secrets().redact(&text).into_owned());
        }
    }
}
