//! One full sync of one family: rules from inputs, a plan against what is live, and the plan carried out.

use std::time::{Duration, Instant};

use crate::cluster::Family;
use crate::config::kubeproxy::BadSetting;
use crate::config::settings::HostFacts;
use crate::iptables::{IptablesError, Runner};
use crate::netlink::Host;
use crate::rules;
use crate::rules::inputs::Inputs;
use crate::table::parse::Tables;
use crate::table::plan::Plan;

/// What a sync did, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Service ports of the family.
    pub service_ports: usize,
    /// Chains that belong to them.
    pub chains: usize,
    /// Transactions made.
    pub transactions: usize,
    /// Time for all of it.
    pub took: Duration,
}

/// The host's facts for printing rules: what is written goes before what the host says.
///
/// # Errors
/// What is written makes no sense.
pub fn described_facts(inputs: &Inputs, host: &impl Host, random_fully: bool) -> Result<HostFacts, BadSetting> {
    match &inputs.written_facts {
        Some(written) if written.complete() => written.over(HostFacts::default()),
        Some(written) => written.over(ask(host, random_fully, false)),
        None => Ok(ask(host, random_fully, false)),
    }
}

/// The host's facts for writing rules. Here the kernel has a veto: a match that it does not have would make it refuse everything,
/// whatever is written about it. Missing nfacct counters are made.
///
/// # Errors
/// What is written makes no sense.
pub fn usable_facts(inputs: &Inputs, host: &impl Host, random_fully: bool) -> Result<HostFacts, BadSetting> {
    let real = ask(host, random_fully, true);
    let Some(written) = &inputs.written_facts else { return Ok(real) };
    let mut facts = written.over(real.clone())?;
    facts.nfacct.ct_state_invalid &= real.nfacct.ct_state_invalid;
    facts.nfacct.localhost_node_ports &= real.nfacct.localhost_node_ports;
    facts.random_fully &= real.random_fully;
    Ok(facts)
}

fn ask(host: &impl Host, random_fully: bool, create: bool) -> HostFacts {
    HostFacts {
        addresses: host.addresses().unwrap_or_else(|error| {
            tracing::warn!("cannot list this host's addresses, so NodePorts limited to some of them answer nowhere: {error}");
            Vec::new()
        }),
        tcp_be_liberal: host.tcp_be_liberal(),
        nfacct: host.counters(create),
        random_fully,
    }
}

/// Makes a family's rules what they should be. A dry run is this, with a runner that only prints.
///
/// # Errors
/// The live tables cannot be read, or the plan cannot be carried out.
pub async fn sync(runner: &impl Runner, inputs: &Inputs, host: &HostFacts, family: Family) -> Result<Synced, IptablesError> {
    let start = Instant::now();
    let rules = rules::compute(inputs, host, family);
    let saved = runner.save(family).await?;
    let live = saved.as_deref().map(|text| {
        let mut tables = Tables::default();
        tables.read(text);
        tables
    });
    let plan = Plan::full(&rules, live.as_ref(), runner.variant());
    runner.restore(family, &plan).await?;
    Ok(Synced {
        service_ports: rules.services.len(),
        chains: rules.services.iter().map(|service| service.chains().len()).sum(),
        transactions: plan.transactions.len(),
        took: start.elapsed(),
    })
}
