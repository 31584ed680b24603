//! Topology hints: whether a service port's traffic stays on this node or in this zone (spec section 5, step A1).

use super::endpoints::Endpoint;

/// Which endpoints the hints leave for cluster traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology<'a> {
    /// No usable hints: every endpoint.
    Everywhere,
    /// Only endpoints meant for this zone.
    SameZone(&'a str),
    /// Only endpoints meant for this node.
    SameNode(&'a str),
}

impl<'a> Topology<'a> {
    /// What the hints of the *ready* endpoints add up to. Hints of a kind count only if every ready endpoint has them and at least
    /// one names this node or zone; node hints go before zone hints.
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

    /// Whether traffic may go to this endpoint.
    #[must_use]
    pub fn allows(self, endpoint: &Endpoint<'_>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::SameZone(zone) => endpoint.zone_hints.iter().any(|hint| hint == zone),
            Self::SameNode(node) => endpoint.node_hints.iter().any(|hint| hint == node),
        }
    }
}

fn usable<'h>(hints: impl Iterator<Item = &'h [String]>, wanted: &str) -> bool {
    let mut named = false;
    for of_endpoint in hints {
        if of_endpoint.is_empty() {
            return false;
        }
        named |= of_endpoint.iter().any(|hint| hint == wanted);
    }
    named
}
