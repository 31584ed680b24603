//! The state of the service proxy that the status page shows.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::cluster::{Family, ServiceKey, ServicePortName};
use crate::netlink::Host;
use crate::observe::metrics::Metrics;
use crate::observe::query::ProxyQuery;
use crate::proxy::rules::inputs::Inputs;

/// Answers a query about the service proxy, as JSON.
pub type StatusAnswer = fn(&StatusView<'_>, ProxyQuery) -> Value;

/// The state of the service proxy.
#[derive(Clone, Copy)]
pub struct StatusView<'a> {
    /// The cluster and the settings.
    pub inputs: &'a Inputs,
    /// The families, each with the number of its endpoints.
    pub families: &'a [(Family, usize)],
    /// Service ports whose rules iptables refuses.
    pub refused: &'a BTreeSet<&'a ServicePortName>,
    /// Returns the last time since the start that a change of a Service took effect.
    pub changed: &'a dyn Fn(&ServiceKey) -> Option<Timestamp>,
    /// The metrics.
    pub metrics: &'a Metrics,
    /// The host.
    pub host: &'a dyn Host,
    /// MASQUERADE supports `--random-fully`.
    pub random_fully: bool,
}
