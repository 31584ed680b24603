//! Deletes UDP flows that lead to the former target of a host port. A client that keeps its source port never starts a new flow.

use crate::cluster::Family;
use crate::cni::error::CniError;
use crate::proxy::conntrack::flows;

use super::config::{Mapping, PortProtocol};

/// The largest number of flows that are deleted at once.
const MAX_FLOWS: usize = 65_536;

/// Deletes the UDP flows to these host ports.
pub(super) fn forget(family: Family, mappings: &[Mapping]) -> Result<(), CniError> {
    let ports: Vec<u16> = mappings
        .iter()
        .filter(|mapping| mapping.protocol == PortProtocol::Udp && mapping.is_for(family))
        .map(|mapping| mapping.host_port)
        .collect();
    if ports.is_empty() {
        return Ok(());
    }
    let found = match flows::select(family, MAX_FLOWS, |flow| ports.contains(&flow.original.destination.port())) {
        Ok(found) => found,
        // Without access to conntrack, stale flows may stay, but the ports work.
        Err(flows::FlowError::Missing(_)) => return Ok(()),
        Err(error) => return Err(CniError::other(error.to_string())),
    };
    if found.flows.is_empty() {
        return Ok(());
    }
    flows::delete(&found.flows).map(|_| ()).map_err(|error| CniError::other(error.to_string()))
}
