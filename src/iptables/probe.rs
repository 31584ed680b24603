//! Tests whether iptables and the kernel accept rules, without keeping them.

use std::borrow::Cow;

use crate::cluster::Family;

use super::exec::{Exec, LOCK_WAIT, RunOutput, failure, run_with_input};
use super::runner::IptablesError;

impl Exec {
    /// Runs `iptables-restore` with this input in the network namespace of the calling thread, which the caller deletes afterwards. With
    /// `parse_only`, iptables only parses the input.
    ///
    /// # Errors
    /// The input was refused.
    pub(crate) async fn try_rules(&self, family: Family, text: &str, parse_only: bool) -> Result<(), IptablesError> {
        let program = self.program(family, "-restore");
        let arguments = ["-w", LOCK_WAIT, "--noflush", "--test"];
        let arguments = if parse_only { &arguments[..] } else { &arguments[..3] };
        let RunOutput { written, output, .. } = run_with_input(&program, arguments, std::iter::once(Cow::from(text))).await?;
        if !output.status.success() {
            return Err(failure(&program, &output));
        }
        written.map_err(|cause| IptablesError::Run { command: program, cause })
    }
}
