//! Reading typed values out of a TOML file, collecting every fault with its line.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Problem;
use super::expand::expand;
use super::schema;

/// A file under reading. Faults and warnings gather in it; what is faulty reads as not set.
pub(super) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    root: DeTable<'a>,
    vars: &'a BTreeMap<String, String>,
    problems: RefCell<Vec<(usize, Problem)>>,
    warnings: RefCell<Vec<String>>,
    asked: RefCell<BTreeSet<(&'static str, String)>>,
}

/// One table of the file, or its absence.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    schema: &'static schema::Table,
    table: Option<&'a DeTable<'a>>,
    line: usize,
}

/// A string with its line.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) value: String,
    pub(super) line: usize,
}

impl<'a> Document<'a> {
    /// Parses the text and looks for unknown keys. With a syntax error the document is empty and holds that fault.
    pub(super) fn parse(path: &'a Path, text: &'a str, vars: &'a BTreeMap<String, String>) -> Self {
        let (root, error) = match DeTable::parse(text) {
            Ok(root) => (root.into_inner(), None),
            Err(error) => (DeTable::default(), Some(error)),
        };
        let document = Self {
            path,
            text,
            root,
            vars,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            asked: RefCell::default(),
        };
        if let Some(error) = error {
            let line = document.line(error.span().map_or(0, |span| span.start));
            document.problem(line, error.message().replace('\n', ", "));
        }
        document.check(&document.root, schema::table("").expect("the top is a table"));
        document
    }

    /// The table at a path that names no list.
    pub(super) fn section(&'a self, path: &str) -> Section<'a> {
        let schema = schema::table(path).expect("a table of the schema");
        let (mut table, mut line) = (Some(&self.root), 1);
        for part in path.split('.') {
            let value = table.and_then(|table| table.get(part));
            line = value.map_or(line, |value| self.line(value.span().start));
            table = value.and_then(|value| value.get_ref().as_table());
        }
        Section { document: self, schema, table, line }
    }

    /// The tables of a list.
    pub(super) fn sections(&'a self, path: &str) -> Vec<Section<'a>> {
        let schema = schema::table(path).expect("a table of the schema");
        let (above, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = if above.is_empty() { Some(&self.root) } else { self.section(above).table };
        self.entries(schema, parent.and_then(|table| table.get(name)))
    }

    fn entries(
        &'a self,
        schema: &'static schema::Table,
        list: Option<&'a Spanned<DeValue<'a>>>,
    ) -> Vec<Section<'a>> {
        let entry = |value: &'a Spanned<DeValue<'a>>| Section {
            document: self,
            schema,
            table: value.get_ref().as_table(),
            line: self.line(value.span().start),
        };
        let list = list.and_then(|value| value.get_ref().as_array());
        list.into_iter().flat_map(|list| list.iter()).map(entry).collect()
    }

    /// Where a line is, for messages.
    pub(super) fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    pub(super) fn problem(&self, line: usize, message: impl Into<String>) {
        self.problems.borrow_mut().push((line, Problem { at: self.at(line), message: message.into() }));
    }

    pub(super) fn warn(&self, line: usize, message: impl std::fmt::Display) {
        self.warnings.borrow_mut().push(format!("{}: {message}", self.at(line)));
    }

    /// A path in the file, taken from the file's folder when it is relative.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// A variable of the environment that is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.vars.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// What was found, in the order of the file.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<String>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|(line, _)| *line);
        problems.dedup();
        (problems.into_iter().map(|(_, problem)| problem).collect(), self.warnings.into_inner())
    }

    /// The keys that were asked for; a test compares them with the schema.
    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<(&'static str, String)> {
        self.asked.borrow().clone()
    }

    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn check(&self, table: &DeTable<'_>, schema: &'static schema::Table) {
        for (key, value) in table.iter() {
            let name = key.get_ref().as_ref();
            let line = self.line(key.span().start);
            let below =
                if schema.path.is_empty() { name.to_owned() } else { format!("{}.{name}", schema.path) };
            let known = schema.keys.contains(&name);
            let Some(child) = schema::table(&below).filter(|_| !name.is_empty()) else {
                if !known {
                    let place = schema::likely_place(name, schema);
                    self.problem(line, format!("unknown key {name:?} in {}; {place}", schema.head()));
                }
                continue;
            };
            match (value.get_ref(), child.is_list) {
                (DeValue::Table(table), false) => self.check(table, child),
                (DeValue::Array(list), true) => list.iter().for_each(|entry| match entry.get_ref() {
                    DeValue::Table(table) => self.check(table, child),
                    _ => self
                        .problem(line, format!("{name} must be a list of tables, written {}", child.head())),
                }),
                (DeValue::Array(_) | DeValue::Table(_), _) => {
                    self.problem(line, format!("{name} is written {}", child.head()))
                }
                _ if known => {}
                (other, _) => self.problem(
                    line,
                    format!("{name} must be a table, written {}, not {}", child.head(), found(other)),
                ),
            }
        }
    }
}

impl<'a> Section<'a> {
    /// Whether the file has this table.
    pub(super) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// The tables of a list in this one.
    pub(super) fn below(&self, name: &str) -> Vec<Section<'a>> {
        let path = format!("{}.{name}", self.schema.path);
        let schema = schema::table(&path).expect("a table of the schema");
        self.document.entries(schema, self.table.and_then(|table| table.get(name)))
    }

    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn head(&self) -> String {
        self.schema.head()
    }

    /// The line of a key, or of the table when the key is not there.
    pub(super) fn line_of(&self, key: &str) -> usize {
        let entry = self.table.and_then(|table| table.get_key_value(key));
        entry.map_or(self.line, |(key, _)| self.document.line(key.span().start))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    pub(super) fn wrong(&self, key: &str, accepted: &str, found: impl std::fmt::Display) {
        let message = format!("{key} in {} must be {accepted}, not {found}", self.head());
        self.document.problem(self.line_of(key), message);
    }

    pub(super) fn bool(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        if value.as_bool().is_none() {
            self.wrong(key, "true or false", found(value));
        }
        value.as_bool()
    }

    pub(super) fn number(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let digits = value.as_integer().map(|number| (number.as_str(), number.radix()));
        let number = digits.and_then(|(digits, radix)| u64::from_str_radix(digits, radix).ok());
        let accepted = number.filter(|number| range.contains(number));
        if accepted.is_none() {
            let bounds = match *range.end() {
                u64::MAX => format!("a whole number of at least {}", range.start()),
                end => format!("a whole number from {} to {end}", range.start()),
            };
            self.wrong(key, &bounds, found(value));
        }
        accepted
    }

    pub(super) fn port(&self, key: &'static str) -> Option<u16> {
        self.number(key, 0..=65_535).and_then(|port| u16::try_from(port).ok())
    }

    pub(super) fn u32(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<u32> {
        self.number(key, range).and_then(|number| u32::try_from(number).ok())
    }

    pub(super) fn float(&self, key: &'static str) -> Option<f64> {
        let value = self.value(key)?;
        let number: Option<f64> = match value {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => None,
        };
        if number.is_none() {
            self.wrong(key, "a number", found(value));
        }
        number
    }

    /// A string, expanded.
    pub(super) fn text(&self, key: &'static str) -> Option<Text> {
        let line = self.line_of(key);
        let value = self.value(key)?;
        let Some(text) = value.as_str() else {
            self.wrong(key, "a string", found(value));
            return None;
        };
        self.expanded(key, text, line)
    }

    /// A string that is not empty.
    pub(super) fn word(&self, key: &'static str) -> Option<String> {
        let text = self.text(key)?;
        if text.value.trim().is_empty() {
            self.wrong(key, "a text that is not empty", "\"\"");
            return None;
        }
        Some(text.value)
    }

    /// A string that must be there.
    pub(super) fn needed(&self, key: &'static str) -> Option<String> {
        if !self.has(key) {
            self.document.problem(self.line, format!("{} needs {key}", self.head()));
        }
        self.word(key)
    }

    pub(super) fn path(&self, key: &'static str) -> Option<PathBuf> {
        self.word(key).map(|path| self.document.resolve(&path))
    }

    /// A list of strings, expanded; one that is not set is empty.
    pub(super) fn texts(&self, key: &'static str) -> Vec<Text> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(list) = value.as_array() else {
            self.wrong(key, "a list of strings", found(value));
            return Vec::new();
        };
        let entry = |value: &Spanned<DeValue<'_>>| {
            let line = self.document.line(value.span().start);
            match value.get_ref().as_str() {
                Some(text) if text.trim().is_empty() => {
                    self.wrong(key, "a list of strings that are not empty", "one with \"\"");
                    None
                }
                Some(text) => self.expanded(key, text, line),
                None => {
                    self.wrong(key, "a list of strings", format!("one with {}", found(value.get_ref())));
                    None
                }
            }
        };
        list.iter().filter_map(entry).collect()
    }

    pub(super) fn words(&self, key: &'static str) -> Vec<String> {
        self.texts(key).into_iter().map(|text| text.value).collect()
    }

    /// Strings by names that are the writer's own, expanded.
    pub(super) fn map(&self, key: &'static str) -> BTreeMap<String, String> {
        let accepted = "a table of strings";
        let one = |value: &DeValue<'_>| value.as_str().map(str::to_owned);
        let mut read = BTreeMap::new();
        for (name, value, line) in self.named(key, accepted) {
            match one(value) {
                Some(text) => read.extend(self.expanded(key, &text, line).map(|text| (name, text.value))),
                None => self.wrong(key, accepted, format!("one with {}", found(value))),
            }
        }
        read
    }

    /// Lists of strings by names that are the writer's own; a string stands for a list of one. They are patterns, so
    /// nothing in them is expanded.
    pub(super) fn lists(&self, key: &'static str) -> BTreeMap<String, Vec<String>> {
        let accepted = "a table of lists of strings";
        let mut read = BTreeMap::new();
        for (name, value, _) in self.named(key, accepted) {
            let texts: Option<Vec<String>> = match value {
                DeValue::String(text) => Some(vec![text.to_string()]),
                DeValue::Array(list) => {
                    list.iter().map(|value| value.get_ref().as_str().map(str::to_owned)).collect()
                }
                _ => None,
            };
            match texts {
                Some(texts) => drop(read.insert(name, texts)),
                None => self.wrong(key, accepted, format!("one with {}", found(value))),
            }
        }
        read
    }

    fn named(&self, key: &'static str, accepted: &str) -> Vec<(String, &'a DeValue<'a>, usize)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(table) = value.as_table() else {
            self.wrong(key, accepted, found(value));
            return Vec::new();
        };
        let entry = |(name, value): (&'a Spanned<std::borrow::Cow<'a, str>>, &'a Spanned<DeValue<'a>>)| {
            (name.get_ref().to_string(), value.get_ref(), self.document.line(name.span().start))
        };
        table.iter().map(entry).collect()
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let choice = choices.iter().find(|(word, _)| *word == text.value);
        if choice.is_none() {
            let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.wrong(key, &words.join(" or "), format!("{:?}", text.value));
        }
        choice.map(|(_, value)| *value)
    }

    /// The value as it stands, for a key that takes several types.
    pub(super) fn value(&self, key: &'static str) -> Option<&'a DeValue<'a>> {
        debug_assert!(self.schema.keys.contains(&key), "{key} is not in the schema of {}", self.schema.path);
        self.document.asked.borrow_mut().insert((self.schema.path, key.to_owned()));
        self.table?.get(key).map(Spanned::get_ref)
    }

    fn expanded(&self, key: &str, text: &str, line: usize) -> Option<Text> {
        match expand(text, self.document.vars) {
            Ok(value) => Some(Text { value, line }),
            Err(why) => {
                self.document.problem(line, format!("{key} in {}: {why}", self.head()));
                None
            }
        }
    }
}

/// What a value is, for messages; the content of strings may be secret and is not repeated.
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
