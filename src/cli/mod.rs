//! The command line: what was asked for, and the way to whatever answers.

mod arguments;
mod cleanup;
mod cleanup_pod_network;
mod cni;
mod config_watch;
mod dry_run;
mod explain;
mod flanneld;
mod logs;
mod own_node;
mod pages;
mod pod_network;
mod preflight;
mod proxy;
mod run;
mod setup;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use tokio::task::LocalSet;

use crate::config::flags::RunFlags;
use crate::config::settings::LogFormat;

use arguments::Ending;
use setup::Setup;

/// Services, endpoints and leases: one daemon per Kubernetes node in place of kube-proxy (iptables mode).
///
/// Watches Services and EndpointSlices and keeps this node's iptables rules as they should be.
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
    /// Keep this node's rules as they should be (what happens without a command, too)
    Run(Box<RunFlags>),
    /// Delete the rules that kube-proxy and sepal keep on this node, or with --pod-network what the pod network has left; stop them first
    Cleanup(cleanup::CleanupFlags),
    /// Say which way a packet goes through the rules, and why
    Explain(Box<explain::ExplainFlags>),
    /// Check what this node needs to run with these flags, and say what to do about what is missing; changes nothing
    Preflight(Box<preflight::PreflightFlags>),
    /// Print the version
    Version,
    /// Put the CNI plugin in place
    Cni(cni::CniFlags),
}

/// Exit status for "the rules differ".
const DIFFERENT: u8 = 2;

/// The name under which the program takes exactly kube-proxy's command line.
const KUBE_PROXY: &str = "kube-proxy";

/// Runs what the command line asks for and says how the process should end.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = arguments::normalized(std::env::args_os());
    let kube_proxy = name(&arguments) == KUBE_PROXY;
    if name(&arguments) == flanneld::FLANNELD {
        return flanneld();
    }
    let command = if kube_proxy { arguments::kube_proxy(&arguments).map(|flags| Command::Run(Box::new(flags))) } else { sepal(&arguments) };
    let outcome = match command {
        Err(ending) => return end(&ending),
        Ok(Command::Version) => return end(&Ending { text: arguments::own_version(), failed: false }),
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
                return end(&Ending { text, failed: false });
            }
            set_up(*flags, &[])
        }
    };
    ended(outcome)
}

/// Runs the daemon under the name of flanneld.
fn flanneld() -> ExitCode {
    match flanneld::run_flags() {
        Ok((flags, notes)) => ended(set_up(flags, &notes)),
        Err(last) => {
            let _ = anstream::stderr().write_all(last.text.as_bytes());
            ExitCode::from(last.status)
        }
    }
}

/// Resolves the flags and starts what they ask for; what was read past is logged.
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

fn ended(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        tracing::error!("{error:#}");
        ExitCode::FAILURE
    })
}

/// The name the program was called by.
fn name(arguments: &[OsString]) -> String {
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    called.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn sepal(arguments: &[OsString]) -> Result<Command, Ending> {
    let parsed = arguments::with_any_values(Cli::command())
        .mut_subcommand("run", arguments::with_any_values)
        .mut_subcommand("preflight", arguments::with_any_values)
        .mut_subcommand("explain", arguments::with_any_values)
        .try_get_matches_from(arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    match parsed {
        Ok((Cli { command: None, run }, matches)) => Ok(Command::Run(Box::new(RunFlags { typed: pages::values(&matches), ..run }))),
        Ok((Cli { command: Some(Command::Run(mut run)), .. }, matches)) => {
            run.typed = matches.subcommand().map(|(_, matches)| pages::values(matches)).unwrap_or_default();
            Ok(Command::Run(run))
        }
        Ok((Cli { command: Some(command), .. }, _)) => Ok(command),
        Err(error) => Err(Ending { text: error.render().ansi().to_string(), failed: error.use_stderr() }),
    }
}

/// Prints the last words. A closed pipe is no reason to fail for help that nobody reads.
fn end(ending: &Ending) -> ExitCode {
    let text = ending.text.as_bytes();
    if ending.failed {
        let _ = anstream::stderr().write_all(text);
        ExitCode::FAILURE
    } else {
        let _ = anstream::stdout().write_all(text);
        ExitCode::SUCCESS
    }
}

fn start(setup: Setup, flags: RunFlags) -> anyhow::Result<ExitCode> {
    for note in &setup.effective.notes {
        tracing::warn!("{note}");
    }
    if setup.effective.daemon.verbosity > 0 {
        flags.typed.iter().for_each(|(name, value)| tracing::info!("FLAG: --{name}={value:?}"));
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
            (false, false, _) => Box::pin(run::run(setup, flags)).await,
        }
    })
}

fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = LocalSet::new().block_on(&runtime, work);
    // A read of standard input or a slow parse may still be going on in the background; it has no say any more.
    runtime.shutdown_background();
    code
}
