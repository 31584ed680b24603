//! Writes rules on a node as kube-proxy and flannel write them.

use std::io::Write;
use std::process::Stdio;

use sepal::cluster::Family;
use sepal::netlink::{Host, Kernel};
use sepal::table::jumps::JUMPS;
use sepal_lab::Netns;

fn iptables(family: Family, variant: &str) -> String {
    format!("{}-{variant}", if family == Family::V4 { "iptables" } else { "ip6tables" })
}

/// Writes rules as a full sync of kube-proxy does: its chains, with service ports in another order, its canary, and each missing jump.
/// `rules` is the output of sepal's dry run, which equals kube-proxy's input.
pub(crate) fn kube_proxy(node: &Netns, variant: &str, family: Family, rules: &str) {
    let iptables = iptables(family, variant);
    let (declared, rules): (Vec<&str>, Vec<&str>) =
        rules.lines().filter(|line| !line.starts_with('#')).partition(|line| line.starts_with([':', '*']));
    let nat = declared.iter().position(|line| *line == "*nat").expect("a table");
    let end = rules.iter().position(|line| *line == "COMMIT").expect("an end");
    let last = rules.iter().rposition(|line| line.contains("must be the last")).expect("a tail");
    let mut of_nat = rules[end + 1..last].to_vec();
    of_nat.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
    let text = [&declared[..nat], &rules[..=end], &declared[nat..], &of_nat, &rules[last..]].concat().join("\n") + "\n";
    // kube-proxy creates the nfacct counters that its rules name.
    node.run_thread(|| Kernel.counters(true));
    let mut restore = node.command(&format!("{iptables}-restore"));
    let mut child = restore.args(["-w", "5", "--noflush", "--counters"]).stdin(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success(), "{text}");
    for jump in JUMPS.iter().filter(|jump| !jump.pod_network) {
        let (to, table, from, arguments) = (jump.to, jump.table, jump.from, jump.arguments());
        node.run(&format!(
            "{iptables} -w 5 -N {to} -t {table} 2>/dev/null || true
             {iptables} -w 5 -C {from} -t {table} {arguments} 2>/dev/null || {iptables} -w 5 -I {from} -t {table} {arguments}"
        ));
    }
    for table in ["mangle", "nat", "filter"] {
        node.run(&format!("{iptables} -w 5 -N KUBE-PROXY-CANARY -t {table} 2>/dev/null || true"));
    }
}

/// flanneld's rules of the table filter: those of its chain, and the jump to it.
const FORWARD: [&str; 3] = [
    r#"FLANNEL-FWD -s {network} -m comment --comment "flanneld forward" -j ACCEPT"#,
    r#"FLANNEL-FWD -d {network} -m comment --comment "flanneld forward" -j ACCEPT"#,
    r#"FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD"#,
];
const MASQUERADE: [&str; 7] = [
    r#"FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN"#,
    r#"FLANNEL-POSTRTG -s {subnet} -d {network} -m comment --comment "flanneld masq" -j RETURN"#,
    r#"FLANNEL-POSTRTG -s {network} -d {subnet} -m comment --comment "flanneld masq" -j RETURN"#,
    r#"FLANNEL-POSTRTG ! -s {network} -d {subnet} -m comment --comment "flanneld masq" -j RETURN"#,
    r#"FLANNEL-POSTRTG -s {network} ! -d {multicast} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
    r#"FLANNEL-POSTRTG ! -s {network} -d {network} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
    r#"POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#,
];

/// Writes flannel's rules for a network, this node's subnet and the family's multicast range, as each start of flanneld does: a first command
/// creates or flushes the chains, and a second one fills them and appends the jumps.
pub(crate) fn flannels_rules(node: &Netns, variant: &str, family: Family, [network, subnet, multicast]: [&str; 3]) {
    let iptables = iptables(family, variant);
    for (table, chain, rules) in [("nat", "FLANNEL-POSTRTG", &MASQUERADE[..]), ("filter", "FLANNEL-FWD", &FORWARD[..])] {
        let of_family = |rule: &&str| {
            [("{network}", network), ("{subnet}", subnet), ("{multicast}", multicast)]
                .iter()
                .fold((*rule).to_owned(), |rule, (word, value)| rule.replace(word, value))
        };
        let rules: Vec<String> = rules.iter().map(of_family).collect();
        node.run(&format!("{iptables} -w 5 -t {table} -N {chain} 2>/dev/null || {iptables} -w 5 -t {table} -F {chain}"));
        let is_there = |rule: &&String| node.output(&format!("{iptables} -w 5 -t {table} -C {rule}")).status.success();
        let old: String = rules.iter().filter(is_there).map(|rule| format!("-D {rule}\n")).collect();
        let new: String = rules.iter().map(|rule| format!("-A {rule}\n")).collect();
        node.run(&format!("{iptables}-restore --noflush --wait <<'END'\n*{table}\n{old}{new}COMMIT\nEND\n"));
    }
}
