//! `docs/reference/errors.md`: what can be read of what went wrong, from the tables and types that say it.

use std::collections::BTreeMap;
use std::fmt::Write;

use mesh_control::ErrorCode;

use crate::page::{cell, files, hold, root};

const HEAD: &str = "\
<!-- Written from the code by a test: WRITE_DOCS=1 cargo nextest run --release --workspace --test book -->
# Errors and what mends them

Every failure has a word for programs, a sentence for people and, where there is something to do, what mends it: `qmt-cli` prints
`error: …` and `mend: …`, with `--json` `{\"error\":{\"code\",\"message\",\"mend\"}}`. Words in capitals below stand for what varies.
`qmt-cli doctor` looks for the likely causes by itself.
";

#[test]
fn the_page_of_errors_is_the_code() {
    let mut text = HEAD.to_owned();
    exits(&mut text);
    words(&mut text);
    gateway(&mut text);
    for (heading, about, types) in TYPES {
        let _ = write!(text, "\n## {heading}\n{about}\n\n| message | when | mend |\n|---|---|---|\n");
        for (file, name) in *types {
            for row in rows(file, name) {
                text.push_str(&row);
            }
        }
    }
    hold("docs/reference/errors.md", &text);
}

/// The lines of the help of `qmt-cli`.
fn exits(text: &mut String) {
    let help = qmt_cli::command().get_after_help().expect("a help that ends with exit codes").to_string();
    let (_, listed) = help.split_once("Exit codes:\n").expect("exit codes");
    text.push_str("\n## Exit codes of `qmt-cli`\n\n| code | meaning |\n|---|---|\n");
    for line in listed.lines().take_while(|line| !line.trim().is_empty()) {
        let (code, meaning) = line.trim().split_once(' ').expect("a code and what it means");
        let _ = writeln!(text, "| {code} | {} |", cell(meaning));
    }
    text.push_str(
        "\n`qmt-node` ends with 0 when it was stopped, and with 1 when it could not start or go on.\n",
    );
}

fn words(text: &mut String) {
    text.push_str(
        "\n## Words of the control API\nIn `error.code` of [the control API](../openapi.json), and of `qmt-cli`, which passes them on.\n\n\
         | word | HTTP status | when |\n|---|---|---|\n",
    );
    for code in ErrorCode::KNOWN {
        let _ = writeln!(text, "| `{code}` | {} | {} |", code.http_status(), cell(code.meaning()));
    }
    text.push_str("\n## Words of `qmt-cli` itself\n\n| word | when |\n|---|---|\n");
    for (word, meaning) in qmt_cli::failure_words() {
        let _ = writeln!(text, "| `{word}` | {} |", cell(meaning));
    }
}

fn gateway(text: &mut String) {
    text.push_str(
        "\n## The gateway\nIn OpenAI's shape, `{\"error\":{\"message\",\"type\",\"param\",\"code\"}}`; the code stands in the header \
         `x-mesh-error` too. Errors of a model's own server pass through as they came.\n\n\
         | status | code | message | `Retry-After` |\n|---|---|---|---|\n",
    );
    let mut refusals = mesh_inference::gateway::refusals();
    refusals.sort_by_key(|(status, code, ..)| (*status, *code));
    for (status, code, is_passing, message) in refusals {
        let again = if is_passing { "yes" } else { "" };
        let _ = writeln!(text, "| {status} | `{code}` | {} | {again} |", cell(&message));
    }
}

type Types = &'static [(&'static str, &'static str)];

/// Headings, and the types whose values are shown under them.
const TYPES: &[(&str, &str, Types)] = &[
    (
        "A node that does not start",
        "`qmt-node` prints them and ends; nothing runs. Faults of the configuration are told with file, line and key, all at once.",
        &[
            ("bins/qmt-node/src/config/error.rs", "ConfigError"),
            ("bins/qmt-node/src/node/home.rs", "HomeError"),
            ("crates/mesh-identity/src/key_file.rs", "KeyFileError"),
            ("bins/qmt-node/src/store/mod.rs", "StoreError"),
            ("bins/qmt-node/src/node/start.rs", "StartError"),
            ("crates/mesh-inference/src/gateway/config.rs", "StartError"),
            ("bins/qmt-node/src/node/relay.rs", "RelayStartError"),
            ("bins/qmt-node/src/node/channel/start.rs", "ChannelError"),
            ("bins/qmt-node/src/node/channel/files.rs", "FilesError"),
        ],
    ),
    (
        "Invites and memberships",
        "Of `join`, of `qmt-node --join`, and in the log of a node that turns another one away.",
        &[
            ("crates/mesh-identity/src/error.rs", "InviteError"),
            ("crates/mesh-identity/src/error.rs", "GrantError"),
        ],
    ),
    (
        "Downloads",
        "Of `models pull` and `load`.",
        &[("crates/mesh-inference/src/fetch/error.rs", "FetchError")],
    ),
    (
        "Certificates of the agent channel",
        "At start, and in the log when files change; the reasons of failed handshakes are in [the agent channel](../agent-channel.md#what-the-log-says).",
        &[("crates/mesh-sessions/src/channel/tls.rs", "CredentialsError")],
    ),
    (
        "The CA",
        "Of `qmt-cli ca`.",
        &[
            ("crates/mesh-identity/src/ca/error.rs", "FolderError"),
            ("crates/mesh-identity/src/ca/error.rs", "SignError"),
            ("crates/mesh-identity/src/ca/error.rs", "CsrError"),
            ("crates/mesh-identity/src/ca/error.rs", "KeyError"),
        ],
    ),
    (
        "Talking to the node",
        "Of `qmt-cli`, and of programs that use the crate `mesh-control`.",
        &[("crates/mesh-control/src/client.rs", "ClientError")],
    ),
];

/// A row for each variant of a type that has words of its own.
fn rows(file: &str, name: &str) -> Vec<String> {
    let source = std::fs::read_to_string(root().join(file)).unwrap_or_else(|why| panic!("{file}: {why}"));
    let mut mends = mends(&source, name);
    if name == "StartError" && file.ends_with("start.rs") {
        let apart = std::fs::read_to_string(root().join("bins/qmt-node/src/node/mend.rs")).unwrap();
        mends.extend(self::mends(&apart, name));
    }
    let found = variants(&source, name);
    assert!(!found.is_empty(), "{file} has no {name}");
    let shown = found.iter().filter_map(|variant| {
        let mend = mends.get(&variant.name).cloned().unwrap_or_default();
        Some(format!("| {} | {} | {} |\n", cell(variant.message.as_ref()?), cell(&variant.doc), cell(&mend)))
    });
    shown.collect()
}

struct Variant {
    name: String,
    doc: String,
    /// None where another error speaks for it.
    message: Option<String>,
}

/// What the source says of the variants of an enum, as rustfmt lays it out.
fn variants(source: &str, name: &str) -> Vec<Variant> {
    let Some((_, body)) = source.split_once(&format!("pub enum {name} {{\n")) else { return Vec::new() };
    let body = body.split("\n}").next().expect("a first part");
    let (mut found, mut doc, mut error) = (Vec::new(), String::new(), String::new());
    let mut in_error = false;
    for line in body.lines() {
        let inner = line.strip_prefix("    ").unwrap_or(line);
        if in_error || inner.starts_with("#[error(") {
            error.push_str(inner);
            error.push('\n');
            in_error = !inner.ends_with(")]");
        } else if let Some(text) = inner.strip_prefix("///") {
            doc.push_str(text);
        } else if inner.starts_with(|first: char| first.is_ascii_uppercase()) {
            let end = inner.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(inner.len());
            let message = message(&error);
            found.push(Variant { name: inner[..end].to_owned(), doc: std::mem::take(&mut doc), message });
            error.clear();
        }
    }
    found
}

/// By the names of variants, what `fn mend` of a type says.
fn mends(source: &str, name: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let Some((_, own)) = source.split_once(&format!("\nimpl {name} {{\n")) else { return found };
    let own = own.split("\n}").next().expect("a first part");
    let Some((_, body)) = own.split_once("fn mend(") else { return found };
    let body = body.split("\n    }").next().expect("a first part");
    // Patterns up to an arrow, then the first text: what is said for all of them.
    let (mut of, mut is_said): (Vec<&str>, bool) = (Vec::new(), false);
    let (mut rest, mut after_arrow) = (body, false);
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("Self::") {
            if std::mem::take(&mut after_arrow) {
                (of, is_said) = (Vec::new(), false);
            }
            let end = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
            of.push(&after[..end]);
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix("=>") {
            after_arrow = true;
            rest = after;
        } else if rest.starts_with('"') {
            let (text, length) = literal(rest);
            if after_arrow && !std::mem::replace(&mut is_said, true) {
                for variant in &of {
                    let said = found.entry((*variant).to_owned()).or_default();
                    let or = if said.is_empty() { "" } else { "; or: " };
                    let _ = write!(said, "{or}{}", readable(&text));
                }
            }
            rest = &rest[length..];
        } else {
            rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..];
        }
    }
    found
}

/// What an `#[error(...)]` says; none where another error speaks for it.
fn message(attribute: &str) -> Option<String> {
    let at = attribute.find('"')?;
    let (mut text, length) = literal(&attribute[at..]);
    // What stands behind the text fills its empty brackets: `path.display()` is the path.
    for argument in attribute[at + length..].split(", ") {
        let name: String =
            argument.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if !name.is_empty() {
            text = text.replacen("{}", &format!("{{{name}}}"), 1);
        }
    }
    Some(readable(&text)).filter(|text| text != "…")
}

/// The literal that source begins with, and how long it is there.
fn literal(source: &str) -> (String, usize) {
    let mut text = String::new();
    let mut chars = source.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, at + 1),
            '\\' => match chars.next() {
                Some((_, '\n')) => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                Some((_, 'n')) => text.push('\n'),
                Some((_, c)) => text.push(c),
                None => {}
            },
            c => text.push(c),
        }
    }
    panic!("a text that does not end: {source}");
}

/// A text with what varies in it in capitals: `{path}` is PATH, `{}` and `{0}` are WHAT.
fn readable(template: &str) -> String {
    let (mut text, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let Some((name, after)) = after.split_once('}') else { break };
        let name = name.split(':').next().unwrap_or_default().trim_start_matches('.');
        let is_named = name.starts_with(|c: char| c.is_ascii_alphabetic());
        text.push_str(&if is_named { name.to_uppercase() } else { "…".to_owned() });
        rest = after;
    }
    text.push_str(rest);
    text
}

#[test]
fn the_words_of_the_command_line_are_all_in_its_table() {
    let mut sources = Vec::new();
    files("bins/qmt-cli/src".as_ref(), "rs", &mut sources);
    sources.push("crates/mesh-control/src/client.rs".to_owned());
    let is_known = |word: &str| {
        qmt_cli::failure_words().iter().any(|(known, _)| *known == word)
            || ErrorCode::KNOWN.iter().any(|known| known.as_str() == word)
    };
    let mut unknown = Vec::new();
    for path in &sources {
        let source = std::fs::read_to_string(root().join(path)).unwrap();
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut said: Vec<&str> = source.split("Failure::new(").skip(1).map(str::trim_start).collect();
        if path.ends_with("client.rs") {
            let codes =
                source.split("pub fn code(&self)").nth(1).and_then(|rest| rest.split("\n    }").next());
            said.extend(codes.unwrap().split("=> ").skip(1));
        }
        let words = said.iter().filter_map(|rest| rest.strip_prefix('"')?.split('"').next());
        unknown.extend(words.filter(|word| !is_known(word)).map(|word| format!("{path}: {word}")));
    }
    assert_eq!(unknown, Vec::<String>::new(), "to be explained in WORDS of bins/qmt-cli/src/failure.rs");
}

#[test]
fn a_type_is_read_as_it_stands_in_the_source() {
    let source = "\
pub enum JoinError {
    /// Nobody
    /// answered.
    #[error(\"no answer from {} in {after:?}\", node.name())]
    Silent {
        /// Who.
        node: Id,
    },
    /// Two lines.
    #[error(
        \"it is \\
         long\"
    )]
    Long(u8),
    /// Another's words.
    #[error(transparent)]
    Other(#[from] Other),
}

impl JoinError {
    pub fn mend(&self) -> Option<&str> {
        match self {
            Self::Silent { .. } | Self::Other(_) => Some(\"wait\"),
            Self::Long(n) if *n > 1 => Some(\"cut \\\"it\\\"\"),
            Self::Long(_) => Some(\"let it be\"),
        }
    }
}
";
    let found = variants(source, "JoinError");
    let told: Vec<_> =
        found.iter().map(|one| (one.name.as_str(), one.doc.trim(), one.message.as_deref())).collect();
    assert_eq!(
        told,
        [
            ("Silent", "Nobody answered.", Some("no answer from NODE in AFTER")),
            ("Long", "Two lines.", Some("it is long")),
            ("Other", "Another's words.", None)
        ]
    );
    let mends = mends(source, "JoinError");
    assert_eq!(mends["Silent"], "wait");
    assert_eq!(mends["Other"], "wait");
    assert_eq!(mends["Long"], "cut \"it\"; or: let it be");
}
