//! All Nodes of the cluster, each reduced to what the pod network needs as soon as it is read. A Node is ten kilobytes, most of them
//! images and managed fields, and says every few minutes that it is still alive: none of that is kept, and none of that is told.

use std::collections::{HashMap, HashSet};
use std::hash::RandomState;

use super::api::Raw;
use super::object::Kind;
use super::tracker::Tracker;
use super::watching::Tracks;
use super::{Complaints, Update, convert};
use crate::network::annotations::Prefix;
use crate::network::node::NetworkNode;

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
}

/// What one watch of all Nodes tells, and whom.
#[derive(Debug)]
pub enum NodeEvent {
    /// The pod network.
    Network(NodeUpdate),
    /// The proxy, of this node's Node.
    Proxy(Update),
}

/// Turns what is told of Nodes into updates.
#[derive(Debug)]
pub(super) struct NodeTracker {
    prefix: Prefix,
    /// This node's name, and what is told of its Node to the proxy.
    own: Option<(Box<str>, Tracker)>,
    /// What was told of each Node last, as a fingerprint.
    known: HashMap<Box<str>, u64>,
    hasher: RandomState,
    /// What a list that is under way has told; nothing is kept of the first one, before which there was nothing.
    seen: Option<HashSet<Box<str>>>,
    complaints: Complaints,
}

impl NodeTracker {
    pub(super) fn new(prefix: &Prefix, own: Option<&str>) -> Self {
        Self {
            prefix: prefix.clone(),
            own: own.map(|name| (name.into(), Tracker::new(Kind::Node))),
            known: HashMap::new(),
            hasher: RandomState::new(),
            seen: None,
            complaints: Complaints::default(),
        }
    }

    fn network(&mut self, object: &Raw) -> Option<NodeUpdate> {
        let id = object.id(Kind::Node);
        let converted = convert::network_node(&id, object.text.get(), &self.prefix, &self.hasher);
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

    /// The proxy's part, if this is its Node.
    fn own(&mut self, object: &Raw) -> Option<&mut Tracker> {
        let (name, tracker) = self.own.as_mut()?;
        (object.metadata.name.as_deref() == Some(name)).then_some(tracker)
    }
}

fn events(network: impl IntoIterator<Item = NodeUpdate>, proxy: impl IntoIterator<Item = Update>) -> Vec<NodeEvent> {
    network.into_iter().map(NodeEvent::Network).chain(proxy.into_iter().map(NodeEvent::Proxy)).collect()
}

impl Tracks for NodeTracker {
    type Told = NodeEvent;

    fn begin(&mut self) {
        self.seen = (!self.known.is_empty()).then(HashSet::new);
        if let Some((_, tracker)) = &mut self.own {
            tracker.begin();
        }
    }

    fn listed(&mut self, object: &Raw) -> Vec<NodeEvent> {
        let proxy = self.own(object).map(|tracker| tracker.listed(object)).unwrap_or_default();
        events(self.network(object), proxy)
    }

    fn complete(&mut self) -> Vec<NodeEvent> {
        let seen = self.seen.take();
        if let Some(seen) = &seen {
            self.known.retain(|name, _| seen.contains(name));
        }
        let proxy = self.own.as_mut().map(|(_, tracker)| tracker.complete()).unwrap_or_default();
        events(seen.map(NodeUpdate::Listed).into_iter().chain([NodeUpdate::Complete]), proxy)
    }

    fn applied(&mut self, object: &Raw) -> Vec<NodeEvent> {
        let proxy = self.own(object).map(|tracker| tracker.applied(object)).unwrap_or_default();
        events(self.network(object), proxy)
    }

    fn deleted(&mut self, object: &Raw) -> Vec<NodeEvent> {
        let proxy = self.own(object).map(|tracker| tracker.deleted(object)).unwrap_or_default();
        let id = object.id(Kind::Node);
        self.complaints.note(&id, None);
        events(self.known.remove_entry(id.name.as_str()).map(|(name, _)| NodeUpdate::Gone(name)), proxy)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::{Change, Family};

    fn raw(value: &Value) -> Raw {
        serde_json::from_str(&value.to_string()).expect("any object is taken")
    }

    fn node(name: &str, mac: &str, heartbeat: &str) -> Raw {
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

    fn network(events: Vec<NodeEvent>) -> Vec<NodeUpdate> {
        events.into_iter().filter_map(|event| if let NodeEvent::Network(update) = event { Some(update) } else { None }).collect()
    }

    #[test]
    fn only_what_matters_is_told() {
        let mut tracker = NodeTracker::new(&Prefix::default(), None);
        tracker.begin();
        let told = network(tracker.listed(&node("a", "1", "1")));
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
        assert_eq!(network(tracker.complete()), [NodeUpdate::Complete]);
        assert!(network(tracker.applied(&node("a", "1", "2"))).is_empty(), "a heartbeat");
        assert_eq!(network(tracker.applied(&node("a", "2", "3"))).len(), 1, "another MAC");
        assert_eq!(network(tracker.deleted(&node("a", "2", "4"))), [NodeUpdate::Gone("a".into())]);
        assert_eq!(network(tracker.applied(&node("a", "2", "5"))).len(), 1, "it came back");
    }

    #[test]
    fn a_new_list_tells_what_is_gone_and_not_what_is_the_same() {
        let mut tracker = NodeTracker::new(&Prefix::default(), None);
        tracker.begin();
        for name in ["a", "b"] {
            tracker.listed(&node(name, "1", "1"));
        }
        tracker.complete();
        tracker.begin();
        assert!(tracker.listed(&node("b", "1", "9")).is_empty());
        assert_eq!(network(tracker.complete()), [NodeUpdate::Listed(HashSet::from(["b".into()])), NodeUpdate::Complete]);
        assert_eq!(network(tracker.applied(&node("a", "1", "10"))).len(), 1, "what was gone is new");
    }

    #[test]
    fn the_proxy_is_told_of_its_own_node() {
        let mut tracker = NodeTracker::new(&Prefix::default(), Some("a"));
        tracker.begin();
        assert!(matches!(
            tracker.listed(&node("a", "1", "1")).as_slice(),
            [NodeEvent::Network(_), NodeEvent::Proxy(Update::Change(Change::Node(Some(own)), None))] if own.addresses.len() == 1
        ));
        assert!(matches!(tracker.listed(&node("b", "1", "1")).as_slice(), [NodeEvent::Network(_)]));
        assert!(matches!(
            tracker.complete().as_slice(),
            [NodeEvent::Network(NodeUpdate::Complete), NodeEvent::Proxy(Update::Complete(Kind::Node))]
        ));
        let gone = tracker.deleted(&node("a", "1", "2"));
        assert!(matches!(gone.as_slice(), [NodeEvent::Network(_), NodeEvent::Proxy(Update::Change(Change::Node(None), None))]));
    }

    #[test]
    fn nodes_may_be_odd() {
        let mut tracker = NodeTracker::new(&Prefix::default(), None);
        for bare in
            [json!({"metadata": {"name": "x"}}), json!({"metadata": {"name": "y", "annotations": null}, "spec": null, "status": {}})]
        {
            assert!(matches!(network(tracker.applied(&raw(&bare))).as_slice(), [NodeUpdate::Changed(node)] if node.pod_cidrs.is_err()));
        }
        // What cannot be read is gone, once.
        let broken = raw(&json!({"metadata": {"name": "x"}, "spec": 5}));
        assert_eq!(network(tracker.applied(&broken)), [NodeUpdate::Gone("x".into())]);
        assert!(tracker.applied(&broken).is_empty());
        assert!(tracker.applied(&raw(&json!([]))).is_empty());
    }
}
