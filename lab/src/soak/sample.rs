//! Samples of the nodes' state, and the comparison of two samples.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use super::testbed::Testbed;
use crate::figures::read_memory_mb;
use crate::pod_cluster::PodNode;

/// The node whose daemon never restarts.
const LONG_RUNNING: &str = "node-2";
/// A daemon's memory may grow by a tenth and by this many MB (10^6 bytes).
const MEMORY_MARGIN_MB: f64 = 3.0;
/// A daemon may have this many more open files, because connections come and go.
const FILES_MARGIN: usize = 3;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding(String);

impl Finding {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The state of a cluster at one moment.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// The nodes by name.
    nodes: BTreeMap<String, NodeSample>,
}

/// The state of a node at one moment.
#[derive(Debug, Default)]
struct NodeSample {
    /// Resident memory of the daemon in MB. `None` if the daemon may have restarted, because then it shows no leak.
    memory: Option<f64>,
    /// Number of the daemon's open files.
    files: usize,
    /// Sorted lines: rules, chains, routes, addresses, links, FDB and neighbour entries, and reserved pod addresses.
    state: Vec<String>,
}

impl Sample {
    /// Takes a sample of all nodes. Every daemon must be running.
    pub(super) fn take(testbed: &Testbed) -> Self {
        let node = |node: &PodNode| {
            let process = node.process().expect("the daemon is running");
            let memory = (node.name == LONG_RUNNING).then(|| read_memory_mb(process, "VmRSS"));
            (node.name.clone(), NodeSample { memory, files: count_files(process), state: read_state(node) })
        };
        Self { nodes: testbed.cluster.nodes.iter().map(node).collect() }
    }

    /// Returns the counts in one line.
    pub(super) fn summary(&self) -> String {
        let memory: Vec<String> = self.nodes.values().filter_map(|node| Some(format!("{:.1} MB", node.memory?))).collect();
        let count = |of: fn(&NodeSample) -> usize| self.nodes.values().map(|node| of(node).to_string()).collect::<Vec<_>>().join("/");
        format!("{}, files {}, kernel entries {}", memory.join("/"), count(|node| node.files), count(|node| node.state.len()))
    }
}

/// Returns what has grown or changed from `start` to `end`. The soak undoes all its changes, so nothing may.
pub(super) fn compare(start: &Sample, end: &Sample) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |text| findings.push(Finding(text));
    for (name, before) in &start.nodes {
        let Some(after) = end.nodes.get(name) else {
            find(format!("{name} is gone"));
            continue;
        };
        if let (Some(was), Some(is)) = (before.memory, after.memory)
            && is > was * 1.1 + MEMORY_MARGIN_MB
        {
            find(format!("{name}: the daemon has {is:.1} MB, before {was:.1} MB"));
        }
        if after.files > before.files + FILES_MARGIN {
            find(format!("{name}: the daemon has {} open files, before {}", after.files, before.files));
        }
        differences(&before.state, &after.state).for_each(|difference| find(format!("{name}: {difference}")));
    }
    findings
}

/// Returns the lines that only one of the two lists contains.
pub(super) fn differences<'l>(before: &'l [String], after: &'l [String]) -> impl Iterator<Item = String> + 'l {
    let count = |lines: &[String], line: &String| lines.iter().filter(|other| *other == line).count();
    let more = move |these: &'l [String], than: &'l [String], label: &'static str| {
        these.iter().filter(move |line| count(these, line) > count(than, line)).map(move |line| format!("{label}: {line}"))
    };
    more(after, before, "left over").chain(more(before, after, "missing"))
}

fn count_files(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).expect("the daemon is running").count()
}

/// Returns the kernel state of a node and its reserved pod addresses as sorted lines. Link indexes, counters and entries that the kernel
/// adds and removes by itself are left out.
pub(super) fn read_state(node: &PodNode) -> Vec<String> {
    let links_and_rules = node.netns.run(
        "ip -o link | sed 's/^[0-9]*: //; s/@.*//; s/:.*//' | sed 's/^veth.*/veth/'; ip -o addr show scope global | sed 's/^[0-9]*: //'
         for tool in iptables ip6tables; do $tool-nft-save | sed -n '/^[-:*]/s/ \\[[0-9:]*\\]$//p'; done",
    );
    let reserved = node.reserved_addresses().into_iter().map(|ip| format!("reserved {ip}"));
    let mut lines: Vec<String> =
        links_and_rules.lines().chain(node.state().lines()).map(|line| line.trim_end().to_owned()).chain(reserved).collect();
    // The soak deletes the canary chains of `nat` and `filter`. Like kube-proxy, sepal only checks the one in `mangle`.
    lines.retain(|line| !line.contains("KUBE-PROXY-CANARY"));
    lines.sort_unstable();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(memory: Option<f64>, files: usize, state: &[&str]) -> Sample {
        let state = state.iter().map(|line| (*line).to_owned()).collect();
        Sample { nodes: BTreeMap::from([("node-2".to_owned(), NodeSample { memory, files, state })]) }
    }

    #[test]
    fn growth_is_found() {
        let before = sample(Some(20.0), 20, &["route a", "veth", "veth"]);
        let found = |after: &Sample| compare(&before, after).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found(&before), Vec::<String>::new());
        assert_eq!(found(&sample(Some(24.9), 23, &["route a", "veth", "veth"])), Vec::<String>::new());
        assert_eq!(found(&sample(Some(25.1), 20, &["route a", "veth", "veth"])), ["node-2: the daemon has 25.1 MB, before 20.0 MB"]);
        assert_eq!(found(&sample(None, 24, &["route a", "veth", "veth"])), ["node-2: the daemon has 24 open files, before 20"]);
        assert_eq!(found(&sample(None, 20, &["route a", "route b", "veth", "veth"])), ["node-2: left over: route b"]);
        assert_eq!(found(&sample(None, 20, &["route a", "veth"])), ["node-2: missing: veth"; 2]);
        assert_eq!(found(&Sample::default()), ["node-2 is gone"]);
    }
}
