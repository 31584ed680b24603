//! Services and their ports [kube-proxy 3].

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::ip::Family;

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// SCTP.
    Sctp,
    /// TCP, the API's default.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The name as iptables spells it and as chain hashes use it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Parses the field of an API object. Absent or empty means TCP.
    #[must_use]
    pub(crate) fn from_api(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

/// Namespace and name of a Service. The texts are shared, because many values refer to one Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What identifies a service port: Service, port name and protocol [kube-proxy 3.3]. Prints as kube-proxy's SPN,
/// `namespace/name:port`, or `namespace/name` for an unnamed port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name; empty for an unnamed port.
    pub port: Arc<str>,
    /// The port's protocol; not part of the printed name.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// `spec.type` of a Service. Other types have no rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// `ClusterIP`, the default.
    #[default]
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
}

impl ServiceType {
    /// Its name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port name; empty for an unnamed port.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// The port clients connect to, 1-65535.
    pub port: u16,
    /// The port opened on every node; 0 for none.
    pub node_port: u16,
}

/// One Service with everything that its rules depend on, in both families. Lists keep the object's order and duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// `spec.type`.
    pub kind: ServiceType,
    /// Cluster IP per family; a family without one has no rules for this Service [kube-proxy 3.1].
    pub cluster_ip_v4: Option<IpAddr>,
    /// See [`Self::cluster_ip_v4`].
    pub cluster_ip_v6: Option<IpAddr>,
    /// The ports; name and protocol together are unique.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs` that parse.
    pub external_ips: Vec<IpAddr>,
    /// Ingress IPs of the load balancer that this node handles itself (`ipMode` absent or `VIP`).
    pub load_balancer_vips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges` that parse.
    pub source_ranges: Vec<IpNetwork>,
    /// ClientIP session affinity and its timeout in seconds.
    pub affinity_seconds: Option<u32>,
    /// External traffic goes only to endpoints on this node (`externalPolicyLocal`, [kube-proxy 3.2]).
    pub external_local: bool,
    /// Traffic to the cluster IP goes only to endpoints on this node.
    pub internal_local: bool,
    /// Node port of the health check of a `Local` load balancer; 0 for none.
    pub health_check_node_port: u16,
}

impl Service {
    /// The cluster IP of one family.
    #[must_use]
    pub const fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.cluster_ip_v4,
            Family::V6 => self.cluster_ip_v6,
        }
    }

    /// External IPs of one family, in the object's order.
    pub fn external_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.external_ips.iter().copied().filter(move |ip| Family::of(*ip) == family)
    }

    /// Load-balancer VIPs of one family, in the object's order.
    pub fn load_balancer_vips(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.load_balancer_vips.iter().copied().filter(move |ip| Family::of(*ip) == family)
    }

    /// Source ranges that restrict load-balancer traffic of one family. A /0 among them, or none of the family, means no
    /// restriction and gives an empty list [kube-proxy 3.2].
    #[must_use]
    pub fn source_ranges(&self, family: Family) -> Vec<IpNetwork> {
        let ranges: Vec<_> = self.source_ranges.iter().copied().filter(|net| Family::of_net(*net) == family).collect();
        if ranges.iter().any(|net| net.prefix() == 0) { Vec::new() } else { ranges }
    }

    /// Memory in bytes, estimated from the lengths of the fields.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let addresses = self.external_ips.len() + self.load_balancer_vips.len();
        let ports = self.ports.iter().map(|port| size_of::<ServicePort>() + port.name.len()).sum::<usize>();
        size_of::<Self>() + ports + addresses * size_of::<IpAddr>() + self.source_ranges.len() * size_of::<IpNetwork>()
    }

    /// Returns true if a port can be reached from outside the cluster in this family (`ExternallyAccessible`, [kube-proxy 3.2]).
    #[must_use]
    pub fn externally_accessible(&self, port: &ServicePort, family: Family) -> bool {
        port.node_port != 0 || self.load_balancer_vips(family).next().is_some() || self.external_ips(family).next().is_some()
    }
}
