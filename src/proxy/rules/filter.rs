//! The rules of the `filter` table, which reject, accept or drop service traffic ([kube-proxy 6.4], [kube-proxy 6.5], [kube-proxy 6.6]).

use super::nat::{ServicePortInput, uses_firewall};
use super::policy::Policy;
use super::render::RuleLine;
use super::view::View;
use crate::cluster::Protocol;
use crate::table::chain_names::{self, ServiceChains};
use crate::table::rules::ChainRules;

/// Returns the fixed chains of `filter` and their rules that belong to no service port.
pub(super) fn fixed_chains(view: &View<'_>) -> Vec<ChainRules> {
    let empty = |name| ChainRules { name, rules: String::new() };
    let mut chains = vec![
        empty(chain_names::SERVICES),
        empty(chain_names::EXTERNAL_SERVICES),
        ChainRules { name: chain_names::FORWARD, rules: forward(view) },
        empty(chain_names::NODEPORTS),
        empty(chain_names::PROXY_FIREWALL),
    ];
    if view.localhost_node_ports {
        // With route_localnet, other hosts of the network can reach 127.0.0.0/8. This rule stops them (kubernetes issue 90259).
        let mut rules = String::new();
        RuleLine::append(&mut rules, chain_names::FIREWALL)
            .comment(&["block incoming localnet connections"])
            .destination("127.0.0.0/8")
            .arguments(&["! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"])
            .jump(&["DROP"]);
        chains.push(ChainRules { name: chain_names::FIREWALL, rules });
    }
    chains
}

fn forward(view: &View<'_>) -> String {
    let mark = &view.mark;
    let mut out = String::new();
    if view.drop_invalid {
        let mut rule = RuleLine::append(&mut out, chain_names::FORWARD).arguments(&["-m conntrack --ctstate INVALID"]);
        if view.nfacct.ct_state_invalid {
            rule = rule.arguments(&["-m nfacct --nfacct-name ct_state_invalid_dropped_pkts"]);
        }
        rule.jump(&["DROP"]);
    }
    RuleLine::append(&mut out, chain_names::FORWARD)
        .comment(&["kubernetes forwarding rules"])
        .arguments(&[&format!("-m mark --mark {mark}/{mark}")])
        .jump(&["ACCEPT"]);
    RuleLine::append(&mut out, chain_names::FORWARD)
        .comment(&["kubernetes forwarding conntrack rule"])
        .arguments(&["-m conntrack --ctstate RELATED,ESTABLISHED"])
        .jump(&["ACCEPT"]);
    out
}

/// Writes the lines of one service port in the shared chains of `filter`.
pub(super) fn dispatch(out: &mut String, input: &ServicePortInput<'_>, policy: &Policy<'_>, names: &ServiceChains, view: &View<'_>) {
    let ServicePortInput { spn, service, port, .. } = input;
    let protocol = port.protocol;
    // Without any endpoint, traffic is rejected. If all endpoints are on other nodes, it is dropped, so that a load balancer tries another
    // node.
    let (why, target) = if policy.has_endpoints { (" has no local endpoints", "DROP") } else { (" has no endpoints", "REJECT") };
    let mut refuse = |chain, address: &str| {
        RuleLine::append(out, chain).comment(&[spn, why]).frontend(protocol, address, port.port).jump(&[target]);
    };
    if !policy.serves_internal() {
        refuse(chain_names::SERVICES, &input.cluster_ip);
    }
    if !policy.serves_external() {
        if view.allow_external_ips {
            service.external_ips(view.family).for_each(|ip| refuse(chain_names::EXTERNAL_SERVICES, &ip.to_string()));
        }
        service.load_balancer_vips(view.family).for_each(|vip| refuse(chain_names::EXTERNAL_SERVICES, &vip.to_string()));
        if port.node_port != 0 {
            RuleLine::append(out, chain_names::EXTERNAL_SERVICES)
                .comment(&[spn, why])
                .arguments(&["-m addrtype --dst-type LOCAL"])
                .protocol(protocol)
                .port(port.node_port)
                .jump(&[target]);
        }
    }
    if uses_firewall(input, policy, view.family) {
        for vip in service.load_balancer_vips(view.family) {
            RuleLine::append(out, chain_names::PROXY_FIREWALL)
                .comment(&[spn, " traffic not accepted by ", names.firewall.as_str()])
                .frontend(protocol, &vip.to_string(), port.port)
                .jump(&["DROP"]);
        }
    }
    if service.health_check_node_port != 0 {
        RuleLine::append(out, chain_names::NODEPORTS)
            .comment(&[spn, " health check node port"])
            .protocol(Protocol::Tcp)
            .port(service.health_check_node_port)
            .jump(&["ACCEPT"]);
    }
}
