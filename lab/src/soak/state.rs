//! What is counted, and what may not have grown.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use super::Ground;
use crate::PodNode;

/// A daemon's memory may be so much more after all than before, in MB (of a million bytes), and beside that a tenth.
const SPARE_MB: f64 = 3.0;
/// Open files come and go with connections.
const SPARE_FILES: usize = 3;

/// Something that is not as it should be.
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

/// A cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The nodes, by name.
    pub nodes: BTreeMap<String, NodeSample>,
}

/// A node at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSample {
    /// Resident memory of the daemon, in MB; `None` where it was started again in between and says nothing of leaks.
    pub memory: Option<f64>,
    /// Its open files.
    pub files: usize,
    /// Rules and chains, routes, addresses, links, entries and reserved addresses of pods: line by line.
    pub kernel: Vec<String>,
}

impl Sample {
    pub(super) fn of(ground: &Ground) -> Self {
        let lasting = "node-2";
        let node = |node: &PodNode| {
            let process = node.process().expect("it runs");
            let memory = (node.name == lasting).then(|| memory(process));
            (node.name.clone(), NodeSample { memory, files: files(process), kernel: kernel(node) })
        };
        Self { nodes: ground.cluster.nodes.iter().map(node).collect() }
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let memory: Vec<String> = self.nodes.values().filter_map(|node| Some(format!("{:.1} MB", node.memory?))).collect();
        let count = |of: fn(&NodeSample) -> usize| self.nodes.values().map(|node| of(node).to_string()).collect::<Vec<_>>().join("/");
        format!("{}, files {}, entries of the kernel {}", memory.join("/"), count(|node| node.files), count(|node| node.kernel.len()))
    }
}

/// What has grown or changed from one moment to another where nothing is left of what was done in between.
pub fn judge(start: &Sample, end: &Sample) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |text| findings.push(Finding(text));
    for (name, before) in &start.nodes {
        let Some(after) = end.nodes.get(name) else {
            find(format!("{name} is gone"));
            continue;
        };
        if let (Some(was), Some(is)) = (before.memory, after.memory)
            && is > was * 1.1 + SPARE_MB
        {
            find(format!("{name}: the daemon has {is:.1} MB, after {was:.1} MB"));
        }
        if after.files > before.files + SPARE_FILES {
            find(format!("{name}: the daemon has {} open files, after {}", after.files, before.files));
        }
        differences(&before.kernel, &after.kernel).for_each(|difference| find(format!("{name}: {difference}")));
    }
    findings
}

/// Lines that are in one and not in the other.
pub(super) fn differences<'l>(before: &'l [String], after: &'l [String]) -> impl Iterator<Item = String> + 'l {
    let count = |lines: &[String], line: &String| lines.iter().filter(|other| *other == line).count();
    let more = move |these: &'l [String], than: &'l [String], what: &'static str| {
        these.iter().filter(move |line| count(these, line) > count(than, line)).map(move |line| format!("{what}: {line}"))
    };
    more(after, before, "is left").chain(more(before, after, "is missing"))
}

fn memory(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.expect("Linux tells it") * 1024.0 / 1e6
}

fn files(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").count()
}

/// What the kernel holds, without numbers of links, counters, and what comes and goes by itself; and the pods' addresses on disk.
pub(super) fn kernel(node: &PodNode) -> Vec<String> {
    let others = node.netns.run(
        "ip -o link | sed 's/^[0-9]*: //; s/@.*//; s/:.*//' | sed 's/^veth.*/veth/'; ip -o addr show scope global | sed 's/^[0-9]*: //'
         for tool in iptables ip6tables; do $tool-nft-save | sed -n '/^[-:*]/s/ \\[[0-9:]*\\]$//p'; done",
    );
    let reserved = node.reserved_addresses().into_iter().map(|ip| format!("reserved {ip}"));
    // Of the canary only the one in mangle is looked at, as kube-proxy does; it is not in the tables that are flushed here.
    let mut lines: Vec<String> =
        others.lines().chain(node.state().lines()).map(|line| line.trim_end().to_owned()).chain(reserved).collect();
    lines.retain(|line| !line.contains("KUBE-PROXY-CANARY"));
    lines.sort_unstable();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(memory: Option<f64>, files: usize, kernel: &[&str]) -> Sample {
        let kernel = kernel.iter().map(|line| (*line).to_owned()).collect();
        Sample { nodes: BTreeMap::from([("node-2".to_owned(), NodeSample { memory, files, kernel })]) }
    }

    #[test]
    fn whatever_has_grown_is_found() {
        let before = sample(Some(20.0), 20, &["route a", "veth", "veth"]);
        let found = |after: &Sample| judge(&before, after).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found(&before), Vec::<String>::new());
        assert_eq!(found(&sample(Some(24.9), 23, &["route a", "veth", "veth"])), Vec::<String>::new());
        assert_eq!(found(&sample(Some(25.1), 20, &["route a", "veth", "veth"])), ["node-2: the daemon has 25.1 MB, after 20.0 MB"]);
        assert_eq!(found(&sample(None, 24, &["route a", "veth", "veth"])), ["node-2: the daemon has 24 open files, after 20"]);
        assert_eq!(found(&sample(None, 20, &["route a", "route b", "veth", "veth"])), ["node-2: is left: route b"]);
        assert_eq!(found(&sample(None, 20, &["route a", "veth"])), ["node-2: is missing: veth"; 2]);
        assert_eq!(found(&Sample::default()), ["node-2 is gone"]);
    }
}
