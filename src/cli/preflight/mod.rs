//! `sepal preflight`: takes the readings of what `sepal run` with the same flags would need, and prints what they mean. Changes nothing: what
//! has to be tried is tried in a network namespace of its own. (Listing tables of iptables-nft makes their built-in chains, whoever does it.)

mod cluster;
mod host;
mod processes;
mod rules;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::config::flags::RunFlags;
use crate::error_text::error_text;
use crate::preflight::node::Roles;
use crate::preflight::{Check, CheckGroup, passed, print};

use crate::daemon::pod_network::PodNetwork;
use crate::daemon::setup::Setup;

/// What `sepal preflight` takes: what is to be run, and how to say what was found.
#[derive(Args, Clone, Debug)]
pub(super) struct PreflightFlags {
    /// Format of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    run: RunFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text for people
    Text,
    /// JSON for programs
    Json,
}

/// What is to be run.
struct Asked<'a> {
    flags: &'a RunFlags,
    setup: Setup,
    network: Option<PodNetwork>,
    /// Why net-conf.json cannot be used; the network is the one that flannel ships then.
    no_conf: Option<anyhow::Error>,
}

impl Asked<'_> {
    const fn roles(&self) -> Roles {
        Roles { proxy: self.flags.network.proxy, pod_network: self.network.is_some() }
    }
}

/// Checks everything. The exit status is 1 if something has failed.
pub(super) async fn preflight(PreflightFlags { output, run: flags }: PreflightFlags) -> anyhow::Result<ExitCode> {
    let checks = checks(&flags).await;
    let text = match output {
        Output::Text => print::text(&checks),
        Output::Json => format!("{:#}\n", print::json(&checks)),
    };
    anstream::stdout().write_all(text.as_bytes()).context("cannot print what was found")?;
    Ok(if passed(&checks) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn checks(flags: &RunFlags) -> Vec<Check> {
    let wrong = |error: anyhow::Error| vec![Check::failed(CheckGroup::Configuration, "flags and files", error_text(error.as_ref()), "")];
    let setup = match Setup::new(flags) {
        Ok(setup) => setup,
        Err(error) => return wrong(error),
    };
    let (network, no_conf) = match PodNetwork::asked_or_shipped(flags) {
        Ok(found) => found,
        Err(error) => return wrong(error),
    };
    let asked = Asked { flags, setup, network, no_conf };
    let mut checks = asked.configuration();
    let node = cluster::read(&asked).await;
    checks.extend(rules::checks(&asked).await);
    checks.extend(host::kernel(&asked, node.node.as_ref()));
    checks.extend(host::node(&asked));
    checks.extend(node.checks);
    checks.extend(host::pod_network(&asked, node.node.as_ref()));
    checks
}

impl Asked<'_> {
    fn configuration(&self) -> Vec<Check> {
        let notes = self.setup.effective.notes.iter().map(|note| Check::warning(CheckGroup::Configuration, "read past", note, ""));
        let what = match (self.flags.network.proxy, &self.network) {
            (true, None) => "service proxy",
            (true, Some(_)) => "service proxy and pod network",
            (false, Some(_)) => "pod network",
            (false, None) => {
                let found = "--proxy=false without --pod-network leaves nothing to do";
                return vec![Check::failed(CheckGroup::Configuration, "flags and files", found, "")];
            }
        };
        let name = "flags and files";
        let judged = match &self.no_conf {
            None => Check::ok(CheckGroup::Configuration, name, format!("make sense, for: {what}")),
            Some(error) => {
                let others = "the other checks take flannel's default: IPv4, VXLAN with VNI 1 on UDP port 8472";
                Check::failed(CheckGroup::Configuration, name, format!("{}; {others}", error_text(error.as_ref())), "")
            }
        };
        std::iter::once(judged).chain(notes).collect()
    }
}
