//! What the status page shows of the pod network.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::observe::paging::PageQuery;
use crate::pod_network::peers::Peers;
use crate::pod_network::refusal::PeerRefusal;

/// Renders one page of the peers as JSON.
pub type PeersRenderer = fn(&PeersView<'_>, &PageQuery) -> Value;

/// The other nodes of the pod network.
#[derive(Clone, Copy, Debug)]
pub struct PeersView<'a> {
    /// The accepted and refused peers.
    pub peers: &'a Peers,
    /// Peers that host-gw cannot reach.
    pub off_link: &'a [PeerRefusal],
    /// Peers whose entries the kernel refused, each with the error.
    pub failed: &'a BTreeMap<&'a str, String>,
}
