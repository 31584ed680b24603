//! Topology hints: decides whether traffic to a service port stays on this node or in this zone [kube-proxy 5].

use super::endpoints::Endpoint;

/// The endpoints that may receive cluster traffic, by their hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology<'a> {
    /// Every endpoint, because the hints cannot be used.
    Everywhere,
    /// Only endpoints with a hint for this zone.
    SameZone(&'a str),
    /// Only endpoints with a hint for this node.
    SameNode(&'a str),
}

impl<'a> Topology<'a> {
    /// Decides from the hints of the ready endpoints. Hints of one kind are used only if every ready endpoint has them and at least one
    /// hint names this node or zone. Node hints are tried before zone hints.
    #[must_use]
    pub fn of(endpoints: &[Endpoint<'_>], node: &'a str, zone: &'a str) -> Self {
        let ready = || endpoints.iter().filter(|e| e.conditions.ready);
        if usable(ready().map(|e| e.node_hints), node) {
            Self::SameNode(node)
        } else if usable(ready().map(|e| e.zone_hints), zone) {
            Self::SameZone(zone)
        } else {
            Self::Everywhere
        }
    }

    /// Returns true if traffic may go to this endpoint.
    #[must_use]
    pub fn allows(self, endpoint: &Endpoint<'_>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::SameZone(zone) => endpoint.zone_hints.iter().any(|hint| hint == zone),
            Self::SameNode(node) => endpoint.node_hints.iter().any(|hint| hint == node),
        }
    }
}

/// Returns true if every endpoint has hints and at least one hint is this name.
fn usable<'h>(hints: impl Iterator<Item = &'h [String]>, name: &str) -> bool {
    let mut named = false;
    for of_endpoint in hints {
        if of_endpoint.is_empty() {
            return false;
        }
        named |= of_endpoint.iter().any(|hint| hint == name);
    }
    named
}
