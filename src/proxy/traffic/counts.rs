//! From lines of `iptables-save -c` to what has come since the last reading, by addresses and by endpoints.

use crate::observe::service_traffic::PacketCount;
use crate::observe::service_traffic::ServiceAddress;
use crate::observe::service_traffic::ServiceEndpoint;
use crate::observe::service_traffic::TrafficDelta;
use crate::observe::service_traffic::TrafficSums;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::table::chain_names;
use crate::table::rule::words;

/// What rules said when they were last read, by a hash of the rule; `None` where nobody knows what has come since.
type Said = Option<HashMap<u64, PacketCount>>;

/// What the rules of a family said when they were last read.
#[derive(Debug, Default)]
pub struct CounterReading {
    addresses: Said,
    endpoints: Said,
}

impl CounterReading {
    /// Takes one line of `iptables-save -c`. `now` becomes what is known from this reading on.
    pub fn line(&self, line: &str, now: &mut Self, since: &mut TrafficDelta) {
        match counted(line) {
            Some((rule, count, Leads::ServiceAddress(address))) => {
                note(rule, count, address, &self.addresses, &mut now.addresses, &mut since.addresses);
            }
            Some((rule, count, Leads::ServiceEndpoint(endpoint))) => {
                note(rule, count, endpoint, &self.endpoints, &mut now.endpoints, &mut since.endpoints);
            }
            None => {}
        }
    }

    /// Takes what a rule said last that ended since the reading before, as a line of `iptables-save -c`. Whether what this reading says of
    /// it is of that rule, or of one alike in its place, nobody knows: that counts the next time, and a new rule begins at zero.
    pub fn ended(&mut self, line: &str, now: &mut Self, since: &mut TrafficDelta) {
        match counted(line) {
            Some((rule, count, Leads::ServiceAddress(address))) => {
                end(rule, count, address, &mut self.addresses, &mut now.addresses, &mut since.addresses);
            }
            Some((rule, count, Leads::ServiceEndpoint(endpoint))) => {
                end(rule, count, endpoint, &mut self.endpoints, &mut now.endpoints, &mut since.endpoints);
            }
            None => {}
        }
    }

    /// Nothing has been read yet of what is known next.
    #[must_use]
    pub fn reading() -> Self {
        Self { addresses: Some(HashMap::new()), endpoints: Some(HashMap::new()) }
    }
}

/// A rule says this now. Of too many nothing is kept.
fn note<K: Hash + Eq>(rule: &str, count: PacketCount, key: K, before: &Said, now: &mut Said, since: &mut TrafficSums<K>) {
    let id = id(rule);
    // A rule that is new began at zero.
    let new = before.as_ref().map_or_else(PacketCount::default, |before| count.since(before.get(&id).copied().unwrap_or_default()));
    since.add(key, new);
    if since.is_over() {
        *now = None;
    } else if let Some(now) = now {
        now.insert(id, count);
    }
}

/// A rule said this last. Of too many nothing is kept.
fn end<K: Hash + Eq>(rule: &str, count: PacketCount, key: K, before: &mut Said, now: &mut Said, since: &mut TrafficSums<K>) {
    let (Some(before), Some(now)) = (before, now) else { return };
    let id = id(rule);
    let had = before.remove(&id).unwrap_or_default();
    if let Some(read) = now.remove(&id) {
        since.take_back(&key, read.since(had));
    }
    since.add(key, count.since(had));
}

fn id(rule: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    rule.hash(&mut hasher);
    hasher.finish()
}

/// What a rule is counted for.
enum Leads {
    ServiceAddress(ServiceAddress),
    ServiceEndpoint(ServiceEndpoint),
}

/// Rule, counter and what that is for, of a line like `[3:180] -A KUBE-SERVICES ...`.
fn counted(line: &str) -> Option<(&str, PacketCount, Leads)> {
    let (counters, rule) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (packets, bytes) = counters.split_once(':')?;
    let count = PacketCount { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? };
    let (chain, arguments) = rule.split_once(' ')?;
    let leads = address(chain, arguments).map(Leads::ServiceAddress).or_else(|| endpoint(chain, arguments).map(Leads::ServiceEndpoint))?;
    Some((rule, count, leads))
}

/// Namespace, Service and port of a name like `shop/web:http`.
fn parts(name: &str) -> Option<(String, String, String)> {
    let (namespace, rest) = name.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some((namespace.to_owned(), service.to_owned(), port.to_owned()))
}

/// The address that a rule is, if it is one.
fn address(chain: &str, arguments: &str) -> Option<ServiceAddress> {
    if chain != chain_names::SERVICES && chain != chain_names::NODEPORTS {
        return None;
    }
    let mut words = words(arguments);
    words.find(|word| word == "--comment")?;
    let comment = words.next()?;
    // What counts loopback traffic apart leads there, too.
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

/// The endpoint that a rule leads to, if it does.
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
        let mut since = TrafficDelta::new(limit);
        let mut now = CounterReading::reading();
        text.lines().for_each(|line| traffic.line(line, &mut now, &mut since));
        *traffic = now;
        let line = |namespace: &str, service: &str, port: &str, what: &str, count: PacketCount| {
            format!("{namespace}/{service}:{port} {what} {}/{}", count.packets, count.bytes)
        };
        let addresses = since.addresses.counts();
        let addresses =
            addresses.iter().map(|(address, count)| line(&address.namespace, &address.service, &address.port, address.kind, *count));
        let endpoints = since.endpoints.counts();
        let endpoints = endpoints.iter().map(|(to, count)| line(&to.namespace, &to.service, &to.port, &to.endpoint, *count));
        let mut all: Vec<String> = addresses.chain(endpoints).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn each_door_is_counted_and_what_went_back_began_anew() {
        let mut traffic = CounterReading::default();
        let first =
            ["shop/dns: cluster_ip 0/0", "shop/web:http cluster_ip 0/0", "shop/web:http load_balancer 0/0", "shop/web:http node_port 0/0"];
        assert_eq!(read(&mut traffic, SAVED, 4), first, "nobody knows when that came");
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
        assert_eq!(read(&mut traffic, SAVED, 4), new, "rules that were not there before");
        assert_eq!(read(&mut traffic, SAVED, 3), Vec::<String>::new(), "there are too many");
        assert_eq!(read(&mut traffic, SAVED, 4), first, "nobody looked meanwhile");
    }

    #[test]
    fn each_endpoint_is_counted_by_the_rule_that_leads_to_it() {
        let mut traffic = CounterReading::default();
        read(&mut traffic, "*nat\nCOMMIT\n", 2);
        assert_eq!(read(&mut traffic, ENDPOINTS, 2), ["shop/web: [fd00::5]:8080 1/60", "shop/web:http 10.244.0.5:8080 7/420"]);
        assert_eq!(read(&mut traffic, ENDPOINTS, 1), Vec::<String>::new(), "there are too many");
    }
    /// A reading says `read` of a rule that said 3 packets before, and 5 when it ended: 2 more, whether that was before or after its end.
    fn ending(read: Option<u64>, ends: &[u64], next: u64) -> (u64, u64) {
        let line = |packets: u64| {
            let rule = "-A KUBE-SEP-A -p tcp -m comment --comment \"shop/web\" -m tcp -j DNAT --to-destination 10.244.0.5:80";
            format!("[{packets}:{}] {rule}", packets * 60)
        };
        let packets = |since: &TrafficDelta| since.endpoints.counts().values().map(|count| count.packets).sum();
        let mut before = CounterReading::reading();
        CounterReading::default().line(&line(3), &mut before, &mut TrafficDelta::new(9));

        let (mut now, mut since) = (CounterReading::reading(), TrafficDelta::new(9));
        if let Some(read) = read {
            before.line(&line(read), &mut now, &mut since);
        }
        for end in ends {
            before.ended(&line(*end), &mut now, &mut since);
        }
        let mut later = TrafficDelta::new(9);
        now.line(&line(next), &mut CounterReading::reading(), &mut later);
        (packets(&since), packets(&later))
    }

    #[test]
    fn what_a_rule_counted_until_its_end_is_not_lost() {
        assert_eq!(ending(None, &[5], 4), (2, 4), "it is gone, and comes back");
        assert_eq!(ending(Some(4), &[5], 7), (2, 7), "read before its end");
        assert_eq!(ending(Some(1), &[5], 7), (2, 7), "one in its place was read");
        assert_eq!(ending(Some(5), &[5, 4], 7), (2 + 4, 7), "it ended twice");
    }

    #[test]
    fn nobody_knows_how_much_of_it_came_since() {
        let (mut before, mut now, mut since) = (CounterReading::default(), CounterReading::reading(), TrafficDelta::new(9));
        ENDPOINTS.lines().for_each(|line| before.ended(line, &mut now, &mut since));
        assert!(since.endpoints.counts().is_empty());
    }
}
