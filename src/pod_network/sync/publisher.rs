//! What this node has published about its part of the network, and the channels it publishes through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::leases::LeaseData;
use super::node_writes::{NodeCondition, NodeWrites, WriteState};
use crate::cluster::pod_rules::PodRules;
use crate::pod_network::annotations::{PublishedAddress, VxlanData, annotation_patch, published_annotations};
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::node::NetworkNode;
use crate::pod_network::own_lease::OwnLease;
use crate::pod_network::settings::NetworkSettings;

/// The channels for publishing, and the values that were sent last.
#[derive(Debug)]
pub struct Publisher {
    /// Writes to this node's Node.
    pub(super) writes: Arc<NodeWrites>,
    /// Annotations of this node's Lease objects.
    pub(super) lease_data: watch::Sender<LeaseData>,
    /// The rules for the service proxy to write.
    pub(super) pod_rules: watch::Sender<Option<PodRules>>,
    /// The patch of annotations that was sent since the last update of the Node.
    pub(super) requested: Option<Value>,
    /// The condition that was written last.
    pub(super) condition: Option<NodeCondition>,
    /// When the condition has to change, at the end of the grace period.
    pub(super) due: Option<Instant>,
    /// The desired content of subnet.env.
    pub(super) file: Option<String>,
    /// subnet.env was deleted because it named a subnet that this node has lost.
    pub(super) withdrawn: bool,
    /// The condition for the error of the last reconcile.
    pub(super) error: Option<NodeCondition>,
    /// The subnet is definitely lost, so the condition changes without a grace period.
    pub(super) is_final: bool,
}

impl Publisher {
    /// A publisher with these channels.
    #[must_use]
    pub const fn new(writes: Arc<NodeWrites>, lease_data: watch::Sender<LeaseData>, pod_rules: watch::Sender<Option<PodRules>>) -> Self {
        Self {
            writes,
            lease_data,
            pod_rules,
            requested: None,
            condition: None,
            due: None,
            file: None,
            withdrawn: false,
            error: None,
            is_final: false,
        }
    }

    /// Records that the Node has changed. `before` is its last version.
    pub(super) fn node_changed(&mut self, before: Option<&NetworkNode>, node: &NetworkNode) {
        self.requested = None;
        if before.is_some_and(|before| before.uid != node.uid) {
            // A Node that was registered anew does not have the condition.
            self.condition = None;
        }
    }

    /// Records that the Node was deleted.
    pub(super) fn node_deleted(&mut self) {
        self.requested = None;
    }

    /// Records that subnet.env was deleted until this node has a subnet again.
    pub(super) fn withdraw_file(&mut self) {
        (self.file, self.withdrawn) = (None, true);
    }

    /// Returns true if subnet.env was deleted because it named a lost subnet.
    pub(super) const fn is_withdrawn(&self) -> bool {
        self.withdrawn
    }

    /// When the condition has to change, if it has to.
    pub(super) const fn condition_due(&self) -> Option<Instant> {
        self.due
    }

    /// The state of the latest write of annotations.
    pub(super) fn annotations_state(&self) -> watch::Receiver<WriteState> {
        self.writes.annotations_state()
    }

    /// Sends the annotations that the Node lacks. Returns true if it lacks none.
    pub(super) fn annotations(&mut self, settings: &NetworkSettings, conf: &NetConf, node: &NetworkNode, own: &OwnLease) -> bool {
        let desired = desired_annotations(settings, conf, own);
        let found = node.annotations.written(&settings.prefix);
        let found = found.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let patch = annotation_patch(&desired, found);
        let complete = patch.is_none();
        if let Some(patch) = patch.filter(|patch| self.requested.as_ref() != Some(patch)) {
            self.writes.annotations(&patch);
            self.requested = Some(patch);
        }
        let data: LeaseData = desired.into_iter().map(|(name, value)| (name, Some(value))).collect();
        self.lease_data.send_if_modified(|before| {
            let is_changed = *before != data;
            *before = data;
            is_changed
        });
        complete
    }

    /// Sets the condition, and gives it if it has changed.
    pub(super) fn set_condition(&mut self, condition: NodeCondition) -> Option<NodeCondition> {
        self.due = None;
        if self.condition.as_ref() == Some(&condition) {
            return None;
        }
        self.condition = Some(condition.clone());
        Some(condition)
    }
}

/// A network that worked is reported as unavailable only after this long.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// The annotations that this node publishes.
fn desired_annotations(settings: &NetworkSettings, conf: &NetConf, own: &OwnLease) -> BTreeMap<String, String> {
    let vni = conf.backend.vxlan().map(|vxlan| vxlan.vni);
    let end = |family| {
        let vxlan = vni.zip(own.macs.get(family)).map(|(vni, mac)| VxlanData { vni: Some(vni), mac: *mac });
        own.published.get(family).map(|ip| PublishedAddress { public_ip: *ip, vxlan })
    };
    let ends = own.subnets.families().filter_map(|family| Some((family, end(family)?))).collect();
    published_annotations(&settings.prefix, &conf.backend, &ends)
}
