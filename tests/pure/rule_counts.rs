//! The number of rules: counted incrementally, and equal to upstream's.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sepal::cluster::host_facts::{HostFacts, NfacctCounters};
use sepal::cluster::{Family, ServiceKey};
use sepal::proxy::rules::RuleSet;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::settings::DetectLocal;
use sepal::proxy::sync::family::FamilyRules;
use sepal::table::plan::Variant;
use sepal::table::rule_counts::RuleCounts;
use serde_json::json;

use crate::common;
use crate::objects::{cluster, text};
use crate::plain::{service, slice};
use crate::simulator::Memory;
use crate::{block_on, rule_set};

/// Services of one kind with this number of endpoints each, as in upstream's `number_generated_rules_test`.
fn generated(services: usize, endpoints: usize, balancer: bool) -> Inputs {
    let mut objects = String::new();
    for number in 0..services {
        let name = format!("svc{number}");
        let mut spec = json!({"clusterIP": format!("172.30.0.{}", number + 1), "clusterIPs": null, "ipFamilies": null});
        if balancer {
            spec["type"] = "LoadBalancer".into();
            spec["ports"] = json!([{"port": 80, "nodePort": 30000 + number}]);
            spec["externalIPs"] = json!([format!("192.168.99.{}", number + 1)]);
            spec["loadBalancerSourceRanges"] = json!(["203.0.113.0/25"]);
        }
        let mut object = service(&name, &spec);
        if balancer {
            object["status"] = json!({"loadBalancer": {"ingress": [{"ip": format!("1.2.3.{}", number + 1)}]}});
        }
        let addresses: Vec<String> = (0..endpoints).map(|endpoint| format!("10.0.{number}.{}", endpoint + 1)).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        objects.extend([object, slice(&name, "IPv4", &addresses)].map(|object| format!("{object}\n")));
    }
    let mut inputs = common::inputs(&objects).expect("well formed");
    inputs.settings.detect_local = DetectLocal::ClusterCidr(vec!["10.0.0.0/8".parse().expect("a CIDR")]);
    inputs
}

/// A host with every feature that rules may use.
fn facts() -> HostFacts {
    HostFacts { nfacct: NfacctCounters { ct_state_invalid: true, localhost_node_ports: true }, random_fully: true, ..HostFacts::default() }
}

/// `number_generated_rules_test` of [kube-proxy 11.1].
#[test]
fn as_many_rules_as_upstream_generates() {
    for (balancer, services, endpoints, filter, nat) in [
        (false, 0, 0, 4, 5),
        (false, 1, 0, 5, 5),
        (false, 1, 1, 4, 10),
        (false, 1, 2, 4, 13),
        (false, 1, 10, 4, 37),
        (false, 10, 0, 14, 5),
        (false, 10, 1, 4, 55),
        (false, 10, 2, 4, 85),
        (false, 10, 10, 4, 325),
        (true, 1, 0, 8, 5),
        (true, 1, 1, 5, 18),
        (true, 1, 2, 5, 21),
        (true, 1, 10, 5, 45),
        (true, 10, 0, 44, 5),
        (true, 10, 1, 14, 135),
        (true, 10, 10, 14, 405),
    ] {
        let inputs = generated(services, endpoints, balancer);
        let memory = Memory::new(Variant::Nft);
        let mut rules = FamilyRules::new(Family::V4);
        block_on(rules.sync(&memory, &inputs, &facts())).expect("a start from nothing");
        let wanted = RuleCounts { filter, nat };
        assert_eq!(rules.totals().rules, wanted, "{services} x {endpoints}, balancer {balancer}");
        assert_eq!(rules.attempt().written, wanted, "a first sync writes them all");
    }
}

/// The rules in a rule set, counted one by one.
fn counted(set: &RuleSet) -> (RuleCounts, usize) {
    let lines = |text: &str| text.lines().count();
    let mut counts = RuleCounts {
        filter: set.fixed.filter.iter().map(|chain| lines(&chain.rules)).sum(),
        nat: set.fixed.nat.iter().map(|chain| lines(&chain.rules)).sum::<usize>() + lines(&set.fixed.nat_tail),
    };
    let mut chains = set.fixed.filter.len() + set.fixed.nat.len();
    for service in &set.services {
        counts.filter += lines(service.filter_dispatch());
        counts.nat += lines(service.nat_dispatch()) + service.chains().map(|(_, rules)| lines(rules)).sum::<usize>();
        chains += service.chains().len();
    }
    (counts, chains)
}

/// The rules that restore input puts into chains of ours, by table.
fn written(runs: &[String]) -> RuleCounts {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for run in runs {
        let mut table = "";
        for line in run.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            }
            if line.starts_with("-A KUBE-") || line.starts_with("-I KUBE-") {
                *counts.entry(table).or_default() += 1;
            }
        }
    }
    let of = |table| counts.get(table).copied().unwrap_or_default();
    RuleCounts { filter: of("filter"), nat: of("nat") }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// The incremental counts equal the rules that exist, and the written count equals the input of iptables-restore.
    #[test]
    fn counting_along_the_way_is_counting(steps in proptest::collection::vec(cluster(), 1..5), nft in any::<bool>()) {
        for family in Family::ALL {
            let memory = Memory::new(if nft { Variant::Nft } else { Variant::Legacy });
            let mut rules = FamilyRules::new(family);
            let mut before = Inputs::default();
            for objects in &steps {
                let after = common::inputs(&text(objects)).map_err(TestCaseError::fail)?;
                let keys: Vec<ServiceKey> =
                    before.snapshot.services().chain(after.snapshot.services()).map(|(key, _)| key.clone()).collect();
                if before.snapshot.node() != after.snapshot.node() {
                    rules.touch_everything();
                }
                rules.touch(&keys);
                let runs = memory.runs.borrow().len();
                block_on(rules.sync(&memory, &after, &common::facts(&after))).map_err(|error| TestCaseError::fail(error.to_string()))?;
                let (counts, chains) = counted(&rule_set(&after, family));
                let totals = rules.totals();
                prop_assert_eq!((totals.rules, totals.chains), (counts, chains));
                prop_assert_eq!(rules.attempt().written, written(&memory.runs.borrow()[runs..]));
                // A restart from this state has the same counts, memory included.
                let mut fresh = FamilyRules::new(family);
                block_on(fresh.sync(&memory, &after, &common::facts(&after))).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(fresh.totals(), totals);
                before = after;
            }
        }
    }
}
