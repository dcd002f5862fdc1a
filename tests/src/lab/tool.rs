//! The programs that build networks. A lab that cannot be built fails its test, with the command and its words.

use std::io::Write;
use std::process::{Command, Stdio};

use rustix::process::Pid;

/// Runs a command to its end; its output, or the command with its complaint.
pub(super) fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    feed(program, arguments, "")
}

pub(super) fn try_nft(namespace: &str, rules: &str) -> Result<(), String> {
    feed("ip", &["netns", "exec", namespace, "nft", "-f", "-"], rules)
        .map(drop)
        .map_err(|error| format!("{error}\n{rules}"))
}

pub(super) fn run(program: &str, arguments: &[&str]) {
    if let Err(error) = try_run(program, arguments) {
        panic!("{error}");
    }
}

/// `ip` in a namespace.
pub(super) fn ip(namespace: &str, arguments: &[&str]) {
    run("ip", &[&["-n", namespace], arguments].concat());
}

pub(super) fn nft(namespace: &str, rules: &str) {
    if let Err(error) = try_nft(namespace, rules) {
        panic!("{error}");
    }
}

pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The names of all namespaces of this machine.
pub(super) fn namespaces() -> Vec<String> {
    let listed = try_run("ip", &["netns", "list"]).unwrap_or_default();
    listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

pub(super) fn processes_in(namespace: &str) -> Vec<Pid> {
    let listed = try_run("ip", &["netns", "pids", namespace]).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

fn feed(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let said = |what: &dyn std::fmt::Display| format!("{program} {}: {what}", arguments.join(" "));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| said(&error))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that ends before it has read everything says itself why.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| said(&error))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(said(&String::from_utf8_lossy(&output.stderr).trim()))
    }
}
