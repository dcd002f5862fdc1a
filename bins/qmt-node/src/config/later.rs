//! Settings that are read and checked, and that this version does not act on yet: each is named at start, none is silent.
//! Whoever builds such a feature deletes its line here.

use crate::cli::Cli;

use super::reader::Document;
use super::{Config, schema};

/// Tables, what is missing.
const TABLES: &[(&str, &str)] = &[("console", "the console")];

pub(super) fn warn_of_file(document: &Document<'_>) {
    for (path, what) in TABLES {
        let is_list = schema::table(path).is_some_and(|table| table.is_list);
        let first =
            if is_list { document.sections(path).into_iter().next() } else { Some(document.section(path)) };
        if let Some(table) = first.filter(|table| table.is_there() && !table.is_off()) {
            document.warn(
                table.line(),
                format!("{} is checked and has no effect yet: this version lacks {what}", table.head()),
            );
        }
    }
}

pub(super) fn warn_of_flags(cli: &Cli, config: &mut Config) {
    let flags = [("--console", cli.console.is_some(), "the console")];
    for (flag, _, what) in flags.into_iter().filter(|(_, given, _)| *given) {
        config.warnings.push(format!("{flag} is checked and has no effect yet: this version lacks {what}"));
    }
}
