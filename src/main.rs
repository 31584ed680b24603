//! The `sepal` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    sepal::cli::main()
}
