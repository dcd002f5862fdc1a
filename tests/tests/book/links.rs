//! Every link of a page leads to a file that is there, and to a heading of it.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::page::{Page, pages, root};

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut count = 0;
    for page in pages() {
        for (line, target) in targets(&page) {
            count += 1;
            if let Err(why) = follow(&page.path, &target) {
                broken.push(format!("{}:{line}: {target}: {why}", page.path.display()));
            }
        }
    }
    assert!(count > 150, "most links are not found: {count}");
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// What the page links to, but for addresses on the web.
fn targets(page: &Page) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, text) in page.prose() {
        // Code may hold brackets of its own.
        let plain: String = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in plain.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if !target.starts_with("http://") && !target.starts_with("https://") {
                found.push((line, target.to_owned()));
            }
        }
    }
    found
}

fn follow(page: &Path, target: &str) -> Result<(), String> {
    let (file, heading) = match target.split_once('#') {
        Some((file, heading)) => (file, Some(heading)),
        None => (target, None),
    };
    let path = match file {
        "" => page.to_path_buf(),
        file => {
            within(&page.parent().unwrap_or(Path::new("")).join(file)).ok_or("it leads out of the project")?
        }
    };
    if !root().join(&path).exists() {
        return Err(format!("there is no {}", path.display()));
    }
    let Some(heading) = heading else { return Ok(()) };
    let there = Page::open(path.to_str().expect("text"));
    if anchors(&there).contains(heading) {
        Ok(())
    } else {
        Err(format!("{} has no such heading", path.display()))
    }
}

/// With `..` worked out.
fn within(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => clean.pop().then_some(())?,
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    Some(clean)
}

/// The names that headings get on GitHub and in most other readers of Markdown.
fn anchors(page: &Page) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, line) in page.prose() {
        let text = line.trim_start_matches('#');
        if text.len() == line.len() || !text.starts_with(' ') {
            continue;
        }
        // A link in a heading counts by its words.
        let mut words = String::new();
        let mut rest = text.trim();
        while let Some((before, after)) = rest.split_once("](") {
            words.push_str(before);
            rest = after.split_once(')').map_or("", |(_, rest)| rest);
        }
        words.push_str(rest);
        let words = words.to_lowercase();
        let kept = words.chars().filter_map(|c| match c {
            ' ' | '-' => Some('-'),
            c if c.is_alphanumeric() || c == '_' => Some(c),
            _ => None,
        });
        let name: String = kept.collect();
        let mut unique = name.clone();
        let mut number = 0;
        while !found.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}-{number}");
        }
    }
    found
}

#[test]
fn what_is_broken_is_found() {
    let page = Path::new("docs/README.md");
    assert!(follow(page, "cli.md").is_ok() && follow(page, "../README.md").is_ok());
    assert!(follow(page, "nowhere.md").is_err() && follow(page, "../../else.md").is_err());
    assert!(follow(page, "agent-channel.md#what-the-log-says").is_ok());
    assert!(follow(page, "agent-channel.md#what-the-log-hides").is_err());
    let page =
        Page { path: "x.md".into(), text: "see [a](b.md) and `[c](d)`\n```\n[e](f)\n```\n".to_owned() };
    assert_eq!(targets(&page), [(1, "b.md".to_owned())]);
}
