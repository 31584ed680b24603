//! `sepal-lab soak`: churn, faults and restarts over a cluster of three nodes, with clients that notice every lost answer; and in the end
//! everything has to be as it was.
//!
//! Rounds of [`trouble::KINDS`], each in another order, go on until the time is over. What is done to the first node's kernel may cost
//! answers that pass it until it is put right; everything else may cost none. The second node's daemon is never restarted: its memory and
//! its files are those that tell of leaks.

mod clients;
mod state;
mod trouble;

use std::fmt::Write as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::pod::Pod;
use crate::pod_cluster::{Families, Layout, PodCluster};

use clients::Clients;
pub use state::{Finding, Sample, judge};
use trouble::{KINDS, Trouble};

/// How long nothing is done before things are counted.
const REST: Duration = Duration::from_secs(3);

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long rounds go on. One is done in any case.
    pub time: Duration,
    /// Of the order of things; the same seed does the same.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Rounds that were done.
    pub rounds: usize,
    /// Everything that is not as it should be.
    pub findings: Vec<Finding>,
    /// A table for people.
    pub text: String,
}

/// The cluster that it goes over.
struct Ground {
    cluster: PodCluster,
    /// One on each node.
    pods: Vec<Pod>,
}

impl Ground {
    fn new(sepal: &Path) -> Self {
        let cluster = PodCluster::new(sepal, Layout { assigned: false, ..Layout::vxlan(3, Families::V4) });
        for node in &cluster.nodes {
            node.start(&["--subnet-source=lease", &format!("--cni-conf-dir={}", node.conf_dir())]);
        }
        cluster.nodes.iter().for_each(crate::PodNode::wait_ready);
        let connected = |(number, node): (usize, &crate::PodNode)| node.connect(&format!("pod-{number}")).expect("the plugin connects it");
        let pods = cluster.nodes.iter().enumerate().map(connected).collect();
        Self { cluster, pods }
    }
}

/// Runs it; `tell` gets a line for each round.
///
/// # Panics
/// The cluster cannot be set up, or something is not put right within 20 s.
pub fn run(sepal: &Path, options: Options, mut tell: impl FnMut(&str)) -> Report {
    let ground = Ground::new(sepal);
    let mut clients = Clients::start(&ground);
    let mut trouble = Trouble::new(&ground, options.seed);
    // One round before anything is counted: what is made once, like pools and caches, is there then.
    trouble.round(&mut clients);
    let start = settled(&ground, None);
    let mut findings = Vec::new();
    let mut rounds = 0;
    let begin = Instant::now();
    while rounds == 0 || begin.elapsed() < options.time {
        trouble.round(&mut clients);
        rounds += 1;
        findings.append(&mut clients.unexplained());
        tell(&format!("round {rounds}, {:.0} s: {}; {}", begin.elapsed().as_secs_f64(), clients.summary(), Sample::of(&ground).summary()));
    }
    let end = settled(&ground, Some(&start));
    findings.extend(judge(&start, &end));
    findings.append(&mut clients.unexplained());
    let mut text = format!("{rounds} rounds of {} kinds of trouble, seed {}; {}\n", KINDS.len(), options.seed, clients.summary());
    let _ = writeln!(text, "before: {}\nafter:  {}", start.summary(), end.summary());
    for finding in &findings {
        let _ = writeln!(text, "FAILED  {finding}");
    }
    Report { rounds, findings, text }
}

/// Waits until everything has come to rest; as it was once, if that is known, but not for ever.
fn settled(ground: &Ground, before: Option<&Sample>) -> Sample {
    ground.cluster.nodes.iter().for_each(crate::PodNode::wait_ready);
    sleep(REST);
    let limit = Instant::now() + Duration::from_secs(15);
    loop {
        let sample = Sample::of(ground);
        if before.is_none_or(|before| judge(before, &sample).is_empty()) || Instant::now() > limit {
            return sample;
        }
        sleep(Duration::from_millis(500));
    }
}
