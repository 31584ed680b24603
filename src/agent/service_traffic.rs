//! Traffic of Services, from the counters of their rules: read again and again, each time once that is cheap enough.
//!
//! The nat table sees the first packet of each connection, so these are the packets and bytes with which connections begin. A chain that is
//! written anew begins at zero; what it counted since the last reading is lost, and nothing else.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::cluster::Family;
use crate::iptables::exec::Exec;
use crate::rules::names;
use crate::table::rule::words;

use super::metrics::Metrics;

/// Reading may take one part in this many of the time.
const SHARE: u32 = 200;
/// No more often than this, however quick it is.
const PERIOD: Duration = Duration::from_secs(10);
/// With more service ports than this, nothing is counted unless that is asked for: each costs whoever scrapes a few lines.
pub const LIMIT: usize = 2_000;

/// By which door of a Service connections come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Door {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The port's name; empty for an unnamed one.
    pub port: String,
    /// `cluster_ip`, `external_ip`, `load_balancer` or `node_port`.
    pub kind: &'static str,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What has been counted, and what rules said when they were last read.
#[derive(Debug, Default)]
pub struct Traffic {
    /// By a hash of the rule.
    rules: HashMap<u64, Count>,
}

/// One reading of a family's rules.
#[derive(Debug, Default)]
pub struct Reading {
    rules: HashMap<u64, Count>,
    since: HashMap<Door, Count>,
    /// With more doors than this nothing is kept.
    limit: usize,
    /// There are more.
    over: bool,
}

impl Traffic {
    /// Begins to read; of more doors than this nothing is kept.
    #[must_use]
    pub fn reading(limit: usize) -> Reading {
        Reading { limit, ..Reading::default() }
    }

    /// Takes one line of `iptables-save -c`.
    pub fn line(&self, reading: &mut Reading, line: &str) {
        if reading.over {
            return;
        }
        let Some((count, rule)) = counted(line) else { return };
        let Some(door) = door(rule) else { return };
        let mut hasher = DefaultHasher::new();
        rule.hash(&mut hasher);
        let id = hasher.finish();
        let before = self.rules.get(&id).copied().unwrap_or_default();
        reading.rules.insert(id, count);
        // A counter that went back began anew.
        let since = |now: u64, before: u64| if now >= before { now - before } else { now };
        let sum = reading.since.entry(door).or_default();
        sum.packets += since(count.packets, before.packets);
        sum.bytes += since(count.bytes, before.bytes);
        if reading.since.len() > reading.limit {
            *reading = Reading { over: true, ..Reading::default() };
        }
    }

    /// Everything was read. Gives what has come since the reading before, by door; `None` if there are too many doors.
    pub fn finish(&mut self, reading: Reading) -> Option<HashMap<Door, Count>> {
        self.rules = reading.rules;
        (!reading.over).then_some(reading.since)
    }
}

/// Counter and rule of a line like `[3:180] -A KUBE-SERVICES ...`.
fn counted(line: &str) -> Option<(Count, &str)> {
    let (counters, rule) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (packets, bytes) = counters.split_once(':')?;
    Some((Count { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? }, rule))
}

/// The door that a rule is, if it is one.
fn door(rule: &str) -> Option<Door> {
    let (chain, arguments) = rule.split_once(' ')?;
    if chain != names::SERVICES && chain != names::NODEPORTS {
        return None;
    }
    let mut words = words(arguments);
    words.find(|word| word == "--comment")?;
    let comment = words.next()?;
    // What counts loopback traffic apart leads there, too.
    let (name, kind) = comment.split_once(' ').unwrap_or((&comment, ""));
    let kind = match (chain, kind) {
        (names::NODEPORTS, _) => "node_port",
        (_, "cluster IP") => "cluster_ip",
        (_, "external IP") => "external_ip",
        (_, "loadbalancer IP") => "load_balancer",
        _ => return None,
    };
    let (namespace, rest) = name.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some(Door { namespace: namespace.to_owned(), service: service.to_owned(), port: port.to_owned(), kind })
}

/// Reads the counters of these families for good. Of a family with more than [`LIMIT`] doors it counts nothing, unless `any_size`.
pub async fn run(exec: Exec, families: Vec<Family>, metrics: Arc<Metrics>, any_size: bool) {
    let limit = if any_size { usize::MAX } else { LIMIT };
    let mut traffics: Vec<(Family, Traffic)> = families.into_iter().map(|family| (family, Traffic::default())).collect();
    let mut next = Instant::now() + PERIOD;
    let mut told = false;
    loop {
        sleep_until(next).await;
        let start = Instant::now();
        let mut all: HashMap<Door, Count> = HashMap::new();
        for (family, traffic) in &mut traffics {
            let mut reading = Traffic::reading(limit);
            if let Err(error) = exec.save_counted(*family, &mut |line| traffic.line(&mut reading, line)).await {
                tracing::debug!("{family}: the counters of rules were not read: {error}");
                continue;
            }
            let Some(since) = traffic.finish(reading) else {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        "{family}: more than {LIMIT} ways lead to Services: their traffic is not counted, but with --service-traffic=on"
                    );
                }
                continue;
            };
            for (door, count) in since {
                let sum = all.entry(door).or_default();
                sum.packets += count.packets;
                sum.bytes += count.bytes;
            }
        }
        metrics.service_traffic(&all);
        next = Instant::now() + PERIOD.max(start.elapsed() * SHARE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*nat\n:KUBE-SERVICES - [0:0]\n[5:300] -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
        [3:180] -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"shop/web:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-A\n\
        [1:60] -A KUBE-SERVICES -d 203.0.113.1/32 -p tcp -m comment --comment \"shop/web:http loadbalancer IP\" -m tcp --dport 80 -j KUBE-EXT-A\n\
        [2:120] -A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/web:http\" -m tcp --dport 30080 -j KUBE-EXT-A\n\
        [4:240] -A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m comment --comment \"shop/web:http\" -m tcp --dport 30080 -j KUBE-EXT-A\n\
        [9:540] -A KUBE-SERVICES -d 10.96.0.2/32 -p udp -m comment --comment \"shop/dns cluster IP\" -m udp --dport 53 -j KUBE-SVC-B\n\
        [7:420] -A KUBE-SVC-A -m comment --comment \"shop/web:http -> 10.244.0.5:8080\" -j KUBE-SEP-A\nCOMMIT\n";

    fn read(traffic: &mut Traffic, text: &str, limit: usize) -> Vec<String> {
        let mut reading = Traffic::reading(limit);
        text.lines().for_each(|line| traffic.line(&mut reading, line));
        let mut all: Vec<String> = traffic
            .finish(reading)
            .into_iter()
            .flatten()
            .map(|(door, count)| {
                format!("{}/{}:{} {} {}/{}", door.namespace, door.service, door.port, door.kind, count.packets, count.bytes)
            })
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn each_door_is_counted_and_what_went_back_began_anew() {
        let mut traffic = Traffic::default();
        let first = [
            "shop/dns: cluster_ip 9/540",
            "shop/web:http cluster_ip 3/180",
            "shop/web:http load_balancer 1/60",
            "shop/web:http node_port 6/360",
        ];
        assert_eq!(read(&mut traffic, SAVED, 4), first);
        let later = SAVED.replace("[3:180]", "[5:300]").replace("[9:540]", "[2:120]");
        let second = [
            "shop/dns: cluster_ip 2/120",
            "shop/web:http cluster_ip 2/120",
            "shop/web:http load_balancer 0/0",
            "shop/web:http node_port 0/0",
        ];
        assert_eq!(read(&mut traffic, &later, 4), second);
        assert_eq!(read(&mut traffic, "*nat\nCOMMIT\n", 4), Vec::<String>::new());
        assert_eq!(read(&mut traffic, SAVED, 3), Vec::<String>::new(), "there are too many");
    }
}
