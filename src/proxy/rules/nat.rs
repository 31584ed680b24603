//! The rules of the `nat` table: dispatch to service ports, their own chains, masquerading ([kube-proxy 6.4], [kube-proxy 6.6],
//! [kube-proxy 6.7], [kube-proxy 6.8]).

use crate::cluster::{Endpoint, Family, Service, ServicePort, ServicePortName};
use crate::table::chain_names::{self, ChainName, ServiceChains};
use crate::table::rules::ChainRules;

use super::policy::Policy;
use super::render::{RuleLine, probability};
use super::view::{NodePorts, View};

/// One service port of one family, with everything that its rules depend on.
#[derive(Debug)]
pub struct ServicePortInput<'a> {
    /// Its name.
    pub name: ServicePortName,
    /// Its name as text, as in the comments of rules.
    pub spn: String,
    /// Its Service.
    pub service: &'a Service,
    /// Its port.
    pub port: &'a ServicePort,
    /// The Service's cluster IP in this family, as text.
    pub cluster_ip: String,
    /// Its endpoints in this family.
    pub endpoints: Vec<Endpoint<'a>>,
}

/// Returns the fixed chains of `nat` and their rules that come before those of service ports.
pub(super) fn fixed_chains(view: &View<'_>) -> Vec<ChainRules> {
    let mark = &view.mark;
    let mut postrouting = String::new();
    RuleLine::append(&mut postrouting, chain_names::POSTROUTING).arguments(&[&format!("-m mark ! --mark {mark}/{mark}")]).jump(&["RETURN"]);
    // The mark is cleared. Otherwise a packet that is encapsulated and passes POSTROUTING again would be masqueraded twice.
    RuleLine::append(&mut postrouting, chain_names::POSTROUTING).jump(&[&format!("MARK --xor-mark {mark}")]);
    RuleLine::append(&mut postrouting, chain_names::POSTROUTING)
        .comment(&["kubernetes service traffic requiring SNAT"])
        .jump(&[if view.random_fully { "MASQUERADE --random-fully" } else { "MASQUERADE" }]);
    let mut mark_masq = String::new();
    RuleLine::append(&mut mark_masq, chain_names::MARK_MASQ).jump(&[&format!("MARK --or-mark {mark}")]);
    vec![
        ChainRules { name: chain_names::SERVICES, rules: String::new() },
        ChainRules { name: chain_names::NODEPORTS, rules: String::new() },
        ChainRules { name: chain_names::POSTROUTING, rules: postrouting },
        ChainRules { name: chain_names::MARK_MASQ, rules: mark_masq },
    ]
}

/// Returns the rules at the end of KUBE-SERVICES. Packets that matched no service port jump to KUBE-NODEPORTS.
pub(super) fn tail(view: &View<'_>) -> String {
    let mut out = String::new();
    let mut rule = |arguments: &str| {
        RuleLine::append(&mut out, chain_names::SERVICES)
            .comment(&["kubernetes service nodeports; NOTE: this must be the last rule in this chain"])
            .arguments(&[arguments])
            .jump(&[chain_names::NODEPORTS]);
    };
    match &view.node_ports {
        NodePorts::AllLocal => match view.excluded_loopback() {
            Some(excluded) => rule(&format!("-m addrtype --dst-type LOCAL ! -d {excluded}")),
            None => rule("-m addrtype --dst-type LOCAL"),
        },
        NodePorts::Addresses(addresses) => addresses.iter().for_each(|ip| rule(&format!("-d {ip}"))),
    }
    out
}

/// Writes the `nat` rules of one service port.
pub(super) struct Writer<'a> {
    pub input: &'a ServicePortInput<'a>,
    pub view: &'a View<'a>,
    pub policy: &'a Policy<'a>,
    pub names: &'a ServiceChains,
    /// The cluster is large, so endpoint rules have no comments.
    pub large: bool,
}

impl Writer<'_> {
    /// Writes the lines in KUBE-SERVICES and KUBE-NODEPORTS ([kube-proxy 6.6], steps 1-5).
    pub(super) fn dispatch(&self, out: &mut String) {
        let Self { input, view, policy, names, .. } = self;
        let (spn, protocol, port) = (input.spn.as_str(), input.port.protocol, input.port.port);
        let mut service = |kind: &str, address: &str, target: &ChainName| {
            RuleLine::append(out, chain_names::SERVICES).comment(&[spn, kind]).frontend(protocol, address, port).jump(&[target.as_str()]);
        };
        if policy.serves_internal() {
            service(" cluster IP", &input.cluster_ip, self.internal_chain());
        }
        if !policy.has_endpoints {
            return;
        }
        if view.allow_external_ips {
            for ip in input.service.external_ips(view.family) {
                service(" external IP", &ip.to_string(), &names.external);
            }
        }
        let balancer = if self.uses_firewall() { &names.firewall } else { &names.external };
        for vip in input.service.load_balancer_vips(view.family) {
            service(" loadbalancer IP", &vip.to_string(), balancer);
        }
        if input.port.node_port != 0 {
            let node_port = input.port.node_port;
            let external = names.external.as_str();
            if view.localhost_node_ports && view.nfacct.localhost_node_ports {
                RuleLine::append(out, chain_names::NODEPORTS)
                    .bare_comment(spn)
                    .frontend(protocol, "127.0.0.0/8", node_port)
                    .arguments(&["-m nfacct --nfacct-name localhost_nps_accepted_pkts"])
                    .jump(&[external]);
            }
            RuleLine::append(out, chain_names::NODEPORTS).bare_comment(spn).protocol(protocol).port(node_port).jump(&[external]);
        }
    }

    /// Writes the service port's own chains in the order in which kube-proxy declares them ([kube-proxy 6.7], steps 7-12). Returns each
    /// chain with the offset where its rules end.
    pub(super) fn chains(&self, out: &mut String) -> Vec<(ChainName, usize)> {
        let Self { policy, names, .. } = self;
        let seps: Vec<(&Endpoint<'_>, ChainName)> =
            policy.reachable.iter().map(|e| (*e, ChainName::endpoint(&self.input.spn, self.input.port.protocol, &e.id))).collect();
        let mut chains = Vec::with_capacity(2 + seps.len());
        if policy.has_external_chain() {
            self.external(out);
            chains.push((names.external, out.len()));
        }
        if self.uses_firewall() {
            self.firewall(out);
            chains.push((names.firewall, out.len()));
        }
        if policy.has_cluster_chain() {
            self.balancing(out, &names.cluster, &policy.cluster, &seps);
            chains.push((names.cluster, out.len()));
        }
        if policy.has_local_chain() {
            self.balancing(out, &names.local, &policy.local, &seps);
            chains.push((names.local, out.len()));
        }
        for (endpoint, name) in &seps {
            self.endpoint(out, endpoint, name.as_str());
            chains.push((*name, out.len()));
        }
        chains
    }

    const fn internal_chain(&self) -> &ChainName {
        if self.policy.internal_local { &self.names.local } else { &self.names.cluster }
    }

    /// Returns true if the service port has a KUBE-FW- chain.
    fn uses_firewall(&self) -> bool {
        uses_firewall(self.input, self.policy, self.view.family)
    }

    fn external(&self, out: &mut String) {
        let Self { view, policy, names, .. } = self;
        let spn = self.input.spn.as_str();
        let chain = names.external.as_str();
        let cluster = names.cluster.as_str();
        if policy.external_local {
            if let Some(local) = &view.local_traffic {
                RuleLine::append(out, chain)
                    .comment(&["pod traffic for ", spn, " external destinations"])
                    .arguments(&[&local.if_local])
                    .jump(&[cluster]);
            }
            for (verb, target) in [("masquerade", chain_names::MARK_MASQ), ("route", cluster)] {
                RuleLine::append(out, chain)
                    .comment(&[verb, " LOCAL traffic for ", spn, " external destinations"])
                    .arguments(&["-m addrtype --src-type LOCAL"])
                    .jump(&[target]);
            }
        } else {
            RuleLine::append(out, chain)
                .comment(&["masquerade traffic for ", spn, " external destinations"])
                .jump(&[chain_names::MARK_MASQ]);
        }
        if policy.serves_external() {
            let target = if policy.external_local { &names.local } else { &names.cluster };
            RuleLine::append(out, chain).jump(&[target.as_str()]);
        }
    }

    fn firewall(&self, out: &mut String) {
        let Self { input, view, names, .. } = self;
        let spn = input.spn.as_str();
        let chain = names.firewall.as_str();
        let mut allow = |source: &str| {
            RuleLine::append(out, chain).comment(&[spn, " loadbalancer IP"]).source(source).jump(&[names.external.as_str()]);
        };
        let ranges = input.service.source_ranges(view.family);
        for range in &ranges {
            allow(&range.to_string());
        }
        // Packets of this node to the VIP have the VIP as their source address. If the ranges contain the node, they are allowed too.
        if ranges.iter().any(|range| range.contains(view.node_ip)) {
            for vip in input.service.load_balancer_vips(view.family) {
                allow(&vip.to_string());
            }
        }
        RuleLine::append(out, chain).comment(&["other traffic to ", spn, " will be dropped by KUBE-PROXY-FIREWALL"]).end();
    }

    /// Writes a KUBE-SVC- or KUBE-SVL- chain: the masquerade rule of the cluster IP if it uses this chain, then session affinity, then
    /// balancing.
    fn balancing(&self, out: &mut String, chain: &ChainName, endpoints: &[&Endpoint<'_>], seps: &[(&Endpoint<'_>, ChainName)]) {
        let Self { input, .. } = self;
        if self.policy.serves_internal() && chain == self.internal_chain() {
            self.masquerade(out, chain);
        }
        // Both lists are sorted by id, and `endpoints` is a subset of `seps`.
        let names: Vec<(&Endpoint<'_>, &str)> = {
            let mut all = seps.iter();
            endpoints.iter().filter_map(|e| all.find(|(reachable, _)| reachable.id == e.id).map(|(_, name)| (*e, name.as_str()))).collect()
        };
        if let Some(seconds) = input.service.affinity_seconds {
            let seconds = seconds.to_string();
            for (endpoint, name) in &names {
                self.toward(out, chain, endpoint)
                    .arguments(&["-m recent --name ", name, " --rcheck --seconds ", &seconds, " --reap"])
                    .jump(&[name]);
            }
        }
        for (i, (endpoint, name)) in names.iter().enumerate() {
            let mut rule = self.toward(out, chain, endpoint);
            let left = names.len() - i;
            if left > 1 {
                rule = rule.arguments(&["-m statistic --mode random --probability ", &probability(left)]);
            }
            rule.jump(&[name]);
        }
    }

    /// Masquerades traffic to the cluster IP that does not come from local pods, so that replies return through this node.
    fn masquerade(&self, out: &mut String, chain: &ChainName) {
        let Self { input, view, .. } = self;
        let if_not_local = match &view.local_traffic {
            _ if view.masquerade_all => None,
            Some(local) => Some(local.if_not_local.as_str()),
            None => return,
        };
        let mut rule = RuleLine::append(out, chain.as_str()).comment(&[&input.spn, " cluster IP"]).frontend(
            input.port.protocol,
            &input.cluster_ip,
            input.port.port,
        );
        if let Some(arguments) = if_not_local {
            rule = rule.arguments(&[arguments]);
        }
        rule.jump(&[chain_names::MARK_MASQ]);
    }

    /// Starts a rule that jumps to an endpoint chain. In a large cluster it has no comment.
    fn toward<'r>(&self, out: &'r mut String, chain: &ChainName, endpoint: &Endpoint<'_>) -> RuleLine<'r> {
        let rule = RuleLine::append(out, chain.as_str());
        if self.large { rule } else { rule.comment(&[&self.input.spn, " -> ", &endpoint.id]) }
    }

    /// Writes a KUBE-SEP- chain.
    fn endpoint(&self, out: &mut String, endpoint: &Endpoint<'_>, chain: &str) {
        // Hairpin traffic: if an endpoint connects to itself through the Service, masquerade its packets. Otherwise their source and
        // destination would be the same address, and the replies would not pass this node's NAT.
        self.within(out, chain).source(endpoint.ip()).jump(&[chain_names::MARK_MASQ]);
        let mut rule = self.within(out, chain);
        if self.input.service.affinity_seconds.is_some() {
            rule = rule.arguments(&["-m recent --name ", chain, " --set"]);
        }
        rule.protocol(self.input.port.protocol).jump(&["DNAT --to-destination ", &endpoint.id]);
    }

    /// Starts a rule of an endpoint chain. In a large cluster it has no comment.
    fn within<'r>(&self, out: &'r mut String, chain: &str) -> RuleLine<'r> {
        let rule = RuleLine::append(out, chain);
        if self.large { rule } else { rule.bare_comment(&self.input.spn) }
    }
}

/// Returns true if load-balancer traffic is filtered by source ([kube-proxy 6.5], `useFW`): there are load-balancer VIPs, source ranges
/// and endpoints.
pub(super) fn uses_firewall(input: &ServicePortInput<'_>, policy: &Policy<'_>, family: Family) -> bool {
    policy.has_endpoints && input.service.load_balancer_vips(family).next().is_some() && !input.service.source_ranges(family).is_empty()
}
