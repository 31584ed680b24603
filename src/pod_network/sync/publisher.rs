//! Holds what this node has told others about its part of the network.

use super::leases::LeaseData;
use super::node_writes::{Condition, NodeWrites, WriteState};
use crate::cluster::pod_rules::PodRules;
use crate::pod_network::annotations::{PublishedEnd, VxlanData, patch, published};
use crate::pod_network::net_conf::NetConf;
use crate::pod_network::node::NetworkNode;
use crate::pod_network::own_lease::OwnLease;
use crate::pod_network::settings::NetworkSettings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
/// Tells others.
#[derive(Debug)]
pub struct Publisher {
    pub(super) writes: Arc<NodeWrites>,
    /// What stands beside leases.
    pub(super) lease_data: watch::Sender<LeaseData>,
    /// Whoever owns the rules is told there.
    pub(super) pod_rules: watch::Sender<Option<PodRules>>,
    /// The annotations that were asked for since the Node was last seen.
    pub(super) wished: Option<Value>,
    /// What the condition says, and since when it should say something else.
    pub(super) condition: Option<Condition>,
    pub(super) due: Option<Instant>,
    /// What subnet.env should say.
    pub(super) file: Option<String>,
    /// It named a subnet that is not this node's any more, so it was deleted.
    pub(super) withdrawn: bool,
    pub(super) trouble: Option<Condition>,
    /// The trouble is an answer, not an outage: the condition shows it at once.
    pub(super) is_final: bool,
}

impl Publisher {
    /// Writes to the Node, to leases, and to the owner of the rules.
    #[must_use]
    pub const fn new(writes: Arc<NodeWrites>, lease_data: watch::Sender<LeaseData>, pod_rules: watch::Sender<Option<PodRules>>) -> Self {
        Self {
            writes,
            lease_data,
            pod_rules,
            wished: None,
            condition: None,
            due: None,
            file: None,
            withdrawn: false,
            trouble: None,
            is_final: false,
        }
    }

    /// The Node is different now; before it was this.
    pub(super) fn node_seen(&mut self, before: Option<&NetworkNode>, node: &NetworkNode) {
        self.wished = None;
        if before.is_some_and(|before| before.uid != node.uid) {
            // Another Node of the same name knows nothing of what the former one was told.
            self.condition = None;
        }
    }

    /// The Node was deleted.
    pub(super) fn node_gone(&mut self) {
        self.wished = None;
    }

    /// subnet.env must not be there until there is a subnet again.
    pub(super) fn withdraw_file(&mut self) {
        (self.file, self.withdrawn) = (None, true);
    }

    /// Whether subnet.env was deleted because it named a subnet that is not this node's any more.
    pub(super) const fn is_withdrawn(&self) -> bool {
        self.withdrawn
    }

    /// When the condition has to be told, if that is known.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.due
    }

    /// What becomes of the annotations.
    pub(super) fn annotations_state(&self) -> watch::Receiver<WriteState> {
        self.writes.annotations_state()
    }

    /// Asks for the annotations that the Node lacks; says whether it lacks none.
    pub(super) fn annotations(&mut self, settings: &NetworkSettings, conf: &NetConf, node: &NetworkNode, own: &OwnLease) -> bool {
        let wanted = wanted_annotations(settings, conf, own);
        let found = node.annotations.written(&settings.prefix);
        let found = found.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let patch = patch(&wanted, found);
        let complete = patch.is_none();
        if let Some(patch) = patch.filter(|patch| self.wished.as_ref() != Some(patch)) {
            self.writes.annotations(&patch);
            self.wished = Some(patch);
        }
        let data: LeaseData = wanted.into_iter().map(|(name, value)| (name, Some(value))).collect();
        self.lease_data.send_if_modified(|before| {
            let news = *before != data;
            *before = data;
            news
        });
        complete
    }

    /// Makes the condition say this; gives what is worth an Event.
    pub(super) fn say(&mut self, condition: Condition) -> Option<Condition> {
        self.due = None;
        if self.condition.as_ref() == Some(&condition) {
            return None;
        }
        self.condition = Some(condition.clone());
        Some(condition)
    }
}

/// A network that worked may take so long to work again before its condition says that it does not.
pub(super) const GRACE: Duration = Duration::from_secs(10);

fn wanted_annotations(settings: &NetworkSettings, conf: &NetConf, own: &OwnLease) -> BTreeMap<String, String> {
    let vni = conf.backend.vxlan().map(|vxlan| vxlan.vni);
    let end = |family| {
        let vxlan = vni.zip(own.macs.get(family)).map(|(vni, mac)| VxlanData { vni: Some(vni), mac: *mac });
        own.published.get(family).map(|ip| PublishedEnd { public_ip: *ip, vxlan })
    };
    let ends = own.subnets.families().filter_map(|family| Some((family, end(family)?))).collect();
    published(&settings.prefix, &conf.backend, &ends)
}
