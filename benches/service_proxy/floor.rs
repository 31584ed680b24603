//! Measures what a bare iptables-restore needs for the same content, without planning or comparing, in the cheapest order and grouping. The
//! rules come from sepal, their order and grouping do not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::time::Instant;

use sepal::cluster::host_facts::HostFacts;
use sepal::cluster::{Family, ServiceKey};
use sepal::config::manifests::Manifests;
use sepal::config::settings::RequestedSettings;
use sepal::kubernetes::convert;
use sepal::kubernetes::object::{Kind, ObjectId};
use sepal::netlink::record::FakeHost;
use sepal::proxy::rules::inputs::Inputs;
use sepal::proxy::rules::{self, Renderer};
use sepal::proxy::sync::facts::described_facts;
use sepal::table::jumps::{JUMPS, Table};
use sepal::table::plan::Variant;
use sepal::table::rules::{ChainRules, RuleSource, ServicePortRules};
use sepal_lab::{Cluster, Netns};
use serde_json::Value;

/// The sizes of the COMMITs that fill empty tables.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Chains of Services per COMMIT. A Service is never split.
    chains: usize,
    /// Lines of dispatch chains per COMMIT.
    lines: usize,
}

/// The sizes on nft. The fastest ones are the floor.
const SPLIT: [Sizes; 2] = [Sizes { chains: 256, lines: 2048 }, Sizes { chains: 512, lines: 2048 }];

/// Sizes with all lines of dispatch chains in one COMMIT. The time for that COMMIT is quadratic in the number of Services.
const WHOLE_DISPATCH: Sizes = Sizes { chains: 256, lines: usize::MAX };

/// The most Services with which [`WHOLE_DISPATCH`] is measured.
const WHOLE_DISPATCH_SERVICES: usize = 20_000;

const WHOLE: Sizes = Sizes { chains: usize::MAX, lines: usize::MAX };

/// Chains per COMMIT when full tables are changed on nft. The kernel walks the whole tables for each COMMIT, so few large ones are fastest.
const CHANGE_GROUP_SIZE: usize = 1024;

/// Rules by chain name.
type Chains = BTreeMap<String, String>;

/// Tables in their own namespace, written by a bare iptables-restore.
pub(crate) struct Floor {
    node: Netns,
    variant: Variant,
    inputs: Inputs,
    facts: HostFacts,
}

impl Floor {
    /// Fills empty tables and returns the shortest time in seconds.
    pub(crate) fn fill(cluster: Cluster, variant: Variant) -> (Self, f64) {
        let inputs = inputs_of(cluster);
        let facts = described_facts(&inputs, &FakeHost::default(), true).expect("the facts can be read");
        let sizes = if variant == Variant::Nft { &SPLIT[..] } else { &[WHOLE] };
        let filled = sizes.iter().map(|&sizes| {
            let node = Netns::new();
            let families = if cluster.dual_stack { &Family::ALL[..] } else { &[Family::V4] };
            let time = families.iter().map(|family| restore(&node, *family, variant, &full_input(&inputs, &facts, *family, sizes))).sum();
            (node, time)
        });
        let (node, time) = filled.min_by(|(_, a): &(_, f64), (_, b)| a.total_cmp(b)).expect("there are sizes");
        (Self { node, variant, inputs, facts }, time)
    }

    /// Fills empty tables on nft with all lines of the dispatch chains in one COMMIT, and returns the time in seconds. `None` for clusters
    /// where that takes minutes.
    pub(crate) fn fill_with_whole_dispatch(&self, cluster: Cluster) -> Option<f64> {
        let measured = self.variant == Variant::Nft && !cluster.dual_stack && cluster.services <= WHOLE_DISPATCH_SERVICES;
        measured.then(|| {
            let input = full_input(&self.inputs, &self.facts, Family::V4, WHOLE_DISPATCH);
            restore(&Netns::new(), Family::V4, self.variant, &input)
        })
    }

    /// Applies changed objects and returns the time in seconds. Of each Service, it writes the chains that differ, and adds or deletes the
    /// rules in the dispatch chains that differ.
    pub(crate) fn change(&mut self, objects: &[Value]) -> f64 {
        let mut touched = Vec::new();
        let mut after = self.inputs.clone();
        for object in objects {
            let kind = if object["kind"] == "Service" { Kind::Service } else { Kind::EndpointSlice };
            let id = ObjectId::of(kind, object);
            touched.extend(after.snapshot.apply(convert::object(&id, object).change).services);
        }
        self.write(after, &touched)
    }

    /// Removes a Service and returns the time in seconds.
    pub(crate) fn remove(&mut self, service: &Value, slice: &Value) -> f64 {
        let mut after = self.inputs.clone();
        let mut touched = Vec::new();
        for (kind, object) in [(Kind::Service, service), (Kind::EndpointSlice, slice)] {
            touched.extend(after.snapshot.apply(convert::gone(&ObjectId::of(kind, object))).services);
        }
        self.write(after, &touched)
    }

    /// Writes the difference from the current inputs to `after` for these Services. Returns the time in seconds.
    fn write(&mut self, after: Inputs, touched: &[ServiceKey]) -> f64 {
        let mut touched = touched.to_vec();
        touched.sort();
        touched.dedup();
        let (mut text, mut group) = (String::new(), Group::default());
        for key in &touched {
            group.add(service_chains(&self.inputs, &self.facts, key), service_chains(&after, &self.facts, key));
            if group.chains >= CHANGE_GROUP_SIZE && self.variant == Variant::Nft {
                text += &std::mem::take(&mut group).text();
            }
        }
        text += &group.text();
        self.inputs = after;
        restore(&self.node, Family::V4, self.variant, &text)
    }

    /// Reads both tables of each family of a cluster with iptables-save, and returns the time in seconds.
    pub(crate) fn save(&self, cluster: Cluster) -> f64 {
        let start = Instant::now();
        let programs = if cluster.dual_stack { &["iptables", "ip6tables"][..] } else { &["iptables"] };
        for program in programs {
            for table in Table::ALL {
                self.node.run(&format!("{program}-{}-save -t {table} > /dev/null", self.variant));
            }
        }
        start.elapsed().as_secs_f64()
    }
}

/// Changes for one COMMIT.
#[derive(Default)]
struct Group {
    chains: usize,
    declarations: String,
    rules: String,
    deletions: String,
}

impl Group {
    /// Adds the changes of one Service.
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

    /// Adds a chain line, which creates or empties the chain.
    fn declare(&mut self, chain: &str) {
        self.chains += 1;
        let _ = writeln!(self.declarations, ":{chain} - [0:0]");
    }

    /// Returns the input for iptables-restore.
    fn text(self) -> String {
        let Self { declarations, rules, deletions, .. } = self;
        if declarations.is_empty() { String::new() } else { format!("*nat\n{declarations}{rules}{deletions}COMMIT\n") }
    }
}

/// Returns the chains of a Service and its rules in the dispatch chains of `nat`.
fn service_chains(inputs: &Inputs, facts: &HostFacts, key: &ServiceKey) -> (Chains, String) {
    let renderer = Renderer::new(inputs, facts, Family::V4).for_size(usize::MAX);
    let ports = renderer.service(key);
    let chains = ports.iter().flat_map(|port| port.chains().map(|(chain, rules)| (chain.to_string(), rules.to_owned())));
    (chains.collect(), ports.iter().map(ServicePortRules::nat_dispatch).collect())
}

/// Returns the rules' inputs of a cluster.
fn inputs_of(cluster: Cluster) -> Inputs {
    let mut manifests = Manifests::default();
    manifests.add("cluster", &cluster.manifest()).expect("the manifest is well formed");
    manifests.into_inputs(&RequestedSettings { host_name: "bench".into(), ..RequestedSettings::default() })
}

/// Returns the input that fills empty tables: `filter`, then service ports in groups, then the dispatch chains and jumps.
fn full_input(inputs: &Inputs, facts: &HostFacts, family: Family, sizes: Sizes) -> String {
    let all = rules::compute(inputs, facts, family);
    let jumps = |table| -> String {
        let of_table = JUMPS.iter().filter(|jump| jump.table == table && all.fixed.has_jump(jump));
        of_table.map(|jump| format!("-I {} {}\n", jump.from, jump.arguments())).collect()
    };
    // In IPv6, KUBE-FIREWALL has no rule of ours, but the jumps to it.
    let firewall = if family == Family::V6 { ":KUBE-FIREWALL - [0:0]\n" } else { "" };
    let declared = |chains: &[ChainRules]| -> String {
        let rules: String = chains.iter().map(|chain| chain.rules.as_str()).collect();
        chains.iter().map(|chain| format!(":{} - [0:0]\n", chain.name)).collect::<String>() + &rules
    };
    let (filter, dispatch): (String, String) = all.services.iter().map(|port| (port.filter_dispatch(), port.nat_dispatch())).unzip();
    let mut text = format!(
        "*filter\n{firewall}{}{filter}{}COMMIT\n*nat\n{}",
        declared(&all.fixed.filter),
        jumps(Table::Filter),
        declared(&all.fixed.nat)
    );
    let (mut chains, mut contents) = (0, String::new());
    for port in &all.services {
        for (chain, rules) in port.chains() {
            let _ = writeln!(text, ":{chain} - [0:0]");
            contents += rules;
            chains += 1;
        }
        if chains >= sizes.chains {
            text += &std::mem::take(&mut contents);
            text += "COMMIT\n*nat\n";
            chains = 0;
        }
    }
    text += &contents;
    if sizes.chains != usize::MAX {
        text += "COMMIT\n*nat\n";
    }
    for (number, line) in dispatch.split_inclusive('\n').enumerate() {
        if number > 0 && number % sizes.lines == 0 {
            text += "COMMIT\n*nat\n";
        }
        text += line;
    }
    text + &all.fixed.nat_tail + &jumps(Table::Nat) + "COMMIT\n"
}

/// Runs a bare iptables-restore with this input and returns the time in seconds.
pub(crate) fn restore(node: &Netns, family: Family, variant: Variant, input: &str) -> f64 {
    let path = std::env::temp_dir().join(format!("sepal-bench-input-{}", std::process::id()));
    std::fs::write(&path, input).expect("writable");
    let mut command = node.command(&format!("{}-{variant}-restore", if family == Family::V4 { "iptables" } else { "ip6tables" }));
    command.args(["-w", "5", "--noflush", "--counters"]).stdin(File::open(&path).expect("readable"));
    let start = Instant::now();
    assert!(command.status().expect("iptables-restore starts").success(), "iptables-restore accepts its input");
    start.elapsed().as_secs_f64()
}
