//! `sepal preflight`: checks what `sepal run` with the same flags would need, and prints the results. It changes nothing: rules and links are
//! tried in a network namespace of their own. (Listing a table with iptables-nft creates its built-in chains. This is true for every program.)

mod cluster;
mod host;
mod processes;
mod rules;
mod run_setup;

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::config::flags::RunFlags;
use crate::error_text::error_text;
use crate::preflight::{Check, CheckGroup, passed, print};

use crate::daemon::network_setup::NetworkSetup;
use crate::daemon::setup::Setup;

use super::output::{self, OutputFormat};
use run_setup::RunSetup;

/// The flags of `sepal preflight`: the flags of the run that is checked, and the format of the output.
#[derive(Args, Clone, Debug)]
pub(super) struct PreflightFlags {
    /// Format of the output
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    run: RunFlags,
}

/// Runs all checks and prints them. The exit status is 1 if one has failed.
pub(super) async fn preflight(PreflightFlags { output: format, run: flags }: PreflightFlags) -> anyhow::Result<ExitCode> {
    let checks = checks(&flags).await;
    let text = match format {
        OutputFormat::Text => print::text(&checks),
        OutputFormat::Json => format!("{:#}\n", print::json(&checks)),
    };
    output::print(&text).context("cannot print the results")?;
    Ok(if passed(&checks) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn checks(flags: &RunFlags) -> Vec<Check> {
    let failed = |error: anyhow::Error| vec![Check::failed(CheckGroup::Configuration, "flags and files", error_text(error.as_ref()), "")];
    let setup = match Setup::new(flags) {
        Ok(setup) => setup,
        Err(error) => return failed(error),
    };
    let (network, conf_error) = match NetworkSetup::new_or_shipped(flags) {
        Ok(found) => found,
        Err(error) => return failed(error),
    };
    let run = RunSetup { flags, setup, network, conf_error };
    let mut checks = configuration(&run);
    let answers = cluster::read(&run).await;
    checks.extend(rules::checks(&run).await);
    checks.extend(host::kernel(&run, answers.node.as_ref()));
    checks.extend(host::node(&run));
    checks.extend(answers.checks);
    checks.extend(host::pod_network(&run, answers.node.as_ref()));
    checks
}

/// Checks the flags and files.
fn configuration(run: &RunSetup<'_>) -> Vec<Check> {
    let notes = run.setup.effective.notes.iter().map(|note| Check::warning(CheckGroup::Configuration, "read past", note, ""));
    let what = match (run.flags.network.proxy, &run.network) {
        (true, None) => "service proxy",
        (true, Some(_)) => "service proxy and pod network",
        (false, Some(_)) => "pod network",
        (false, None) => {
            let found = "--proxy=false without --pod-network leaves nothing to do";
            return vec![Check::failed(CheckGroup::Configuration, "flags and files", found, "")];
        }
    };
    let name = "flags and files";
    let judged = match &run.conf_error {
        None => Check::ok(CheckGroup::Configuration, name, format!("make sense, for: {what}")),
        Some(error) => {
            let others = "the other checks take flannel's default: IPv4, VXLAN with VNI 1 on UDP port 8472";
            Check::failed(CheckGroup::Configuration, name, format!("{}; {others}", error_text(error.as_ref())), "")
        }
    };
    std::iter::once(judged).chain(notes).collect()
}
