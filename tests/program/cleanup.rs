//! `sepal cleanup` after kube-proxy and sepal, with iptables of both variants.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sepal_lab::{NAMESPACE_FLAGS, Netns, Running, wait_until};

use crate::SEPAL;

const VARIANTS: [&str; 2] = ["nft", "legacy"];
const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/traffic.yaml")
}

/// Exit status and log of `sepal cleanup`.
fn cleanup(node: &Netns, arguments: &[&str]) -> (Option<i32>, String) {
    cleanup_with(node, arguments, &std::env::var("PATH").expect("a PATH"))
}

fn cleanup_with(node: &Netns, arguments: &[&str], path: &str) -> (Option<i32>, String) {
    let output = node.command(SEPAL).arg("cleanup").args(arguments).env("PATH", path).output().expect("sepal starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// All chains and rules of both families, without counters.
fn tables(node: &Netns, variant: &str) -> String {
    let mut text = String::new();
    for program in PROGRAMS {
        for table in ["nat", "filter", "mangle"] {
            text += &node.run(&format!("{program}-{variant}-save -t {table} | sed -e '/^#/d' -e 's/ \\[.*//'"));
        }
    }
    text
}

/// Writes rules of Docker, of the kubelet and of an administrator.
fn others_rules(node: &Netns, variant: &str) {
    for program in PROGRAMS {
        let iptables = format!("{program}-{variant}");
        let pod = if program == "iptables" { "10.61.3.10" } else { "fd61:a:0:3::10" };
        node.run(&format!(
            "for table in mangle nat filter; do {iptables} -t $table -N KUBE-KUBELET-CANARY; done
             {iptables} -N KUBE-FIREWALL; {iptables} -I INPUT -j KUBE-FIREWALL; {iptables} -I OUTPUT -j KUBE-FIREWALL
             {iptables} -t nat -N DOCKER; {iptables} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
             {iptables} -t nat -A DOCKER -p tcp --dport 8081 -j DNAT --to-destination {pod}
             {iptables} -t nat -A POSTROUTING -m comment --comment 'not -j KUBE-POSTROUTING' -j MASQUERADE
             {iptables} -A INPUT -p tcp --dport 22 -j ACCEPT; {iptables} -A FORWARD -m comment --comment KUBE-FORWARD -j ACCEPT
             {iptables} -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
        ));
    }
    node.run(&format!(
        "iptables-{variant} -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment 'block incoming localnet connections' \
         -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
    ));
}

/// Writes a cluster's rules with the real program.
fn write_rules(node: &Netns, variant: &str) {
    let sepal = |arguments: &[&str]| {
        let mut command = node.command(SEPAL);
        command
            .args(arguments)
            .args(NAMESPACE_FLAGS)
            .args(["--iptables-variant", variant, "--manifests"])
            .arg(manifests())
            .stdin(Stdio::null());
        command.stdout(Stdio::null());
        command
    };
    let running = Running(sepal(&["run"]).spawn().expect("sepal starts"));
    wait_until("the live rules equal the desired ones", || {
        sepal(&["--dry-run", "--diff"]).status().expect("sepal starts").code() == Some(0)
            && tables(node, variant).matches(":KUBE-PROXY-CANARY").count() == 6
    });
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn everything_of_ours_goes_and_everything_of_others_stays() {
    for variant in VARIANTS {
        let node = Netns::new();
        others_rules(&node, variant);
        let before = tables(&node, variant);
        write_rules(&node, variant);
        for program in PROGRAMS {
            // Two programs that start at once may write jumps twice.
            node.run(&format!(
                "{program}-{variant} -t nat -A PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES
                 {program}-{variant} -A FORWARD -m conntrack --ctstate NEW -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES"
            ));
        }
        let full = tables(&node, variant);
        assert!(
            full.contains("\n:KUBE-SVC-") && full.contains("-A PREROUTING -m comment --comment \"kubernetes service portals\""),
            "{full}"
        );

        let (status, log) = cleanup(&node, &[]);
        assert_eq!(status, Some(0), "{variant}: {log}");
        assert!(log.matches("14 jumps and ").count() == 2 && log.contains(&format!("deleted from iptables {variant}")), "{log}");
        assert_eq!(tables(&node, variant), before, "{variant}");
        assert_eq!(node.run("sysctl -n net.ipv4.conf.all.route_localnet"), "1\n", "sysctls stay");

        let (status, log) = cleanup(&node, &["--iptables-variant", variant]);
        assert_eq!((status, log.matches("holds nothing to delete").count()), (Some(0), 2), "{variant}: {log}");
        assert_eq!(tables(&node, variant), before, "{variant}");
    }
}

#[test]
fn a_chain_that_others_use_stays_empty_and_is_named() {
    for variant in VARIANTS {
        let node = Netns::new();
        others_rules(&node, variant);
        let before = tables(&node, variant);
        write_rules(&node, variant);
        let foreign = "DOCKER -p tcp -m tcp --dport 8082 -j KUBE-MARK-MASQ";
        node.run(&format!("iptables-{variant} -t nat -A {foreign}"));

        for _ in 0..2 {
            let (status, log) = cleanup(&node, &[]);
            assert_eq!(status, Some(1), "{variant}: {log}");
            assert!(log.contains("chain KUBE-MARK-MASQ of table nat stays, empty") && log.contains(foreign), "{variant}: {log}");
            assert!(log.contains(&format!("iptables-{variant} -t nat -D {foreign}")), "{variant}: {log}");
            assert!(log.contains("encountered an error while tearing down rules"), "{variant}: {log}");
            let after = tables(&node, variant);
            let more: Vec<&str> = after.lines().filter(|line| !before.lines().any(|known| known == *line)).collect();
            assert_eq!(more, [":KUBE-MARK-MASQ -", &format!("-A {foreign}")], "{variant}: all else is gone");
        }

        node.run(&format!("iptables-{variant} -t nat -D {foreign}"));
        let (status, log) = cleanup(&node, &[]);
        assert_eq!(status, Some(0), "{variant}: {log}");
        assert_eq!(tables(&node, variant), before, "{variant}");
    }
}

/// After a change of the variant the old rules are still in force beside the new ones; they can be deleted alone.
#[test]
fn the_variant_that_is_not_in_use_is_cleaned_on_its_own() {
    let node = Netns::new();
    for variant in VARIANTS {
        write_rules(&node, variant);
    }
    node.run("iptables-nft -t mangle -N KUBE-IPTABLES-HINT");
    let nft = tables(&node, "nft");
    let (status, log) = cleanup(&node, &["--other-variant"]);
    assert_eq!(status, Some(0), "{log}");
    assert_eq!(tables(&node, "nft"), nft);
    let services = |variant| tables(&node, variant).matches("KUBE-SERVICES").count();
    assert_eq!(services("legacy"), 0);
    assert!(services("nft") > 0);
    let (status, log) = cleanup(&node, &[]);
    assert_eq!((status, services("nft")), (Some(0), 0), "{log}");
}

/// Replacements of tools that log their calls and print given output.
struct Tools {
    folder: tempfile::TempDir,
}

impl Tools {
    fn new(tools: &[(&str, &str)]) -> Self {
        let tools_are = Self { folder: tempfile::tempdir().expect("a folder") };
        for (tool, script) in tools {
            let path = tools_are.folder.path().join(tool);
            let log = tools_are.folder.path().join("calls");
            fs::write(&path, format!("#!/bin/sh\necho \"{tool} $*\" >> {}\n{script}\n", log.display())).expect("writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        }
        // These programs are taken from the machine; its nft, ipset and ipvsadm are hidden.
        for program in [
            "nsenter",
            "sh",
            "ip",
            "iptables-nft",
            "iptables-nft-save",
            "iptables-nft-restore",
            "ip6tables-nft",
            "ip6tables-nft-save",
            "ip6tables-nft-restore",
        ] {
            let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|folder| Path::new(folder).join(program));
            let found = found.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{program} is not installed"));
            std::os::unix::fs::symlink(found, tools_are.folder.path().join(program)).expect("writable");
        }
        tools_are
    }

    fn cleanup(&self, node: &Netns) -> (Option<i32>, String) {
        cleanup_with(node, &[], &self.folder.path().to_string_lossy())
    }

    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.folder.path().join("calls"));
        calls.lines().map(str::to_owned).collect()
    }
}

/// A node on which kube-proxy ran in IPVS mode: jumps, chains and the device.
fn ipvs_node() -> Netns {
    let node = Netns::new();
    node.run(
        "ip link add kube-ipvs0 type veth peer name other
         iptables-nft -N KUBE-NODE-PORT; iptables-nft -N KUBE-IPVS-FILTER; iptables-nft -t nat -N KUBE-LOAD-BALANCER
         iptables-nft -N KUBE-PROXY-FIREWALL; iptables-nft -N KUBE-SOURCE-RANGES-FIREWALL
         iptables-nft -A KUBE-PROXY-FIREWALL -j KUBE-SOURCE-RANGES-FIREWALL
         iptables-nft -A INPUT -m comment --comment 'kubernetes ipvs access filter' -j KUBE-IPVS-FILTER
         iptables-nft -A INPUT -m comment --comment 'kube-proxy firewall rules' -j KUBE-PROXY-FIREWALL
         iptables-nft -A INPUT -m comment --comment 'kubernetes health check rules' -j KUBE-NODE-PORT",
    );
    node
}

#[test]
fn what_other_modes_left_goes_where_their_tools_are() {
    let node = ipvs_node();
    let tools = Tools::new(&[
        ("nft", "test \"$1\" != list || printf 'table ip filter\\ntable ip kube-proxy\\ntable ip6 kube-proxy\\ntable inet kube-proxy\\n'"),
        ("ipset", "test \"$1\" != list || printf 'KUBE-CLUSTER-IP\\nKUBE-6-LOAD-BALANCER-SOURCE-CID\\nKUBE-OTHER\\nmine\\n'"),
        ("ipvsadm", ""),
    ]);
    let (status, log) = tools.cleanup(&node);
    assert_eq!(status, Some(0), "{log}");
    assert_eq!(
        tools.calls(),
        [
            "ipvsadm -C",
            "ipset list -n",
            "ipset destroy KUBE-CLUSTER-IP",
            "ipset destroy KUBE-6-LOAD-BALANCER-SOURCE-CID",
            "nft list tables",
            "nft delete table ip kube-proxy",
            "nft delete table ip6 kube-proxy",
        ]
    );
    assert!(!tables(&node, "nft").contains("KUBE-"), "{}", tables(&node, "nft"));
    assert!(!node.run("ip link").contains("kube-ipvs0"));

    // Without the device it is unknown which program made the IPVS services.
    let (status, log) = tools.cleanup(&node);
    assert_eq!(status, Some(0), "{log}");
    assert!(!tools.calls().contains(&"ipvsadm -C".to_owned()));
}

#[test]
fn one_failure_holds_up_nothing_else() {
    let node = ipvs_node();
    let tools = Tools::new(&[
        ("nft", "test \"$1\" != list || printf 'table ip kube-proxy\\ntable ip6 kube-proxy\\n'"),
        ("ipset", "case \"$*\" in 'list -n') printf 'KUBE-CLUSTER-IP\\nKUBE-IPVS-IPS\\n';; *CLUSTER*) echo 'in use' >&2; exit 1;; esac"),
    ]);
    let (status, log) = tools.cleanup(&node);
    assert_eq!(status, Some(1), "{log}");
    for what in [
        "the table of IPVS services stays: there is no program ipvsadm",
        "set KUBE-CLUSTER-IP stays: ipset failed: in use",
        "encountered an error while tearing down rules",
    ] {
        assert!(log.contains(what), "no {what:?} in {log}");
    }
    assert!(node.run("ip link").contains("kube-ipvs0"), "the device marks the IPVS services as kube-proxy's while they exist");
    let calls = tools.calls();
    for call in ["ipset destroy KUBE-IPVS-IPS", "nft delete table ip kube-proxy", "nft delete table ip6 kube-proxy"] {
        assert!(calls.contains(&call.to_owned()), "no {call:?} in {calls:?}");
    }
    assert!(!tables(&node, "nft").contains("KUBE-"));
}

/// Missing tools, or an nft that fails, are no error.
#[test]
fn without_their_tools_other_modes_are_passed_over() {
    let node = Netns::new();
    for tools in [Tools::new(&[]), Tools::new(&[("nft", "echo 'cannot open netlink' >&2; exit 1"), ("ipset", "exit 1")])] {
        let (status, log) = tools.cleanup(&node);
        assert_eq!(status, Some(0), "{log}");
        assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    }
}
