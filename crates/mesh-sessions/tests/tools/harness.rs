//! As much of a test harness as `cargo test` and nextest ask for: `--list`, names, `--exact`.

use std::panic::catch_unwind;
use std::process::ExitCode;

pub(crate) type Test = (&'static str, fn());

pub(crate) fn run(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if has("--ignored") {
        return ExitCode::SUCCESS;
    }
    if has("--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut filters = Vec::new();
    let mut skip_value = false;
    for argument in &arguments {
        match argument.as_str() {
            _ if skip_value => skip_value = false,
            "--format" | "--color" | "--test-threads" | "-Z" => skip_value = true,
            flag if flag.starts_with('-') => (),
            filter => filters.push(filter),
        }
    }
    let chosen = |name: &str| {
        filters.is_empty()
            || filters
                .iter()
                .any(|filter| if has("--exact") { name == *filter } else { name.contains(filter) })
    };
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| chosen(name)) {
        let passed = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u8::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(101) }
}
