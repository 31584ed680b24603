//! A program whose log a test reads while it runs.

use std::process::{Command, Stdio};

use sepal_lab::Running;
use tempfile::NamedTempFile;

/// A running program. Its standard error goes to a file.
pub(crate) struct Logged {
    running: Running,
    file: NamedTempFile,
}

impl Logged {
    pub(crate) fn start(command: &mut Command) -> Self {
        let file = NamedTempFile::new().expect("writable");
        let output = file.reopen().expect("writable");
        Self { running: Running(command.stdin(Stdio::null()).stderr(output).spawn().expect("the program starts")), file }
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.file.path()).expect("readable")
    }

    /// Ends the program; gives its exit status and its whole log.
    pub(crate) fn terminate(self) -> (Option<i32>, String) {
        let status = self.running.terminate();
        (status, std::fs::read_to_string(self.file.path()).expect("readable"))
    }
}
