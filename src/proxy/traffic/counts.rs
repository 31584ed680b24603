//! Compares two readings of `iptables-save -c` and sums up the new traffic by Service address and by endpoint.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::observe::service_traffic::{PacketCount, ServiceAddress, ServiceEndpoint, TrafficDelta, TrafficSums};
use crate::table::chain_names;
use crate::table::rule::words;

/// The counters of one reading, by a hash of the rule. `None` if they were not stored, so that the next reading has nothing to compare
/// with.
type Counters = Option<HashMap<u64, PacketCount>>;

/// The counters that one reading found in the rules of a family.
#[derive(Debug, Default)]
pub struct CounterReading {
    addresses: Counters,
    endpoints: Counters,
}

impl CounterReading {
    /// Creates a reading without rules.
    #[must_use]
    pub fn empty() -> Self {
        Self { addresses: Some(HashMap::new()), endpoints: Some(HashMap::new()) }
    }

    /// Compares one line of `iptables-save -c` with this reading. Stores its counters in `now`, and adds the new traffic to `delta`.
    pub(crate) fn compare_line(&self, line: &str, now: &mut Self, delta: &mut TrafficDelta) {
        match counted_rule(line) {
            Some((rule, count, Counted::Address(address))) => {
                compare(rule, count, address, &self.addresses, &mut now.addresses, &mut delta.addresses);
            }
            Some((rule, count, Counted::Endpoint(endpoint))) => {
                compare(rule, count, endpoint, &self.endpoints, &mut now.endpoints, &mut delta.endpoints);
            }
            None => {}
        }
    }

    /// Adds the traffic of a rule that was removed since this reading. `line` has its final counters, in the format of `iptables-save -c`.
    ///
    /// If `now` has an equal rule, it may be the removed rule or a new one. So it is dropped from `now` and counts at the next reading, as
    /// a new rule that started at zero.
    pub(crate) fn end_line(&mut self, line: &str, now: &mut Self, delta: &mut TrafficDelta) {
        match counted_rule(line) {
            Some((rule, count, Counted::Address(address))) => {
                end(rule, count, &address, &mut self.addresses, &mut now.addresses, &mut delta.addresses);
            }
            Some((rule, count, Counted::Endpoint(endpoint))) => {
                end(rule, count, &endpoint, &mut self.endpoints, &mut now.endpoints, &mut delta.endpoints);
            }
            None => {}
        }
    }
}

/// Adds the new traffic of a rule to `delta`. If there are too many keys, no counters are stored.
fn compare<K: Hash + Eq>(rule: &str, count: PacketCount, key: K, before: &Counters, now: &mut Counters, delta: &mut TrafficSums<K>) {
    let hash = hash(rule);
    // A new rule started at zero.
    let new = before.as_ref().map_or_else(PacketCount::default, |before| count.since(before.get(&hash).copied().unwrap_or_default()));
    delta.add(key, new);
    if delta.is_over() {
        *now = None;
    } else if let Some(now) = now {
        now.insert(hash, count);
    }
}

/// Adds the traffic of a removed rule to `delta`.
fn end<K: Hash + Eq + Clone>(
    rule: &str,
    count: PacketCount,
    key: &K,
    before: &mut Counters,
    now: &mut Counters,
    delta: &mut TrafficSums<K>,
) {
    let (Some(before), Some(now)) = (before, now) else { return };
    let hash = hash(rule);
    let earlier = before.remove(&hash).unwrap_or_default();
    if let Some(read) = now.remove(&hash) {
        delta.subtract(key, read.since(earlier));
    }
    delta.add(key.clone(), count.since(earlier));
}

fn hash(rule: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    rule.hash(&mut hasher);
    hasher.finish()
}

/// The Service address or endpoint whose traffic a rule counts.
enum Counted {
    Address(ServiceAddress),
    Endpoint(ServiceEndpoint),
}

/// Parses a line like `[3:180] -A KUBE-SERVICES ...` into the rule, its counters, and the address or endpoint that it counts.
fn counted_rule(line: &str) -> Option<(&str, PacketCount, Counted)> {
    let (counters, rule) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (packets, bytes) = counters.split_once(':')?;
    let count = PacketCount { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? };
    let (chain, arguments) = rule.split_once(' ')?;
    let counted = address(chain, arguments).map(Counted::Address).or_else(|| endpoint(chain, arguments).map(Counted::Endpoint))?;
    Some((rule, count, counted))
}

/// Splits a name like `shop/web:http` into namespace, Service and port.
fn parts(name: &str) -> Option<(String, String, String)> {
    let (namespace, rest) = name.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some((namespace.to_owned(), service.to_owned(), port.to_owned()))
}

/// Returns the Service address that a dispatch rule matches.
fn address(chain: &str, arguments: &str) -> Option<ServiceAddress> {
    if chain != chain_names::SERVICES && chain != chain_names::NODEPORTS {
        return None;
    }
    let mut words = words(arguments);
    words.find(|word| word == "--comment")?;
    let comment = words.next()?;
    // A NodePort can have a second rule that counts loopback traffic. It counts for the same address.
    let (name, kind) = comment.split_once(' ').unwrap_or((&comment, ""));
    let kind = match (chain, kind) {
        (chain_names::NODEPORTS, _) => "node_port",
        (_, "cluster IP") => "cluster_ip",
        (_, "external IP") => "external_ip",
        (_, "loadbalancer IP") => "load_balancer",
        _ => return None,
    };
    let (namespace, service, port) = parts(name)?;
    Some(ServiceAddress { namespace, service, port, kind })
}

/// Returns the endpoint that a rule of an endpoint chain translates to.
fn endpoint(chain: &str, arguments: &str) -> Option<ServiceEndpoint> {
    if !chain.starts_with("KUBE-SEP-") {
        return None;
    }
    let mut words = words(arguments);
    words.find(|word| word == "--comment")?;
    let comment = words.next()?;
    words.find(|word| word == "--to-destination")?;
    let endpoint = words.next()?.into_owned();
    let (namespace, service, port) = parts(&comment)?;
    Some(ServiceEndpoint { namespace, service, port, endpoint })
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

    const ENDPOINTS: &str = "*nat\n[2:120] -A KUBE-SEP-A -s 10.244.0.5/32 -m comment --comment \"shop/web:http\" -j KUBE-MARK-MASQ\n\
        [7:420] -A KUBE-SEP-A -p tcp -m comment --comment \"shop/web:http\" -m tcp -j DNAT --to-destination 10.244.0.5:8080\n\
        [1:60] -A KUBE-SEP-B -p tcp -m comment --comment \"shop/web\" -m recent --set --name KUBE-SEP-B --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination [fd00::5]:8080\nCOMMIT\n";

    fn read(traffic: &mut CounterReading, text: &str, limit: usize) -> Vec<String> {
        let mut delta = TrafficDelta::new(limit);
        let mut now = CounterReading::empty();
        text.lines().for_each(|line| traffic.compare_line(line, &mut now, &mut delta));
        *traffic = now;
        let line = |namespace: &str, service: &str, port: &str, what: &str, count: PacketCount| {
            format!("{namespace}/{service}:{port} {what} {}/{}", count.packets, count.bytes)
        };
        let addresses = delta.addresses.counts();
        let addresses =
            addresses.iter().map(|(address, count)| line(&address.namespace, &address.service, &address.port, address.kind, *count));
        let endpoints = delta.endpoints.counts();
        let endpoints = endpoints.iter().map(|(to, count)| line(&to.namespace, &to.service, &to.port, &to.endpoint, *count));
        let mut all: Vec<String> = addresses.chain(endpoints).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn each_address_is_counted_and_a_smaller_counter_was_reset() {
        let mut traffic = CounterReading::default();
        let first =
            ["shop/dns: cluster_ip 0/0", "shop/web:http cluster_ip 0/0", "shop/web:http load_balancer 0/0", "shop/web:http node_port 0/0"];
        assert_eq!(read(&mut traffic, SAVED, 4), first, "the time of the first packets is unknown");
        let later = SAVED.replace("[3:180]", "[5:300]").replace("[9:540]", "[2:120]");
        let second = [
            "shop/dns: cluster_ip 2/120",
            "shop/web:http cluster_ip 2/120",
            "shop/web:http load_balancer 0/0",
            "shop/web:http node_port 0/0",
        ];
        assert_eq!(read(&mut traffic, &later, 4), second);
        assert_eq!(read(&mut traffic, "*nat\nCOMMIT\n", 4), Vec::<String>::new());
        let new = [
            "shop/dns: cluster_ip 9/540",
            "shop/web:http cluster_ip 3/180",
            "shop/web:http load_balancer 1/60",
            "shop/web:http node_port 6/360",
        ];
        assert_eq!(read(&mut traffic, SAVED, 4), new, "new rules started at zero");
        assert_eq!(read(&mut traffic, SAVED, 3), Vec::<String>::new(), "too many addresses");
        assert_eq!(read(&mut traffic, SAVED, 4), first, "the reading before stored no counters");
    }

    #[test]
    fn each_endpoint_is_counted_by_its_dnat_rule() {
        let mut traffic = CounterReading::default();
        read(&mut traffic, "*nat\nCOMMIT\n", 2);
        assert_eq!(read(&mut traffic, ENDPOINTS, 2), ["shop/web: [fd00::5]:8080 1/60", "shop/web:http 10.244.0.5:8080 7/420"]);
        assert_eq!(read(&mut traffic, ENDPOINTS, 1), Vec::<String>::new(), "too many addresses");
    }

    /// A rule had 3 packets at the reading before. At the next reading it has `read` packets, or is missing. `ends` are the final counters of
    /// removed rules, and `next` is the counter at the reading after that. Returns the packets that both readings add.
    fn ending(read: Option<u64>, ends: &[u64], next: u64) -> (u64, u64) {
        let line = |packets: u64| {
            let rule = "-A KUBE-SEP-A -p tcp -m comment --comment \"shop/web\" -m tcp -j DNAT --to-destination 10.244.0.5:80";
            format!("[{packets}:{}] {rule}", packets * 60)
        };
        let packets = |delta: &TrafficDelta| delta.endpoints.counts().values().map(|count| count.packets).sum();
        let mut before = CounterReading::empty();
        CounterReading::default().compare_line(&line(3), &mut before, &mut TrafficDelta::new(9));

        let (mut now, mut delta) = (CounterReading::empty(), TrafficDelta::new(9));
        if let Some(read) = read {
            before.compare_line(&line(read), &mut now, &mut delta);
        }
        for end in ends {
            before.end_line(&line(*end), &mut now, &mut delta);
        }
        let mut later = TrafficDelta::new(9);
        now.compare_line(&line(next), &mut CounterReading::empty(), &mut later);
        (packets(&delta), packets(&later))
    }

    #[test]
    fn final_counters_are_added_once() {
        assert_eq!(ending(None, &[5], 4), (2, 4), "removed, and added again later");
        assert_eq!(ending(Some(4), &[5], 7), (2, 7), "read before it was removed");
        assert_eq!(ending(Some(1), &[5], 7), (2, 7), "an equal new rule was read");
        assert_eq!(ending(Some(5), &[5, 4], 7), (2 + 4, 7), "removed twice");
    }

    #[test]
    fn without_an_earlier_reading_final_counters_do_not_count() {
        let (mut before, mut now, mut delta) = (CounterReading::default(), CounterReading::empty(), TrafficDelta::new(9));
        ENDPOINTS.lines().for_each(|line| before.end_line(line, &mut now, &mut delta));
        assert!(delta.endpoints.counts().is_empty());
    }
}
