//! The command line: what was asked for, and the way to whatever answers.

mod cleanup;
mod dry_run;
mod run;
mod setup;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::flags::RunFlags;

/// Services, endpoints and leases: one daemon per Kubernetes node in place of kube-proxy (iptables mode).
///
/// Watches Services and EndpointSlices and keeps this node's iptables rules as they should be.
#[derive(Debug, Parser)]
#[command(name = "sepal", version, args_conflicts_with_subcommands = true, max_term_width = 120)]
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
    /// Delete the rules that kube-proxy and sepal keep on this node; stop both first
    Cleanup(cleanup::CleanupFlags),
}

/// Parts of libraries that say less than usual.
const QUIET: [&str; 2] = ["kube_client=off", "kube_runtime=off"];

/// Exit status for "the rules differ".
const DIFFERENT: u8 = 2;

/// Runs what the command line asks for and says how the process should end.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to fail for help that nobody reads.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    init_logs();
    let command = cli.command.unwrap_or(Command::Run(Box::new(cli.run)));
    match block_on(&command) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn block_on(command: &Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match command {
            Command::Cleanup(flags) => cleanup::cleanup(flags).await,
            Command::Run(flags) if flags.diff => dry_run::diff(flags).await,
            Command::Run(flags) if flags.dry_run => dry_run::print(flags).await,
            Command::Run(flags) => run::run(flags).await,
        }
    });
    // A read of standard input or a slow parse may still be going on in the background; it has no say any more.
    runtime.shutdown_background();
    code
}

/// Logs go to standard error: standard output is for rules.
fn init_logs() {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .with_env_var("SEPAL_LOG")
        .from_env_lossy();
    // What the client library logs on its own comes back as an error, and is told once, by whoever asked.
    let filter = QUIET.iter().fold(filter, |filter, directive| match directive.parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    });
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).with_target(false).init();
}
