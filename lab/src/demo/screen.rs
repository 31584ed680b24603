//! Standard output, in colours where it is a terminal.

use std::io::{self, IsTerminal, Write};

/// What came of a try.
pub(crate) struct Seen {
    pub good: bool,
    pub what: String,
}

impl Seen {
    pub(crate) fn of(good: bool, as_wanted: impl Into<String>, otherwise: impl Into<String>) -> Self {
        Self { good, what: if good { as_wanted.into() } else { otherwise.into() } }
    }
}

/// Where the demo is shown. It keeps in mind whether all went well.
pub(crate) struct Screen {
    out: io::Stdout,
    colours: bool,
    pub all_good: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let out = io::stdout();
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { out, colours, all_good: true }
    }

    pub(crate) fn title(&mut self, text: &str) -> io::Result<()> {
        if self.colours { writeln!(self.out, "\n\x1b[1m{text}\x1b[0m") } else { writeln!(self.out, "\n{text}") }
    }

    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "  {text}")
    }

    /// One line of a table: whether it is as it should be, who, what, to where, and what happened.
    pub(crate) fn row(&mut self, [from, kind, to]: [&str; 3], seen: &Seen) -> io::Result<()> {
        self.all_good &= seen.good;
        let (sign, colour) = if seen.good { ("ok", 32) } else { ("FAILED", 31) };
        let sign = if self.colours { format!("\x1b[{colour}m{sign:<6}\x1b[0m") } else { format!("{sign:<6}") };
        writeln!(self.out, "  {sign} {from:<18} {kind:<36} {to:<26} {}", seen.what)
    }
}
