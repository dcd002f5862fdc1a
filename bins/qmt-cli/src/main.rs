//! The QMT mesh command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    qmt_cli::main()
}
