//! `sepal explain` on the status page: the path of a packet through the desired rules.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::bad_setting::BadSetting;
use crate::cluster::{Change, Family, Service, SliceKey, Snapshot};
use crate::explain::ending::Ending;
use crate::explain::output;
use crate::explain::question::{self, QuestionError};
use crate::explain::ruleset::Ruleset;
use crate::explain::walk::walk;
use crate::netlink::Host;
use crate::proxy::rules::inputs::Inputs;
use crate::proxy::sync::facts::{described_facts, whole};
use crate::table::planner;

/// The longest sender or destination in bytes.
const LENGTH: usize = 300;

#[derive(Debug, thiserror::Error)]
enum ExplainError {
    #[error("an address or name is too long")]
    TooLong,
    #[error("give the pod's IP: only the command `sepal explain` gets it from the API server")]
    Pod,
    #[error("{0}")]
    Unclear(#[from] QuestionError),
    #[error("{0}")]
    Setting(#[from] BadSetting),
}

/// The path as text (`text`) and as an object (`way`), as `sepal explain` prints them, or the error in the query (`error`).
pub(crate) fn explain(from: &str, to: &str, inputs: &Inputs, host: &dyn Host, random_fully: bool) -> Value {
    match path(from.trim(), to.trim(), inputs, host, random_fully) {
        Ok(path) => path,
        Err(error) => json!({"error": error.to_string()}),
    }
}

fn path(from: &str, to: &str, inputs: &Inputs, host: &dyn Host, random_fully: bool) -> Result<Value, ExplainError> {
    if from.len() > LENGTH || to.len() > LENGTH {
        return Err(ExplainError::TooLong);
    }
    if from.starts_with("pod/") {
        return Err(ExplainError::Pod);
    }
    let to = question::destination(to, inputs)?;
    let place = question::local_node(inputs, host.addresses().unwrap_or_default());
    let packet = question::packet(from, to, inputs, &place)?;
    let concerned = concerned(inputs, to.0);
    let facts = described_facts(&concerned, host, random_fully)?;
    let (plan, renderer) = whole(&concerned, &facts, Family::of(to.0.ip()), &planner::dry_run_tables());
    let walk = walk(&Ruleset::desired(&plan.text(&renderer)), packet, &place);
    let words = |ending: &Ending| question::location(ending.to.ip(), inputs, &place);
    Ok(json!({"text": output::text(&packet, &walk, &words), "way": output::json(&packet, &walk, &words)}))
}

/// The inputs with only the Services whose rules match this address or node port. Other Services' rules do not affect such a packet.
fn concerned(inputs: &Inputs, to: SocketAddr) -> Inputs {
    let mut snapshot = Snapshot::default();
    snapshot.apply(Change::Node(inputs.snapshot.node().cloned()));
    for (key, service) in inputs.snapshot.services().filter(|(_, service)| is_for(service, to)) {
        snapshot.apply(Change::Service(key.clone(), Some(service.clone())));
        for (number, slice) in inputs.snapshot.slices(key).enumerate() {
            let name = SliceKey { namespace: Arc::clone(&key.namespace), name: format!("{}-{number}", key.name).into() };
            snapshot.apply(Change::Slice(name, Some(slice.clone())));
        }
    }
    Inputs {
        snapshot,
        node_name: inputs.node_name.clone(),
        settings: inputs.settings.clone(),
        written_facts: inputs.written_facts.clone(),
        pod_rules: inputs.pod_rules.clone(),
        without_proxy: inputs.without_proxy,
    }
}

fn is_for(service: &Service, to: SocketAddr) -> bool {
    let is_at = |ip: &IpAddr| *ip == to.ip();
    [service.cluster_ip_v4, service.cluster_ip_v6].iter().flatten().any(is_at)
        || service.external_ips.iter().any(is_at)
        || service.load_balancer_vips.iter().any(is_at)
        || service.health_check_node_port == to.port()
        || service.ports.iter().any(|port| port.node_port == to.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::record::FakeHost;
    use crate::serve::status::tests::{SHOP, inputs};

    #[test]
    fn a_path_through_few_rules_equals_that_through_all() {
        let inputs = inputs(SHOP);
        let ask = |from: &str, to: &str| explain(from, to, &inputs, &FakeHost::default(), true);
        let way = ask("10.244.0.7", " svc/shop/web ");
        let text = way["text"].as_str().expect("a text");
        assert!(text.contains("50 %: to 10.244.1.5:8080, on node b, from 10.244.0.7"), "{text}");
        assert_eq!(way["way"]["endings"].as_array().map(Vec::len), Some(2));
        assert_eq!(concerned(&inputs, ([10, 96, 0, 10], 80).into()).snapshot.service_count(), 1);

        let facts = described_facts(&inputs, &FakeHost::default(), true).expect("plain settings");
        let (plan, renderer) = whole(&inputs, &facts, Family::V4, &planner::dry_run_tables());
        let all = Ruleset::desired(&plan.text(&renderer));
        for (from, to) in
            [("node", "10.96.0.10:80"), ("external", "192.168.1.1:30080"), ("10.244.0.7", "10.96.0.11:80"), ("external", "10.96.0.10:81")]
        {
            let whom = question::destination(to, &inputs).expect("an address");
            let place = question::local_node(&inputs, []);
            let packet = question::packet(from, whom, &inputs, &place).expect("a packet");
            let wanted = output::json(&packet, &walk(&all, packet, &place), &|ending| question::location(ending.to.ip(), &inputs, &place));
            assert_eq!(ask(from, to)["way"], wanted, "{from} to {to}");
        }
        assert_eq!(ask("elsewhere", "10.0.0.1:1")["error"], "\"elsewhere\" is none of IP, node, external, external/IP, pod/NAMESPACE/NAME");
        assert!(ask("pod/shop/web-1", "10.0.0.1:1")["error"].as_str().is_some_and(|error| error.contains("the pod's IP")));
        assert!(ask("node", &"x".repeat(1000))["error"].as_str().is_some_and(|error| error.contains("too long")));
    }
}
