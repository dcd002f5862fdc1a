//! What a reader of figures must know of the machine they come from.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Fails, saying how to mend it, when a process may not have `needed` files open.
pub(crate) fn check_open_files(needed: u64) -> Result<()> {
    let limits =
        fs::read_to_string("/proc/self/limits").context("no /proc here; this benchmark needs Linux")?;
    let limit = open_files(&limits).context("no limit of open files in /proc/self/limits")?;
    ensure!(
        limit >= needed,
        "a process may open {limit} files here and this needs {needed}: run `ulimit -n {needed}` first"
    );
    Ok(())
}

/// The soft limit; `u64::MAX` when there is none.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Facts for the report, one line each, taken before anything is measured.
/// With `nginx` its version too.
pub(crate) fn facts(nginx: Option<&Path>) -> Result<Vec<String>> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("no /proc/cpuinfo")?;
    let model = field(&cpus, "model name").unwrap_or("unknown processor").to_owned();
    let cores = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo").context("no /proc/meminfo")?;
    let kib: f64 = field(&memory, "MemTotal")
        .and_then(|total| total.split_whitespace().next()?.parse().ok())
        .context("no MemTotal")?;
    let load = fs::read_to_string("/proc/loadavg").context("no /proc/loadavg")?;
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    let stat = fs::read_to_string("/proc/self/stat").context("no /proc/self/stat")?;
    let mut software = format!("Linux {}", said(Command::new("uname").arg("-r"))?);
    if let Some(nginx) = nginx {
        let version = said(Command::new(nginx).arg("-v"))?;
        software = format!("{software}, {}", version.trim_start_matches("nginx version: "));
    }
    Ok(vec![
        format!("machine: {model}, {cores} cores, {:.1} GB of memory, {software}", kib * 1024.0 / 1e9),
        format!(
            "load average before the run {load} (1 for each busy core); niceness {}.",
            niceness(&stat).context("no niceness in /proc/self/stat")?
        ),
    ])
}

/// The first `name: value` line's value.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The nineteenth field of `/proc/PID/stat`. The second is a program's name in brackets and may hold anything.
fn niceness(stat: &str) -> Option<i8> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().ok()
}

/// What a command prints, on whichever of its two outputs.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max processes             100                  200                  processes \n\
            Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(limits), Some(1024));
        assert_eq!(open_files("Max open files            unlimited   unlimited  files"), Some(u64::MAX));
        assert_eq!(open_files("Max processes 1 2"), None);
    }

    #[test]
    fn fields_are_read() {
        assert_eq!(field("a: 1\nmodel name\t: Some CPU @ 2:00\n", "model name"), Some("Some CPU @ 2:00"));
        let stat = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 20 -15 6 0 99";
        assert_eq!(niceness(stat), Some(-15));
    }
}
