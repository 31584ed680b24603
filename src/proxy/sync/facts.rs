//! Reads the facts of the host that rules depend on, and computes the plan that a dry run prints.

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

/// Returns the host's facts for printing rules. Facts that a file states override those of the host.
///
/// # Errors
/// A stated fact is invalid.
pub fn described_facts(inputs: &Inputs, host: &dyn Host, random_fully: bool) -> Result<HostFacts, BadSetting> {
    match &inputs.written_facts {
        Some(written) if written.complete() => written.over(HostFacts::default()),
        Some(written) => written.over(read_facts(inputs, host, random_fully, false)),
        None => Ok(read_facts(inputs, host, random_fully, false)),
    }
}

/// Returns the host's facts for writing rules. A stated feature is only used if the kernel has it, because the kernel refuses all rules of a
/// transaction with an unknown match. Missing nfacct counters are created if sepal is the service proxy.
///
/// # Errors
/// A stated fact is invalid.
pub(crate) fn usable_facts(inputs: &Inputs, host: &dyn Host, random_fully: bool) -> Result<HostFacts, BadSetting> {
    let real = read_facts(inputs, host, random_fully, !inputs.without_proxy);
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

/// Returns true if rules depend on the host's addresses: only if NodePorts are limited to some addresses. Otherwise the facts contain no
/// addresses, because these change with every pod.
fn addresses_matter(inputs: &Inputs) -> bool {
    !matches!(&inputs.settings.node_port_addresses, NodePortAddresses::Cidrs(cidrs) if cidrs.is_empty())
}

fn read_facts(inputs: &Inputs, host: &dyn Host, random_fully: bool, create: bool) -> HostFacts {
    let addresses = if addresses_matter(inputs) {
        host.addresses().unwrap_or_else(|error| {
            tracing::warn!("cannot list this host's addresses, so NodePorts that are limited to some addresses answer on none: {error}");
            Vec::new()
        })
    } else {
        Vec::new()
    };
    HostFacts { addresses, tcp_be_liberal: host.tcp_be_liberal(), nfacct: host.counters(create), random_fully }
}

/// Returns the plan that writes all rules of a family in one transaction per table, and the renderer of the rules. A dry run prints it with
/// [`planner::dry_run_tables`].
#[must_use]
pub fn whole<'a>(inputs: &'a Inputs, host: &HostFacts, family: Family, acknowledged: &Acknowledged) -> (Plan, Renderer<'a>) {
    let mut desired = Desired::default();
    let counter = Renderer::new(inputs, host, family);
    desired.count(&counter, Refresh::All);
    let renderer = counter.for_size(desired.endpoints());
    let all = desired.refresh(&renderer, Refresh::All);
    let tables = DesiredTables { services: desired.services(), fixed: &desired.fixed, spared: &[] };
    (planner::plan(&tables, acknowledged, &all, Variant::Legacy, planner::CHAINS_PER_TRANSACTION), renderer)
}
