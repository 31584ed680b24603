//! iptables' nat table, as plugins write it: by the programs `iptables` and `ip6tables` of this host, whichever variant they are. The
//! real plugins use the same ones, so that rules of either can be found and removed by the other.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Child, Command, Output, Stdio};

use crate::cluster::Family;

use super::error::CniError;

/// Where iptables is, should the runtime's own PATH not say so.
const PLACES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long a program waits for the xtables lock, in seconds.
const LOCK_WAIT: &str = "20";

/// What became of a transaction.
#[derive(Debug)]
pub enum ChangeError {
    /// A chain that this call creates exists already: another program created it meanwhile.
    ChainExists,
    /// Something else.
    Failed(CniError),
}

/// A family's nat table.
#[derive(Clone, Copy, Debug)]
pub struct NatTable(pub Family);

impl NatTable {
    /// The families whose rules may have to be removed. Without IPv6 in the kernel, none are there.
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

    /// What is in these chains, each as `iptables -S` prints it; `None` for those that are not there. All are asked for at once.
    ///
    /// # Errors
    /// They cannot be listed.
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
                Ok(output) => failed = Some(said(&program, &output)),
                Err(cause) => failed = Some(unstarted(&program, &cause)),
            }
        }
        failed.map_or(Ok(listed), Err)
    }

    /// Every rule of the table.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn all(self) -> Result<String, CniError> {
        let program = self.program("");
        let output = spawn(&program, &["-w", LOCK_WAIT, "-t", "nat", "-S"], Stdio::null()).and_then(Child::wait_with_output);
        match output {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => Err(said(&program, &output)),
            Err(cause) => Err(unstarted(&program, &cause)),
        }
    }

    /// Changes the table by lines of `iptables-restore`, all of them or none.
    ///
    /// # Errors
    /// They were refused, and nothing has changed.
    pub fn change(self, lines: &[String]) -> Result<(), ChangeError> {
        let program = self.program("-restore");
        let text = format!("*nat\n{}\nCOMMIT\n", lines.join("\n"));
        let fed = || -> io::Result<Output> {
            let mut child = spawn(&program, &["-w", LOCK_WAIT, "--noflush"], Stdio::piped())?;
            let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
            let output = child.wait_with_output()?;
            // A program that fails early does not read all: then what it says matters.
            if output.status.success() { written.map(|()| output) } else { Ok(output) }
        };
        let output = fed().map_err(|cause| ChangeError::Failed(unstarted(&program, &cause)))?;
        let words = String::from_utf8_lossy(&output.stderr);
        let failed_line = words.split("line ").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        match failed_line {
            _ if output.status.success() => Ok(()),
            Some(number) if text.lines().nth(number_before(number)).is_some_and(|line: &str| line.starts_with("-N ")) => {
                Err(ChangeError::ChainExists)
            }
            _ => Err(ChangeError::Failed(said(&program, &output))),
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
    path.push(OsString::from(PLACES));
    Command::new(program).args(arguments).env("PATH", path).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Whether a chain is not there. iptables-nft calls it incompatible; where that is true of a whole table, changing it fails and says so.
fn is_missing(output: &Output) -> bool {
    const WORDS: [&str; 3] = ["No chain/target/match", "does not exist", "is incompatible, use 'nft' tool"];
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.code() == Some(1) && WORDS.iter().any(|words| said.contains(words))
}

fn said(program: &str, output: &Output) -> CniError {
    let words = String::from_utf8_lossy(&output.stderr);
    let words = if words.trim().is_empty() { String::from_utf8_lossy(&output.stdout) } else { words };
    CniError::other(format!("{program} failed ({}): {}", output.status, words.trim()))
}

fn unstarted(program: &str, cause: &io::Error) -> CniError {
    let cure = if cause.kind() == io::ErrorKind::NotFound { ". Install iptables on this host" } else { "" };
    CniError::other(format!("cannot run {program}: {cause}{cure}"))
}

/// A comment as it stands in a rule: quoted, and cut at what the kernel has room for. The names it is made of need no more care, for
/// they have letters, digits, `_`, `.` and `-` only.
#[must_use]
pub fn comment(words: &str) -> String {
    const MOST: usize = 255;
    let cut: String = words.chars().take(MOST).collect();
    format!("-m comment --comment \"{}\"", cut.replace('"', "\\\""))
}

/// The name of a chain of one attachment: the prefix, and as much of the hash of network and container as fits [flannel 10.5].
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

/// The network and the container that a rule's comment names, and the chain it jumps to.
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
    fn names_and_comments_are_the_real_plugins() {
        assert_eq!(chain_name("CNI-DN-", "cbr0", "abc123"), "CNI-DN-3e9a3d0f9583cdc0e7133");
        assert_eq!(chain_name("CNI-", "cbr0", "abc123"), "CNI-3e9a3d0f9583cdc0e7133af3");
        let comment = comment("dnat name: \"cbr0\" id: \"abc123\"");
        assert_eq!(comment, r#"-m comment --comment "dnat name: \"cbr0\" id: \"abc123\"""#);
        let rule = format!("-A CNI-HOSTPORT-DNAT -p tcp {comment} -m multiport --dports 8080 -j CNI-DN-3e9");
        assert_eq!(names_of(&rule), Some(("cbr0".into(), "abc123".into(), "CNI-DN-3e9".into())));
        assert_eq!(names_of("-A POSTROUTING -j KUBE-POSTROUTING"), None);
    }
}
