//! Selects the endpoints that serve each kind of traffic [kube-proxy 5] and decides which chains and rules exist [kube-proxy 6.5].

use crate::cluster::topology::Topology;
use crate::cluster::{Endpoint, Service, ServicePort};
use crate::table::rules::WithoutLocal;

use super::view::View;

/// The endpoints of one service port by kind of traffic, and the decisions that depend on them.
#[derive(Debug)]
pub struct Policy<'a> {
    /// Endpoints for traffic with the Cluster policy.
    pub cluster: Vec<&'a Endpoint<'a>>,
    /// Endpoints on this node, for traffic with the Local policy.
    pub local: Vec<&'a Endpoint<'a>>,
    /// Every endpoint that some traffic can reach, sorted by id.
    pub reachable: Vec<&'a Endpoint<'a>>,
    /// There is an endpoint on any node.
    pub has_endpoints: bool,
    /// The service port has a NodePort, load-balancer VIP or external IP in this family.
    pub externally_accessible: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`, if it applies.
    pub external_local: bool,
    /// Some traffic has the Cluster policy.
    uses_cluster: bool,
    /// Some traffic has the Local policy.
    uses_local: bool,
}

impl<'a> Policy<'a> {
    /// Selects the endpoints of a service port for each kind of traffic.
    #[must_use]
    pub fn new(service: &Service, port: &ServicePort, endpoints: &'a [Endpoint<'a>], view: &View<'_>) -> Self {
        let externally_accessible = service.externally_accessible(port, view.family);
        let internal_local = service.internal_local;
        let external_local = service.external_local;
        let uses_cluster = !internal_local || externally_accessible;
        let uses_local = internal_local || (external_local && externally_accessible);

        let mut has_endpoints = false;
        let mut topology = Topology::Everywhere;
        let mut cluster = Vec::new();
        if uses_cluster {
            topology = Topology::of(endpoints, view.node_name, view.zone);
            cluster = select(endpoints, |e| e.conditions.ready && topology.allows(e));
            if cluster.is_empty() {
                cluster = select(endpoints, |e| e.conditions.draining());
            }
            has_endpoints |= !cluster.is_empty();
        }

        let mut local = Vec::new();
        let mut only_draining = false;
        if uses_local {
            has_endpoints |= endpoints.iter().any(|e| e.conditions.ready || e.conditions.draining());
            local = select(endpoints, |e| e.local && e.conditions.ready);
            if local.is_empty() {
                local = select(endpoints, |e| e.local && e.conditions.draining());
                only_draining = !local.is_empty();
            }
        }

        let reachable = match (uses_cluster, uses_local) {
            (false, _) => local.clone(),
            (true, false) => cluster.clone(),
            (true, true) if topology == Topology::Everywhere && !only_draining => cluster.clone(),
            (true, true) => union(&cluster, &local),
        };
        Self { cluster, local, reachable, has_endpoints, externally_accessible, internal_local, external_local, uses_cluster, uses_local }
    }

    /// Returns true if the KUBE-SVC- chain exists.
    #[must_use]
    pub(crate) const fn has_cluster_chain(&self) -> bool {
        self.uses_cluster && !self.cluster.is_empty()
    }

    /// Returns true if the KUBE-SVL- chain exists.
    #[must_use]
    pub(crate) const fn has_local_chain(&self) -> bool {
        self.uses_local && !self.local.is_empty()
    }

    /// Returns true if the KUBE-EXT- chain exists.
    #[must_use]
    pub(crate) const fn has_external_chain(&self) -> bool {
        self.has_endpoints && self.externally_accessible
    }

    /// Returns true if an endpoint serves traffic to the cluster IP.
    #[must_use]
    pub(crate) const fn serves_internal(&self) -> bool {
        self.has_endpoints && !(self.internal_local && self.local.is_empty())
    }

    /// Returns true if an endpoint serves traffic from outside the cluster.
    #[must_use]
    pub(crate) const fn serves_external(&self) -> bool {
        self.has_endpoints && !(self.external_local && self.local.is_empty())
    }

    /// Returns the kinds of traffic that are dropped because this node has no endpoint.
    #[must_use]
    pub(crate) const fn without_local(&self) -> WithoutLocal {
        WithoutLocal { internal: self.has_endpoints && !self.serves_internal(), external: self.has_endpoints && !self.serves_external() }
    }
}

fn select<'a>(endpoints: &'a [Endpoint<'a>], is_selected: impl Fn(&Endpoint<'_>) -> bool) -> Vec<&'a Endpoint<'a>> {
    endpoints.iter().filter(|e| is_selected(e)).collect()
}

/// Returns both lists without duplicates, sorted by id. kube-proxy's order is undefined here.
fn union<'a>(a: &[&'a Endpoint<'a>], b: &[&'a Endpoint<'a>]) -> Vec<&'a Endpoint<'a>> {
    let mut all = [a, b].concat();
    all.sort_by(|x, y| x.id.cmp(&y.id));
    all.dedup_by(|x, y| x.id == y.id);
    all
}
