//! What the rules do with a packet, as `sepal explain` computes it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use sepal::explain::ending::Fate;
use sepal::explain::packet::{LocalNode, Packet};
use sepal::explain::ruleset::Ruleset;
use sepal::explain::walk::walk;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::settings::DetectLocal;

/// The probability of each ending: the fate, the final destination, and whether the source is masqueraded.
pub(crate) type Endings = BTreeMap<(Fate, SocketAddr, bool), f64>;

/// The endings of a packet that walks through these rules.
pub(crate) fn by_ruleset(rules: &Ruleset, packet: Packet, place: &LocalNode) -> Endings {
    let walked = walk(rules, packet, place);
    assert_eq!(walked.not_understood, BTreeSet::new(), "every rule is understood: {packet}");
    let mut endings = Endings::new();
    for ending in walked.endings.iter().filter(|ending| ending.probability > 1e-9) {
        *endings.entry((ending.fate, ending.to, ending.masqueraded)).or_default() += ending.probability;
    }
    endings
}

/// The node that the inputs describe.
pub(crate) fn place(inputs: &Inputs) -> LocalNode {
    let node = inputs.snapshot.node();
    let pod_interface = match &inputs.settings.detect_local {
        DetectLocal::BridgeInterface(name) => name.clone(),
        DetectLocal::InterfaceNamePrefix(prefix) => format!("{prefix}0"),
        _ => "cni0".to_owned(),
    };
    let bound = inputs.settings.bind_address.filter(|ip| !ip.is_unspecified());
    LocalNode {
        // Node ports are served at the first address.
        addresses: bound.into_iter().chain(node.map(|node| node.addresses.clone()).unwrap_or_default()).collect(),
        subnets: node.map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
        pod_interface,
        external_interface: "ext0".into(),
    }
}
