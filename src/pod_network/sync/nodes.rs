//! All Nodes of the cluster, each reduced to what the pod network needs as soon as it is read. A Node is ten kilobytes, most of them
//! images and managed fields, and says every few minutes that it is still alive: none of that is kept, and none of that is told.

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

/// Follows all Nodes of the cluster, for good. `prefix` begins the names of flannel's annotations.
#[must_use]
pub fn nodes(watches: &Watches, prefix: &Prefix) -> BoxStream<'static, NodeUpdate> {
    watches.follow(WatchTarget::all(Subject::Nodes, node_resource()), NodeTracker::new(prefix))
}

/// What the pod network is told of Nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeUpdate {
    /// A Node is new, or different now in something that matters.
    Changed(Box<NetworkNode>),
    /// The Node of this name was deleted, or cannot be used.
    Gone(Box<str>),
    /// These are all there are; whatever else was told of before is gone.
    Listed(HashSet<Box<str>>),
    /// Every Node has been told.
    Complete,
    /// No Node is known yet, because the first list fails for this reason.
    Unknown(Box<str>),
}

/// Turns what is told of Nodes into updates.
#[derive(Debug)]
pub(super) struct NodeTracker {
    prefix: Prefix,
    /// What was told of each Node last, as a fingerprint.
    known: HashMap<Box<str>, u64>,
    hasher: RandomState,
    /// What a list that is under way has told; nothing is kept of the first one, before which there was nothing.
    seen: Option<HashSet<Box<str>>>,
    complaints: ProblemLog,
}

impl NodeTracker {
    pub(super) fn new(prefix: &Prefix) -> Self {
        Self { prefix: prefix.clone(), known: HashMap::new(), hasher: RandomState::new(), seen: None, complaints: ProblemLog::default() }
    }

    fn read(&mut self, object: &RawObject) -> Option<NodeUpdate> {
        let id = object.id(Kind::Node);
        let converted = api_objects::network_node(&id, object.text.get(), &self.prefix, &self.hasher);
        self.complaints.note(&id, converted.problem.as_ref());
        let Some(node) = converted.node else {
            return self.known.remove_entry(id.name.as_str()).map(|(name, _)| NodeUpdate::Gone(name));
        };
        if let Some(seen) = &mut self.seen {
            seen.insert(node.name.clone());
        }
        if self.known.get(&node.name) == Some(&converted.fingerprint) {
            return None;
        }
        self.known.insert(node.name.clone(), converted.fingerprint);
        Some(NodeUpdate::Changed(Box::new(node)))
    }
}

impl ObjectTracker for NodeTracker {
    type Update = NodeUpdate;

    fn begin(&mut self) {
        self.seen = (!self.known.is_empty()).then(HashSet::new);
    }

    fn listed(&mut self, object: &RawObject) -> Vec<NodeUpdate> {
        self.applied(object)
    }

    fn complete(&mut self) -> Vec<NodeUpdate> {
        let seen = self.seen.take();
        if let Some(seen) = &seen {
            self.known.retain(|name, _| seen.contains(name));
        }
        seen.map(NodeUpdate::Listed).into_iter().chain([NodeUpdate::Complete]).collect()
    }

    fn applied(&mut self, object: &RawObject) -> Vec<NodeUpdate> {
        self.read(object).into_iter().collect()
    }

    fn deleted(&mut self, object: &RawObject) -> Vec<NodeUpdate> {
        let id = object.id(Kind::Node);
        self.complaints.note(&id, None);
        if let Some(seen) = &mut self.seen {
            seen.remove(id.name.as_str());
        }
        self.known.remove_entry(id.name.as_str()).map(|(name, _)| NodeUpdate::Gone(name)).into_iter().collect()
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
    fn only_what_matters_is_told() {
        let mut tracker = NodeTracker::new(&Prefix::default());
        tracker.begin();
        let told = tracker.listed(&node("a", "1", "1"));
        let [NodeUpdate::Changed(a)] = told.as_slice() else { panic!("{told:?}") };
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
        assert_eq!(tracker.deleted(&node("a", "2", "4")), [NodeUpdate::Gone("a".into())]);
        assert_eq!(tracker.applied(&node("a", "2", "5")).len(), 1, "it came back");
    }

    #[test]
    fn a_new_list_tells_what_is_gone_and_not_what_is_the_same() {
        let mut tracker = NodeTracker::new(&Prefix::default());
        tracker.begin();
        for name in ["a", "b"] {
            tracker.listed(&node(name, "1", "1"));
        }
        tracker.complete();
        tracker.begin();
        assert!(tracker.listed(&node("b", "1", "9")).is_empty());
        assert_eq!(tracker.complete(), [NodeUpdate::Listed(HashSet::from(["b".into()])), NodeUpdate::Complete]);
        assert_eq!(tracker.applied(&node("a", "1", "10")).len(), 1, "what was gone is new");
    }

    #[test]
    fn nodes_may_be_odd() {
        let mut tracker = NodeTracker::new(&Prefix::default());
        for bare in
            [json!({"metadata": {"name": "x"}}), json!({"metadata": {"name": "y", "annotations": null}, "spec": null, "status": {}})]
        {
            assert!(matches!(tracker.applied(&raw(&bare)).as_slice(), [NodeUpdate::Changed(node)] if node.pod_cidrs.is_err()));
        }
        // What cannot be read is gone, once.
        let broken = raw(&json!({"metadata": {"name": "x"}, "spec": 5}));
        assert_eq!(tracker.applied(&broken), [NodeUpdate::Gone("x".into())]);
        assert!(tracker.applied(&broken).is_empty());
        assert!(tracker.applied(&raw(&json!([]))).is_empty());
    }
}
