//! What a bare iptables-restore needs for the same content: no planning, no comparing, the cheapest order and grouping there is. None of
//! it comes from sepal's own planner, only the rules themselves do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::time::Instant;

use sepal::cluster::host_facts::HostFacts;
use sepal::cluster::{Family, ServiceKey};
use sepal::config::manifests::Manifests;
use sepal::config::settings::Asked;
use sepal::kubernetes::convert;
use sepal::kubernetes::object::{Kind, ObjectId};
use sepal::netlink::record::FakeHost;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::rules::{self, Renderer};
use sepal::proxy::sync::facts::described_facts;
use sepal::table::jumps::{JUMPS, Table};
use sepal::table::plan::Variant;
use sepal::table::rules::{Chain, RuleSource, ServicePortRules};
use sepal_lab::{Cluster, Netns};
use serde_json::Value;

/// On nft, whole services go into one COMMIT until it mentions about so many chains; the best of these is the floor.
const GROUPS: [usize; 2] = [256, 512];

/// In tables that are full already a COMMIT costs more, for the kernel looks through all of them: fewer and larger ones are best then.
const GROUP_OF_CHANGES: usize = 1024;

/// Rules by chain.
type Chains = BTreeMap<String, String>;

/// Tables that iptables-restore alone has filled, in a namespace of their own.
pub(crate) struct Floor {
    node: Netns,
    variant: Variant,
    inputs: Inputs,
    facts: HostFacts,
}

impl Floor {
    /// Fills empty tables; gives the shortest time that takes, in seconds.
    pub(crate) fn fill(cluster: Cluster, variant: Variant) -> (Self, f64) {
        let mut manifests = Manifests::default();
        manifests.add("cluster", &cluster.manifest()).expect("well formed");
        let inputs = manifests.into_inputs(&Asked { host_name: "bench".into(), ..Asked::default() });
        let facts = described_facts(&inputs, &FakeHost::default(), true).expect("facts");
        let groups = if variant == Variant::Nft { &GROUPS[..] } else { &[usize::MAX] };
        let filled = groups.iter().map(|&group| {
            let node = Netns::new();
            let time = restore(&node, variant, &everything(&inputs, &facts, group));
            (node, time)
        });
        let (node, time) = filled.min_by(|(_, a), (_, b)| a.total_cmp(b)).expect("there are some");
        (Self { node, variant, inputs, facts }, time)
    }

    /// Makes these changes; gives the time, in seconds. Of each service only those chains are written that are other than before, with its
    /// lines in the shared chains where they are.
    pub(crate) fn change(&mut self, objects: &[Value]) -> f64 {
        let mut touched = Vec::new();
        let mut after = self.inputs.clone();
        for object in objects {
            let kind = if object["kind"] == "Service" { Kind::Service } else { Kind::EndpointSlice };
            let id = ObjectId::of(kind, object);
            touched.extend(after.snapshot.apply(convert::object(&id, object).change).services);
        }
        self.go_to(after, &touched)
    }

    /// Takes a service away.
    pub(crate) fn remove(&mut self, service: &Value, slice: &Value) -> f64 {
        let mut after = self.inputs.clone();
        let mut touched = Vec::new();
        for (kind, object) in [(Kind::Service, service), (Kind::EndpointSlice, slice)] {
            touched.extend(after.snapshot.apply(convert::gone(&ObjectId::of(kind, object))).services);
        }
        self.go_to(after, &touched)
    }

    fn go_to(&mut self, after: Inputs, touched: &[ServiceKey]) -> f64 {
        let mut touched = touched.to_vec();
        touched.sort();
        touched.dedup();
        let (mut text, mut group) = (String::new(), Group::default());
        for key in &touched {
            group.add(chains(&self.inputs, &self.facts, key), chains(&after, &self.facts, key));
            if group.mentioned >= GROUP_OF_CHANGES && self.variant == Variant::Nft {
                text += &std::mem::take(&mut group).text();
            }
        }
        text += &group.text();
        self.inputs = after;
        restore(&self.node, self.variant, &text)
    }

    /// Reads both tables; gives the time, in seconds.
    pub(crate) fn save(&self) -> f64 {
        let start = Instant::now();
        for table in Table::ALL {
            self.node.run(&format!("iptables-{}-save -t {table} > /dev/null", self.variant));
        }
        start.elapsed().as_secs_f64()
    }
}

/// Changes that go into one COMMIT.
#[derive(Default)]
struct Group {
    mentioned: usize,
    declarations: String,
    rules: String,
    deletions: String,
}

impl Group {
    fn add(&mut self, (before, dispatch_before): (Chains, String), (after, dispatch): (Chains, String)) {
        for (chain, rules) in after.iter().filter(|(chain, rules)| before.get(*chain) != Some(rules)) {
            self.declare(chain);
            self.rules += rules;
        }
        for line in dispatch_before.lines().filter(|line| !dispatch.lines().any(|after| after == *line)) {
            let _ = writeln!(self.rules, "{}", line.replacen("-A", "-D", 1));
        }
        for line in dispatch.lines().filter(|line| !dispatch_before.lines().any(|before| before == *line)) {
            let _ = writeln!(self.rules, "{}", line.replacen("-A", "-I", 1));
        }
        for chain in before.keys().filter(|chain| !after.contains_key(*chain)) {
            self.declare(chain);
            let _ = writeln!(self.deletions, "-X {chain}");
        }
    }

    fn declare(&mut self, chain: &str) {
        self.mentioned += 1;
        let _ = writeln!(self.declarations, ":{chain} - [0:0]");
    }

    fn text(self) -> String {
        let Self { declarations, rules, deletions, .. } = self;
        if declarations.is_empty() { String::new() } else { format!("*nat\n{declarations}{rules}{deletions}COMMIT\n") }
    }
}

/// A service's chains, and its lines in the shared chains of `nat`.
fn chains(inputs: &Inputs, facts: &HostFacts, key: &ServiceKey) -> (Chains, String) {
    let renderer = Renderer::new(inputs, facts, Family::V4).for_size(usize::MAX);
    let ports = renderer.service(key);
    let chains = ports.iter().flat_map(|port| port.chains().map(|(chain, rules)| (chain.to_string(), rules.to_owned())));
    (chains.collect(), ports.iter().map(ServicePortRules::nat_dispatch).collect())
}

/// Everything into empty tables: `filter`, then service ports in groups, then what leads to them.
fn everything(inputs: &Inputs, facts: &HostFacts, group: usize) -> String {
    let all = rules::compute(inputs, facts, Family::V4);
    let jumps = |table| -> String {
        let of_table = JUMPS.iter().filter(|jump| jump.table == table && all.fixed.wants(jump));
        of_table.map(|jump| format!("-I {} {}\n", jump.from, jump.arguments())).collect()
    };
    let declared = |chains: &[Chain<&'static str>]| -> String {
        let rules: String = chains.iter().map(|chain| chain.rules.as_str()).collect();
        chains.iter().map(|chain| format!(":{} - [0:0]\n", chain.name)).collect::<String>() + &rules
    };
    let (filter, dispatch): (String, String) = all.services.iter().map(|port| (port.filter_dispatch(), port.nat_dispatch())).unzip();
    let mut text =
        format!("*filter\n{}{filter}{}COMMIT\n*nat\n{}", declared(&all.fixed.filter), jumps(Table::Filter), declared(&all.fixed.nat));
    let (mut mentioned, mut contents) = (0, String::new());
    for port in &all.services {
        for (chain, rules) in port.chains() {
            let _ = writeln!(text, ":{chain} - [0:0]");
            contents += rules;
            mentioned += 1;
        }
        if mentioned >= group {
            text += &std::mem::take(&mut contents);
            text += "COMMIT\n*nat\n";
            mentioned = 0;
        }
    }
    text += &contents;
    if group != usize::MAX {
        text += "COMMIT\n*nat\n";
    }
    text + &dispatch + &all.fixed.nat_tail + &jumps(Table::Nat) + "COMMIT\n"
}

/// How long a bare iptables-restore takes with this input, in seconds.
pub(crate) fn restore(node: &Netns, variant: Variant, input: &str) -> f64 {
    let path = std::env::temp_dir().join(format!("sepal-bench-input-{}", std::process::id()));
    std::fs::write(&path, input).expect("writable");
    let mut command = node.command(&format!("iptables-{variant}-restore"));
    command.args(["-w", "5", "--noflush", "--counters"]).stdin(File::open(&path).expect("readable"));
    let start = Instant::now();
    assert!(command.status().expect("it starts").success(), "iptables-restore takes its input");
    start.elapsed().as_secs_f64()
}
