//! The `sepal` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    sepal::cni::main().unwrap_or_else(sepal::cli::main)
}
