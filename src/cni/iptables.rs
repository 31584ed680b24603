//! Reads and writes the nat table with the host's programs `iptables` and `ip6tables`, of either variant. The reference plugins use the
//! same programs, so both find and remove each other's rules.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Child, Command, Output, Stdio};

use crate::cluster::Family;

use super::error::CniError;

/// Folders that are searched for iptables after the `PATH` of the runtime.
const FALLBACK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The longest wait for the xtables lock, in seconds.
const LOCK_WAIT: &str = "20";

/// Why a transaction failed.
#[derive(Debug)]
pub enum ChangeError {
    /// A chain to create exists, because another program created it after the table was read.
    ChainExists,
    /// Every other error.
    Failed(CniError),
}

/// The nat table of a family.
#[derive(Clone, Copy, Debug)]
pub struct NatTable(pub Family);

impl NatTable {
    /// Returns the families that may have rules to remove. Without IPv6 in the kernel, that is only IPv4.
    #[must_use]
    pub fn present() -> Vec<Self> {
        let v6 = std::path::Path::new("/proc/net/if_inet6").exists();
        Family::ALL.into_iter().filter(|family| *family == Family::V4 || v6).map(Self).collect()
    }

    fn program(self, operation: &str) -> String {
        let base = match self.0 {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{base}{operation}")
    }

    /// Lists these chains at the same time, each in the format of `iptables -S`. `None` for a chain that does not exist.
    ///
    /// # Errors
    /// A chain cannot be listed.
    pub fn list<const N: usize>(self, chains: [&str; N]) -> Result<[Option<String>; N], CniError> {
        let program = self.program("");
        let start = |chain: &str| spawn(&program, &["-w", LOCK_WAIT, "-t", "nat", "-S", chain], Stdio::null());
        let children = chains.map(start);
        let mut listed = [const { None }; N];
        let mut failed = None;
        for (child, listed) in children.into_iter().zip(&mut listed) {
            match child.and_then(Child::wait_with_output) {
                Ok(output) if output.status.success() => *listed = Some(String::from_utf8_lossy(&output.stdout).into_owned()),
                Ok(output) if is_missing(&output) => {}
                Ok(output) => failed = Some(program_error(&program, &output)),
                Err(cause) => failed = Some(start_error(&program, &cause)),
            }
        }
        failed.map_or(Ok(listed), Err)
    }

    /// Lists every rule of the table.
    ///
    /// # Errors
    /// The table cannot be listed.
    pub fn all(self) -> Result<String, CniError> {
        let program = self.program("");
        let output = spawn(&program, &["-w", LOCK_WAIT, "-t", "nat", "-S"], Stdio::null()).and_then(Child::wait_with_output);
        match output {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => Err(program_error(&program, &output)),
            Err(cause) => Err(start_error(&program, &cause)),
        }
    }

    /// Applies lines of `iptables-restore`, all or none.
    ///
    /// # Errors
    /// iptables refuses a line, and nothing is changed.
    pub fn change(self, lines: &[String]) -> Result<(), ChangeError> {
        let program = self.program("-restore");
        let text = format!("*nat\n{}\nCOMMIT\n", lines.join("\n"));
        let fed = || -> io::Result<Output> {
            let mut child = spawn(&program, &["-w", LOCK_WAIT, "--noflush"], Stdio::piped())?;
            let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
            let output = child.wait_with_output()?;
            // A program that fails early does not read all lines. Its own error is reported then.
            if output.status.success() { written.map(|()| output) } else { Ok(output) }
        };
        let output = fed().map_err(|cause| ChangeError::Failed(start_error(&program, &cause)))?;
        let words = String::from_utf8_lossy(&output.stderr);
        let failed_line = words.split("line ").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        match failed_line {
            _ if output.status.success() => Ok(()),
            Some(number) if text.lines().nth(number_before(number)).is_some_and(|line: &str| line.starts_with("-N ")) => {
                Err(ChangeError::ChainExists)
            }
            _ => Err(ChangeError::Failed(program_error(&program, &output))),
        }
    }
}

const fn number_before(number: usize) -> usize {
    number.saturating_sub(1)
}

#[allow(
    clippy::disallowed_methods,
    reason = "a plugin is a process of its own that does nothing meanwhile; its runtime has the time limit"
)]
fn spawn(program: &str, arguments: &[&str], stdin: Stdio) -> io::Result<Child> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(if path.is_empty() { "" } else { ":" });
    path.push(OsString::from(FALLBACK_PATH));
    Command::new(program).args(arguments).env("PATH", path).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Returns true if the chain does not exist. iptables-nft reports such a chain as incompatible. If the whole table is incompatible, the
/// later change fails with the cause.
fn is_missing(output: &Output) -> bool {
    const WORDS: [&str; 3] = ["No chain/target/match", "does not exist", "is incompatible, use 'nft' tool"];
    let program_error = String::from_utf8_lossy(&output.stderr);
    output.status.code() == Some(1) && WORDS.iter().any(|words| program_error.contains(words))
}

fn program_error(program: &str, output: &Output) -> CniError {
    let words = String::from_utf8_lossy(&output.stderr);
    let words = if words.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { words };
    CniError::other(format!("{program} failed ({}): {}", output.status, words.trim()))
}

fn start_error(program: &str, cause: &io::Error) -> CniError {
    let cure = if cause.kind() == io::ErrorKind::NotFound { ". Install iptables on this host" } else { "" };
    CniError::other(format!("cannot run {program}: {cause}{cure}"))
}

/// Returns the match for a comment: quoted, and cut to the length that the kernel allows. Names of networks and containers need no other
/// escape, because they only have letters, digits, `_`, `.` and `-`.
#[must_use]
pub fn comment(words: &str) -> String {
    const MAX_LEN: usize = 255;
    let cut: String = words.chars().take(MAX_LEN).collect();
    format!("-m comment --comment \"{}\"", cut.replace('"', "\\\""))
}

/// Returns the name of an attachment's chain: the prefix and the start of the hash of network and container [flannel 10.5].
#[must_use]
pub(crate) fn chain_name(prefix: &str, network: &str, container: &str) -> String {
    use sha2::{Digest, Sha512};
    use std::fmt::Write as _;
    const LEN: usize = 28;
    let mut name = prefix.to_owned();
    for byte in Sha512::digest(format!("{network}{container}")) {
        let _ = write!(name, "{byte:02x}");
    }
    name.truncate(LEN);
    name
}

/// Returns the network and the container in a rule's comment, and the chain that the rule jumps to.
#[must_use]
pub(crate) fn names_of(rule: &str) -> Option<(String, String, String)> {
    let (_, rest) = rule.split_once("name: \\\"")?;
    let (network, rest) = rest.split_once("\\\" id: \\\"")?;
    let (container, rest) = rest.split_once("\\\"")?;
    let (_, chain) = rest.split_once(" -j ")?;
    Some((network.to_owned(), container.to_owned(), chain.split(' ').next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_comments_are_those_of_the_reference_plugins() {
        assert_eq!(chain_name("CNI-DN-", "cbr0", "abc123"), "CNI-DN-3e9a3d0f9583cdc0e7133");
        assert_eq!(chain_name("CNI-", "cbr0", "abc123"), "CNI-3e9a3d0f9583cdc0e7133af3");
        let comment = comment("dnat name: \"cbr0\" id: \"abc123\"");
        assert_eq!(comment, r#"-m comment --comment "dnat name: \"cbr0\" id: \"abc123\"""#);
        let rule = format!("-A CNI-HOSTPORT-DNAT -p tcp {comment} -m multiport --dports 8080 -j CNI-DN-3e9");
        assert_eq!(names_of(&rule), Some(("cbr0".into(), "abc123".into(), "CNI-DN-3e9".into())));
        assert_eq!(names_of("-A POSTROUTING -j KUBE-POSTROUTING"), None);
    }
}
