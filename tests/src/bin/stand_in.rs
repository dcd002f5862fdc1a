//! Stands in for llama-server: what it says follows from the request alone, and it goes on behind what was said.

use std::process::ExitCode;

fn main() -> ExitCode {
    match qmt_tests::stand_in::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
