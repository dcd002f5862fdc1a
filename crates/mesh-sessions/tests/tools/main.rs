//! Tools that start real processes. This program is its own guard, node and server: see `main`.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod harness;
mod mcp;
mod mcp_server;
mod mcp_web;
mod room;
mod shell;

use std::process::ExitCode;

use mesh_sessions::tools::guard;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|role| role.to_str()) {
        Some("__tool") => guard::main(arguments.into_iter().skip(2)),
        Some("__node") => shell::node(arguments.get(2)),
        Some("__mcp") => {
            mcp_server::main(arguments.get(2).and_then(|mode| mode.to_str()).unwrap_or_default())
        }
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
            ("the_tools_of_a_server_are_used", mcp::the_tools_of_a_server_are_used),
            ("changed_tools_are_seen", mcp::changed_tools_are_seen),
            ("a_server_that_dies_is_started_again", mcp::a_server_that_dies_is_started_again),
            ("a_server_that_never_was_one_is_said", mcp::a_server_that_never_was_one_is_said),
            ("a_server_that_floods_still_answers", mcp::a_server_that_floods_still_answers),
            ("an_endless_list_is_cut", mcp::an_endless_list_is_cut),
            ("a_call_that_hangs_ends", mcp::a_call_that_hangs_ends),
            ("a_server_at_an_address_is_used", mcp::a_server_at_an_address_is_used),
            ("a_bad_server_at_an_address_is_said", mcp::a_bad_server_at_an_address_is_said),
            ("the_last_handle_takes_its_server_along", mcp::the_last_handle_takes_its_server_along),
        ]),
    }
}
