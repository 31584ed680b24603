//! Services on the status page: a page of the list, and one Service with its chains. The chains come from the desired rules.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use crate::cluster::host_facts::HostFacts;
use crate::cluster::{Family, Service, ServiceKey, ServicePort};
use crate::explain::rule::{MatchKind, ParsedRule, RuleTarget};
use crate::proxy::rules::Renderer;
use crate::proxy::sync::status::StatusView;
use crate::table::rules::{RuleSource, ServicePortRules};

use crate::observe::paging::PageQuery;

/// The most steps of one port that are shown. The rest is counted.
const EDGES: usize = 150;
/// The most rules of one port that are shown as text.
const LINES: usize = 300;

/// The Services of the status page.
pub(crate) struct ShownServices<'a>(pub StatusView<'a>);

impl ShownServices<'_> {
    /// A page of the Services that have rules.
    #[must_use]
    pub(crate) fn list(&self, page: &PageQuery) -> Value {
        let all = self.0.inputs.snapshot.services().filter(|_| !self.0.inputs.without_proxy);
        let traffic = self.0.metrics.connections();
        page.select(all.map(|(key, service)| (&*key.namespace, &*key.name, (key, service))), |(key, service)| {
            self.row(key, service, &traffic)
        })
    }

    fn row(&self, key: &ServiceKey, service: &Service, traffic: &HashMap<(String, String), u64>) -> Value {
        let mut endpoints = Map::new();
        for (family, _) in self.0.families.iter().filter(|(family, _)| service.cluster_ip(*family).is_some()) {
            let slices = self.0.inputs.snapshot.slices(key).filter(|slice| slice.family == *family);
            // An endpoint in several slices counts once.
            let mut by_ip: BTreeMap<_, bool> = BTreeMap::new();
            for endpoint in slices.flat_map(|slice| &slice.endpoints) {
                *by_ip.entry(endpoint.ip).or_default() |= endpoint.conditions.ready;
            }
            endpoints.insert(family.as_str().into(), json!({"ready": by_ip.values().filter(|ready| **ready).count(), "all": by_ip.len()}));
        }
        let refused = self.0.refused.iter().any(|name| name.service == *key);
        let (namespace, name): (&str, &str) = (&key.namespace, &key.name);
        json!({
            "namespace": namespace, "name": name, "type": service.kind.as_str(), "addresses": addresses(service),
            "ports": service.ports.iter().map(port).collect::<Vec<_>>(), "endpoints": endpoints, "refused": refused,
            "changed": (self.0.changed)(key), "connections": traffic.get(&(namespace.to_owned(), name.to_owned())),
        })
    }

    /// One Service: its row in the list, for each port and family the steps that packets take (`edges`) and the `rules`, and the number of
    /// connections per endpoint where they are counted. `null` if the Service does not exist.
    #[must_use]
    pub(crate) fn one(&self, key: &ServiceKey, facts: &HostFacts) -> Value {
        let Some(service) = self.0.inputs.snapshot.service(key).filter(|_| !self.0.inputs.without_proxy) else { return Value::Null };
        let mut whole = self.row(key, service, &self.0.metrics.connections());
        let mut chains = Vec::new();
        for (family, endpoints) in self.0.families {
            let renderer = Renderer::new(self.0.inputs, facts, *family).for_size(*endpoints);
            chains.extend(renderer.service(key).iter().map(|rules| of_port(rules, *family, self.0.refused.contains(&rules.name))));
        }
        whole["chains"] = chains.into();
        whole["connectionsTo"] = json!(self.0.metrics.connections_of(&key.namespace, &key.name));
        whole
    }
}

fn addresses(service: &Service) -> Vec<String> {
    let cluster = [service.cluster_ip_v4, service.cluster_ip_v6].into_iter().flatten();
    cluster.chain(service.external_ips.iter().copied()).chain(service.load_balancer_vips.iter().copied()).map(|ip| ip.to_string()).collect()
}

fn port(port: &ServicePort) -> String {
    let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
    let node_port = if port.node_port == 0 { String::new() } else { format!(" (node port {})", port.node_port) };
    format!("{name}{}/{}{node_port}", port.port, port.protocol.as_str())
}

fn of_port(rules: &ServicePortRules, family: Family, refused: bool) -> Value {
    let mut edges = edges(rules);
    let left_out = edges.len().saturating_sub(EDGES);
    edges.truncate(EDGES);
    let lines =
        rules.nat_dispatch().lines().chain(rules.filter_dispatch().lines()).chain(rules.chains().flat_map(|(_, text)| text.lines()));
    json!({
        "port": &*rules.name.port, "protocol": rules.name.protocol.as_str(), "family": family.as_str(), "refused": refused,
        "edges": edges, "leftOut": left_out, "rules": lines.take(LINES).collect::<Vec<_>>(),
    })
}

/// The steps that packets take, `from` a chain `to` a chain or an endpoint. `share` is the probability where chance decides, `words` says what
/// else decides.
fn edges(rules: &ServicePortRules) -> Vec<Value> {
    let mut edges = Vec::new();
    let service = rules.name.to_string();
    let words = |comment: &str| comment.strip_prefix(&service).unwrap_or(comment).trim().to_owned();
    for (chain, rule) in rules.nat_dispatch().lines().chain(rules.filter_dispatch().lines()).filter_map(read) {
        let to = target(&rule.target).unwrap_or_else(|| "refused or dropped".to_owned());
        edges.push(json!({"from": chain, "to": to, "words": words(&rule.comment)}));
    }
    for (chain, text) in rules.chains() {
        let mut left = 1.0;
        for (_, rule) in text.lines().filter_map(read) {
            let Some(to) = target(&rule.target).filter(|to| to != MARK) else { continue };
            let chance = rule.matches.iter().find_map(|rule_match| match rule_match.kind {
                MatchKind::Probability(chance) => Some(chance),
                _ => None,
            });
            let words = match rule.matches.iter().any(|rule_match| rule_match.kind == MatchKind::Recent) {
                true => "clients that were there before".to_owned(),
                false if to.starts_with("KUBE-SEP-") => String::new(),
                false => words(&rule.comment),
            };
            let is_last = rule.matches.iter().all(|rule_match| matches!(rule_match.kind, MatchKind::Protocol(_)));
            let share = chance.or_else(|| is_last.then_some(1.0)).map(|chance| chance * left);
            left -= share.unwrap_or_default();
            edges.push(json!({"from": chain.as_str(), "to": to, "share": share, "words": words}));
        }
    }
    edges
}

/// The chain that marks packets for masquerading. Packets return from it, so it is not shown as a step.
const MARK: &str = "KUBE-MARK-MASQ";

/// The chain and the rule of an `-A` line.
fn read(line: &str) -> Option<(&str, ParsedRule)> {
    let (chain, arguments) = line.strip_prefix("-A ")?.split_once(' ')?;
    Some((chain, ParsedRule::parse(arguments)))
}

fn target(action: &RuleTarget) -> Option<String> {
    match action {
        RuleTarget::Jump(to) | RuleTarget::Goto(to) => Some(to.clone()),
        RuleTarget::Dnat(ip, Some(port)) => Some(std::net::SocketAddr::new(*ip, *port).to_string()),
        RuleTarget::Dnat(ip, None) => Some(ip.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cluster::ServicePortName;
    use crate::netlink::Kernel;
    use crate::observe::metrics::Metrics;
    use crate::observe::service_traffic::TrafficDelta;
    use crate::proxy::rules::inputs::Inputs;
    use crate::proxy::traffic::counts::CounterReading;
    use crate::serve::status::tests::{SHOP, inputs};
    use jiff::Timestamp;

    fn shown<'a>(
        inputs: &'a Inputs,
        changed: &'a dyn Fn(&ServiceKey) -> Option<Timestamp>,
        metrics: &'a Metrics,
        refused: &'a BTreeSet<&'a ServicePortName>,
    ) -> ShownServices<'a> {
        let families = &[(Family::V4, 3)];
        ShownServices(StatusView { inputs, families, refused, changed, metrics, host: &Kernel, random_fully: true })
    }

    #[test]
    fn services_are_listed_with_ports_and_endpoints() {
        let inputs = inputs(SHOP);
        let key = ServiceKey { namespace: "shop".into(), name: "web".into() };
        let name = ServicePortName { service: key.clone(), port: "http".into(), protocol: crate::cluster::Protocol::Tcp };
        let (metrics, refused) = (Metrics::default(), BTreeSet::from([&name]));
        let changed = |of: &ServiceKey| (*of == key).then_some(Timestamp::UNIX_EPOCH);
        let shown = shown(&inputs, &changed, &metrics, &refused);
        let list = shown.list(&PageQuery { search: "web".to_owned(), page: 0 });
        let wanted = json!({
            "namespace": "shop", "name": "web", "type": "NodePort", "addresses": ["10.96.0.10"], "ports": ["http 80/tcp (node port 30080)"],
            "endpoints": {"ipv4": {"ready": 2, "all": 3}}, "refused": true, "changed": "1970-01-01T00:00:00Z", "connections": null,
        });
        assert_eq!(list, json!({"total": 1, "page": 0, "pages": 1, "rows": [wanted]}));
    }

    #[test]
    fn a_service_has_steps_with_probabilities() {
        let inputs = inputs(SHOP);
        let (metrics, refused) = (Metrics::default(), BTreeSet::new());
        let shown = shown(&inputs, &|_| None, &metrics, &refused);
        let one = |name: &str| shown.one(&ServiceKey { namespace: "shop".into(), name: name.into() }, &HostFacts::default());
        let web = one("web");
        let edges = web["chains"][0]["edges"].as_array().expect("steps");
        let words = |edge: &Value| {
            let text = |key: &str| edge[key].as_str().unwrap_or_default().to_owned();
            let chain =
                |name: String| name.get(..9).map_or(name.clone(), |start| if name.len() > 20 { start.to_owned() } else { name.clone() });
            format!("{} {} {:?} {}", chain(text("from")), chain(text("to")), edge["share"].as_f64(), text("words"))
        };
        let steps: Vec<String> = edges.iter().map(words).collect();
        for wanted in [
            "KUBE-SERVICES KUBE-SVC- None cluster IP",
            "KUBE-NODEPORTS KUBE-EXT- None ",
            "KUBE-EXT- KUBE-SVC- Some(1.0) ",
            "KUBE-SVC- KUBE-SEP- Some(0.5) ",
            "KUBE-SEP- 10.244.1.5:8080 Some(1.0) ",
        ] {
            assert!(steps.iter().any(|step| step == wanted), "{wanted}: {steps:#?}");
        }
        assert!(
            web["chains"][0]["rules"]
                .as_array()
                .is_some_and(|rules| rules.iter().any(|rule| rule.as_str().is_some_and(|rule| rule.contains("-j DNAT"))))
        );
        assert_eq!((&web["connectionsTo"], one("nothing")), (&json!({}), Value::Null));
        let mut since = TrafficDelta::new(9);
        let rule = "[7:420] -A KUBE-SEP-A -p tcp -m comment --comment \"shop/web:http\" -m tcp -j DNAT --to-destination 10.244.1.5:8080";
        let other = "[9:540] -A KUBE-SEP-B -p tcp -m comment --comment \"shop/other\" -m tcp -j DNAT --to-destination 10.244.1.6:8080";
        let read = |traffic: &CounterReading, since: &mut TrafficDelta, lines: &[&str]| {
            let mut now = CounterReading::empty();
            for line in lines {
                traffic.compare_line(line, &mut now, since);
            }
            now
        };
        let before = read(&CounterReading::default(), &mut since, &[]);
        read(&before, &mut since, &[rule, other]);
        metrics.service_traffic(&since);
        assert_eq!(one("web")["connectionsTo"], json!({"10.244.1.5:8080": 7}));
    }
}
