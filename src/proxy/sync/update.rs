//! The updates that the loop of the service proxy receives.

use crate::cluster::pod_rules::PodRules;
use crate::kubernetes;
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::settings::ProxySettings;

/// One input of the loop.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all updates are changes of the cluster, and each is moved twice")]
pub enum Update {
    /// The cluster changed.
    Cluster(kubernetes::ClusterUpdate),
    /// All inputs, read again from manifests.
    Inputs(Box<Inputs>),
    /// New settings.
    Settings(Box<ProxySettings>),
    /// New inputs of the pod network's rules.
    PodRules(Box<PodRules>),
}

impl From<kubernetes::ClusterUpdate> for Update {
    fn from(update: kubernetes::ClusterUpdate) -> Self {
        Self::Cluster(update)
    }
}
