//! `--dry-run`: prints the rules as text. With `--diff`, prints how they differ from the live rules.

use std::io::{self, BufWriter};
use std::process::ExitCode;

use anyhow::Context;

use crate::cluster::Family;
use crate::config::flags::{RunFlags, VariantFlag};
use crate::daemon::setup::Setup;
use crate::iptables::record::Recorder;
use crate::iptables::{IptablesError, Runner, detect};
use crate::netlink::Kernel;
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::sync::facts::{described_facts, whole};
use crate::table::by_service::{ByService, by_service};
use crate::table::diff;
use crate::table::parse::Tables;
use crate::table::plan::Variant;
use crate::table::planner;

use super::live_rules::saved_tables;
use super::output;

/// Exit status for "the rules differ".
const DIFFERENT: u8 = 2;

/// Prints the input of iptables-restore, family by family.
pub(super) async fn print(setup: &Setup, flags: &RunFlags) -> anyhow::Result<ExitCode> {
    let inputs = setup.read_inputs(flags).await?;
    warn_if_incomplete(&inputs);
    let host = described_facts(&inputs, &Kernel, random_fully(&inputs, flags.iptables_variant).await)?;
    let runner = Recorder::new(Variant::Legacy, BufWriter::with_capacity(1 << 16, io::stdout().lock()));
    for &family in &setup.families {
        let printed = match runner.note(&format!("# {family}\n")) {
            Ok(()) => {
                let (plan, renderer) = whole(&inputs, &host, family, &planner::dry_run_tables());
                runner.restore(family, &plan, &renderer).await
            }
            Err(error) => Err(error),
        };
        match printed {
            // The reader has closed the pipe, which is not an error.
            Err(IptablesError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => break,
            printed => drop(printed?),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the differences between the live tables and the desired ones, and the Services that they concern. The exit status is 2 if there
/// are any.
pub(super) async fn diff(setup: &Setup, flags: &RunFlags) -> anyhow::Result<ExitCode> {
    let inputs = setup.read_inputs(flags).await?;
    warn_if_incomplete(&inputs);
    let found = detect::find(flags.iptables_variant.variant()).await?;
    tracing::info!("comparing with iptables {} ({}): {}", found.variant, found.version, found.reason);
    let host = described_facts(&inputs, &Kernel, found.random_fully())?;
    let since = match &flags.since {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("cannot read --since {}", path.display()))?),
        None => None,
    };
    let mut same = true;
    let mut text = String::new();
    let mut services = ByService::default();
    for &family in &setup.families {
        let saved = saved_tables(&found.exec, family).await?;
        let (plan, renderer) = whole(&inputs, &host, family, &planner::dry_run_tables());
        let desired_text = plan.text(&renderer);
        let (mut live, mut desired) = (Tables::default(), Tables::default());
        live.read(&saved);
        desired.read(&desired_text);
        let applied = since.as_deref().map(|text| {
            let mut applied = Tables::default();
            applied.read(of_family(text, family));
            applied
        });
        services.join(by_service(&desired, &live, applied.as_ref()));
        let difference = diff::unified(&desired, &live);
        same &= difference.is_empty();
        text.extend(["# ", family.as_str(), "\n", &difference]);
    }
    if !same || since.is_some() {
        text += &services.to_string();
    }
    output::print(&text)?;
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

/// The part of a dry run's output for one family.
fn of_family(text: &str, family: Family) -> &str {
    let start = text.find(&format!("# {family}\n")).unwrap_or(text.len());
    let text = &text[start..];
    let end = text.find(&format!("# {}\n", family.other())).unwrap_or(text.len());
    &text[..end]
}

fn warn_if_incomplete(inputs: &Inputs) {
    if let Some(missing) = inputs.missing() {
        tracing::warn!("{missing}");
    }
}

/// True if this host's iptables supports `--random-fully`. Without iptables, the rules are printed for a recent version.
async fn random_fully(inputs: &Inputs, variant: VariantFlag) -> bool {
    let in_manifests = inputs.written_facts.as_ref().is_some_and(|written| written.no_random_fully.is_some());
    if in_manifests {
        return true;
    }
    if let Some(version) = detect::version(variant.variant()).await {
        detect::random_fully(&version)
    } else {
        tracing::info!("there is no iptables here, so its version is taken to be 1.6.2 or later");
        true
    }
}
