//! `sepal-lab soak`: changes, faults and restarts in a cluster of three nodes, with clients that notice every lost answer. At the end the
//! nodes must be in the same state as at the start.
//!
//! Each round runs all [`actions`] in random order. Rounds repeat until the time is over. Actions that damage the kernel state of node-1
//! may cost answers that pass node-1 until sepal has repaired it. No other action may cost an answer. The daemon of node-2 never
//! restarts, so its memory and open files show leaks.

mod actions;
mod clients;
mod objects;
mod sample;
mod testbed;

use std::fmt::Write as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::pod_cluster::PodNode;

use actions::{ACTIONS, ActionRunner};
use clients::Clients;
pub use sample::Finding;
use sample::{Sample, compare};
use testbed::Testbed;

/// Idle time before a sample is taken.
const IDLE_TIME: Duration = Duration::from_secs(3);

/// The options of a soak.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rounds start until this time is over. At least one round runs.
    pub time: Duration,
    /// Seed of the random order. The same seed gives the same order.
    pub seed: u64,
}

/// The result of a soak.
#[derive(Debug)]
pub struct Report {
    /// Number of rounds that ran.
    pub rounds: usize,
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// The result as text.
    pub text: String,
}

/// Runs a soak. Calls `print_line` with one line per round.
///
/// # Panics
/// If the cluster cannot be set up, or sepal does not repair damage within 25 s.
pub fn run(sepal: &Path, options: Options, mut print_line: impl FnMut(&str)) -> Report {
    let testbed = Testbed::new(sepal);
    let mut clients = Clients::start(&testbed);
    let mut actions = ActionRunner::new(&testbed, options.seed);
    // The first round fills pools and caches, so it runs before the first sample.
    actions.run_round(&mut clients);
    let start = sample_at_rest(&testbed, None);
    let mut findings = Vec::new();
    let mut rounds = 0;
    let begin = Instant::now();
    while rounds == 0 || begin.elapsed() < options.time {
        actions.run_round(&mut clients);
        rounds += 1;
        findings.append(&mut clients.take_unexplained());
        let (seconds, sample) = (begin.elapsed().as_secs_f64(), Sample::take(&testbed));
        print_line(&format!("round {rounds}, {seconds:.0} s: {}; {}", clients.summary(), sample.summary()));
    }
    let end = sample_at_rest(&testbed, Some(&start));
    findings.extend(compare(&start, &end));
    findings.append(&mut clients.take_unexplained());
    let mut text = format!("{rounds} rounds of {} actions, seed {}; {}\n", ACTIONS.len(), options.seed, clients.summary());
    let _ = writeln!(text, "before: {}\nafter:  {}", start.summary(), end.summary());
    for finding in &findings {
        let _ = writeln!(text, "FAILED  {finding}");
    }
    Report { rounds, findings, text }
}

/// Waits until all nodes are ready and idle, and takes a sample. With `before`, it waits up to 60 s more until nothing has grown since
/// then.
fn sample_at_rest(testbed: &Testbed, before: Option<&Sample>) -> Sample {
    testbed.cluster.nodes.iter().for_each(PodNode::wait_ready);
    sleep(IDLE_TIME);
    let limit = Instant::now() + Duration::from_secs(60);
    loop {
        let sample = Sample::take(testbed);
        if before.is_none_or(|before| compare(before, &sample).is_empty()) || Instant::now() > limit {
            return sample;
        }
        sleep(Duration::from_millis(500));
    }
}
