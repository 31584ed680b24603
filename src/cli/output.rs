//! The output of commands: its formats, and writing it to standard output.

use std::io::{self, ErrorKind, Write};

use clap::ValueEnum;

/// Values of `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// Text for people
    #[default]
    Text,
    /// JSON for programs
    Json,
}

/// Prints a text. A reader that closes the pipe early is not an error.
pub(super) fn print(text: &str) -> io::Result<()> {
    match anstream::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed,
    }
}
