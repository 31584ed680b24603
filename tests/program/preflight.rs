//! `sepal preflight`: a sound node passes all checks, and every defect is found and reported with its cure. The node is not changed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sepal_apiserver::InjectedFailure;
use sepal_lab::Netns;
use serde_json::{Value, json};

use crate::SEPAL;
use crate::api_node::ApiNode;

const NAME: &str = "worker-1";

/// A node, the files of its pod network, and the command that checks it.
struct Node {
    node: ApiNode,
}

impl std::ops::Deref for Node {
    type Target = ApiNode;

    fn deref(&self) -> &ApiNode {
        &self.node
    }
}

impl Node {
    /// A node without defects.
    fn sound() -> Self {
        let netns = Netns::new();
        netns.run(
            "ip link add eth0 type veth peer name beyond; ip link set eth0 up; ip link set beyond up
             ip addr add 192.168.60.1/24 dev eth0; ip route add default via 192.168.60.254
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        );
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.60.1"}]},
        });
        let node = ApiNode::new(netns, vec![object]);
        fs::write(node.path("net-conf.json"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("writable");
        fs::create_dir(node.path("net.d")).expect("writable");
        Self { node }
    }

    fn preflight(&self, more: &[&str]) -> Command {
        self.preflight_beside("true", more)
    }

    /// The same while a program runs. A PID namespace hides the processes of other tests.
    fn preflight_beside(&self, program: &str, more: &[&str]) -> Command {
        let mut command = self.netns.command("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "sh", "-c", &format!("{program} & exec \"$@\""), "sh", SEPAL]);
        // The limit of tracked connections belongs to the host; a network namespace cannot set it.
        command.args(["preflight", "--conntrack-max-per-core=0", "--hostname-override", NAME, "--master", &self.server.url()]).args(more);
        command
    }

    /// The flags of the pod network.
    fn pod_network(&self) -> [String; 3] {
        let (conf, dir) = (self.path("net-conf.json"), self.path("net.d"));
        ["--pod-network".into(), format!("--net-config-path={conf}"), format!("--cni-conf-dir={dir}")]
    }

    /// All checks, with the pod network.
    fn checks(&self, more: &[&str]) -> Vec<Value> {
        let network = self.pod_network();
        let output = self.preflight(&["-o", "json"]).args(network).args(more).output().expect("it runs");
        checks(&output)
    }
}

/// The printed checks. The exit status must match them.
fn checks(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let checks = report["checks"].as_array().expect("a list").clone();
    let failed = checks.iter().any(|check| check["outcome"] == "failed");
    assert_eq!(report["passed"], !failed);
    assert_eq!(output.status.code(), Some(i32::from(failed)));
    checks
}

/// The checks that did not pass, each as `name: outcome`.
fn complaints(checks: &[Value]) -> Vec<String> {
    let text = |check: &Value, field: &str| check[field].as_str().expect("text").to_owned();
    // The module br_netfilter is optional on the test machine.
    let bad = checks.iter().filter(|check| check["outcome"] != "ok" && !text(check, "name").starts_with("net.bridge."));
    bad.map(|check| format!("{}: {}", text(check, "name"), text(check, "outcome"))).collect()
}

fn find<'c>(checks: &'c [Value], name: &str) -> &'c Value {
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {checks:#?}"))
}

#[test]
fn a_sound_node_has_nothing_to_complain_of_and_is_left_as_it_was() {
    for variant in ["nft", "legacy"] {
        let node = Node::sound();
        // Listing a table of iptables-nft creates its empty built-in chains.
        let look = "ip -br link; ip -4 addr; ip route; sysctl net.ipv4.ip_forward net.ipv4.conf.all.route_localnet
                    sysctl net.netfilter.nf_conntrack_tcp_timeout_established; for variant in nft legacy; do
                    for family in '' 6; do ip${family}tables-$variant-save | sed '/^[#*C]/d; /^:.* ACCEPT /d'; done; done";
        let before = node.netns.run(look);
        let found = node.checks(&["--iptables-variant", variant]);
        assert_eq!(complaints(&found), Vec::<String>::new(), "{found:#?}");
        assert!(find(&found, "version")["found"].as_str().expect("text").contains(variant));
        let tried = find(&found, "matches and targets")["found"].as_str().expect("text").to_owned();
        assert!(tried.starts_with("32 test rules are accepted") && tried.ends_with("a network namespace of their own"), "{tried}");
        for name in
            ["API server", "permissions", "Node", "pod CIDR", "external interface", "MTU", "VXLAN", "tunnel port", "CNI configuration"]
        {
            find(&found, name);
        }
        assert_eq!(node.netns.run(look), before);
    }
}

/// The text output has the same checks with a sign for each line, and no colours without a terminal.
#[test]
fn text_says_the_same() {
    let node = Node::sound();
    let output = node.preflight(&[]).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("configuration\n  \u{2713} flags and files: make sense, for: service proxy\niptables\n"), "{text}");
    assert!(text.contains(" 0 failed, ") && !text.contains('\x1b'), "{text}");
}

#[test]
fn permissions_that_are_missing_are_told_as_rules() {
    let node = Node::sound();
    node.server.deny("watch", "endpointslices");
    node.server.deny("list", "endpointslices");
    node.server.deny("patch", "nodes/status");
    node.server.deny("create", "leases");
    let found = node.checks(&["--subnet-source=lease"]);
    assert_eq!(complaints(&found), ["permissions: failed"]);
    let wanted = "# add to its ClusterRole\nrules:\n  - {apiGroups: [\"\"], resources: [nodes/status], verbs: [patch]}\n  \
                  - {apiGroups: [\"discovery.k8s.io\"], resources: [endpointslices], verbs: [list, watch]}\n\
                  # add to its Role in namespace kube-system\nrules:\n  \
                  - {apiGroups: [\"coordination.k8s.io\"], resources: [leases], verbs: [create]}";
    assert_eq!(find(&found, "permissions")["cure"], wanted);
    // The cure is valid YAML.
    let role: Value = serde_saphyr::from_str(&wanted.split("# add").nth(1).expect("the first").replacen(" to", "# to", 1)).expect("YAML");
    assert_eq!(role["rules"][1]["verbs"], json!(["list", "watch"]));
}

#[test]
fn what_the_api_server_lacks_is_found() {
    let node = Node::sound();
    let mut bare = node.server.get("nodes", NAME).expect("a Node");
    (bare["spec"], bare["metadata"]["resourceVersion"]) = (json!({}), Value::Null);
    node.server.put(bare).expect("a Node");
    assert_eq!(complaints(&node.checks(&[])), ["pod CIDR: failed"]);
    assert_eq!(complaints(&node.checks(&["--subnet-source=lease"])), Vec::<String>::new());
    assert_eq!(complaints(&node.checks(&["--hostname-override=worker-2"])), ["Node: failed"]);
    let found = node.checks(&["--master=http://127.0.0.1:1"]);
    assert_eq!(complaints(&found), ["API server: failed", "permissions: not checked", "Node: not checked"]);
    assert!(find(&found, "API server")["found"].as_str().expect("text").contains("Connection refused"), "{found:#?}");
    node.server.fail(InjectedFailure::next(100, 401));
    let found = node.checks(&[]);
    assert_eq!(complaints(&found)[0], "API server: failed");
}

/// Checks that do not need net-conf.json run even if the file is missing or invalid.
#[test]
fn a_net_conf_that_cannot_be_used_holds_nothing_up() {
    let node = Node::sound();
    let names = |found: &[Value]| found.iter().map(|check| check["name"].as_str().expect("text").to_owned()).collect::<Vec<_>>();
    let all = names(&node.checks(&[]));
    for text in [None, Some("{"), Some(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#)] {
        fs::remove_file(node.path("net-conf.json")).expect("it was there");
        if let Some(text) = text {
            fs::write(node.path("net-conf.json"), text).expect("writable");
        }
        let found = node.checks(&[]);
        assert_eq!(complaints(&found), ["flags and files: failed"], "{text:?}: {found:#?}");
        assert_eq!(names(&found), all, "{text:?}");
        let said = find(&found, "flags and files")["found"].as_str().expect("text").to_owned();
        assert!(said.contains("net-conf.json") && said.contains("the other checks take flannel's default"), "{said}");
        fs::write(node.path("net-conf.json"), "").expect("writable");
    }
}

/// Run beside the daemon, as by `kubectl exec`, it does not report the daemon's own ports, process, links and file.
#[test]
fn a_running_sepal_is_not_in_its_own_way() {
    let node = Node::sound();
    let program = node.path("kube-proxy");
    std::os::unix::fs::symlink(SEPAL, &program).expect("a link");
    let common = format!("--hostname-override {NAME} --conntrack-max-per-core=0 --master {}", node.server.url());
    let network = format!("{} --subnet-file={}", node.pod_network().join(" "), node.path("subnet.env"));
    for (run, ready, network) in [
        (format!("{SEPAL} run {common} {network}"), "ip link show up flannel.1", true),
        // Under the name kube-proxy it is still sepal.
        (format!("{program} {common}"), "ss -Hltn | grep -q :10256", false),
    ] {
        let ready = format!("ss -Hltn | grep -q :10249 && {ready}");
        let beside = format!("{run} 2>/dev/null & timeout 30 sh -c 'until {ready}; do sleep 0.1; done' >/dev/null 2>&1; true");
        let mut command = node.preflight_beside(&beside, &["-o", "json"]);
        command.args(node.pod_network().iter().filter(|_| network));
        let found = checks(&command.output().expect("it runs"));
        assert_eq!(complaints(&found), Vec::<String>::new(), "{found:#?}");
        for name in ["healthz address", "metrics address"] {
            assert!(find(&found, name)["found"].as_str().expect("text").contains("is in use by the running sepal (process "), "{found:#?}");
        }
    }
}

#[test]
fn what_the_node_has_in_the_way_is_found() {
    let node = Node::sound();
    node.netns.run(
        "iptables-nft -P FORWARD DROP; sysctl -qw net.ipv4.ip_forward=0; iptables-legacy -t nat -N KUBE-SERVICES
         iptables-legacy -t nat -A KUBE-SERVICES -j RETURN; ip link add kube-ipvs0 type veth
         ip link add calico type vxlan id 1 dstport 8472 dev eth0; ip link set eth0 mtu 1000",
    );
    fs::write(node.folder.path().join("net.d/05-other.conflist"), "{}").expect("writable");
    fs::write(node.path("net-conf.json"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":1450}}"#).expect("writable");
    let held = node.netns.run_thread(|| TcpListener::bind("127.0.0.1:10249").expect("a free port"));
    // Other programs are recognised by their process names.
    let other = node.path("flanneld");
    node.netns.run(&format!("cp /bin/sleep {other}"));
    let mut command =
        node.preflight_beside(&format!("{other} 600"), &["-o", "json", "--iptables-variant=nft", "--iptables-forward-rules=false"]);
    let found = checks(&command.args(node.pod_network()).output().expect("it runs"));
    let wanted = [
        "rules in iptables-legacy: warning",
        "FORWARD policy (ipv4): warning",
        "net.ipv4.ip_forward: warning",
        "other programs: warning",
        "interfaces of others: warning",
        "metrics address: warning",
        "CNI configuration: warning",
        "MTU: warning",
        "other VXLAN links: failed",
    ];
    assert_eq!(complaints(&found), wanted, "{found:#?}");
    assert_eq!(find(&found, "rules in iptables-legacy")["cure"], "sepal cleanup --iptables-variant legacy");
    assert!(find(&found, "other programs")["found"].as_str().expect("text").contains("flanneld (process "));
    drop(held);
}

/// Without a flag the default folder of CNI configurations is checked.
#[test]
fn the_configuration_that_runtimes_use_is_found_without_a_flag() {
    let node = Node::sound();
    let copied = Command::new("cp").args(["-a", "/etc", &node.path("etc")]).status().expect("it runs");
    assert!(copied.success());
    let folder = node.folder.path().join("etc/cni/net.d");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("writable");
    let found = || {
        let mut command = node.preflight_beside(&format!("mount --bind {} /etc; true", node.path("etc")), &["-o", "json"]);
        let conf = format!("--net-config-path={}", node.path("net-conf.json"));
        checks(&command.args(["--pod-network", &conf]).output().expect("it runs"))
    };
    assert_eq!(find(&found(), "CNI configuration")["outcome"], "ok");
    let plugins = r#"[{"type":"flannel","delegate":{"hairpinMode":true}},{"type":"portmap"}]"#;
    fs::write(folder.join("10-flannel.conflist"), format!(r#"{{"name":"cbr0","plugins":{plugins}}}"#)).expect("writable");
    let checks = found();
    assert_eq!(complaints(&checks), ["CNI configuration: warning"]);
    let check = find(&checks, "CNI configuration");
    assert_eq!(
        check["found"],
        "container runtimes use /etc/cni/net.d/10-flannel.conflist (network cbr0, plugins: flannel, portmap) and not 10-sepal.conflist, \
         because its name sorts first; pods get this node's subnet by the plugin flannel"
    );
    assert_eq!(
        check["cure"],
        "move 10-flannel.conflist out of the folder when the flannel DaemonSet, which writes it at each start, is gone"
    );
}

/// A VXLAN link that can be created may still fail to come up because its port is in use. The test compares with the kernel's answer.
#[test]
fn a_tunnel_port_in_use_is_found_where_it_is_in_the_way() {
    let node = Node::sound();
    let comes_up = || {
        let tunnel = "ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 nolearning; trap 'ip link delete flannel.1' EXIT";
        node.netns.output(&format!("{tunnel}; ip link set flannel.1 up")).status.success()
    };
    let cases = [("external", "external", false), ("gbp", "id 5 gbp dev eth0", false), ("plain", "id 5 dev eth0", true)];
    for (name, kind, works) in cases {
        node.netns.run(&format!("ip link add {name} type vxlan {kind} dstport 8472; ip link set {name} up"));
        let found = node.checks(&[]);
        assert_eq!(complaints(&found), if works { vec![] } else { vec!["tunnel port: failed"] }, "{found:#?}");
        assert!(find(&found, "tunnel port")["found"].as_str().expect("text").contains(name), "{found:#?}");
        assert_eq!(comes_up(), works, "{name}");
        node.netns.run(&format!("ip link delete {name}"));
    }
    let held = node.netns.run_thread(|| UdpSocket::bind("0.0.0.0:8472").expect("a free port"));
    assert_eq!(complaints(&node.checks(&[])), ["tunnel port: failed"]);
    assert!(!comes_up());
    drop(held);
    assert!(comes_up());
    // Only a socket of the tunnel's IP family is in the way.
    let other = node.netns.run_thread(|| UdpSocket::bind("[::1]:8472").expect("a free port"));
    assert_eq!(complaints(&node.checks(&[])), Vec::<String>::new());
    assert!(comes_up());
    drop(other);
    // sepal's own link is not reported.
    node.netns.run("ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 nolearning; ip link set flannel.1 up");
    assert_eq!(complaints(&node.checks(&[])), Vec::<String>::new());
}

/// Rules in the other variant are reported with a command that deletes them. If that variant cannot be read, the check is not checked.
#[test]
fn leftovers_of_the_pod_network_are_found_and_the_cure_takes_them_away() {
    let node = Node::sound();
    let flannel = "iptables-legacy -t nat -N FLANNEL-POSTRTG; iptables-legacy -t nat -A FLANNEL-POSTRTG -j RETURN
                   iptables-legacy -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG";
    node.netns.run(flannel);
    let nft = ["--iptables-variant=nft"];
    let found = node.checks(&nft);
    assert_eq!(complaints(&found), ["pod network's rules in iptables-legacy: warning"], "{found:#?}");
    let cure = find(&found, "pod network's rules in iptables-legacy")["cure"].as_str().expect("text").to_owned();
    let arguments = cure.strip_prefix("sepal ").expect("a command").split(' ');
    // The cure deletes rules only: the link stays.
    node.netns.run("ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 nolearning");
    assert!(node.netns.command(SEPAL).args(arguments).output().expect("it runs").status.success());
    node.netns.run("ip link show flannel.1; ip link delete flannel.1");
    assert_eq!(complaints(&node.checks(&nft)), Vec::<String>::new());

    // Only iptables-nft is installed, and the kernel has tables of legacy.
    let bin = node.folder.path().join("bin");
    fs::create_dir(&bin).expect("writable");
    let which = |program: &str| node.netns.run(&format!("command -v {program}")).trim().to_owned();
    for program in ["iptables-nft", "ip6tables-nft", "iptables-nft-restore", "ip6tables-nft-restore"] {
        std::os::unix::fs::symlink(which(program), bin.join(program)).expect("a link");
    }
    node.netns.run(flannel);
    let mut command = node.netns.command(&which("env"));
    command.arg(format!("PATH={}", bin.display())).args([SEPAL, "preflight", "-o", "json", "--conntrack-max-per-core=0"]);
    command.args(["--hostname-override", NAME, "--master", &node.server.url()]).args(node.pod_network());
    let found = checks(&command.output().expect("it runs"));
    for name in ["rules in iptables-legacy", "pod network's rules in iptables-legacy"] {
        assert_eq!(find(&found, name)["outcome"], "not checked", "{found:#?}");
    }
}

/// Creates a table of nftables as `nft add table` does, in one transaction.
fn add_nft_table(family: u8, name: &str) {
    let message = |kind: u16, header: [u8; 4], attributes: &[u8]| {
        let length = (20 + attributes.len()) as u32;
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &1_u16.to_ne_bytes(), &[0; 8], &header, attributes].concat()
    };
    let length = (5 + name.len()) as u16;
    let mut attribute = [&length.to_ne_bytes()[..], &1_u16.to_ne_bytes(), name.as_bytes(), &[0]].concat();
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    // NFNL_MSG_BATCH_BEGIN and _END around NFT_MSG_NEWTABLE; 10 is the subsystem.
    let batch =
        [message(16, [0, 0, 0, 10], &[]), message(10 << 8, [family, 0, 0, 0], &attribute), message(17, [0, 0, 0, 10], &[])].concat();
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).expect("a socket");
    socket.bind_auto().expect("bound");
    socket.send(&batch, 0).expect("sent");
}

#[test]
fn tables_of_nftables_are_found_without_nft() {
    let node = Node::sound();
    node.netns.run_thread(|| {
        add_nft_table(2, "kube-proxy");
        add_nft_table(10, "flannel-ipv6");
    });
    let found = node.checks(&[]);
    assert_eq!(complaints(&found), ["nftables of others: warning"], "{found:#?}");
    assert_eq!(
        find(&found, "nftables of others")["found"],
        "ip kube-proxy of kube-proxy's mode nftables, ip6 flannel-ipv6 of flannel with EnableNFTables"
    );
    let found = checks(&node.preflight(&["-o", "json"]).output().expect("it runs"));
    assert_eq!(find(&found, "nftables of others")["found"], "ip kube-proxy of kube-proxy's mode nftables");
}

/// A held lock, a plugin that does not end and a silent server are reported after their timeouts.
#[test]
fn nothing_holds_it_up() {
    let node = Node::sound();
    let begun = Instant::now();
    // The holder is in a process namespace that preflight cannot see.
    let mut holder = node
        .netns
        .command("sh")
        .args(["-c", "exec flock \"$XTABLES_LOCKFILE\" sh -c 'echo held; exec sleep 120'"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock (util-linux) is there");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
    assert_eq!(line, "held\n");
    let found = node.checks(&["--iptables-variant=legacy"]);
    assert_eq!(complaints(&found), ["xtables lock: failed"], "{found:#?}");
    assert_eq!(complaints(&node.checks(&["--iptables-variant=nft"])), Vec::<String>::new());
    node.netns.run(&format!("pkill -P {}", holder.id()));
    holder.wait().expect("it ends");
    assert_eq!(complaints(&node.checks(&["--iptables-variant=legacy"])), Vec::<String>::new());

    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a", "user": "u"}}],
        "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sleep", "args": ["600"], "interactiveMode": "Never"}}}],
    });
    fs::write(node.path("kubeconfig"), kubeconfig.to_string()).expect("writable");
    let found = node.checks(&["--kubeconfig", &node.path("kubeconfig"), "--master=https://127.0.0.1:1"]);
    assert_eq!(complaints(&found), ["API server: failed", "permissions: not checked", "Node: not checked"], "{found:#?}");
    assert!(find(&found, "API server")["found"].as_str().expect("text").contains("the credential plugin sleep did not end"), "{found:#?}");
    // A server that accepts connections and does not answer.
    let silent = node.netns.run_thread(|| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let found = node.checks(&["--master", &format!("http://{}", silent.local_addr().expect("bound"))]);
    assert_eq!(complaints(&found)[0], "API server: failed");
    assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", begun.elapsed());
}

/// Without a capability the checks that need it are reported as not checked, and the others run.
#[test]
fn without_permission_it_says_what_it_could_not_look_at() {
    let node = Node::sound();
    // The capabilities of the DaemonSet.
    let mut command = node.netns.command("setpriv");
    command.args(["--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all", SEPAL]);
    command.args(["preflight", "-o", "json", "--conntrack-max-per-core=0", "--hostname-override", NAME, "--master", &node.server.url()]);
    let found = checks(&command.args(node.pod_network()).output().expect("it runs"));
    assert_eq!(complaints(&found), ["matches and targets: not checked", "VXLAN: not checked"], "{found:#?}");
    let unprivileged = node
        .netns
        .command("setpriv")
        .args(["--reuid=65534", "--clear-groups", SEPAL, "preflight", "-o", "json"])
        .output()
        .expect("it runs");
    let found = checks(&unprivileged);
    assert!(find(&found, "version")["found"].as_str().expect("text").contains("Run as root"), "{found:#?}");
}

#[test]
fn what_cannot_be_run_at_all_is_said_first() {
    let node = Node::sound();
    fs::write(node.path("net-conf.json"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}"#).expect("writable");
    let found = node.checks(&[]);
    assert_eq!(complaints(&found), ["flags and files: failed"]);
    let found = checks(&node.preflight(&["-o", "json", "--proxy=false"]).output().expect("it runs"));
    assert_eq!(complaints(&found)[0], "flags and files: failed");
    let wrong = node.preflight(&["-o", "yaml"]).output().expect("it runs");
    assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(1), 0));
}
