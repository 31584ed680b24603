//! From lines of `iptables-save -c` to what has come since the last reading, by doors and by endpoints.

use crate::observe::service_traffic::Count;
use crate::observe::service_traffic::Door;
use crate::observe::service_traffic::Since;
use crate::observe::service_traffic::Sums;
use crate::observe::service_traffic::Target;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::table::chain_names;
use crate::table::rule::words;

/// What rules said when they were last read, by a hash of the rule; `None` where nobody knows what has come since.
type Said = Option<HashMap<u64, Count>>;

/// What the rules of a family said when they were last read.
#[derive(Debug, Default)]
pub struct Traffic {
    doors: Said,
    targets: Said,
}

impl Traffic {
    /// Takes one line of `iptables-save -c`. `now` becomes what is known from this reading on.
    pub fn line(&self, line: &str, now: &mut Self, since: &mut Since) {
        match counted(line) {
            Some((rule, count, Leads::Door(door))) => note(rule, count, door, &self.doors, &mut now.doors, &mut since.doors),
            Some((rule, count, Leads::Target(target))) => note(rule, count, target, &self.targets, &mut now.targets, &mut since.targets),
            None => {}
        }
    }

    /// Takes what a rule said last that ended since the reading before, as a line of `iptables-save -c`. Whether what this reading says of
    /// it is of that rule, or of one alike in its place, nobody knows: that counts the next time, and a new rule begins at zero.
    pub fn ended(&mut self, line: &str, now: &mut Self, since: &mut Since) {
        match counted(line) {
            Some((rule, count, Leads::Door(door))) => end(rule, count, door, &mut self.doors, &mut now.doors, &mut since.doors),
            Some((rule, count, Leads::Target(target))) => end(rule, count, target, &mut self.targets, &mut now.targets, &mut since.targets),
            None => {}
        }
    }

    /// Nothing has been read yet of what is known next.
    #[must_use]
    pub fn reading() -> Self {
        Self { doors: Some(HashMap::new()), targets: Some(HashMap::new()) }
    }
}

/// A rule says this now. Of too many nothing is kept.
fn note<K: Hash + Eq>(rule: &str, count: Count, key: K, before: &Said, now: &mut Said, since: &mut Sums<K>) {
    let id = id(rule);
    // A rule that is new began at zero.
    let new = before.as_ref().map_or_else(Count::default, |before| count.since(before.get(&id).copied().unwrap_or_default()));
    since.add(key, new);
    if since.is_over() {
        *now = None;
    } else if let Some(now) = now {
        now.insert(id, count);
    }
}

/// A rule said this last. Of too many nothing is kept.
fn end<K: Hash + Eq>(rule: &str, count: Count, key: K, before: &mut Said, now: &mut Said, since: &mut Sums<K>) {
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
    Door(Door),
    Target(Target),
}

/// Rule, counter and what that is for, of a line like `[3:180] -A KUBE-SERVICES ...`.
fn counted(line: &str) -> Option<(&str, Count, Leads)> {
    let (counters, rule) = line.strip_prefix('[')?.split_once("] -A ")?;
    let (packets, bytes) = counters.split_once(':')?;
    let count = Count { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? };
    let (chain, arguments) = rule.split_once(' ')?;
    let leads = door(chain, arguments).map(Leads::Door).or_else(|| target(chain, arguments).map(Leads::Target))?;
    Some((rule, count, leads))
}

/// Namespace, Service and port of a name like `shop/web:http`.
fn parts(name: &str) -> Option<(String, String, String)> {
    let (namespace, rest) = name.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some((namespace.to_owned(), service.to_owned(), port.to_owned()))
}

/// The door that a rule is, if it is one.
fn door(chain: &str, arguments: &str) -> Option<Door> {
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
    Some(Door { namespace, service, port, kind })
}

/// The endpoint that a rule leads to, if it does.
fn target(chain: &str, arguments: &str) -> Option<Target> {
    if !chain.starts_with("KUBE-SEP-") {
        return None;
    }
    let mut words = words(arguments);
    words.find(|word| word == "--comment")?;
    let comment = words.next()?;
    words.find(|word| word == "--to-destination")?;
    let endpoint = words.next()?.into_owned();
    let (namespace, service, port) = parts(&comment)?;
    Some(Target { namespace, service, port, endpoint })
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

    fn read(traffic: &mut Traffic, text: &str, limit: usize) -> Vec<String> {
        let mut since = Since::new(limit);
        let mut now = Traffic::reading();
        text.lines().for_each(|line| traffic.line(line, &mut now, &mut since));
        *traffic = now;
        let line = |namespace: &str, service: &str, port: &str, what: &str, count: Count| {
            format!("{namespace}/{service}:{port} {what} {}/{}", count.packets, count.bytes)
        };
        let doors = since.doors.counts();
        let doors = doors.iter().map(|(door, count)| line(&door.namespace, &door.service, &door.port, door.kind, *count));
        let targets = since.targets.counts();
        let targets = targets.iter().map(|(to, count)| line(&to.namespace, &to.service, &to.port, &to.endpoint, *count));
        let mut all: Vec<String> = doors.chain(targets).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn each_door_is_counted_and_what_went_back_began_anew() {
        let mut traffic = Traffic::default();
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
        let mut traffic = Traffic::default();
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
        let packets = |since: &Since| since.targets.counts().values().map(|count| count.packets).sum();
        let mut before = Traffic::reading();
        Traffic::default().line(&line(3), &mut before, &mut Since::new(9));

        let (mut now, mut since) = (Traffic::reading(), Since::new(9));
        if let Some(read) = read {
            before.line(&line(read), &mut now, &mut since);
        }
        for end in ends {
            before.ended(&line(*end), &mut now, &mut since);
        }
        let mut later = Since::new(9);
        now.line(&line(next), &mut Traffic::reading(), &mut later);
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
        let (mut before, mut now, mut since) = (Traffic::default(), Traffic::reading(), Since::new(9));
        ENDPOINTS.lines().for_each(|line| before.ended(line, &mut now, &mut since));
        assert!(since.targets.counts().is_empty());
    }
}
