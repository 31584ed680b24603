//! The cluster that a soak runs on.

use std::path::Path;

use crate::pod::Pod;
use crate::pod_cluster::{Families, Layout, PodCluster, PodNode};

/// A cluster of three nodes with one pod on each.
pub(super) struct Testbed {
    pub(super) cluster: PodCluster,
    /// One pod per node, in the order of the nodes.
    pub(super) pods: Vec<Pod>,
}

impl Testbed {
    /// Starts the daemon on three nodes, waits until all are ready, and connects the pods.
    pub(super) fn new(sepal: &Path) -> Self {
        let cluster = PodCluster::new(sepal, Layout { assigned: false, ..Layout::vxlan(3, Families::V4) });
        for node in &cluster.nodes {
            node.start(&["--subnet-source=lease", &format!("--cni-conf-dir={}", node.conf_dir())]);
        }
        cluster.nodes.iter().for_each(PodNode::wait_ready);
        let connect = |(number, node): (usize, &PodNode)| node.connect(&format!("pod-{number}")).expect("the plugin connects the pod");
        let pods = cluster.nodes.iter().enumerate().map(connect).collect();
        Self { cluster, pods }
    }
}
