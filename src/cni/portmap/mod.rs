//! The plugin `portmap`: maps ports of the host to containers with iptables [flannel 10.5].

mod config;
mod flows;
mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::cluster::Family;
use crate::netlink::device;
use crate::netlink::socket::Connection;

use super::error::{CniError, CniErrors, ErrorCode};
use super::iptables::{ChangeError, NatTable, names_of};
use super::netns::lock_own;
use super::network_config::NetworkConfig;
use super::request::{CniRequest, Verb};
use super::result::CniResult;
use super::used_addresses;
use config::PortmapConfig;
use rules::{ContainerRules, DNAT, LiveChains, MASQUERADE, OtherContainer, SET_MARK, chain_of};

/// How often the rules are written again if another program creates the same chains meanwhile.
const TRIES: u32 = 5;

/// Runs a verb.
///
/// # Errors
/// The verb fails.
pub fn run(config: &NetworkConfig, request: &CniRequest) -> Result<Option<CniResult>, CniError> {
    match request.verb {
        Verb::Add => {
            let result = previous(config)?;
            add(config, request, &result)?;
            Ok(Some(result))
        }
        Verb::Del => del(config, request).map(|()| None),
        Verb::Check => check(config, request, &previous(config)?).map(|()| None),
        Verb::Gc => collect(config).map(|()| None),
        Verb::Status => PortmapConfig::read(config).map(|_| None),
        Verb::Version => Ok(None),
    }
}

fn previous(config: &NetworkConfig) -> Result<CniResult, CniError> {
    config.previous()?.ok_or_else(|| CniError::new(ErrorCode::BAD_CONFIG, "must be called as chained plugin"))
}

/// Maps the host ports that the runtime requests to a container. Does nothing without port mappings.
///
/// # Errors
/// The rules cannot be written, or another container has one of the ports. Then no port is mapped.
pub fn add(config: &NetworkConfig, request: &CniRequest, result: &CniResult) -> Result<(), CniError> {
    let portmap = PortmapConfig::read(config)?;
    if portmap.mappings.is_empty() {
        return Ok(());
    }
    make(&portmap, config, request, result).map_err(|error| error.and(remove(&config.name, &request.attachment.container)))
}

fn make(portmap: &PortmapConfig, config: &NetworkConfig, request: &CniRequest, result: &CniResult) -> Result<(), CniError> {
    for family in Family::ALL {
        let Some(address) = result.address_of(&request.attachment.interface, family == Family::V4) else { continue };
        if portmap.snat && family == Family::V4 {
            route_loopback(address.ip())?;
        }
        let rules = rules::rules(portmap, &config.name, &request.attachment.container, address);
        make_rules(NatTable(family), portmap, &rules, address.ip())?;
        flows::forget(family, &portmap.mappings)?;
    }
    Ok(())
}

/// Lets the kernel route packets from loopback addresses to the container.
fn route_loopback(ip: IpAddr) -> Result<(), CniError> {
    let find = || {
        let mut connection = Connection::route()?;
        let outgoing = device::outgoing_link(&mut connection, ip)?;
        let all = device::all(&mut connection)?;
        Ok(all.into_iter().find(|device| Some(device.link.index) == outgoing).map(|device| device.link.name))
    };
    let found: Result<_, crate::netlink::Cause> = find();
    let name = found.map_err(|cause| CniError::other(format!("cannot find the route to {ip}: {cause}")))?;
    let Some(name) = name else { return Err(CniError::other(format!("cannot find the route to {ip}"))) };
    crate::cni::netns::set_sysctl(&format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"), "1")
}

fn present(nat: NatTable) -> Result<LiveChains, CniError> {
    let [prerouting, output, postrouting, dnat, masquerade, set_mark] =
        nat.list(["PREROUTING", "OUTPUT", "POSTROUTING", DNAT, MASQUERADE, SET_MARK])?;
    let [prerouting, output, postrouting] = [prerouting, output, postrouting].map(Option::unwrap_or_default);
    Ok(LiveChains { prerouting, output, postrouting, dnat, masquerade, set_mark })
}

fn locked() -> Result<std::fs::File, CniError> {
    lock_own().map_err(|cause| CniError::other(format!("cannot lock the rules of this network namespace: {cause}")))
}

fn make_rules(nat: NatTable, portmap: &PortmapConfig, rules: &ContainerRules, own: IpAddr) -> Result<(), CniError> {
    let _lock = locked()?;
    let mut tries = 1;
    loop {
        let present = present(nat)?;
        let stale = other_containers(nat, portmap, rules, &present, own)?;
        let mut lines: Vec<String> =
            stale.iter().flat_map(|other| rules::removal(present.dnat.as_deref().unwrap_or_default(), &other.chain)).collect();
        lines.extend(rules::additions(portmap, rules, &present));
        match nat.change(&lines) {
            Err(ChangeError::ChainExists) if tries < TRIES => tries += 1,
            Err(ChangeError::ChainExists) => {
                return Err(CniError::other("another program changed the rules during each attempt to write them"));
            }
            Err(ChangeError::Failed(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
}

/// Finds containers that already have one of the ports. A deleted container whose rules were left behind can lose them: its address now
/// belongs to this container, or to none.
fn other_containers(
    nat: NatTable,
    portmap: &PortmapConfig,
    rules: &ContainerRules,
    present: &LiveChains,
    own: IpAddr,
) -> Result<Vec<OtherContainer>, CniError> {
    let mut stale = Vec::new();
    let mut known = None;
    for other in rules::suspects(&portmap.mappings, present.dnat.as_deref().unwrap_or_default(), &rules.chain) {
        let [listed] = nat.list([&other.chain])?;
        let Some((mapping, target)) = rules::conflict(&portmap.mappings, &listed.unwrap_or_default()) else { continue };
        let gone = target == own || {
            let used_addresses: BTreeSet<IpAddr> = known.take().map_or_else(used_addresses::addresses, Ok)?;
            let gone = !used_addresses.contains(&target);
            known = Some(used_addresses);
            gone
        };
        if !gone {
            let OtherContainer { network, container, .. } = other;
            return Err(CniError::other(format!(
                "host port {mapping} is taken by container {container} of network {network:?} ({target})"
            )));
        }
        stale.push(other);
    }
    Ok(stale)
}

/// Removes the port mappings of a container. Does nothing without port mappings.
///
/// # Errors
/// A rule cannot be removed.
pub fn del(config: &NetworkConfig, request: &CniRequest) -> Result<(), CniError> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Named {
        runtime_config: Ports,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Ports {
        port_mappings: Vec<Value>,
    }
    // The chain is removed even if the rest of the configuration is invalid now.
    if config.parse::<Named>().unwrap_or_default().runtime_config.port_mappings.is_empty() {
        return Ok(());
    }
    remove(&config.name, &request.attachment.container)
}

/// Removes the rules of a container.
///
/// # Errors
/// A rule cannot be removed.
pub fn remove(network: &str, container: &str) -> Result<(), CniError> {
    let chain = chain_of(network, container);
    let _lock = locked()?;
    let mut errors = CniErrors::default();
    for nat in NatTable::present() {
        let removed = nat.list([DNAT, &chain]).and_then(|listed| match listed {
            [dnat, Some(_)] => changed(nat, &rules::removal(&dnat.unwrap_or_default(), &chain)),
            [_, None] => Ok(()),
        });
        errors.note(removed);
    }
    errors.into_result()
}

fn changed(nat: NatTable, lines: &[String]) -> Result<(), CniError> {
    nat.change(lines).map_err(|refusal| match refusal {
        ChangeError::Failed(error) => error,
        ChangeError::ChainExists => CniError::other("another program changed the rules meanwhile"),
    })
}

/// Checks that the port mappings exist.
///
/// # Errors
/// A chain or a rule is missing.
pub fn check(config: &NetworkConfig, request: &CniRequest, result: &CniResult) -> Result<(), CniError> {
    let portmap = PortmapConfig::read(config)?;
    if portmap.mappings.is_empty() {
        return Ok(());
    }
    for family in Family::ALL {
        let Some(address) = result.address_of(&request.attachment.interface, family == Family::V4) else { continue };
        let rules = rules::rules(&portmap, &config.name, &request.attachment.container, address);
        let [dnat, own] = NatTable(family).list([DNAT, &rules.chain])?;
        let missing =
            |what: &str| Err(CniError::other(format!("{what} of host ports of container {} is missing", request.attachment.container)));
        let (Some(dnat), Some(own)) = (dnat, own) else { return missing("a chain") };
        let conditions = &portmap.conditions[usize::from(family == Family::V6)];
        let own_there = rules.own.iter().all(|rule| rules::is_listed(&own, rule, ""));
        if !own_there || !rules.entries.iter().all(|rule| rules::is_listed(&dnat, rule, conditions)) {
            return missing("a rule");
        }
    }
    Ok(())
}

/// Removes the rules of this network's containers that are not valid.
///
/// # Errors
/// A rule cannot be removed. All removals were tried.
pub fn collect(config: &NetworkConfig) -> Result<(), CniError> {
    let valid = config.valid()?;
    let _lock = locked()?;
    let mut errors = CniErrors::default();
    for nat in NatTable::present() {
        let Some([dnat]) = errors.note(nat.list([DNAT])) else { continue };
        let dnat = dnat.unwrap_or_default();
        let stale: BTreeSet<String> = dnat
            .lines()
            .filter_map(names_of)
            .filter(|(network, container, chain)| {
                *network == config.name
                    && *chain == chain_of(network, container)
                    && !valid.iter().any(|valid| valid.container == *container)
            })
            .map(|(_, _, chain)| chain)
            .collect();
        for chain in stale {
            errors.note(changed(nat, &rules::removal(&dnat, &chain)));
        }
    }
    errors.into_result()
}
