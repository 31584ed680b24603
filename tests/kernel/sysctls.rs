//! Sysctls and IP families of the real kernel.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sepal::cluster::Family;
use sepal::iptables::exec::Exec;
use sepal::iptables::{Runner, detect};
use sepal::netlink::kernel_settings::ConntrackSettings;
use sepal::netlink::sysctl::set_conntrack;
use sepal::netlink::{Host, Kernel};
use sepal::table::plan::Variant;
use sepal_lab::{NAMESPACE_FLAGS, Netns, Running, wait_until};

use crate::SEPAL;

/// The sysctls that each network namespace has for itself.
const KEYS: [&str; 5] = ["tcp_timeout_established", "tcp_timeout_close_wait", "tcp_be_liberal", "udp_timeout", "udp_timeout_stream"];

fn values(netns: &Netns) -> Vec<String> {
    let keys = KEYS.map(|key| format!("net.netfilter.nf_conntrack_{key}")).join(" ");
    netns.run(&format!("sysctl -n {keys}")).lines().map(str::to_owned).collect()
}

/// Settings without the limit of connections, which belongs to the host.
const NO_LIMIT: ConntrackSettings = ConntrackSettings {
    max_per_core: 0,
    min: 0,
    tcp_established_timeout: Duration::from_millis(7_200_900),
    tcp_close_wait_timeout: Duration::from_secs(61),
    tcp_be_liberal: true,
    udp_timeout: Duration::from_secs(31),
    udp_stream_timeout: Duration::from_secs(121),
};

#[test]
fn timeouts_are_set_and_zero_leaves_them_alone() {
    let netns = Netns::new();
    netns.run_thread(|| set_conntrack(&Kernel, &NO_LIMIT)).expect("root may");
    assert_eq!(values(&netns), ["7200", "61", "1", "31", "121"]);
    assert!(netns.run_thread(|| Kernel.tcp_be_liberal()));

    let nothing = ConntrackSettings {
        tcp_established_timeout: Duration::ZERO,
        tcp_close_wait_timeout: Duration::ZERO,
        tcp_be_liberal: false,
        udp_timeout: Duration::ZERO,
        udp_stream_timeout: Duration::ZERO,
        ..NO_LIMIT
    };
    netns.run_thread(move || set_conntrack(&Kernel, &nothing)).expect("there is nothing to set");
    assert_eq!(values(&netns), ["7200", "61", "1", "31", "121"]);
}

/// In a network namespace, as on a kind or LXC node, the kernel does not allow writing the limit of connections. The limit stays, and all
/// other settings are applied.
#[test]
fn a_limit_that_cannot_be_written_stays() {
    let max_of_host = || fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").expect("readable");
    let before = max_of_host();
    let netns = Netns::new();
    // Small enough for every hash table: if a kernel allows the write, the host's buckets still do not change.
    let smaller = ConntrackSettings { max_per_core: 1, min: 4, ..NO_LIMIT };
    netns.run_thread(move || set_conntrack(&Kernel, &smaller)).expect("the limit stays");
    assert_eq!(values(&netns), ["7200", "61", "1", "31", "121"]);
    assert_eq!(max_of_host(), before);

    let netns = Netns::new();
    let max = before.trim().parse::<u32>().expect("a number");
    let larger = ConntrackSettings { max_per_core: 1, min: max + 1, ..NO_LIMIT };
    netns.run_thread(move || set_conntrack(&Kernel, &larger)).expect("the limit stays");
    assert_eq!(values(&netns), ["7200", "61", "1", "31", "121"]);
    assert_eq!(max_of_host(), before);

    // A limit that is already right is accepted.
    let buckets = fs::read_to_string("/sys/module/nf_conntrack/parameters/hashsize").expect("readable");
    let buckets = buckets.trim().parse::<u32>().expect("a number");
    if buckets >= max / 4 {
        let cores = u32::try_from(Kernel.cores()).expect("few");
        let right = ConntrackSettings { max_per_core: 1, min: max.max(cores), ..NO_LIMIT };
        netns.run_thread(move || set_conntrack(&Kernel, &right)).expect("it is right already");
        assert_eq!(values(&netns)[0], "7200");
    }
}

/// With a read-only `/proc/sys` and without `--init-only` before, a sysctl that cannot be set is reported, and one that is already set is
/// fine [kube-proxy 12.44].
#[test]
fn a_read_only_proc_is_said_and_harmless_where_all_is_set() {
    let node = Netns::new();
    node.run("sysctl -qw net.ipv4.conf.all.route_localnet=0");
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/traffic.yaml");
    let log = tempfile::NamedTempFile::new().expect("writable");
    let start = || {
        let mut command = node.command("unshare");
        let script = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec \"$@\"";
        command
            .args(["--mount", "--", "sh", "-ec", script, "sh", SEPAL, "run", "--conntrack-tcp-timeout-established=0"])
            .args(NAMESPACE_FLAGS)
            .args(["--conntrack-tcp-timeout-close-wait=0", "--iptables-variant", "nft", "--manifests"])
            .arg(&manifests);
        Running(command.stdin(Stdio::null()).stderr(log.reopen().expect("writable")).spawn().expect("sepal starts"))
    };
    let said = || fs::read_to_string(log.path()).expect("readable");
    let sepal = start();
    wait_until("the sysctl that cannot be set is reported", || {
        said().contains("can't set sysctl net/ipv4/conf/all/route_localnet to 1: Read-only file system")
    });
    wait_until("the flag that avoids it is named", || said().contains("--iptables-localhost-nodeports=false"));
    drop(sepal);
    node.run("sysctl -qw net.ipv4.conf.all.route_localnet=1");
    let sepal = start();
    wait_until("it writes its rules", || node.run("iptables-nft-save -t nat").contains("KUBE-SVC-"));
    drop(sepal);
}

fn support(netns: &Netns) -> detect::Support {
    netns.run_thread(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let found = detect::find(None).await.expect("iptables is there");
            detect::support(&found, Kernel.ipv6_enabled()).await
        })
    })
}

#[test]
fn ipv6_that_is_off_leaves_ipv4_alone() {
    let netns = Netns::new();
    let both = support(&netns);
    for primary in Family::ALL {
        assert_eq!(both.to_run(primary).expect("both work"), Family::ALL);
    }
    netns.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let one = support(&netns);
    assert_eq!(one.to_run(Family::V4).expect("it works"), [Family::V4]);
    let error = one.to_run(Family::V6).expect_err("it is off").to_string();
    assert!(error.starts_with("no support for primary IP family \"IPv6\""), "{error}");
}

/// An iptables that is installed but fails does not count as support.
#[test]
fn iptables_that_fails_is_not_taken_for_support() {
    let netns = Netns::new();
    let folder = tempfile::tempdir().expect("a folder");
    for program in ["iptables-nft", "ip6tables-nft"] {
        let path = folder.path().join(program);
        let script = "#!/bin/sh\ntest \"$1\" = --version && echo 'iptables v1.8.9 (nf_tables)' && exit 0\necho 'no nat here' >&2\nexit 3\n";
        fs::write(&path, script).expect("writable");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    }
    for program in ["nsenter", "sh"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{program}"), folder.path().join(program)).expect("writable");
    }
    let output = netns.command(SEPAL).arg("cleanup").env("PATH", folder.path()).output().expect("sepal starts");
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(
        log.contains("iptables is not available on this host : iptables-nft failed: no nat here; ip6tables-nft failed: no nat here"),
        "{log}"
    );
}

/// A missing chain is recognised although the error text differs between versions (iptables-nft 1.8.9 calls it incompatible).
#[test]
fn the_canary_is_seen_and_missed() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let netns = Netns::new();
        let canary = |set: bool| {
            netns.run_thread(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let exec = Exec::new(variant, false);
                    if set {
                        exec.set_canary(Family::V4).await.expect("root may");
                    }
                    exec.canary(Family::V4).await
                })
            })
        };
        assert_eq!(canary(false), Some(false), "{variant}: nothing is there");
        netns.run(&format!("iptables-{variant} -t mangle -N KUBE-PROXY-CANARY-2"));
        assert_eq!(canary(false), Some(false), "{variant}: another chain is no canary");
        assert_eq!(canary(true), Some(true), "{variant}");
        netns.run(&format!("iptables-{variant} -t mangle -F; iptables-{variant} -t mangle -X"));
        assert_eq!(canary(false), Some(false), "{variant}: flushed");
    }
}
