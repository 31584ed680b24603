//! Runs the programs `iptables`, `iptables-save` and `iptables-restore` of one variant, for both families.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::cluster::{Family, ServicePortName};
use crate::netlink::generation;
use crate::table::Table;
use crate::table::chain_names;
use crate::table::live::jumps_of;
use crate::table::plan::{Plan, Variant};
use crate::table::rules::RuleSource;

use super::lock::{self, LockWatch};
use super::runner::{IptablesError, RestoreResult, Runner};

/// The time limit of every command. On a large cluster, iptables-nft-save takes tens of seconds.
const TIMEOUT: Duration = Duration::from_secs(300);

/// How long a program waits for the xtables lock, in seconds. The same as in kube-proxy.
pub(super) const LOCK_WAIT: &str = "5";

/// The programs of one variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    variant: Variant,
    /// `-nft` or `-legacy`, or empty if only the plain names are installed.
    infix: &'static str,
}

impl Exec {
    /// Selects the programs of a variant by their full names (`iptables-nft-restore`), or by the plain names (`iptables-restore`).
    #[must_use]
    pub const fn new(variant: Variant, plain: bool) -> Self {
        let infix = match (plain, variant) {
            (true, _) => "",
            (false, Variant::Nft) => "-nft",
            (false, Variant::Legacy) => "-legacy",
        };
        Self { variant, infix }
    }

    /// Returns the name of a program. The operation is `""`, `-save` or `-restore`.
    #[must_use]
    pub fn program(&self, family: Family, operation: &str) -> String {
        let base = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{base}{}{operation}", self.infix)
    }

    /// Returns the output of `iptables-save` for one table.
    ///
    /// # Errors
    /// The program cannot be run, or fails.
    pub async fn save_table(&self, family: Family, table: &str) -> Result<String, IptablesError> {
        let program = self.program(family, "-save");
        let text = output(&program, &["-t", table]).await?;
        match text.lines().find(|line| is_incompatible(line)) {
            Some(line) => Err(IptablesError::Failed { command: program, output: line.to_owned() }),
            None => Ok(text),
        }
    }

    /// Runs `iptables-restore` with this input.
    ///
    /// # Errors
    /// The input was refused. Transactions before the refused one are applied.
    pub(super) async fn restore_text(&self, family: Family, text: &str) -> Result<(), IptablesError> {
        let line = |number: usize| text.lines().nth(number.checked_sub(1)?).map(|line| (line.to_owned(), None));
        self.restore_input(family, std::iter::once(Cow::from(text)), line).await.map(drop)
    }

    /// Runs `iptables-restore` with this input. `line` returns a line of the input and its service port, for errors.
    async fn restore_input<'t>(
        &self,
        family: Family,
        texts: impl Iterator<Item = Cow<'t, str>>,
        line: impl FnOnce(usize) -> Option<(String, Option<ServicePortName>)>,
    ) -> Result<RestoreResult, IptablesError> {
        let program = self.program(family, "-restore");
        let texts = texts.inspect(|text| tracing::trace!("input of {program}:\n{text}"));
        let RunOutput { written, output, locked } = run_with_input(&program, &["-w", LOCK_WAIT, "--noflush", "--counters"], texts).await?;
        if !output.status.success() {
            return Err(refusal(&program, &output, line));
        }
        written.map_err(|cause| IptablesError::Run { command: program, cause })?;
        Ok(RestoreResult { locked, listed: String::from_utf8_lossy(&output.stdout).into_owned() })
    }

    /// Returns the output of `iptables -S` for some chains of a table.
    async fn list(&self, family: Family, table: Table, chains: &[&str]) -> Result<String, IptablesError> {
        let table = table.as_str();
        match self.variant {
            // `iptables-nft -S` only reads the requested chain.
            Variant::Nft => {
                let program = self.program(family, "");
                let mut text = String::new();
                for chain in chains {
                    text += &output(&program, &["-t", table, "-S", chain]).await?;
                }
                Ok(text)
            }
            // `iptables -S` reads the whole table each time. iptables-restore lists all chains in one run, and without waiting for the lock.
            Variant::Legacy => {
                let program = self.program(family, "-restore");
                let lists: String = chains.iter().map(|chain| format!("-S {chain}\n")).collect();
                let input = format!("*{table}\n{lists}COMMIT\n");
                let RunOutput { output, .. } = run_with_input(&program, &["--noflush", "--test"], std::iter::once(input.into())).await?;
                if output.status.success() {
                    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
                } else {
                    Err(failure(&program, &output))
                }
            }
        }
    }

    /// Returns true if `iptables-restore` can print rules with their counters.
    pub(crate) async fn can_list(&self, family: Family) -> bool {
        let input = format!("*{}\n-v -S OUTPUT\nCOMMIT\n", Table::Nat);
        self.restore_input(family, std::iter::once(input.into()), |_| None)
            .await
            .is_ok_and(|restored| restored.listed.contains("-P OUTPUT"))
    }

    /// Calls `line` with each line of `iptables-save -c` for the table `nat`, which has counters.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn save_counted(&self, family: Family, line: &mut dyn FnMut(&str)) -> Result<(), IptablesError> {
        self.saved(family, &["-c", "-t", Table::Nat.as_str()], line).await
    }

    /// Calls `line` with each line that `iptables-save` prints.
    async fn saved(&self, family: Family, arguments: &[&str], line: &mut dyn FnMut(&str)) -> Result<(), IptablesError> {
        let program = self.program(family, "-save");
        let mut child = command(&program).args(arguments).stdin(Stdio::null()).spawn().map_err(|cause| start_error(&program, cause))?;
        let stdout = child.stdout.take();
        let mut incompatible = None;
        let mut take = |text: &str| {
            if is_incompatible(text) {
                incompatible = Some(text.to_owned());
            }
            line(text);
        };
        let work = async {
            let (read, output) = tokio::join!(each_line(stdout, &mut take), child.wait_with_output());
            output.map(|output| (read, output))
        };
        let (read, output) = timed(&program, work).await?;
        if !output.status.success() {
            return Err(failure(&program, &output));
        }
        match incompatible {
            Some(output) => Err(IptablesError::Failed { command: program, output }),
            None => read.map_err(|cause| IptablesError::Run { command: program, cause }),
        }
    }
}

impl Runner for Exec {
    fn variant(&self) -> Variant {
        self.variant
    }

    async fn save(&self, family: Family, table: Table, line: &mut dyn FnMut(&str)) -> Result<(), IptablesError> {
        self.saved(family, &["-t", table.as_str()], line).await
    }

    async fn restore(&self, family: Family, plan: &Plan, renderer: &dyn RuleSource) -> Result<RestoreResult, IptablesError> {
        self.restore_input(family, plan.texts(renderer).map(|(text, _)| text), |number| plan.line(number, renderer)).await
    }

    async fn canary(&self, family: Family) -> Option<bool> {
        // `-S` only reads one chain. iptables-nft-save reads all tables, even if it prints an almost empty one.
        let exists =
            self.variant == Variant::Nft && output(&self.program(family, ""), &["-t", "mangle", "-S", chain_names::CANARY]).await.is_ok();
        if exists {
            return Some(true);
        }
        // For a missing chain, the error of `-S` differs between versions. That of iptables-nft 1.8.9 is misleading.
        let saved = self.save_table(family, "mangle").await.ok()?;
        Some(saved.lines().any(|line| line.strip_prefix(':').is_some_and(|chain| chain.split(' ').next() == Some(chain_names::CANARY))))
    }

    async fn builtin_jumps(&self, family: Family, table: Table) -> Result<String, IptablesError> {
        let chains: BTreeSet<&str> = jumps_of(table).map(|(_, jump)| jump.from).collect();
        let chains: Vec<&str> = chains.into_iter().collect();
        let rules = self.list(family, table, &chains).await?;
        // Every built-in chain has a policy. If its line is missing, the chain was not read.
        match chains.iter().find(|chain| !rules.lines().any(|line| line.starts_with(&format!("-P {chain} ")))) {
            None => Ok(format!("*{table}\n{rules}COMMIT\n")),
            Some(chain) => {
                let output = format!("the output has no chain {chain} of table {table}: {rules}");
                Err(IptablesError::Failed { command: self.program(family, ""), output })
            }
        }
    }

    fn generation(&self) -> Option<u32> {
        (self.variant == Variant::Nft).then(generation::of_nf_tables).flatten()
    }

    async fn set_canary(&self, family: Family) -> Result<(), IptablesError> {
        let input = ["mangle", "nat", "filter"].map(|table| format!("*{table}\n:{} - [0:0]\nCOMMIT\n", chain_names::CANARY));
        self.restore_input(family, input.into_iter().map(Cow::from), |_| None).await.map(drop)
    }
}

/// Returns true for the line that iptables-save prints if another program changed the table with nft. It then prints no rules, but succeeds.
fn is_incompatible(line: &str) -> bool {
    line.starts_with('#') && line.contains("is incompatible")
}

/// The result of a program that was run with input.
pub(super) struct RunOutput {
    /// The result of writing the input.
    pub written: std::io::Result<()>,
    pub output: Output,
    /// How long the program waited for the xtables lock.
    pub locked: Duration,
}

/// Runs a program with input.
pub(super) async fn run_with_input<'t>(
    program: &str,
    arguments: &[&str],
    texts: impl Iterator<Item = Cow<'t, str>>,
) -> Result<RunOutput, IptablesError> {
    let mut child = command(program).args(arguments).stdin(Stdio::piped()).spawn().map_err(|cause| start_error(program, cause))?;
    let stdin = child.stdin.take();
    let mut watched = LockWatch::new(child.id());
    let work = async {
        // A broken pipe is not an error yet. A program that stops reading prints the reason before it ends.
        let (written, output) = tokio::join!(write_all(stdin, texts), child.wait_with_output());
        output.map(|output| (written, output))
    };
    let (written, output) = tokio::select! {
        done = timed(program, work) => done?,
        never = watched.watch() => match never {},
    };
    Ok(RunOutput { written, output, locked: watched.waited() })
}

async fn write_all<'t>(stdin: Option<ChildStdin>, texts: impl Iterator<Item = Cow<'t, str>>) -> std::io::Result<()> {
    let Some(stdin) = stdin else { return Ok(()) };
    let mut stdin = BufWriter::with_capacity(64 * 1024, stdin);
    for text in texts {
        stdin.write_all(text.as_bytes()).await?;
    }
    stdin.shutdown().await
}

async fn each_line(stdout: Option<ChildStdout>, line: &mut dyn FnMut(&str)) -> std::io::Result<()> {
    let Some(stdout) = stdout else { return Ok(()) };
    let mut stdout = BufReader::with_capacity(64 * 1024, stdout);
    let mut text = Vec::with_capacity(512);
    while stdout.read_until(b'\n', &mut text).await? > 0 {
        match std::str::from_utf8(&text) {
            Ok(text) => line(text.trim_end_matches('\n')),
            Err(_) => line(String::from_utf8_lossy(&text).trim_end_matches('\n')),
        }
        text.clear();
    }
    Ok(())
}

/// Runs a program and returns its output.
///
/// # Errors
/// The program cannot be started, fails, or takes too long.
pub(super) async fn output(program: &str, arguments: &[&str]) -> Result<String, IptablesError> {
    let child = command(program).args(arguments).stdin(Stdio::null()).spawn().map_err(|cause| start_error(program, cause))?;
    let output = timed(program, child.wait_with_output()).await?;
    if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(failure(program, &output)) }
}

#[allow(clippy::disallowed_methods, reason = "the one place that starts programs; every use is timed")]
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn timed<T>(program: &str, work: impl Future<Output = std::io::Result<T>>) -> Result<T, IptablesError> {
    let late = |_| IptablesError::Timeout { command: program.into(), seconds: TIMEOUT.as_secs() };
    tokio::time::timeout(TIMEOUT, work).await.map_err(late)?.map_err(|cause| IptablesError::Run { command: program.into(), cause })
}

fn start_error(program: &str, cause: std::io::Error) -> IptablesError {
    match cause.kind() {
        std::io::ErrorKind::NotFound => IptablesError::Missing(program.into()),
        _ => IptablesError::Run { command: program.into(), cause },
    }
}

/// Returns the output and the errors of a program in one line.
fn one_line(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Try `")).collect();
    if lines.is_empty() { output.status.to_string() } else { lines.join("; ") }
}

pub(super) fn failure(program: &str, output: &Output) -> IptablesError {
    let text = one_line(output);
    let command = program.to_owned();
    if text.contains("holding the xtables lock") {
        IptablesError::Locked { command, holder: lock::holder(), seconds: LOCK_WAIT.parse().unwrap_or_default() }
    } else if text.contains("Permission denied") || text.contains("you must be root") || text.contains("Operation not permitted") {
        IptablesError::Permission(command)
    } else {
        IptablesError::Failed { command, output: text }
    }
}

fn refusal(program: &str, output: &Output, find: impl FnOnce(usize) -> Option<(String, Option<ServicePortName>)>) -> IptablesError {
    let error = failure(program, output);
    let IptablesError::Failed { command, output } = error else { return error };
    match named_line(&output).and_then(|line| find(line).map(|found| (line, found))) {
        Some((line, (text, owner))) => IptablesError::Refused { command, line, text, owner: owner.map(Box::new), output },
        None => IptablesError::Failed { command, output },
    }
}

/// Returns the input line that an error of iptables-restore names: `line 7 failed`, `Error occurred at line: 7`, `line 7: ...`.
fn named_line(output: &str) -> Option<usize> {
    output.match_indices("line").find_map(|(at, word)| {
        let rest = output[at + word.len()..].trim_start_matches([':', ' ']);
        let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
        digits.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_in_the_errors_of_every_variant() {
        for (output, line) in [
            ("iptables-restore: line 7 failed", Some(7)),
            ("iptables-restore v1.8.9 (legacy): unknown option \"--foo\"; Error occurred at line: 12", Some(12)),
            (
                "iptables-nft-restore v1.8.9 (nf_tables):; line 3: RULE_APPEND failed (Invalid argument): rule in chain KUBE-SERVICES",
                Some(3),
            ),
            ("iptables-nft-restore: line without number", None),
            ("", None),
        ] {
            assert_eq!(named_line(output), line, "{output}");
        }
    }
}
