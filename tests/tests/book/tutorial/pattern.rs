//! What a page shows, compared with what came.

use std::collections::BTreeMap;

use regex::Regex;

/// Words in capitals that stand for what each machine prints for itself; later commands use them.
const WORDS: &[&str] = &["TOKEN", "LINK", "SESSION"];

/// Lines as the page shows them. `…` stands for any text within a line, and alone on a line for any lines. Blanks count as one,
/// since columns are as wide as what is in them.
pub(crate) struct Pattern {
    lines: Vec<Line>,
}

enum Line {
    Any,
    Like(Regex),
}

impl Pattern {
    pub(crate) fn new(shown: &[String]) -> Self {
        let line = |text: &String| match text.trim() {
            "…" => Line::Any,
            text => Line::Like(expression(text)),
        };
        Self { lines: shown.iter().map(line).collect() }
    }

    /// What the words in capitals stood for, when all of it is as shown; a page that shows nothing says nothing of it.
    pub(crate) fn fits(&self, said: &str) -> Option<BTreeMap<String, String>> {
        if self.lines.is_empty() {
            return Some(BTreeMap::new());
        }
        fit(&self.lines, &lines(said), false)
    }

    /// The same when it begins so.
    pub(crate) fn begins(&self, said: &str) -> Option<BTreeMap<String, String>> {
        fit(&self.lines, &lines(said), true)
    }
}

fn lines(said: &str) -> Vec<String> {
    let plain = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    said.lines().map(plain).filter(|line| !line.is_empty()).collect()
}

fn fit(shown: &[Line], said: &[String], may_go_on: bool) -> Option<BTreeMap<String, String>> {
    match shown.split_first() {
        None => (may_go_on || said.is_empty()).then(BTreeMap::new),
        Some((Line::Any, rest)) => (0..=said.len()).find_map(|at| fit(rest, &said[at..], may_go_on)),
        Some((Line::Like(expression), rest)) => {
            let (first, said) = said.split_first()?;
            let found = expression.captures(first)?;
            let mut words = fit(rest, said, may_go_on)?;
            for name in expression.capture_names().flatten() {
                words.insert(name.to_owned(), found[name].to_owned());
            }
            Some(words)
        }
    }
}

fn expression(text: &str) -> Regex {
    let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut pattern = regex::escape(&plain).replace('…', ".*?");
    for word in WORDS {
        // Only as a word of its own: `TOKEN` within a sentence is the sentence's.
        if plain == *word {
            pattern = format!(r"(?P<{word}>\S+)");
        }
    }
    Regex::new(&format!("^{pattern}$")).expect("an escaped text")
}

#[test]
fn what_differs_is_seen() {
    let shown = |text: &str| Pattern::new(&text.lines().map(str::to_owned).collect::<Vec<_>>());
    assert!(shown("a  b\n…\nend").fits("a b\nx\ny\nend\n").is_some());
    assert!(shown("a b").fits("a b\nmore\n").is_none() && shown("a b").begins("a b\nmore\n").is_some());
    assert!(shown("id … is (here)").fits("id 7 is (here)").is_some());
    assert!(shown("id … is here").fits("id 7 is there").is_none());
    assert_eq!(
        shown("…\nTOKEN\n…").fits("x\nabc\ny").unwrap()["TOKEN"],
        "x",
        "the first word that stands alone"
    );
    assert!(shown("").fits("whatever").is_some());
}
