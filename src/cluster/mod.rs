//! The cluster as this node needs it. PURE: plain values, no Kubernetes types, no clock, no files.
//!
//! [`Snapshot`] holds Services, EndpointSlices and this node's Node in a compact form. A [`Change`] updates it.
//! [`service`] and [`endpoints`] compute per IP family what kube-proxy keeps in its per-family trackers.

pub mod endpoints;
pub mod families;
pub mod health_checks;
pub mod host_facts;
pub mod ip;
pub mod node;
pub mod pod_rules;
pub mod service;
pub mod snapshot;
pub mod topology;

pub use endpoints::{Conditions, Endpoint, Hints, Slice, SliceEndpoint, SliceKey, SlicePort};
pub use ip::Family;
pub use node::Node;
pub use service::{Protocol, Service, ServiceKey, ServicePort, ServicePortName, ServiceType};
pub use snapshot::{AffectedObjects, Change, Snapshot};
