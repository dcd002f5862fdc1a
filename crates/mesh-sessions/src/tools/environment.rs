//! The environment variables of programs that tools start.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::Command;

/// The variables that a program gets: some of the node's own by name, and some with values of their own.
///
/// The node's other variables, where keys of providers stand, are not passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Names of the node's variables that are passed on; one that ends in `*` stands for all that begin so.
    pub passed: Vec<String>,
    /// Set in any case.
    pub set: BTreeMap<String, String>,
}

/// What programs need to find others, to know the user and to speak the language.
const PASSED: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_*",
    "TZ",
    "TMPDIR",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "GOPATH",
    "JAVA_HOME",
    "VIRTUAL_ENV",
];
/// Programs should neither draw nor ask.
const SET: &[(&str, &str)] = &[
    ("TERM", "dumb"),
    ("NO_COLOR", "1"),
    ("PAGER", "cat"),
    ("GIT_PAGER", "cat"),
    ("GIT_TERMINAL_PROMPT", "0"),
];

impl Default for Environment {
    fn default() -> Self {
        let set = SET.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { passed: PASSED.iter().map(|name| (*name).to_owned()).collect(), set }
    }
}

impl Environment {
    /// Gives a command these variables and no others.
    pub(crate) fn apply(&self, command: &mut Command) {
        command.env_clear().envs(self.chosen(std::env::vars_os())).envs(&self.set);
    }

    fn chosen(
        &self,
        all: impl Iterator<Item = (OsString, OsString)>,
    ) -> impl Iterator<Item = (OsString, OsString)> {
        let fits = |pattern: &String, name: &str| match pattern.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => name == pattern,
        };
        all.filter(move |(name, _)| {
            name.to_str().is_some_and(|name| self.passed.iter().any(|pattern| fits(pattern, name)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_variables_are_passed_on() {
        let all = ["PATH", "LC_ALL", "LANG", "LANGUAGE", "OPENAI_API_KEY", "PATHS", "QMT_HOME", "LD_PRELOAD"];
        let all = all.into_iter().map(|name| (name.into(), "x".into()));
        let environment = Environment::default();
        let names: Vec<OsString> = environment.chosen(all).map(|(name, _)| name).collect();
        assert_eq!(names, ["PATH", "LC_ALL", "LANG"]);
    }
}
