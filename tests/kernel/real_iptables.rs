//! Rules in real iptables of both variants, and real packets to Services.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use sepal::cluster::Family;
use sepal::iptables::Runner;
use sepal::iptables::exec::Exec;
use sepal::netlink::generation::of_nf_tables;
use sepal::netlink::{Host, Kernel};
use sepal::table::Table;
use sepal::table::parse::Tables;
use sepal::table::plan::Variant;
use sepal_lab::traffic::{tcp, udp};
use sepal_lab::{Netns, wait_until};

use crate::SEPAL;
use crate::common;
use crate::logged::Logged;
use crate::manifest_site::{Lab, testdata, traffic};
use crate::predecessors;
use crate::restore_input::{into_empty_tables, left_to_write};

/// Repeats a request until both endpoints have answered. With 64 requests one is missed once in 10^19 runs.
fn both_answer(what: &str, ask: impl Fn() -> std::io::Result<String>) {
    let mut seen = BTreeSet::new();
    for _ in 0..64 {
        seen.insert(ask().unwrap_or_else(|error| panic!("{what}: {error}")));
        if seen.len() == 2 {
            return;
        }
    }
    panic!("{what}: only {seen:?} answered");
}

fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect("an address"), port)
}

fn pick(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn traffic_flows_as_the_services_say(variant: &str) {
    let lab = Lab::new();
    let manifests = traffic();
    let sepal = lab.sepal(variant, &manifests);
    lab.wait_for_rules(variant, &manifests);
    for family in Family::ALL {
        let at = |v4, v6, port| address(pick(family, v4, v6), port);
        for (name, from) in [("outside", &lab.outside), ("node", &lab.node), ("a pod", &lab.client)] {
            let what = |kind: &str| format!("{variant} {family} from {name}: {kind}");
            both_answer(&what("TCP cluster IP"), || tcp(from, at("10.111.0.10", "fd61:b::10", 80)));
            both_answer(&what("UDP cluster IP"), || udp(from, at("10.111.0.11", "fd61:b::11", 53)));
            both_answer(&what("NodePort"), || tcp(from, at("192.168.61.13", "fd61::13", 30080)));

            let sticky = at("10.111.0.12", "fd61:b::12", 80);
            let first = tcp(from, sticky).unwrap_or_else(|error| panic!("{}: {error}", what("affinity")));
            for _ in 0..16 {
                assert_eq!(tcp(from, sticky).expect("it answered before"), first, "{}", what("affinity"));
            }

            let refused = tcp(from, at("10.111.0.13", "fd61:b::13", 80)).expect_err("there is no endpoint");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{}", what("no endpoints"));
        }
        // Node ports answer on IPv4 loopback, too.
        if family == Family::V4 {
            both_answer("NodePort on loopback", || tcp(&lab.node, address("127.0.0.1", 30080)));
        }
        let balancer = at("203.0.113.8", "2001:db8::8", 80);
        both_answer(&format!("{variant} {family}: within the source ranges"), || tcp(&lab.outside, balancer));
        lab.outside_source(balancer.ip(), pick(family, "192.168.61.51", "fd61::51"));
        let dropped = tcp(&lab.outside, balancer).expect_err("this source is not within the ranges");
        assert_eq!(dropped.kind(), ErrorKind::TimedOut, "{variant} {family}: outside the source ranges: {dropped}");
    }
    assert_eq!(sepal.terminate(), Some(0), "SIGTERM ends with status 0");
    assert_eq!(lab.diff(variant, &manifests).0, Some(0), "and leaves the rules");
}

#[test]
fn traffic_flows_as_the_services_say_nft() {
    traffic_flows_as_the_services_say("nft");
}

#[test]
fn traffic_flows_as_the_services_say_legacy() {
    traffic_flows_as_the_services_say("legacy");
}

/// Changed manifest files are followed; invalid or half-written files change nothing.
fn changes_are_followed(variant: &str) {
    let lab = Lab::new();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cluster.yaml");
    let whole = fs::read_to_string(traffic()).expect("readable");
    fs::write(&file, &whole).expect("writable");
    let sepal = Logged::start(&mut lab.run(variant, folder.path()));
    lab.wait_for_rules(variant, &traffic());
    let web = address("10.111.0.10", 80);
    assert!(tcp(&lab.outside, web).is_ok());

    let rules = || lab.node.run(&format!("iptables-{variant}-save -t nat | grep -v '^[#:]'"));
    let before = rules();
    let reported = || sepal.log().matches("what it said before still holds").count();
    for broken in [&whole[..whole.len() / 2], "metadata: [\n", "\u{0}"] {
        let earlier = reported();
        fs::write(&file, broken).expect("writable");
        wait_until("the log reports the broken file", || reported() > earlier);
        assert_eq!(rules(), before, "a broken file changes nothing");
    }

    // An endpoint is removed; the file is replaced by rename, as editors do.
    let fewer = whole.replace("- {addresses: [\"10.61.3.11\"], nodeName: alder-03}\n", "");
    assert_ne!(fewer, whole);
    let beside = folder.path().join(".new");
    fs::write(&beside, &fewer).expect("writable");
    fs::rename(&beside, &file).expect("writable");
    lab.wait_for_rules(variant, &file);
    for _ in 0..16 {
        assert_eq!(tcp(&lab.outside, web).expect("one is left"), "10.61.3.10");
    }
    assert!(!rules().contains("10.61.3.11"), "chains of the removed endpoint are deleted");

    // Killed during a change, and then two processes at once: the rules are the same.
    drop(sepal);
    fs::write(&file, &whole).expect("writable");
    let one = lab.sepal(variant, folder.path());
    let two = lab.sepal(variant, folder.path());
    lab.wait_for_rules(variant, &file);
    assert_eq!((one.terminate(), two.terminate()), (Some(0), Some(0)));
    assert_eq!(lab.diff(variant, &file).0, Some(0));
    let jumps = lab.node.run(&format!("iptables-{variant}-save -t nat"));
    assert_eq!(jumps.matches("-A PREROUTING ").count(), 1, "one jump, however often it starts:\n{jumps}");
}

#[test]
fn changes_are_followed_nft() {
    changes_are_followed("nft");
}

#[test]
fn changes_are_followed_legacy() {
    changes_are_followed("legacy");
}

/// iptables-restore accepts the rules of all cases, in both variants and families, and after reading them back nothing is left to write.
#[test]
fn every_golden_file_is_taken_by_iptables() {
    let netns = Netns::new();
    let counters = netns.run_thread(|| Kernel.counters(true));
    let mut failures = Vec::new();
    let mut checked = 0;
    for entry in fs::read_dir(testdata("")).expect("testdata is there") {
        let path = entry.expect("readable").path();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        // nfacct counters need a kernel module that some machines lack.
        if text.contains("nfacct: true") && !counters.localhost_node_ports {
            continue;
        }
        let inputs = common::inputs(&text).expect("golden cases are whole");
        for family in Family::ALL {
            let input = into_empty_tables(&inputs, family);
            for variant in ["nft", "legacy"] {
                let program = format!("{}-{variant}", pick(family, "iptables", "ip6tables"));
                // Without --noflush the previous rules are deleted.
                let mut child =
                    netns.command(&format!("{program}-restore")).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
                child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
                let output = child.wait_with_output().expect("it ends");
                let saved = netns.run(&format!("{program}-save -t filter; {program}-save -t nat"));
                let left = left_to_write(&inputs, family, &saved);
                if !output.status.success() || !left.is_empty() {
                    failures.push(format!("{} {program}: {}{left}", path.display(), String::from_utf8_lossy(&output.stderr)));
                }
                checked += 1;
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(checked > 200, "only {checked} were tried");
}

/// The generation counter increases by one with every changing transaction, and not with reads.
#[test]
fn the_generation_counts_changes() {
    let netns = Netns::new();
    let generation = || netns.run_thread(of_nf_tables).expect("this kernel has nf_tables");
    let steps = [
        ("printf '*nat\\n:A - [0:0]\\n-A A -j RETURN\\nCOMMIT\\n*filter\\n:B - [0:0]\\nCOMMIT\\n' | iptables-nft-restore --noflush", 2),
        ("iptables-nft-save; iptables-nft -t nat -S A; iptables-nft -C INPUT -j ACCEPT || true", 0),
        ("ip6tables-nft -A INPUT -j ACCEPT", 1),
        ("iptables-nft -t nat -F A", 1),
    ];
    for (script, moves) in steps {
        let before = generation();
        netns.run(script);
        assert_eq!(generation() - before, moves, "{script}");
    }
}

/// The built-in chains are read without our own chains.
#[test]
fn built_in_chains_are_read_alone() {
    let lab = Lab::new();
    let manifests = traffic();
    for variant in [Variant::Nft, Variant::Legacy] {
        let sepal = lab.sepal(variant.as_str(), &manifests);
        lab.wait_for_rules(variant.as_str(), &manifests);
        drop(sepal);
        let missing = || {
            lab.node.run_thread(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let of = |family, table| {
                    let mut text = runtime.block_on(Exec::new(variant, false).builtin_jumps(family, table));
                    // Another program on this machine may hold the xtables lock.
                    wait_until("it can be read", || {
                        if text.is_err() {
                            text = runtime.block_on(Exec::new(variant, false).builtin_jumps(family, table));
                        }
                        text.is_ok()
                    });
                    let text = text.expect("it was read");
                    assert!(!text.contains("-A KUBE-"), "{text}");
                    let mut tables = Tables::default();
                    tables.read(&text);
                    tables.missing_jumps(table, |_, chain| chain.starts_with("KUBE-")).count()
                };
                Family::ALL.map(|family| Table::ALL.map(|table| of(family, table)))
            })
        };
        assert_eq!(missing(), [[0, 0], [0, 0]], "{variant}");
        lab.node.run(&format!("iptables-{variant} -t nat -F POSTROUTING; ip6tables-{variant} -F INPUT; ip6tables-{variant} -t nat -F"));
        assert_eq!(missing(), [[0, 1], [4, 3]], "{variant}");
    }
}

/// On nft the generation counter shows that a table was flushed, and the rules are back long before the next sync period.
#[test]
fn flushed_tables_are_noticed_at_once() {
    let lab = Lab::new();
    let manifests = traffic();
    let _sepal = lab.sepal("nft", &manifests);
    lab.wait_for_rules("nft", &manifests);
    for flush in ["iptables-nft -t nat -F", "ip6tables-nft -t nat -F KUBE-SERVICES", "iptables-nft -D INPUT -j KUBE-FIREWALL"] {
        lab.node.run(flush);
        lab.wait_for_rules("nft", &manifests);
    }
}

/// Rules in the other variant are reported once per family, with the command that deletes them.
#[test]
fn rules_of_the_other_variant_are_told_of() {
    let lab = Lab::new();
    let manifests = traffic();
    for (first, second) in [("legacy", "nft"), ("nft", "legacy")] {
        let before = lab.sepal(first, &manifests);
        lab.wait_for_rules(first, &manifests);
        drop(before);
        let after = Logged::start(&mut lab.run(second, &manifests));
        lab.wait_for_rules(second, &manifests);
        let log = after.log();
        assert_eq!(log.matches(&format!("iptables-{first} holds KUBE-* rules, too")).count(), 2, "{log}");
        assert!(log.contains(&format!("sepal cleanup --iptables-variant {first}")), "{log}");
        drop(after);
        for program in ["iptables", "ip6tables"] {
            for table in ["nat", "filter"] {
                lab.node.run(&format!("{program}-{first} -t {table} -F; {program}-{first} -t {table} -X"));
                lab.node.run(&format!("{program}-{second} -t {table} -F; {program}-{second} -t {table} -X"));
            }
        }
    }
}

/// kube-proxy's rules are recognised by their meaning: taking over writes nothing.
fn kube_proxys_rules_are_taken_over(variant: &str) {
    let lab = Lab::new();
    let manifests = traffic();
    for family in Family::ALL {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/traffic/{family}.rules"));
        predecessors::kube_proxy(&lab.node, variant, family, &fs::read_to_string(golden).expect("readable"));
    }
    let sepal = Logged::start(&mut lab.run(variant, &manifests));
    wait_until("both families are logged", || sepal.log().matches("service ports").count() == 2);
    assert_eq!(sepal.log().matches("the live tables match the desired rules").count(), 2, "{}", sepal.log());
    assert_eq!(sepal.terminate().0, Some(0));
}

#[test]
fn kube_proxys_rules_are_taken_over_nft() {
    kube_proxys_rules_are_taken_over("nft");
}

#[test]
fn kube_proxys_rules_are_taken_over_legacy() {
    kube_proxys_rules_are_taken_over("legacy");
}

fn flannels_rules_are_taken_over(variant: &str) {
    let lab = Lab::new();
    for (family, network, subnet, multicast) in
        [(Family::V4, "10.61.0.0/16", "10.61.3.0/24", "224.0.0.0/4"), (Family::V6, "fd61:a::/48", "fd61:a:0:3::/64", "ff00::/8")]
    {
        // A rule of another program stays in its place.
        let iptables = format!("{}-{variant}", pick(family, "iptables", "ip6tables"));
        lab.node.run(&format!("{iptables} -t nat -A POSTROUTING -m mark --mark 0x2000/0x2000 -j MASQUERADE"));
        predecessors::flannels_rules(&lab.node, variant, family, [network, subnet, multicast]);
    }
    let save = |family| lab.node.run(&format!("{}-{variant}-save | grep '^-A'", pick(family, "iptables", "ip6tables")));
    let by_flanneld = Family::ALL.map(save);
    let run = |manifests: &Path| {
        let sepal = Logged::start(&mut lab.run(variant, manifests));
        wait_until("both families are logged", || sepal.log().matches("service ports").count() == 2);
        let (status, log) = sepal.terminate();
        assert_eq!(status, Some(0));
        log
    };
    // Without the service proxy: nothing to write.
    let alone = tempfile::Builder::new().suffix(".yaml").tempfile().expect("writable");
    let text =
        fs::read_to_string(testdata("pod-network.yaml")).expect("readable").replace("  ipMasq: true\n", "  ipMasq: true\n  proxy: false\n");
    fs::write(alone.path(), text).expect("writable");
    let log = run(alone.path());
    assert_eq!(log.matches("the live tables match the desired rules").count(), 2, "{log}");
    assert_eq!(Family::ALL.map(save), by_flanneld);
    // With the service proxy: its jump is first, and flannel's chains stay byte for byte.
    let log = run(&testdata("pod-network.yaml"));
    assert_eq!(log.matches("chains written").count(), 2, "{log}");
    for (family, before) in Family::ALL.into_iter().zip(&by_flanneld) {
        let after = save(family);
        let of_flannel = |text: &str| text.lines().filter(|line| line.contains("FLANNEL-")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of_flannel(&after), of_flannel(before));
        let postrouting: Vec<&str> = after.lines().filter(|line| line.starts_with("-A POSTROUTING")).collect();
        let leads: Vec<&str> = postrouting.iter().map(|line| line.rsplit(' ').next().expect("a target")).collect();
        assert_eq!(leads, ["KUBE-POSTROUTING", "MASQUERADE", "FLANNEL-POSTRTG"], "{after}");
    }
    let log = run(&testdata("pod-network.yaml"));
    assert_eq!(log.matches("the live tables match the desired rules").count(), 2, "{log}");
}

#[test]
fn flannels_rules_are_taken_over_nft() {
    flannels_rules_are_taken_over("nft");
}

#[test]
fn flannels_rules_are_taken_over_legacy() {
    flannels_rules_are_taken_over("legacy");
}

/// `--diff` shows manual changes by chain and exits with status 2.
#[test]
fn drift_is_shown_by_chain() {
    let lab = Lab::new();
    let manifests = traffic();
    assert_eq!(lab.diff("nft", &manifests).0, Some(2), "nothing is there yet");
    let sepal = lab.sepal("nft", &manifests);
    lab.wait_for_rules("nft", &manifests);
    drop(sepal);
    lab.node.run("iptables-nft -t nat -F KUBE-MARK-MASQ; iptables-nft -t nat -N KUBE-SEP-STRANGER; iptables-nft -D INPUT -j KUBE-FIREWALL");
    let (status, text) = lab.diff("nft", &manifests);
    assert_eq!(status, Some(2));
    for line in [
        "+++ desired nat KUBE-MARK-MASQ",
        "+-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        "-:KUBE-SEP-STRANGER",
        "+-A INPUT -j KUBE-FIREWALL",
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
    }
    assert!(!text.contains("KUBE-SVC-"), "what is as it should be is not shown:\n{text}");
    assert!(text.ends_with("# Services: 0 added, 0 changed, 0 gone, 0 drifted\n"), "no Service's own rules:\n{text}");

    // The summary by Service; with `--since` it tells drift from changes of the manifests.
    let printed = lab.node.command(SEPAL).args(["--dry-run", "--manifests"]).arg(&manifests).output().expect("it runs").stdout;
    let applied = tempfile::NamedTempFile::new().expect("writable");
    fs::write(applied.path(), printed).expect("writable");
    lab.node.run("for chain in $(iptables-nft-save -t nat | sed -n 's/^-A \\(KUBE-SVC-[A-Z0-9]*\\) .*shop.dns:dns.*/\\1/p' | sort -u); do iptables-nft -t nat -F $chain; done");
    let changed = tempfile::Builder::new().suffix(".yaml").tempfile().expect("writable");
    let other = fs::read_to_string(&manifests).expect("readable").replace("\"fd61:a:0:3::11\"], nodeName", "\"fd61:a:0:3::12\"], nodeName");
    fs::write(changed.path(), other).expect("writable");
    let (_, text) = lab.diff("nft", changed.path());
    assert!(text.contains("# changed shop/dns\n") && text.contains("# changed shop/web\n") && text.contains(" 0 drifted\n"), "{text}");
    let mut command = lab.node.command(SEPAL);
    command.args(["--dry-run", "--diff", "--iptables-variant=nft", "--since"]).arg(applied.path()).arg("--manifests").arg(changed.path());
    let text = String::from_utf8(command.output().expect("it runs").stdout).expect("text");
    let drifted: Vec<&str> = text.lines().filter(|line| line.starts_with("# drifted ")).collect();
    assert!(drifted == ["# drifted shop/dns"] && text.contains("# changed shop/web\n"), "{text}");
}

/// An error at the start is one line and exit status 1.
#[test]
fn what_is_missing_is_said_in_one_line() {
    let netns = Netns::new();
    let manifests = traffic();
    let error = |command: &mut Command| {
        let output = command.arg("--manifests").arg(&manifests).output().expect("sepal starts");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let errors: Vec<&str> = text.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), 1, "{text}");
        errors[0].to_owned()
    };
    let nothing = tempfile::tempdir().expect("a folder");
    let missing = error(Command::new(SEPAL).env("PATH", nothing.path()).arg("run"));
    assert!(missing.contains("Install iptables"), "{missing}");

    // Only the nft variant is installed.
    for program in ["iptables-nft", "iptables-nft-save", "iptables-nft-restore"] {
        std::os::unix::fs::symlink("/usr/sbin/xtables-nft-multi", nothing.path().join(program)).expect("writable");
    }
    let other = error(Command::new(SEPAL).env("PATH", nothing.path()).args(["run", "--iptables-variant", "legacy"]));
    assert!(other.contains("legacy is not installed") && other.contains("--iptables-variant=nft"), "{other}");

    let unprivileged = error(netns.command("setpriv").args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--",
        SEPAL,
        "run",
    ]));
    assert!(unprivileged.contains("no permission") && unprivileged.contains("NET_ADMIN"), "{unprivileged}");
}
