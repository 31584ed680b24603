//! Rules as kube-proxy and flannel leave them on a node, written as they write them.

use std::io::Write;
use std::process::Stdio;

use sepal::cluster::Family;
use sepal::netlink::{Host, Kernel};
use sepal::rules::jumps::JUMPS;
use sepal_lab::Netns;

fn iptables(family: Family, variant: &str) -> String {
    format!("{}-{variant}", if family == Family::V4 { "iptables" } else { "ip6tables" })
}

/// Writes rules as a full sync of kube-proxy does: its chains, with service ports in another order, its canary, and its jumps where they
/// are missing, one by one. `rules` are what sepal prints, which is what kube-proxy writes.
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
    // It makes the counters that its rules name.
    node.within(|| Kernel.counters(true));
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

/// What real flanneld writes with `iptables-restore` and `iptables`, into tables that hold other rules.
const FLANNELD: &str = r#"
{restore} --noflush <<END
*filter
:FLANNEL-FWD - [0:0]
-A FLANNEL-FWD -s {network} -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d {network} -m comment --comment "flanneld forward" -j ACCEPT
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s {subnet} -d {network} -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s {network} -d {subnet} -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s {network} -d {subnet} -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s {network} ! -d {multicast} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {network} -d {network} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
COMMIT
END
"#;

/// Writes flannel's rules for a network, this node's subnet in it, and the multicast range of the family.
pub(crate) fn flannels_rules(node: &Netns, variant: &str, family: Family, [network, subnet, multicast]: [&str; 3]) {
    let restore = format!("{}-restore", iptables(family, variant));
    let of_family = [("{restore}", restore.as_str()), ("{network}", network), ("{subnet}", subnet), ("{multicast}", multicast)];
    node.run(&of_family.iter().fold(FLANNELD.to_owned(), |script, (word, value)| script.replace(word, value)));
}
