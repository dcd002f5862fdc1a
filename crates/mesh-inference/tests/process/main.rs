//! Supervision with real processes. This program is its own guard, fake llama-server and node: see `main`.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod fake;
mod harness;
mod hostile;
mod kills;
mod leases;
mod llama;
mod real;
mod restarts;
mod split;
mod survive;

use std::process::ExitCode;

use mesh_inference::instance::guard;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|role| role.to_str()) {
        Some("__child") => guard::main(arguments.into_iter().skip(2)),
        Some("__fake") => fake::main(),
        Some("__rpc") => fake::rpc_server(),
        Some("__node") => kills::node(),
        _ => harness::run(&[
            ("becomes_ready_and_stops_without_a_trace", restarts::becomes_ready_and_stops_without_a_trace),
            ("a_slow_server_shows_that_it_loads", restarts::a_slow_server_shows_that_it_loads),
            ("a_crash_is_followed_by_a_new_start", restarts::a_crash_is_followed_by_a_new_start),
            ("gives_up_with_the_last_words", restarts::gives_up_with_the_last_words),
            ("an_illegal_instruction_names_the_mend", restarts::an_illegal_instruction_names_the_mend),
            ("a_server_that_never_answers_is_ended", restarts::a_server_that_never_answers_is_ended),
            ("a_stolen_port_is_never_taken_for_ours", restarts::a_stolen_port_is_never_taken_for_ours),
            ("a_server_that_ignores_sigterm_is_killed", restarts::a_server_that_ignores_sigterm_is_killed),
            ("a_missing_program_says_so", restarts::a_missing_program_says_so),
            ("the_key_is_on_no_command_line", restarts::the_key_is_on_no_command_line),
            ("dropping_an_instance_ends_its_server", restarts::dropping_an_instance_ends_its_server),
            ("a_killed_server_comes_back", kills::a_killed_server_comes_back),
            ("a_halted_server_is_replaced", kills::a_halted_server_is_replaced),
            ("a_server_that_computes_no_more_is_replaced", kills::a_server_that_computes_no_more_is_replaced),
            ("a_killed_guard_takes_its_server_along", kills::a_killed_guard_takes_its_server_along),
            ("a_killed_node_takes_guard_and_server_along", kills::a_killed_node_takes_guard_and_server_along),
            (
                "node_and_guard_killed_at_once_leave_nothing",
                kills::node_and_guard_killed_at_once_leave_nothing,
            ),
            (
                "the_sweep_ends_what_was_left_and_nothing_else",
                kills::the_sweep_ends_what_was_left_and_nothing_else,
            ),
            ("the_sweep_spares_a_living_nodes_children", kills::the_sweep_spares_a_living_nodes_children),
            (
                "hostile_frames_cost_a_host_its_own_lease_at_most",
                hostile::hostile_frames_cost_a_host_its_own_lease_at_most,
            ),
            (
                "a_stolen_port_of_an_rpc_server_is_passed_over",
                leases::a_stolen_port_of_an_rpc_server_is_passed_over,
            ),
            ("a_lease_lends_and_gives_back", leases::a_lease_lends_and_gives_back),
            ("of_two_hosts_the_higher_epoch_has_it", leases::of_two_hosts_the_higher_epoch_has_it),
            ("refusals_say_why", leases::refusals_say_why),
            ("a_killed_rpc_server_ends_its_lease", leases::a_killed_rpc_server_ends_its_lease),
            ("a_halted_rpc_server_ends_its_lease", leases::a_halted_rpc_server_ends_its_lease),
            ("a_lost_link_ends_the_lease_on_both_sides", leases::a_lost_link_ends_the_lease_on_both_sides),
            ("a_host_that_falls_silent_loses_its_lease", leases::a_host_that_falls_silent_loses_its_lease),
            ("the_real_server_answers_and_goes", real::the_real_server_answers_and_goes),
            (
                "a_split_over_two_nodes_answers_until_a_share_is_lost",
                real::a_split_over_two_nodes_answers_until_a_share_is_lost,
            ),
            ("the_real_server_comes_back_after_a_kill", real::the_real_server_comes_back_after_a_kill),
            (
                "a_split_answers_the_same_through_tunnels_and_moves_no_weights",
                split::a_split_answers_the_same_through_tunnels_and_moves_no_weights,
            ),
            ("an_answer_goes_on_after_a_kill", survive::an_answer_goes_on_after_a_kill),
        ]),
    }
}
