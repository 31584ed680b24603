//! What a sync needs to know of the host; and the plan that a dry run prints.

use crate::bad_setting::BadSetting;
use crate::cluster::Family;
use crate::cluster::host_facts::HostFacts;
use crate::netlink::Host;
use crate::proxy::rules::Renderer;
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::settings::NodePortAddresses;
use crate::table::acknowledged::Acknowledged;
use crate::table::desired::{Desired, Refresh};
use crate::table::plan::{Plan, Variant};
use crate::table::planner::{self, DesiredTables};

/// The host's facts for printing rules: what is written goes before what the host says.
///
/// # Errors
/// What is written makes no sense.
pub fn described_facts(inputs: &Inputs, host: &dyn Host, random_fully: bool) -> Result<HostFacts, BadSetting> {
    match &inputs.written_facts {
        Some(written) if written.complete() => written.over(HostFacts::default()),
        Some(written) => written.over(ask(inputs, host, random_fully, false)),
        None => Ok(ask(inputs, host, random_fully, false)),
    }
}

/// The host's facts for writing rules. Here the kernel has a veto: a match that it does not have would make it refuse everything,
/// whatever is written about it. Missing nfacct counters are made, where the service proxy is ours.
///
/// # Errors
/// What is written makes no sense.
pub fn usable_facts(inputs: &Inputs, host: &dyn Host, random_fully: bool) -> Result<HostFacts, BadSetting> {
    let real = ask(inputs, host, random_fully, !inputs.without_proxy);
    let Some(written) = &inputs.written_facts else { return Ok(real) };
    let mut facts = written.over(real.clone())?;
    facts.nfacct.ct_state_invalid &= real.nfacct.ct_state_invalid;
    facts.nfacct.localhost_node_ports &= real.nfacct.localhost_node_ports;
    facts.random_fully &= real.random_fully;
    if !addresses_matter(inputs) {
        facts.addresses.clear();
    }
    Ok(facts)
}

/// Addresses come and go with every pod; rules only depend on them where NodePorts are limited to some.
fn addresses_matter(inputs: &Inputs) -> bool {
    !matches!(&inputs.settings.node_port_addresses, NodePortAddresses::Cidrs(cidrs) if cidrs.is_empty())
}

fn ask(inputs: &Inputs, host: &dyn Host, random_fully: bool, create: bool) -> HostFacts {
    let addresses = if addresses_matter(inputs) {
        host.addresses().unwrap_or_else(|error| {
            tracing::warn!("cannot list this host's addresses, so NodePorts limited to some of them answer nowhere: {error}");
            Vec::new()
        })
    } else {
        Vec::new()
    };
    HostFacts { addresses, tcp_be_liberal: host.tcp_be_liberal(), nfacct: host.counters(create), random_fully }
}

/// The plan that writes all of a family's rules into tables that hold something else, in one transaction per table; and what renders
/// them. With [`planner::dry_run_tables`] it is what a dry run prints.
#[must_use]
pub fn whole<'a>(inputs: &'a Inputs, host: &HostFacts, family: Family, held: &Acknowledged) -> (Plan, Renderer<'a>) {
    let mut desired = Desired::default();
    let counter = Renderer::new(inputs, host, family);
    desired.count(&counter, Refresh::All);
    let renderer = counter.for_size(desired.endpoints());
    let all = desired.refresh(&renderer, Refresh::All);
    let wanted = DesiredTables { services: desired.services(), fixed: &desired.fixed, spared: &[] };
    (planner::plan(&wanted, held, &all, Variant::Legacy, planner::CHAINS_PER_TRANSACTION), renderer)
}
