//! `docs/reference/cli.md`: every command and flag of both programs, as clap knows them.

use std::collections::BTreeSet;
use std::fmt::Write;

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::page::{cell, hold};

const HEAD: &str = "\
<!-- Written from the programs by a test: WRITE_DOCS=1 cargo nextest run --release --workspace --test book -->
# Every command and flag

What `qmt-cli --help` and `qmt-node --help` say of all commands, in one page. What the commands are for is told in
[the commands](../cli.md), what the flags of `qmt-node` mean beside its file in [configuration](../configuration.md), and what can go
wrong in [errors](errors.md).
";

#[test]
fn the_page_of_commands_and_flags_is_the_code() {
    let mut text = HEAD.to_owned();
    for mut program in [qmt_cli::command(), qmt_node::cli::Cli::command()] {
        program.build();
        write_command(&mut text, &program, program.get_name(), &BTreeSet::new());
    }
    hold("docs/reference/cli.md", &text);
}

/// `path` is what is typed; `above` are the flags that were told of at a command above.
fn write_command(text: &mut String, command: &Command, path: &str, above: &BTreeSet<String>) {
    let depth = if path.contains(' ') { "###" } else { "##" };
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let _ = write!(text, "\n{depth} `{path}`\n{about}\n\n```text\n{usage}\n```\n");
    let is_told = |argument: &&Arg| {
        let id = argument.get_id().as_str();
        !argument.is_hide_set() && !["help", "version"].contains(&id) && !above.contains(id)
    };
    let arguments: Vec<&Arg> = command.get_arguments().filter(is_told).collect();
    if !arguments.is_empty() {
        text.push_str("\n| argument | meaning |\n|---|---|\n");
    }
    for argument in &arguments {
        let _ = writeln!(text, "| {} | {} |", typed(argument), cell(&meaning(argument)));
    }
    if let Some(after) = command.get_after_help() {
        let _ = write!(text, "\n```text\n{}\n```\n", after.to_string().trim_end());
    }
    let mut known = above.clone();
    known.extend(
        arguments.iter().filter(|one| one.is_global_set()).map(|one| one.get_id().as_str().to_owned()),
    );
    for below in command.get_subcommands().filter(|one| one.get_name() != "help" && !one.is_hide_set()) {
        write_command(text, below, &format!("{path} {}", below.get_name()), &known);
    }
}

/// `--name`, `-n N`, `NODE`.
fn typed(argument: &Arg) -> String {
    let values = match argument.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count => String::new(),
        _ => {
            let named: Vec<String> = argument
                .get_value_names()
                .map(|names| names.iter().map(ToString::to_string).collect())
                .unwrap_or_else(|| vec![argument.get_id().as_str().to_uppercase()]);
            named.join(" ")
        }
    };
    if argument.is_positional() {
        return format!("`{}`", cell(&values));
    }
    let value = match values.as_str() {
        "" => String::new(),
        values if argument.is_require_equals_set() => format!("[={values}]"),
        values => format!(" {values}"),
    };
    let aliases = argument.get_visible_aliases().unwrap_or_default();
    let long = argument.get_long().into_iter().chain(aliases).map(|long| format!("`--{long}{value}`"));
    let short = argument.get_short().map(|short| format!("`-{short}`"));
    short.into_iter().chain(long).collect::<Vec<_>>().join(", ")
}

fn meaning(argument: &Arg) -> String {
    let mut text = argument
        .get_long_help()
        .or(argument.get_help())
        .map(|help| help.to_string().trim_end_matches('.').to_owned())
        .unwrap_or_default();
    let values: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}` ({})", value.get_name(), help.to_string().trim_end_matches('.')),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    let takes_value = argument.get_action().takes_values();
    if takes_value && !values.is_empty() {
        let _ = write!(text, ". One of: {}", values.join(", "));
    }
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if takes_value && !defaults.is_empty() {
        let _ = write!(text, ". Default: `{}`", defaults.join(" "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(text, ". Else from `{}`", variable.to_string_lossy());
    }
    if argument.is_required_set() {
        text.push_str(". Needed");
    }
    if argument.is_global_set() {
        text.push_str(". For every command below too");
    }
    text
}

#[test]
fn every_command_and_flag_explains_itself() {
    let mut mute = Vec::new();
    for program in [qmt_cli::command(), qmt_node::cli::Cli::command()] {
        look(&program, program.get_name(), &mut mute);
    }
    assert_eq!(mute, Vec::<String>::new());
}

fn look(command: &Command, path: &str, mute: &mut Vec<String>) {
    if command.get_about().is_none() {
        mute.push(path.to_owned());
    }
    let silent = command.get_arguments().filter(|one| one.get_help().is_none());
    mute.extend(silent.map(|one| format!("{path} {}", one.get_id())));
    for below in command.get_subcommands() {
        look(below, &format!("{path} {}", below.get_name()), mute);
    }
}
