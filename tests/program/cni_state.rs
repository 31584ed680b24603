//! State of CNI plugins on disk and in the kernel: it is taken over from the reference plugins, not lost, and repaired after a crash.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use sepal_lab::wait_until;
use serde_json::{Value, json};

use crate::cni_node::{Node, Pod, SUBNET_ENV, address, failed, reserve};

#[allow(clippy::needless_pass_by_value, reason = "reads best where it is called")]
fn host_local(node: &Node, ranges: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "host-local", "ipam": {"type": "host-local", "dataDir": node.path("networks"), "ranges": ranges}})
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Makes a reservation so old that no ADD can still be running.
fn make_old(path: &Path) {
    File::open(path).expect("it is there").set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).expect("root may");
}

/// The files equal those of [flannel 10.4], byte for byte.
#[test]
fn files_are_host_locals_to_the_byte() {
    let node = Node::new();
    let config = host_local(&node, json!([[{"subnet": "10.9.9.0/24"}], [{"subnet": "fd00:9::/64"}]]));
    let pod = Pod::new("abc123");
    let result = node.call("ADD", Some(&pod), &config).expect("there are free ones");
    assert_eq!(
        result,
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.9.9.2/24", "gateway": "10.9.9.1"}, {"address": "fd00:9::2/64", "gateway": "fd00:9::1"}]})
    );
    let folder = node.reservations();
    let mode = |name: &str| folder.join(name).metadata().expect("it is there").permissions().mode() & 0o777;
    for ip in ["10.9.9.2", "fd00:9::2"] {
        assert_eq!((text(&folder.join(ip)).as_str(), mode(ip)), ("abc123\r\neth0", 0o600));
    }
    assert_eq!(text(&folder.join("last_reserved_ip.0")), "10.9.9.2");
    assert_eq!((text(&folder.join("last_reserved_ip.1")).as_str(), mode("last_reserved_ip.1")), ("fd00:9::2", 0o600));
    assert_eq!((text(&folder.join("lock")).as_str(), mode("lock"), mode("")), ("", 0o750, 0o755));
    let mut names: Vec<_> = fs::read_dir(&folder).expect("readable").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["10.9.9.2", "fd00:9::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    let again = failed(node.call("ADD", Some(&pod), &config)).1;
    assert_eq!(again, "failed to allocate for range 0: 10.9.9.2 has been allocated to abc123, duplicate allocation is not allowed");
    node.call("CHECK", Some(&pod), &config).expect("it has its addresses");
    node.call("DEL", Some(&pod), &config).expect("they are freed");
    node.call("DEL", Some(&pod), &config).expect("they are free");
    assert_eq!(failed(node.call("CHECK", Some(&pod), &config)).1, "host-local: Failed to find address added by container abc123");
    assert_eq!((node.reserved().len(), text(&folder.join("last_reserved_ip.0")).as_str()), (0, "10.9.9.2"));
    // Allocation is round-robin: the next address follows the last one.
    let next = node.call("ADD", Some(&pod), &config).expect("there are free ones");
    assert_eq!((address(&next, 0), address(&next, 1)), ("10.9.9.3".to_owned(), "fd00:9::3".to_owned()));
}

#[test]
fn requested_addresses_are_given_or_refused() {
    let node = Node::new();
    let wish = |ip: &str| {
        let mut config = host_local(&node, json!([[{"subnet": "10.9.9.0/29"}]]));
        config["runtimeConfig"] = json!({"ips": [ip]});
        config
    };
    let add = |id: &str, ip: &str| node.call("ADD", Some(&Pod::new(id)), &wish(ip));
    assert_eq!(address(&add("a", "10.9.9.5/29").expect("it is free"), 0), "10.9.9.5");
    for (ip, words) in [
        ("10.9.9.5", "failed to allocate for range 0: requested IP address 10.9.9.5 is not available in range set 10.9.9.1-10.9.9.6"),
        ("10.9.9.1", "failed to allocate for range 0: requested ip 10.9.9.1 is subnet's gateway"),
        ("10.9.8.1", "failed to allocate all requested IPs: 10.9.8.1"),
    ] {
        assert_eq!(failed(add("b", ip)).1, words);
    }
    assert_eq!(node.reserved(), ["10.9.9.5"], "what was taken for nothing is free again");
}

/// Reservations of the reference plugins count, of every format, also those that are newer than our index.
#[test]
fn reservations_of_real_plugins_are_honoured() {
    let node = Node::new();
    let config = host_local(&node, json!([[{"subnet": "10.9.9.0/24"}]]));
    let folder = node.reservations();
    let (real, old, new) = (Pod::new("real"), Pod::new("old"), Pod::new("new"));
    reserve(&folder, "10.9.9.2", "real\r\neth0");
    reserve(&folder, "10.9.9.3", "old");
    reserve(&folder, "10.9.9.4", "old2\r\nnet1");
    reserve(&folder, "last_reserved_ip.0", "10.9.9.4");
    assert!(failed(node.call("ADD", Some(&real), &config)).1.contains("10.9.9.2 has been allocated to real"));
    assert!(failed(node.call("ADD", Some(&old), &config)).1.contains("10.9.9.3 has been allocated to old"));
    assert_eq!(address(&node.call("ADD", Some(&new), &config).expect("a free one"), 0), "10.9.9.5");
    // A reference plugin reserves an address that our new index does not contain.
    reserve(&folder, "10.9.9.6", "later\r\neth0");
    fs::write(folder.join("last_reserved_ip.0"), "10.9.9.6").expect("writable");
    let later = Pod::new("later");
    assert!(failed(node.call("ADD", Some(&later), &config)).1.contains("10.9.9.6 has been allocated to later"));
    for pod in [&real, &old, &later] {
        node.call("CHECK", Some(pod), &config).expect("it has an address");
        node.call("DEL", Some(pod), &config).expect("it is freed");
    }
    assert_eq!(node.reserved(), ["10.9.9.4", "10.9.9.5"], "another interface of a container is another matter");
    let mut gc = config.clone();
    gc["cniVersion"] = json!("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "old2", "ifname": "net1"}]);
    node.call("GC", None, &gc).expect("the rest is freed");
    assert_eq!(node.reserved(), ["10.9.9.4"]);
}

/// A pod of flannel, bridge and host-local is taken over: its link, its stored configuration, and its reservation.
#[test]
fn a_pod_of_the_real_plugins_is_taken_over() {
    let node = Node::new();
    let (pod, stale) = (Pod::new("taken"), Pod::new("stale"));
    node.netns.run("ip link add cni0 type bridge; ip addr add 10.244.1.1/24 brd + dev cni0; ip link set cni0 up");
    for (pod, veth, ip) in [(&pod, "veth87c600fe", "10.244.1.2"), (&stale, "veth0a1b2c3d", "10.244.1.3")] {
        node.netns.link(veth, &pod.netns, "eth0");
        node.netns.run(&format!("ip link set {veth} master cni0"));
        pod.netns.run(&format!("ip addr add {ip}/24 brd + dev eth0; ip route add default via 10.244.1.1"));
        reserve(&node.reservations(), ip, &format!("{}\r\neth0", pod.id));
        let delegate = json!({"cniVersion": "0.3.1", "hairpinMode": true, "ipMasq": false,
            "ipam": {"dataDir": node.path("networks"), "ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}], "type": "host-local"},
            "isDefaultGateway": true, "isGateway": true, "mtu": 1450, "name": "cbr0", "type": "bridge"});
        fs::create_dir_all(node.path("flannel")).expect("writable");
        fs::write(node.path("flannel").join(&pod.id), delegate.to_string()).expect("writable");
    }
    reserve(&node.reservations(), "last_reserved_ip.0", "10.244.1.3");
    let added = Pod::new("added");
    assert_eq!(address(&node.add(&node.flannel(), &added), 0), "10.244.1.4");
    node.gc(&[&pod, &added]);
    assert_eq!((node.ports().len(), node.kept().len()), (2, 2));
    assert!(node.ports().contains(&"veth87c600fe".to_owned()) && !node.reserved().contains(&"10.244.1.3".to_owned()));
    node.del(&node.flannel(), &pod);
    node.del(&node.flannel(), &added);
    node.assert_clean();
}

#[test]
fn a_full_range_is_told_and_leaks_no_interface() {
    let node = Node::new();
    // Only this test uses this subnet: the plugin looks for the addresses in all namespaces of the machine.
    node.write_subnet_env("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.82.1/29\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");
    let pods: Vec<Pod> = (0..6).map(|number| Pod::new(&format!("pod{number}"))).collect();
    for pod in &pods[..5] {
        node.add(&node.sepal(), pod);
    }
    let add = || node.run("ADD", &node.sepal(), Some(&pods[5]), &Value::Null, &json!({}));
    let full = (
        999,
        "failed to delegate add: failed to allocate for range 0: no IP addresses available in range set: 10.244.82.1-10.244.82.6"
            .to_owned(),
    );
    assert_eq!(failed(add()), full);
    assert_eq!((node.ports().len(), node.reserved().len(), node.kept().len()), (5, 5, 5));
    assert!(!pods[5].netns.run("ip -o link").contains("eth0"));

    // An old reservation is in use if a container has its address. A new one counts in any case, because its ADD may still be running.
    for ip in node.reserved() {
        make_old(&node.reservations().join(ip));
    }
    assert_eq!(failed(add()), full);
    // A pod disappears without DEL: an old reservation of its address is free.
    pods[2].netns.run("ip link del eth0");
    reserve(&node.reservations(), "10.244.82.4", "pod2\r\neth0");
    assert_eq!(failed(add()), full, "it was reserved just now");
    make_old(&node.reservations().join("10.244.82.4"));
    assert_eq!(address(&add().expect("the leaked one"), 0), "10.244.82.4");
    assert_eq!(text(&node.reservations().join("10.244.82.4")), "pod5\r\neth0");
}

#[test]
fn del_forgets_nothing_that_it_could_not_free() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let ip = node.reservations().join(address(&node.add(&node.flannel(), &pod), 0));
    // A file that even root cannot remove.
    node.netns.run(&format!("chattr +i {}", ip.display()));
    let del = || node.run("DEL", &node.flannel(), Some(&pod), &Value::Null, &json!({}));
    let (_, words) = failed(del());
    node.netns.run(&format!("chattr -i {}", ip.display()));
    assert!(words.contains("cannot free an address"), "{words}");
    assert_eq!((node.kept(), node.ports().len()), (vec!["abc".to_owned()], 0));
    del().expect("it can be freed now");
    node.assert_clean();
}

#[test]
fn del_survives_whatever_is_missing() {
    let node = Node::new();
    let gone = |what: &str| {
        let pod = Pod::new("abc");
        node.add(&node.flannel(), &pod);
        match what {
            "file" => fs::remove_file(node.path("flannel/abc")).expect("it is there"),
            "broken file" => fs::write(node.path("flannel/abc"), "{").expect("writable"),
            "interface" => _ = pod.netns.run("ip link del eth0"),
            "subnet" => fs::remove_file(node.path("subnet.env")).expect("it is there"),
            "reservation" => fs::remove_dir_all(node.path("networks")).expect("it is there"),
            _ => {}
        }
        if what == "namespace" {
            // The path is not a namespace, as after a restart of the machine.
            let path = node.path("netns");
            fs::write(&path, "").expect("writable");
            let mut config = node.flannel()["plugins"][0].clone();
            (config["name"], config["cniVersion"]) = (json!("cbr0"), json!("0.3.1"));
            for netns in ["", "/nowhere", &path.to_string_lossy()] {
                let mut command = node.netns.command(&node.path("bin/flannel").to_string_lossy());
                command
                    .env("CNI_COMMAND", "DEL")
                    .env("CNI_PATH", "/")
                    .env("CNI_CONTAINERID", "abc")
                    .env("CNI_IFNAME", "eth0")
                    .env("CNI_NETNS", netns);
                let mut child = command.stdin(std::process::Stdio::piped()).spawn().expect("it starts");
                std::io::Write::write_all(&mut child.stdin.take().expect("piped"), config.to_string().as_bytes()).expect("it reads");
                assert!(child.wait().expect("it ends").success(), "{netns}");
            }
        } else {
            node.del(&node.flannel(), &pod);
        }
        node.write_subnet_env(SUBNET_ENV);
        node.assert_clean();
    };
    for what in ["nothing", "file", "broken file", "interface", "subnet", "reservation", "namespace"] {
        gone(what);
    }
}

/// The path of a namespace may be reused by another pod or by the host, for example a path under /proc.
#[test]
fn del_deletes_nothing_of_a_pod_that_reuses_the_path() {
    let node = Node::new();
    node.netns.run("ip link add eth0 type veth peer name eth1");
    let (gone, other) = (Pod::new("gone"), Pod::new("other"));
    let mut config = node.flannel()["plugins"][0].clone();
    (config["name"], config["cniVersion"]) = (json!("cbr0"), json!("0.3.1"));
    for path in [other.netns.path(), node.netns.path()] {
        node.add(&node.flannel(), &gone);
        if node.ports().len() == 1 {
            node.add(&node.flannel(), &other);
        }
        // DEL runs twice; the second time nothing is left.
        for _ in 0..2 {
            node.call_at("DEL", ["gone", "eth0", &path], &config).expect("it is disconnected");
            assert!(other.netns.run("ip -o link").contains("eth0"), "it is the other's");
            assert!(!gone.netns.run("ip -o link").contains("eth0"), "it is known by the host's end");
            assert!(node.netns.run("ip -o link").contains("eth0"), "it is the host's");
            assert_eq!((node.ports().len(), node.reserved().len(), node.kept()), (1, 2, vec!["other".to_owned()]));
        }
    }
}

/// One container is in two of flannel's networks. The stored configuration is named by the container alone.
#[test]
fn one_container_may_be_in_two_networks() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let call = |verb: &str, name: &str, interface: &str| {
        let mut config = node.flannel()["plugins"][0].clone();
        (config["name"], config["cniVersion"]) = (json!(name), json!("0.3.1"));
        config["delegate"] = json!({"bridge": format!("br-{name}")});
        node.call_at(verb, ["abc", interface, &pod.netns.path()], &config).expect("it is done");
    };
    let reserved = |name: &str| {
        let names = fs::read_dir(node.path("networks").join(name)).expect("readable").flatten().map(|entry| entry.file_name());
        names.filter(|found| found.to_string_lossy().parse::<std::net::IpAddr>().is_ok()).count()
    };
    call("ADD", "one", "eth0");
    call("ADD", "two", "net1");
    assert_eq!((reserved("one"), reserved("two")), (2, 2));
    call("DEL", "one", "eth0");
    assert_eq!((reserved("one"), reserved("two"), node.kept().len()), (0, 2, 1));
    call("DEL", "two", "net1");
    assert_eq!((reserved("one"), reserved("two"), node.kept().len(), node.ports().len()), (0, 0, 0, 0));
}

/// An ADD that fails at any step leaves nothing.
#[test]
fn add_that_fails_leaves_nothing_of_other_plugins() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let program = node.path("bin/broken");
    fs::write(
        &program,
        "#!/bin/sh\ncat >/dev/null; echo \"$CNI_COMMAND\" >> $(dirname $0)/log; [ $CNI_COMMAND = ADD ] && echo '{\"ips\": 5}'; exit 0\n",
    )
    .expect("writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("writable");
    let bridge = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "ipam": {"type": "broken"}});
    failed(node.call("ADD", Some(&pod), &bridge));
    let mut conflist = node.flannel();
    conflist["plugins"][0]["ipam"]["type"] = json!(5);
    failed(node.run("ADD", &conflist, Some(&pod), &Value::Null, &json!({})));
    node.assert_clean();
    assert_eq!(text(&node.path("bin/log")), "ADD\nDEL\n", "what it gave is taken back");
}

/// A delegate that is not part of this program runs as its own process.
#[test]
fn other_delegates_are_run() {
    let node = Node::new();
    let script = "#!/bin/sh\nread -r config; echo \"$CNI_COMMAND $CNI_IFNAME $config\" >> $(dirname $0)/log\n[ -e $(dirname $0)/fail ] && { echo '{\"code\": 11, \"msg\": \"busy\"}'; exit 1; }\n[ $CNI_COMMAND = ADD ] && echo '{\"cniVersion\": \"0.3.1\", \"ips\": [{\"version\": \"4\", \"address\": \"10.0.0.9/24\"}]}'; exit 0\n";
    let program = node.path("bin/other");
    fs::write(&program, script).expect("writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("writable");
    let mut conflist = node.flannel();
    conflist["plugins"][0]["delegate"] = json!({"type": "other"});
    let pod = Pod::new("abc");
    assert_eq!(address(&node.add(&conflist, &pod), 0), "10.0.0.9");
    fs::write(node.path("bin/fail"), "").expect("writable");
    let (code, words) = failed(node.run("DEL", &conflist, Some(&pod), &Value::Null, &json!({})));
    assert_eq!((code, words.as_str()), (11, "failed to delegate del: busy"));
    assert_eq!(node.kept(), ["abc"], "its configuration is kept for another DEL");
    fs::remove_file(node.path("bin/fail")).expect("it is there");
    node.del(&conflist, &pod);
    assert!(node.kept().is_empty());
    let log = text(&node.path("bin/log"));
    let kept: Vec<&str> = log.lines().collect();
    let config = kept[0].strip_prefix("ADD eth0 ").expect("the first call");
    assert!(config.contains("\"ranges\":[[{\"subnet\":\"10.244.1.0/24\"}],[{\"subnet\":\"fd10:244:1::/64\"}]]"), "{config}");
    assert_eq!(kept[1..], [format!("DEL eth0 {config}"), format!("DEL eth0 {config}")]);
}

/// A pseudo-random number; the same in each run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// GC collects everything that killed ADD and DEL calls leave, and they do not block other calls.
#[test]
fn what_killed_plugins_leave_is_collected() {
    const ROUNDS: u64 = 200;
    let node = Node::new();
    let stays = Pod::new("stays");
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    node.run("ADD", &node.sepal(), Some(&stays), &ports, &json!({})).expect("it is connected");
    let mut config = node.sepal()["plugins"][0].clone();
    (config["name"], config["cniVersion"]) = (json!("cbr0"), json!("1.1.0"));
    let pods: Vec<Pod> = (0..8).map(|number| Pod::new(&format!("pod{number}"))).collect();
    let (mut state, mut killed) = (20_260_730, 0);
    // The longest wait before a kill, in microseconds, with and without host ports. It adapts to the speed of the machine, so that about half
    // of the calls are killed in the middle.
    let mut longest = [120_000, 40_000];
    for round in 0..ROUNDS {
        let pod = &pods[usize::try_from(random(&mut state) % 8).expect("small")];
        let verb = if random(&mut state).is_multiple_of(2) { "ADD" } else { "DEL" };
        // Some pods have host ports, for which the plugin starts iptables.
        config["runtimeConfig"] = if round % 4 == 0 {
            json!({"portMappings": [{"hostPort": 9000, "containerPort": 80, "protocol": "udp"}]})
        } else {
            Value::Null
        };
        let mut child = node.start(verb, Some(pod), &config);
        let longest = &mut longest[usize::from(round % 4 != 0)];
        std::thread::sleep(Duration::from_micros(random(&mut state) % *longest));
        let is_running = child.try_wait().expect("it is a child").is_none();
        killed += u64::from(is_running);
        *longest = if is_running { *longest * 6 / 5 } else { (*longest * 4 / 5).max(500) };
        child.kill().expect("it is a child");
        child.wait().expect("it ends");
    }
    assert!(killed > ROUNDS / 4, "only {killed} were killed in the middle");
    // The iptables processes of a killed plugin end by themselves.
    wait_until("no iptables runs in the namespace", || !node.netns.has_process("tables"));
    node.gc(&[&stays]);
    assert_eq!((node.ports().len(), node.reserved().len(), node.kept()), (1, 2, vec!["stays".to_owned()]));
    let nat = node.nat();
    assert!(!nat.contains("pod") && nat.contains("id: \\\"stays\\\""), "{nat}");
    for pod in &pods {
        assert!(!pod.netns.run("ip -o link").contains("eth0"));
        node.add(&node.sepal(), pod);
    }
    assert_eq!(node.reserved().len(), 18);
    // A later DEL cleans up, too.
    for pod in &pods {
        let mut child = node.start("DEL", Some(pod), &config);
        std::thread::sleep(Duration::from_micros(random(&mut state) % 20_000));
        child.kill().expect("it is a child");
        child.wait().expect("it ends");
        node.del(&node.sepal(), pod);
    }
    assert_eq!((node.ports().len(), node.reserved().len(), node.kept().len()), (1, 2, 1));
}
