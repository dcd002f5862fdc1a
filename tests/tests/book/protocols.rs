//! `docs/reference/protocols.md`: what nodes speak, by name and version, as it stands in the code.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::page::{Page, cell, files, hold, root};

const HEAD: &str = "\
<!-- Written from the code by a test: WRITE_DOCS=1 cargo nextest run --release --workspace --test book -->
# Protocols by name

Every stream between two nodes begins with one of these names (`qmt-mesh/1` and `qmt-lan/1` are those of whole connections). A change of what is said on it is
a new number. A node that is asked for a name that it does not know refuses that stream, and nothing else.

| name | defined in | told in |
|---|---|---|
";

/// Folders of what is not spoken outside of tests.
const NOT_SPOKEN: &[&str] = &["/testing/", "/tests/", "/examples/", "/sim/"];

/// Every name with the file that defines it.
fn spoken() -> BTreeMap<String, String> {
    let mut sources = Vec::new();
    for folder in ["crates", "bins"] {
        files(folder.as_ref(), "rs", &mut sources);
    }
    let mut names = BTreeMap::new();
    for path in sources.iter().filter(|path| !NOT_SPOKEN.iter().any(|part| path.contains(part))) {
        let source = std::fs::read_to_string(root().join(path)).unwrap();
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = source.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
        for line in code.filter(|line| line.contains("const ")) {
            let name = ["= Protocol::new(\"", "ALPN: &[u8] = b\""]
                .iter()
                .find_map(|before| line.split_once(before).and_then(|(_, rest)| rest.split('"').next()));
            // `http/1.1` and the like are others'.
            if let Some(name) = name.filter(|name| !name.starts_with("http")) {
                names.insert(name.to_owned(), path.clone());
            }
        }
    }
    assert!(names.len() >= 20, "most names are not found: {names:?}");
    names
}

#[test]
fn every_protocol_is_told_of_on_a_page_that_the_contents_list() {
    let mut paths = Vec::new();
    files("docs/protocols".as_ref(), "md", &mut paths);
    paths.sort();
    let pages: Vec<Page> = paths.iter().map(|path| Page::open(path)).collect();
    let contents = Page::open("docs/README.md").text;
    for page in &pages {
        let link = format!("({})", page.path.strip_prefix("docs").unwrap().display());
        assert!(contents.contains(&link), "docs/README.md does not list {}", page.path.display());
    }
    let (mut text, mut untold) = (HEAD.to_owned(), Vec::new());
    for (name, path) in spoken() {
        let marked = format!("`{name}`");
        // A page that is called by it comes first.
        let own = format!("# {name}");
        let mut telling: Vec<&Page> =
            pages.iter().filter(|page| page.text.contains(&marked) || page.text.starts_with(&own)).collect();
        telling.sort_by_key(|page| !page.text.lines().next().unwrap_or_default().contains(&name));
        if telling.is_empty() {
            untold.push(name.clone());
        }
        let links = telling.iter().take(3).map(|page| {
            let file = page.path.file_stem().unwrap().to_str().unwrap();
            format!("[{file}](../protocols/{file}.md)")
        });
        let links = links.collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| `{name}` | `{}` | {} |", cell(&path), links);
    }
    assert_eq!(untold, Vec::<String>::new(), "no page under docs/protocols/ names them");
    hold("docs/reference/protocols.md", &text);
}
