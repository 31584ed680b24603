//! The command line: reads the arguments and runs the command that they name.

mod arguments;
mod cleanup;
mod cleanup_pod_network;
mod cni;
mod dry_run;
mod explain;
mod flanneld;
mod live_rules;
mod output;
mod preflight;
mod usage_error;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::task::LocalSet;

use crate::config::flag_listing::flag_values;
use crate::config::flags::RunFlags;
use crate::config::settings::LogFormat;
use crate::daemon;
use crate::daemon::logs;
use crate::daemon::setup::Setup;
use crate::error_text::error_text;

use arguments::ExitText;

/// Services, endpoints and leases: one daemon per Kubernetes node in place of kube-proxy (iptables mode).
///
/// Watches Services and EndpointSlices, and writes the iptables rules of this node. With --pod-network also its links and routes to other nodes.
#[derive(Debug, Parser)]
#[command(name = "sepal", args_conflicts_with_subcommands = true, args_override_self = true, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: write this node's rules and follow the cluster (the same as without a command)
    Run(Box<RunFlags>),
    /// Delete the rules that kube-proxy and sepal write, or with --pod-network what the pod network leaves behind. Stop these programs first
    Cleanup(cleanup::CleanupFlags),
    /// Show the path of a packet through the rules, and why it takes it. Exit status 2 if the packet is dropped or refused
    #[command(after_help = EXPLAIN_STATUS)]
    Explain(Box<explain::ExplainFlags>),
    /// Check that this node has what these flags need, and say what to do about what is missing. Changes nothing
    #[command(after_help = PREFLIGHT_STATUS)]
    Preflight(Box<preflight::PreflightFlags>),
    /// Print the version
    Version,
    /// Install the CNI plugin
    Cni(cni::CniFlags),
}

const EXPLAIN_STATUS: &str = "Exit status: 0 if the packet passes, 2 if every such packet is dropped or refused, 1 if there is an error.";
const PREFLIGHT_STATUS: &str = "Exit status: 0 if nothing has failed, 1 if a check has failed or there is an error.";

/// The name under which the program takes kube-proxy's command line.
const KUBE_PROXY: &str = "kube-proxy";

/// Runs the command that the command line names, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = arguments::normalized(std::env::args_os());
    let kube_proxy = program_name(&arguments) == KUBE_PROXY;
    if program_name(&arguments) == flanneld::FLANNELD {
        return flanneld();
    }
    let command = if kube_proxy { arguments::kube_proxy(&arguments).map(|flags| Command::Run(Box::new(flags))) } else { sepal(&arguments) };
    let outcome = match command {
        Err(ending) => return print_and_exit(&ending),
        Ok(Command::Version) => return print_and_exit(&ExitText { text: arguments::own_version(), failed: false }),
        Ok(Command::Cleanup(flags)) => {
            logs::init(0, LogFormat::Text);
            block_on(cleanup::cleanup(&flags))
        }
        Ok(Command::Explain(flags)) => {
            logs::init(0, LogFormat::Text);
            block_on(explain::explain(*flags))
        }
        Ok(Command::Preflight(flags)) => block_on(preflight::preflight(*flags)),
        Ok(Command::Cni(flags)) => {
            logs::init(0, LogFormat::Text);
            cni::run(flags)
        }
        Ok(Command::Run(flags)) => {
            if let Some(text) = arguments::version(&flags.proxy.version, kube_proxy) {
                return print_and_exit(&ExitText { text, failed: false });
            }
            set_up(*flags, &[])
        }
    };
    exit_code(outcome)
}

/// Runs the daemon under the name of flanneld.
fn flanneld() -> ExitCode {
    match flanneld::run_flags() {
        Ok((flags, notes)) => exit_code(set_up(flags, &notes)),
        Err(exit) => {
            let _ = anstream::stderr().write_all(exit.text.as_bytes());
            ExitCode::from(exit.status)
        }
    }
}

/// Resolves the flags, starts the log, and runs what the flags say.
fn set_up(flags: RunFlags, notes: &[String]) -> anyhow::Result<ExitCode> {
    let setup = Setup::new(&flags);
    match &setup {
        Ok(setup) => logs::init(setup.effective.daemon.verbosity, setup.effective.daemon.log_format),
        Err(_) => logs::init(0, flags.proxy.logging.format()),
    }
    for note in notes {
        tracing::warn!("{note}");
    }
    start(setup?, flags)
}

/// The exit status of an outcome. Logs an error.
fn exit_code(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        tracing::error!("{}", error_text(error.as_ref()));
        ExitCode::FAILURE
    })
}

/// The name by which the program was called.
fn program_name(arguments: &[OsString]) -> String {
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    called.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Parses the command line of `sepal`.
fn sepal(arguments: &[OsString]) -> Result<Command, ExitText> {
    let parsed = arguments::with_any_values(Cli::command())
        .mut_subcommand("run", arguments::with_any_values)
        .mut_subcommand("preflight", arguments::with_any_values)
        .mut_subcommand("explain", arguments::with_any_values)
        .try_get_matches_from(arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    match parsed {
        Ok((Cli { command: None, run }, matches)) => Ok(Command::Run(Box::new(RunFlags { values: flag_values(&matches), ..run }))),
        Ok((Cli { command: Some(Command::Run(mut run)), .. }, matches)) => {
            run.values = matches.subcommand().map(|(_, matches)| flag_values(matches)).unwrap_or_default();
            Ok(Command::Run(run))
        }
        Ok((Cli { command: Some(command), .. }, _)) => Ok(command),
        Err(error) => Err(ExitText::of(&error, &Cli::command(), arguments)),
    }
}

/// Prints a text, and returns the exit status. A closed pipe is not an error.
fn print_and_exit(ending: &ExitText) -> ExitCode {
    let text = ending.text.as_bytes();
    if ending.failed {
        let _ = anstream::stderr().write_all(text);
        ExitCode::FAILURE
    } else {
        let _ = anstream::stdout().write_all(text);
        ExitCode::SUCCESS
    }
}

/// Runs the daemon, or what other flags ask for: writing the configuration, a cleanup or a dry run.
fn start(setup: Setup, flags: RunFlags) -> anyhow::Result<ExitCode> {
    for note in &setup.effective.notes {
        tracing::warn!("{note}");
    }
    if setup.effective.daemon.verbosity > 0 {
        flags.values.iter().for_each(|(name, value)| tracing::info!("FLAG: --{name}={value:?}"));
    }
    if !flags.proxy.write_config_to.is_empty() {
        setup.write_config(Path::new(&flags.proxy.write_config_to))?;
        return Ok(ExitCode::SUCCESS);
    }
    block_on(async move {
        match (flags.proxy.cleanup, flags.dry_run, flags.diff) {
            (true, _, _) => cleanup::cleanup(&cleanup::CleanupFlags::of_variant(flags.iptables_variant)).await,
            (_, true, true) => dry_run::diff(&setup, &flags).await,
            (_, true, false) => dry_run::print(&setup, &flags).await,
            (false, false, _) => Box::pin(daemon::run::run(setup, flags)).await,
        }
    })
}

fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = LocalSet::new().block_on(&runtime, work);
    // A read of standard input or a slow parse may still run in the background. Its result is not needed.
    runtime.shutdown_background();
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error text of a command line of `sepal` that is refused.
    fn refused(arguments: &str) -> String {
        let arguments: Vec<OsString> = std::iter::once("sepal").chain(arguments.split_whitespace()).map(OsString::from).collect();
        let ending = sepal(&arguments::normalized(arguments.into_iter())).expect_err("refused");
        assert!(ending.failed, "{ending:?}");
        ending.text
    }

    #[test]
    fn every_command_prints_its_error_and_then_where_its_help_is() {
        for (arguments, want) in [
            ("--bogus", "unknown flag: --bogus\nSee 'sepal --help'."),
            ("run --bogus", "unknown flag: --bogus\nSee 'sepal run --help'."),
            ("run --dry-rum", "unknown flag: --dry-rum\nDid you mean --dry-run? See 'sepal run --help'."),
            ("run -x", "unknown shorthand flag: 'x' in -x\nSee 'sepal run --help'."),
            ("run more", "unexpected argument \"more\"\nSee 'sepal run --help'."),
            (
                "--iptables-variant=x",
                "invalid argument \"x\" for \"--iptables-variant\" flag: it has to be one of auto, nft, legacy\nSee 'sepal --help'.",
            ),
            ("run --config", "flag needs an argument: --config\nSee 'sepal run --help'."),
            ("run --v=much", "invalid argument \"much\" for \"--v\" flag: it is not a whole number\nSee 'sepal run --help'."),
            ("run --diff", "missing: --dry-run\nSee 'sepal run --help'."),
            ("explain", "missing: --from <SENDER>, --to <DESTINATION>\nSee 'sepal explain --help'."),
            (
                "explain --from node --to a -o x",
                "invalid argument \"x\" for \"--output\" flag: it has to be one of text, json\nSee 'sepal explain --help'.",
            ),
            ("preflight --bogus", "unknown flag: --bogus\nSee 'sepal preflight --help'."),
            ("cleanup --bogus", "unknown flag: --bogus\nSee 'sepal cleanup --help'."),
            ("cleanup --subnet-file=/x", "missing: --pod-network\nSee 'sepal cleanup --help'."),
            ("version --bogus", "unknown flag: --bogus\nSee 'sepal version --help'."),
            ("cni", "\"sepal cni\" needs a command: install\nSee 'sepal cni --help'."),
            ("cni instal", "unknown command \"instal\" for \"sepal cni\"\nDid you mean install? See 'sepal cni --help'."),
            (
                "cni install --names=x",
                "invalid argument \"x\" for \"--names\" flag: it has to be one of flannel, bridge, host-local, portmap, loopback, sepal\nSee 'sepal cni install --help'.",
            ),
            ("explian", "unknown command \"explian\" for \"sepal\"\nDid you mean explain? See 'sepal --help'."),
        ] {
            assert_eq!(refused(arguments), format!("Error: {want}\n"), "{arguments}");
        }
        for arguments in ["--v=4 run", "--dry-run explain --from node --to 10.0.0.1:80", "help nothing"] {
            let text = refused(arguments);
            assert!(text.starts_with("Error: ") && text.lines().count() == 2 && text.contains("--help'."), "{text}");
        }
    }

    #[test]
    fn help_on_request_is_not_an_error() {
        for arguments in [&["sepal", "--help"][..], &["sepal", "run", "--help"], &["sepal", "help", "cni"]] {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            let ending = sepal(&arguments).expect_err("help");
            assert!(!ending.failed && ending.text.contains("Usage:"), "{ending:?}");
        }
    }
}
