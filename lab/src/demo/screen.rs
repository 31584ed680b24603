//! The demo's output: titles and rows on standard output, in colour if it is a terminal.

use std::io::{self, IsTerminal, Write};

/// The result of a check.
pub(crate) struct Outcome {
    pub ok: bool,
    pub text: String,
}

impl Outcome {
    /// Returns an outcome with the first text if the check succeeded, otherwise with the second one.
    pub(crate) fn new(ok: bool, success: impl Into<String>, failure: impl Into<String>) -> Self {
        Self { ok, text: if ok { success.into() } else { failure.into() } }
    }
}

/// Prints the demo and remembers whether a row failed.
pub(crate) struct Screen {
    out: io::Stdout,
    colours: bool,
    pub all_ok: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let out = io::stdout();
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { out, colours, all_ok: true }
    }

    pub(crate) fn print_title(&mut self, text: &str) -> io::Result<()> {
        if self.colours { writeln!(self.out, "\n\x1b[1m{text}\x1b[0m") } else { writeln!(self.out, "\n{text}") }
    }

    pub(crate) fn print_line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "  {text}")
    }

    /// Prints a row: the result, the source, what is checked, the destination and the outcome.
    pub(crate) fn print_row(&mut self, [from, check, to]: [&str; 3], outcome: &Outcome) -> io::Result<()> {
        self.all_ok &= outcome.ok;
        let (sign, colour) = if outcome.ok { ("ok", 32) } else { ("FAILED", 31) };
        let sign = if self.colours { format!("\x1b[{colour}m{sign:<6}\x1b[0m") } else { format!("{sign:<6}") };
        writeln!(self.out, "  {sign} {from:<18} {check:<36} {to:<26} {}", outcome.text)
    }
}
