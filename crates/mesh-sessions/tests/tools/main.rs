//! Tools that start real processes. This program is its own guard, node and server: see `main`.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod harness;
mod room;
mod shell;

use std::process::ExitCode;

use mesh_sessions::tools::guard;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|role| role.to_str()) {
        Some("__tool") => guard::main(arguments.into_iter().skip(2)),
        Some("__node") => shell::node(arguments.get(2)),
        _ => harness::run(&[
            (
                "a_command_says_what_it_prints_and_how_it_ended",
                shell::a_command_says_what_it_prints_and_how_it_ended,
            ),
            ("a_huge_output_is_bounded_and_counted", shell::a_huge_output_is_bounded_and_counted),
            ("what_ignores_sigterm_is_killed", shell::what_ignores_sigterm_is_killed),
            ("nothing_outlives_its_call", shell::nothing_outlives_its_call),
            ("a_cancelled_command_says_what_it_has", shell::a_cancelled_command_says_what_it_has),
            ("a_dropped_call_ends_its_command", shell::a_dropped_call_ends_its_command),
            ("a_killed_node_takes_its_commands_along", shell::a_killed_node_takes_its_commands_along),
            ("a_killed_guard_takes_its_command_along", shell::a_killed_guard_takes_its_command_along),
            ("a_command_sees_no_other_variables", shell::a_command_sees_no_other_variables),
            ("a_command_shows_no_secret", shell::a_command_shows_no_secret),
            ("a_confined_command_reaches_its_workspace", shell::a_confined_command_reaches_its_workspace),
            ("a_guard_that_is_none_is_said", shell::a_guard_that_is_none_is_said),
        ]),
    }
}
