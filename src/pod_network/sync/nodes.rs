//! Watches all Nodes of the cluster. Each is reduced to the fields that the pod network needs as soon as it is read. A Node has about ten
//! kilobytes, mostly images and managed fields, and changes every few minutes with a heartbeat. Such changes cause no update.

use std::collections::{HashMap, HashSet};
use std::hash::RandomState;

use futures::stream::BoxStream;

use crate::kubernetes::ProblemLog;
use crate::kubernetes::api::{Watches, node_resource};
use crate::kubernetes::object::{Kind, Subject};
use crate::kubernetes::raw::{RawObject, WatchTarget};
use crate::kubernetes::watcher::ObjectTracker;
use crate::pod_network::annotations::Prefix;
use crate::pod_network::api_objects;
use crate::pod_network::node::NetworkNode;

/// Watches all Nodes of the cluster. The stream does not end. `prefix` is that of flannel's annotations.
#[must_use]
pub fn watch_nodes(watches: &Watches, prefix: &Prefix) -> BoxStream<'static, NodeUpdate> {
    watches.follow(WatchTarget::all(Subject::Nodes, node_resource()), NodeTracker::new(prefix))
}

/// A change of Nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeUpdate {
    /// A Node was created, or a field that matters has changed.
    Changed(Box<NetworkNode>),
    /// The Node of this name was deleted, or cannot be read any more.
    Deleted(Box<str>),
    /// The complete set of existing Nodes; all others were deleted.
    Listed(HashSet<Box<str>>),
    /// The list is complete: every Node was sent.
    Complete,
    /// The first list fails with this error, so no Node is known yet.
    Unknown(Box<str>),
}

/// Converts watch events of Node objects into updates.
#[derive(Debug)]
pub(super) struct NodeTracker {
    prefix: Prefix,
    /// The fingerprint of the version of each Node that was sent last.
    sent: HashMap<Box<str>, u64>,
    hasher: RandomState,
    /// The Nodes in the list that is being read. `None` during the first list, which deletes no Node.
    listed: Option<HashSet<Box<str>>>,
    complaints: ProblemLog,
}

impl NodeTracker {
    pub(super) fn new(prefix: &Prefix) -> Self {
        Self { prefix: prefix.clone(), sent: HashMap::new(), hasher: RandomState::new(), listed: None, complaints: ProblemLog::default() }
    }

    /// The update for a created or changed Node, if a field that matters has changed.
    fn read(&mut self, object: &RawObject) -> Option<NodeUpdate> {
        let id = object.id(Kind::Node);
        let converted = api_objects::network_node(&id, object.text.get(), &self.prefix, &self.hasher);
        self.complaints.note(&id, converted.problem.as_ref());
        let Some(node) = converted.node else {
            return self.sent.remove_entry(id.name.as_str()).map(|(name, _)| NodeUpdate::Deleted(name));
        };
        if let Some(listed) = &mut self.listed {
            listed.insert(node.name.clone());
        }
        if self.sent.get(&node.name) == Some(&converted.fingerprint) {
            return None;
        }
        self.sent.insert(node.name.clone(), converted.fingerprint);
        Some(NodeUpdate::Changed(Box::new(node)))
    }
}

impl ObjectTracker for NodeTracker {
    type Update = NodeUpdate;

    fn begin(&mut self) {
        self.listed = (!self.sent.is_empty()).then(HashSet::new);
    }

    fn listed(&mut self, object: &RawObject) -> Vec<NodeUpdate> {
        self.applied(object)
    }

    fn complete(&mut self) -> Vec<NodeUpdate> {
        let listed = self.listed.take();
        if let Some(listed) = &listed {
            self.sent.retain(|name, _| listed.contains(name));
        }
        listed.map(NodeUpdate::Listed).into_iter().chain([NodeUpdate::Complete]).collect()
    }

    fn applied(&mut self, object: &RawObject) -> Vec<NodeUpdate> {
        self.read(object).into_iter().collect()
    }

    fn deleted(&mut self, object: &RawObject) -> Vec<NodeUpdate> {
        let id = object.id(Kind::Node);
        self.complaints.note(&id, None);
        if let Some(listed) = &mut self.listed {
            listed.remove(id.name.as_str());
        }
        self.sent.remove_entry(id.name.as_str()).map(|(name, _)| NodeUpdate::Deleted(name)).into_iter().collect()
    }

    fn unknown(&mut self, why: &str) -> Vec<NodeUpdate> {
        vec![NodeUpdate::Unknown(why.into())]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Family;

    fn raw(value: &Value) -> RawObject {
        serde_json::from_str(&value.to_string()).expect("any object is taken")
    }

    fn node(name: &str, mac: &str, heartbeat: &str) -> RawObject {
        raw(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name, "uid": format!("uid-{name}"), "resourceVersion": heartbeat, "managedFields": [{"manager": "kubelet"}],
                "annotations": {
                    "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"),
                    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "node.alpha.kubernetes.io/ttl": heartbeat,
                },
            },
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"]},
            "status": {
                "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [{"type": "Ready", "lastHeartbeatTime": heartbeat}], "images": [{"names": ["x"]}],
            },
        }))
    }

    #[test]
    fn only_changes_that_matter_are_sent() {
        let mut tracker = NodeTracker::new(&Prefix::default());
        tracker.begin();
        let sent = tracker.listed(&node("a", "1", "1"));
        let [NodeUpdate::Changed(a)] = sent.as_slice() else { panic!("{sent:?}") };
        assert_eq!((&*a.name, &*a.uid), ("a", "uid-a"));
        assert_eq!(
            a.pod_cidrs,
            Ok([(Family::V4, "10.244.1.0/24".parse().expect("a CIDR")), (Family::V6, "fd00::/64".parse().expect("a CIDR"))]
                .into_iter()
                .collect())
        );
        assert_eq!(a.internal_ips, ["192.0.2.1".parse::<std::net::IpAddr>().expect("an address")]);
        assert!(a.annotations.managed);
        assert_eq!(a.annotations.data.v4.as_deref(), Some("{\"VNI\":1,\"VtepMAC\":\"1\"}"));
        assert_eq!(tracker.complete(), [NodeUpdate::Complete]);
        assert!(tracker.applied(&node("a", "1", "2")).is_empty(), "a heartbeat");
        assert_eq!(tracker.applied(&node("a", "2", "3")).len(), 1, "another MAC");
        assert_eq!(tracker.deleted(&node("a", "2", "4")), [NodeUpdate::Deleted("a".into())]);
        assert_eq!(tracker.applied(&node("a", "2", "5")).len(), 1, "the Node exists again");
    }

    #[test]
    fn a_new_list_sends_deleted_nodes_and_no_unchanged_ones() {
        let mut tracker = NodeTracker::new(&Prefix::default());
        tracker.begin();
        for name in ["a", "b"] {
            tracker.listed(&node(name, "1", "1"));
        }
        tracker.complete();
        tracker.begin();
        assert!(tracker.listed(&node("b", "1", "9")).is_empty());
        assert_eq!(tracker.complete(), [NodeUpdate::Listed(HashSet::from(["b".into()])), NodeUpdate::Complete]);
        assert_eq!(tracker.applied(&node("a", "1", "10")).len(), 1, "a deleted Node counts as new");
    }

    #[test]
    fn fields_may_be_missing_or_unreadable() {
        let mut tracker = NodeTracker::new(&Prefix::default());
        for bare in
            [json!({"metadata": {"name": "x"}}), json!({"metadata": {"name": "y", "annotations": null}, "spec": null, "status": {}})]
        {
            assert!(matches!(tracker.applied(&raw(&bare)).as_slice(), [NodeUpdate::Changed(node)] if node.pod_cidrs.is_err()));
        }
        // A Node that cannot be read counts as deleted, once.
        let broken = raw(&json!({"metadata": {"name": "x"}, "spec": 5}));
        assert_eq!(tracker.applied(&broken), [NodeUpdate::Deleted("x".into())]);
        assert!(tracker.applied(&broken).is_empty());
        assert!(tracker.applied(&raw(&json!([]))).is_empty());
    }
}
