//! UDP flows that go on to where a port led before: a client that keeps its port never makes a new one.

use crate::cluster::Family;
use crate::cni::error::CniError;
use crate::proxy::conntrack::flows;

use super::config::{Mapping, PortProtocol};

/// Flows that are deleted at once, at most.
const MOST: usize = 65_536;

/// Makes the kernel forget the UDP flows to these ports of the host.
pub(super) fn forget(family: Family, mappings: &[Mapping]) -> Result<(), CniError> {
    let ports: Vec<u16> = mappings
        .iter()
        .filter(|mapping| mapping.protocol == PortProtocol::Udp && mapping.is_for(family))
        .map(|mapping| mapping.host_port)
        .collect();
    if ports.is_empty() {
        return Ok(());
    }
    let found = match flows::select(family, MOST, |flow| ports.contains(&flow.original.destination.port())) {
        Ok(found) => found,
        // Without an interface to them there may be flows all the same, but nothing can be done about it, and the ports work.
        Err(flows::FlowError::Missing(_)) => return Ok(()),
        Err(error) => return Err(CniError::other(error.to_string())),
    };
    if found.flows.is_empty() {
        return Ok(());
    }
    flows::delete(&found.flows).map(|_| ()).map_err(|error| CniError::other(error.to_string()))
}
