//! Every command that a page shows can be typed, and every configuration that it shows is read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser};
use mesh_identity::{Authority, Founding, InviteOptions, NodeAddr, NodeKey, UnixTime};
use qmt_node::config::{self, Environment};

use crate::page::{Block, files, pages, root};

/// The program that a line runs, by its definition.
fn program(name: &str) -> Option<Command> {
    match name.rsplit('/').next()? {
        "qmt-cli" => Some(qmt_cli::command()),
        "qmt-node" => Some(qmt_node::cli::Cli::command()),
        _ => None,
    }
}

#[test]
fn every_command_of_a_block_is_one_that_the_programs_take() {
    let (mut count, mut wrong) = (0, Vec::new());
    for page in pages() {
        for block in page.blocks() {
            for line in typed(&block) {
                for words in commands(&line) {
                    count += 1;
                    if let Err(why) = takes(&words) {
                        wrong.push(format!("{}:{}: {line}: {why}", page.path.display(), block.line));
                    }
                }
            }
        }
    }
    assert!(count > 40, "most commands are not found: {count}");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_command_and_flag_that_a_sentence_names_exists() {
    let (mut count, mut wrong) = (0, Vec::new());
    for page in pages().iter().filter(|page| !page.path.ends_with("CHANGELOG.md")) {
        for (line, text) in page.prose() {
            for span in text.split('`').skip(1).step_by(2) {
                count += named(span, &format!("{}:{line}", page.path.display()), &mut wrong);
            }
        }
    }
    // What the programs advise.
    let mut sources = Vec::new();
    for folder in ["crates", "bins"] {
        files(folder.as_ref(), "rs", &mut sources);
    }
    for path in sources.iter().filter(|path| !path.contains("tests")) {
        let source = std::fs::read_to_string(root().join(path)).unwrap();
        for (index, line) in source.lines().enumerate() {
            for span in line.split('`').skip(1).step_by(2) {
                count += named(span, &format!("{path}:{}", index + 1), &mut wrong);
            }
        }
    }
    assert!(count > 120, "most commands are not found: {count}");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// How many commands a piece of code names; what does not exist is added to `wrong`.
fn named(span: &str, at: &str, wrong: &mut Vec<String>) -> usize {
    let found = commands(span);
    for words in &found {
        // Patterns of a command, such as `ca renew NODE... [--ttl]`, are looked at word by word.
        if takes(words).is_err()
            && let Err(why) = exists(words)
        {
            wrong.push(format!("{at}: {span}: {why}"));
        }
    }
    found.len()
}

/// The lines that are typed; what a block shows as answered is left out.
fn typed(block: &Block) -> Vec<String> {
    let is_session = block.lines.iter().any(|line| line.starts_with("$ "));
    if !is_session && !["", "sh", "bash", "console"].contains(&block.language()) {
        return Vec::new();
    }
    let mut lines: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in &block.lines {
        let own = match line.strip_prefix("$ ") {
            Some(own) => own,
            None if is_open => line.strip_prefix("> ").unwrap_or(line),
            None if is_session => continue,
            None => line,
        };
        match lines.last_mut().filter(|_| is_open) {
            Some(last) => last.push_str(own.trim_start()),
            None => lines.push(own.to_owned()),
        }
        is_open = own.ends_with('\\');
        if is_open {
            lines.last_mut().expect("a line").pop();
        }
    }
    lines
}

/// The commands of our programs in a line, word by word: those in a pipe or list of commands, and in `$(…)`.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for part in line.replace("$(", "\n").split('\n') {
        let mut own: Option<Vec<String>> = None;
        // Whether a command may begin at the next word.
        let mut begins = true;
        for word in words(part) {
            let is_end = [";", "|", "||", "&&", "&", ">", ">>", "<", "#", ")"].contains(&word.as_str());
            if is_end {
                found.extend(own.take());
                begins = true;
                if word == "#" {
                    break;
                }
            } else if let Some(words) = &mut own {
                words.push(word);
            } else if begins && program(&word).is_some() {
                own = Some(vec![word]);
            } else {
                begins &= word.contains('=') || ["sudo", "nohup", "exec"].contains(&word.as_str());
            }
        }
        found.extend(own);
    }
    found
}

/// A line as a shell splits it, with what ends a command as words of their own.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut has_word) = (Vec::new(), String::new(), None, false);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => (quote, has_word) = (Some(c), true),
            (None, ' ') => {
                if std::mem::take(&mut has_word) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (None, ';' | ')') => {
                if std::mem::take(&mut has_word) {
                    words.push(std::mem::take(&mut word));
                }
                words.push(c.to_string());
            }
            (_, c) => {
                word.push(c);
                has_word = true;
            }
        }
    }
    if has_word {
        words.push(word);
    }
    words
}

/// Whether the program takes these words.
fn takes(words: &[String]) -> Result<(), String> {
    let command = program(&words[0]).expect("one of our programs");
    let kept = words.iter().filter(|word| !["…", "..."].contains(&word.as_str()));
    match command.try_get_matches_from(kept) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
    }
}

/// Whether each command and flag among these words is one that exists.
fn exists(words: &[String]) -> Result<(), String> {
    let mut command = program(&words[0]).expect("one of our programs");
    command.build();
    let mut at = &command;
    let mut is_descending = true;
    for word in &words[1..] {
        let word =
            word.trim_end_matches("\\n").trim_matches(['[', ']', ',', '.', '(', '"', '…', '?', '!', ':']);
        if word == "--" {
            return Ok(());
        }
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split(['=', '|', '[', '{']).next().unwrap_or_default();
            let is_known = at.get_arguments().any(|one| {
                one.get_long() == Some(flag) || one.get_all_aliases().unwrap_or_default().contains(&flag)
            });
            if !flag.is_empty() && !is_known {
                return Err(format!("`{}` has no --{flag}", at.get_name()));
            }
        } else if is_descending && at.has_subcommands() {
            let first = word.split('|').next().unwrap_or_default();
            match at.find_subcommand(first) {
                Some(below) => at = below,
                None => {
                    is_descending = false;
                    let is_word =
                        first.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !first.is_empty();
                    if is_word && at.get_positionals().next().is_none() {
                        return Err(format!("`{}` has no {first}", at.get_name()));
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_configuration_of_a_page_is_read() {
    let (mut count, mut wrong) = (0, Vec::new());
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.language() == "toml") {
            count += 1;
            if let Err(why) = reads(block) {
                wrong.push(format!("{}:{}: {why}", page.path.display(), block.line));
            }
        }
    }
    assert!(count > 15, "most configurations are not found: {count}");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Reads a block as the whole configuration of a node, with a value for each variable that it names.
fn reads(block: &Block) -> Result<(), String> {
    let text = block.lines.join("\n");
    if text.trim_start().starts_with("[package]") || text.contains("[dependencies]") {
        return Ok(()); // of cargo
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, &text).unwrap();
    let mut vars: BTreeMap<String, String> = text
        .split("${")
        .skip(1)
        .filter_map(|rest| Some(rest.split(['}', ':']).next()?.to_owned()))
        .map(|name| (name, invite()))
        .collect();
    let keys = text.lines().filter(|line| line.contains("_env = \""));
    vars.extend(keys.filter_map(|line| Some((line.split('"').nth(1)?.to_owned(), "a-key".to_owned()))));
    vars.insert("HOME".to_owned(), "/home/ann".to_owned());
    vars.insert("QMT_HOME".to_owned(), folder.path().display().to_string());
    let cli = qmt_node::cli::Cli::try_parse_from(["qmt-node"]).expect("no flags");
    let loaded = config::load(&cli, &Environment { vars, cwd: PathBuf::from("/") });
    loaded.map(drop).map_err(|error| error.to_string().replace(&folder.path().display().to_string(), ""))
}

fn invite() -> String {
    let key = NodeKey::from_seed([7; 32]);
    let root = Founding::new(&key).root;
    let options = InviteOptions { hints: NodeAddr::default(), ..InviteOptions::default() };
    let issued = Authority::founder(key, root).expect("own root").issue_invite(&options, UnixTime::now());
    issued.expect("issues").to_string()
}

#[test]
fn what_nobody_can_type_is_found() {
    let all = |line: &str| commands(line).iter().all(|words| takes(words).is_ok());
    assert!(all("qmt-cli nodes --json | jq .") && all("RUST_LOG=debug qmt-node --mesh &"));
    assert!(!all("qmt-cli nodse") && !all("qmt-cli join TOKEN --loud") && !all("echo x | qmt-cli chatt"));
    assert_eq!(commands("qmt-cli a; sudo qmt-cli b c # qmt-cli d").len(), 2);
    assert_eq!(commands("kill $(qmt-cli status)")[0], ["qmt-cli", "status"]);
    let exist = |line: &str| commands(line).iter().all(|words| exists(words).is_ok());
    assert!(exist("qmt-cli session move SESSION NODE") && exist("qmt-cli ca renew NODE... [--ttl]"));
    assert!(!exist("qmt-cli session mov SESSION") && !exist("qmt-cli session move SESSION --hard"));
}
