//! What the status page can see of the pod network.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::observe::paging::PageQuery;
use crate::pod_network::peers::Peers;
use crate::pod_network::refusal::Refusal;

/// Gives one page of the peers, as JSON.
pub type PeersAnswer = fn(&PeersView<'_>, &PageQuery) -> Value;

/// The other nodes of the pod network.
#[derive(Clone, Copy, Debug)]
pub struct PeersView<'a> {
    /// The accepted and refused peers.
    pub peers: &'a Peers,
    /// Peers that are refused because this node does not reach them directly.
    pub off_link: &'a [Refusal],
    /// Peers whose entries could not be written, each with the cause.
    pub failed: &'a BTreeMap<&'a str, String>,
}
