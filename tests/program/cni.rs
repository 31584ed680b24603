//! Pods that get their network from the CNI plugins, with real packets.

use std::net::SocketAddr;
use std::path::Path;

use sepal_lab::traffic::{tcp, udp};
use sepal_lab::{Netns, wait_until};
use serde_json::{Value, json};

use crate::cni_node::{Node, Pod, SUBNET_ENV, address, failed};

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// A network outside of the node that has no routes to pods.
fn outside(node: &Node) -> Netns {
    let outside = Netns::new();
    node.netns.link("ext0", &outside, "eth0");
    node.netns.run(
        "ip addr add 192.168.61.13/24 dev ext0; ip -6 addr add fd61::13/64 dev ext0 nodad
         iptables -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE
         ip6tables -t nat -A POSTROUTING -s fd10:244::/32 ! -d fd10:244::/32 -j MASQUERADE",
    );
    outside.run("ip addr add 192.168.61.50/24 dev eth0; ip -6 addr add fd61::50/64 dev eth0 nodad");
    outside
}

/// A pod reaches everything that it should, with this conflist and this variant of iptables.
fn connects(node: &Node, conflist: &Value) {
    let outside = Pod { netns: outside(node), id: "outside".into() };
    outside.serve(80);
    let (web, client) = (Pod::new("web"), Pod::new("client"));
    let ports = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8053, "containerPort": 80, "protocol": "udp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "TCP", "hostIP": "127.0.0.1"},
    ]);
    let result = node.run("ADD", conflist, Some(&web), &ports, &json!({})).expect("it is connected");
    let web_ips = [address(&result, 0), address(&result, 1)];
    assert_eq!(web_ips, ["10.244.1.2", "fd10:244:1::2"]);
    assert_eq!(result["cniVersion"], conflist["cniVersion"]);
    let interfaces: Vec<_> = result["interfaces"].as_array().expect("interfaces").iter().map(|found| found["name"].clone()).collect();
    assert_eq!((&interfaces[0], &interfaces[2]), (&json!("cni0"), &json!("eth0")));
    let client_ips = {
        let result = node.add(conflist, &client);
        [address(&result, 0), address(&result, 1)]
    };
    web.serve(80);
    client.serve(80);
    let says = |from: &Netns, to: &str, port: u16| tcp(from, at(to, port)).unwrap_or_else(|error| format!("{to}: {error}"));

    // The kernel first checks the gateway's IPv6 address for duplicates, as with the real plugin.
    wait_until("the gateway has its address", || !node.netns.run("ip -6 addr show cni0").contains("tentative"));
    // Pods reach each other, the outside, and the gateway.
    for ip in &web_ips {
        assert_eq!(says(&client.netns, ip, 80), "web");
        assert_eq!(says(&node.netns, ip, 80), "web");
    }
    for ip in &client_ips {
        assert_eq!(says(&web.netns, ip, 80), "client");
    }
    for (family, ip) in [("-4", "10.244.1.1"), ("-6", "fd10:244:1::1")] {
        let route = client.netns.run(&format!("ip {family} route get {ip}"));
        assert!(route.contains("dev eth0"), "{route}");
        wait_until("the gateway answers", || client.netns.output(&format!("ping {family} -c 1 -W 1 {ip}")).status.success());
    }
    for ip in ["192.168.61.50", "fd61::50"] {
        assert_eq!(says(&web.netns, ip, 80), "outside");
    }

    // A pod reaches itself through a Service: the packet returns over the bridge port that it came from.
    let hairpin = format!("-d 10.96.0.10/32 -p tcp --dport 80 -j DNAT --to-destination {}:80", web_ips[0]);
    node.netns.run(&format!(
        "iptables -t nat -A PREROUTING {hairpin}; iptables -t nat -A POSTROUTING -s {ip}/32 -d {ip}/32 -j MASQUERADE",
        ip = web_ips[0]
    ));
    assert_eq!(says(&web.netns, "10.96.0.10", 80), "web");

    // A host port is reached from outside, from the node, from another pod, and from its own pod.
    for (from, to) in [
        (&outside.netns, "192.168.61.13"),
        (&node.netns, "127.0.0.1"),
        (&node.netns, "192.168.61.13"),
        (&client.netns, "10.244.1.1"),
        (&web.netns, "192.168.61.13"),
    ] {
        assert_eq!(says(from, to, 8080), "web", "{to}");
    }
    assert_eq!(says(&outside.netns, "fd61::13", 8080), "web");
    assert_eq!(says(&node.netns, "127.0.0.1", 8081), "web");
    assert!(tcp(&outside.netns, at("192.168.61.13", 8081)).is_err(), "it is for one address only");
    assert_eq!(udp(&outside.netns, at("192.168.61.13", 8053)).expect("an answer"), "web");

    if conflist["cniVersion"] == "1.1.0" {
        let check = |more: &Value| node.run("CHECK", conflist, Some(&web), &ports, more);
        check(&json!({"prevResult": result})).expect("it is connected");
        node.gc(&[&web, &client]);
        check(&json!({"prevResult": result})).expect("GC leaves alone what is valid");
        web.netns.run("ip route del default");
        assert!(failed(check(&json!({"prevResult": result}))).1.starts_with("Expected Route 0.0.0.0/0 was not found"));
    }
    for pod in [&web, &client] {
        // DEL runs twice; the second time nothing is left.
        for _ in 0..2 {
            node.run("DEL", conflist, Some(pod), &ports, &json!({})).expect("it is disconnected");
        }
    }
    assert!(tcp(&outside.netns, at("192.168.61.13", 8080)).is_err());
}

#[test]
fn pods_are_connected_by_flannels_conflist() {
    let node = Node::with_iptables("nft");
    connects(&node, &node.flannel());
    node.assert_clean();
}

#[test]
fn pods_are_connected_by_sepals_conflist() {
    let node = Node::with_iptables("nft");
    connects(&node, &node.sepal());
    node.assert_clean();
}

/// The same with the other variant.
#[test]
fn ports_are_mapped_by_legacy_iptables() {
    let node = Node::with_iptables("legacy");
    let (web, ports) = (Pod::new("web"), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    node.run("ADD", &node.sepal(), Some(&web), &ports, &json!({})).expect("it is connected");
    web.serve(80);
    assert_eq!(tcp(&node.netns, at("127.0.0.1", 8080)).expect("an answer"), "web");
    let want =
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n";
    assert!(node.nat().contains(want), "{}", node.nat());
    node.run("DEL", &node.sepal(), Some(&web), &ports, &json!({})).expect("it is disconnected");
    node.assert_clean();
}

#[test]
fn a_port_of_the_host_has_one_container() {
    let node = Node::new();
    // Only this test uses this subnet: the plugin looks for the address in all namespaces of the machine.
    node.write_subnet_env(&SUBNET_ENV.replace("10.244.1.", "10.244.81.").replace("10:244:1:", "10:244:81:"));
    let ports = |ip: &str| json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ip}]);
    let add = |pod: &Pod, ports: &Value| node.run("ADD", &node.sepal(), Some(pod), ports, &json!({}));
    let (first, second, third) = (Pod::new("first"), Pod::new("second"), Pod::new("third"));
    add(&first, &ports("10.0.0.1")).expect("it is free");
    add(&second, &ports("10.0.0.2")).expect("it is another address");
    let (code, words) = failed(add(&third, &ports("")));
    assert_eq!((code, words.as_str()), (999, "host port 8080/tcp is taken by container first of network \"cbr0\" (10.244.81.2)"));
    // The failed ADD of the third pod left nothing.
    assert_eq!((node.ports().len(), node.reserved().len(), node.kept().len()), (2, 4, 2));
    assert!(!node.nat().contains("third"));
    // A pod that disappeared without DEL does not keep its host port.
    drop(first);
    wait_until("its interface is gone", || node.ports().len() == 1);
    add(&third, &ports("10.0.0.1")).expect("the port is free again");
    assert!(!node.nat().contains("first") && node.nat().contains("second"));
}

#[test]
fn thirty_pods_at_once_get_thirty_addresses() {
    let node = Node::new();
    let pods: Vec<Pod> = (0..30).map(|number| Pod::new(&format!("pod{number}"))).collect();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let started: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.add(&node.sepal(), pod))).collect();
        started.into_iter().map(|added| added.join().expect("it ends well")).collect()
    });
    for at in 0..2 {
        let mut ips: Vec<String> = results.iter().map(|result| address(result, at)).collect();
        ips.sort();
        ips.dedup();
        assert_eq!(ips.len(), 30);
    }
    assert_eq!((node.ports().len(), node.reserved().len(), node.kept().len()), (30, 60, 30));
    // Two of the pods reach each other.
    pods[29].serve(80);
    assert_eq!(tcp(&pods[0].netns, at(&address(&results[29], 0), 80)).expect("an answer"), "pod29");
    node.gc(&[&pods[29]]);
    assert_eq!((node.ports().len(), node.reserved().len(), node.kept()), (1, 2, vec!["pod29".to_owned()]));
    assert_eq!(tcp(&node.netns, at(&address(&results[29], 0), 80)).expect("an answer"), "pod29");
}

#[test]
fn a_bridge_of_another_time_is_brought_in_line() {
    let node = Node::new();
    node.netns.run(
        "ip link add cni0 type bridge; ip link set cni0 mtu 1400; ip addr add 10.244.7.1/24 dev cni0; ip -6 addr add fd10:244:1::9/56 dev cni0 nodad",
    );
    let (first, second) = (Pod::new("first"), Pod::new("second"));
    let result = node.add(&node.sepal(), &first);
    let listed = node.netns.run("ip addr show cni0; sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding");
    for words in ["mtu 1450", "inet 10.244.1.1/24 brd 10.244.1.255", "inet6 fd10:244:1::1/64", "ip_forward = 1", "all.forwarding = 1"] {
        assert!(listed.contains(words), "{words}: {listed}");
    }
    assert!(!listed.contains("10.244.7.1") && !listed.contains("fd10:244:1::9"), "{listed}");
    // From now on the bridge keeps its MAC address when pods are added and deleted.
    let mac = result["interfaces"][0]["mac"].clone();
    assert_eq!(node.add(&node.sepal(), &second)["interfaces"][0]["mac"], mac);
    node.del(&node.sepal(), &first);
    let third = Pod::new("third");
    assert_eq!(node.add(&node.sepal(), &third)["interfaces"][0]["mac"], mac);
    // A link that is not a bridge is not changed.
    let other = Node::new();
    other.netns.run("ip link add cni0 type veth peer name cni1");
    let (_, words) = failed(other.run("ADD", &other.sepal(), Some(&first), &Value::Null, &json!({})));
    assert_eq!(words, "failed to delegate add: \"cni0\" already exists but is not a bridge");
    assert_eq!((other.reserved().len(), other.kept().len()), (0, 0));
}

/// An existing bridge may have addresses of the operator.
#[test]
fn addresses_of_a_named_bridge_go_only_by_force() {
    let node = Node::new();
    node.netns
        .run("ip link add br1 type bridge; ip addr add 192.0.2.10/24 dev br1; ip -6 addr add fd09::5/48 dev br1 nodad; ip link set br1 up");
    let config = |more: Value| {
        let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br1", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": node.path("networks"), "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]}});
        more.as_object().expect("keys").iter().for_each(|(key, value)| config[key] = value.clone());
        config
    };
    let pod = Pod::new("abc");
    let listed = || node.netns.run("ip addr show br1");
    let (_, words) = failed(node.call("ADD", Some(&pod), &config(json!({}))));
    assert_eq!(words, "failed to set bridge addr: \"br1\" already has an IP address different from 10.9.0.1/24");
    assert!(listed().contains("192.0.2.10/24") && listed().contains("fd09::5/48") && node.ports().is_empty(), "{}", listed());
    let mut flannel = node.flannel();
    flannel["plugins"][0]["delegate"] = json!({"bridge": "br1"});
    assert!(failed(node.run("ADD", &flannel, Some(&pod), &Value::Null, &json!({}))).1.contains("already has an IP address different"));
    assert!(listed().contains("192.0.2.10/24") && node.kept().is_empty() && node.reserved().is_empty(), "{}", listed());
    node.netns.run("ip link set br1 mtu 9000");
    node.call("ADD", Some(&pod), &config(json!({"forceAddress": true, "mtu": 1450}))).expect("it is connected");
    let listed = listed();
    assert!(listed.contains("mtu 9000") && pod.netns.run("ip link show eth0").contains("mtu 1450"), "{listed}");
    assert!(listed.contains("10.9.0.1/24") && listed.contains("fd09::1/64"), "{listed}");
    assert!(!listed.contains("192.0.2.10") && !listed.contains("fd09::5"), "{listed}");
}

/// Options of the plugin `bridge` that flannel's conflist does not use.
#[test]
fn the_bridge_does_what_its_other_keys_say() {
    let node = Node::new();
    let config = |more: Value| {
        let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br1", "isDefaultGateway": true,
            "ipam": {"type": "host-local", "dataDir": node.path("networks"), "subnet": "10.9.0.0/24"}});
        more.as_object().expect("keys").iter().for_each(|(key, value)| config[key] = value.clone());
        config
    };
    let masquerading =
        config(json!({"ipMasq": true, "promiscMode": true, "portIsolation": true, "runtimeConfig": {"mac": "02:00:00:00:00:77"}}));
    let pod = Pod::new("abc123");
    let result = node.call("ADD", Some(&pod), &masquerading).expect("it is connected");
    assert_eq!((&result["interfaces"][2]["mac"], &result["ips"][0]["address"]), (&json!("02:00:00:00:00:77"), &json!("10.9.0.2/24")));
    let listed = node.netns.run("ip -d link show type veth; ip -d link show br1");
    assert!(listed.contains("isolated on") && listed.contains("hairpin off") && listed.contains("PROMISC"), "{listed}");
    let nat = node.nat();
    let jump = nat.lines().find(|line| line.starts_with("-A POSTROUTING -s 10.9.0.2/32 ")).expect("a jump");
    let name = jump.rsplit(' ').next().expect("a chain");
    let comment = r#"-m comment --comment "name: \"net\" id: \"abc123\"""#;
    assert_eq!((name.len(), &name[..4]), (28, "CNI-"));
    for rule in [format!("-A {name} -d 10.9.0.0/24 {comment} -j ACCEPT"), format!("-A {name} ! -d 224.0.0.0/4 {comment} -j MASQUERADE")] {
        assert!(nat.contains(&rule), "{rule}: {nat}");
    }
    node.call("DEL", Some(&pod), &masquerading).expect("it is disconnected");
    assert!(!node.nat().contains("CNI-") && node.ports().is_empty());

    // Pods of one VLAN reach each other and the gateway; pods of another VLAN do not. Some kernels lack VLANs.
    let [ten, twenty] = [10, 20].map(|vlan| config(json!({"bridge": "br2", "vlan": vlan, "preserveDefaultVlan": false})));
    let (one, two, three) = (Pod::new("one"), Pod::new("two"), Pod::new("three"));
    if !Netns::new().output("ip link add br0 type bridge vlan_filtering 1").status.success() {
        let (code, words) = failed(node.call("ADD", Some(&one), &ten));
        assert!(code == 999 && words.starts_with("cannot make bridge br2: Operation not supported"), "{words}");
        assert!(!node.reservations().with_file_name("net").join("10.9.0.3").exists());
        return;
    }
    let ip = |result: Result<Value, Value>| address(&result.expect("it is connected"), 0);
    let first = ip(node.call("ADD", Some(&one), &ten));
    ip(node.call("ADD", Some(&two), &ten));
    ip(node.call("ADD", Some(&three), &twenty));
    one.serve(80);
    assert_eq!(tcp(&two.netns, at(&first, 80)).expect("an answer"), "one");
    assert!(tcp(&three.netns, at(&first, 80)).is_err());
    assert!(node.netns.run("ip addr show br2.10").contains("inet 10.9.0.1/24"));
}

#[test]
fn pods_of_ipv6_alone_are_connected() {
    let node = Node::new();
    node.write_subnet_env(
        "FLANNEL_IPV6_NETWORK=fd10:244::/32\nFLANNEL_IPV6_SUBNET=fd10:244:83::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n",
    );
    let (web, client) = (Pod::new("web"), Pod::new("client"));
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let run = |verb: &str, more: &Value| node.run(verb, &node.sepal(), Some(&web), &ports, more);
    let result = run("ADD", &json!({})).expect("it is connected");
    assert_eq!((address(&result, 0).as_str(), result["ips"].as_array().map(Vec::len)), ("fd10:244:83::2", Some(1)));
    assert_eq!(result["routes"], json!([{"dst": "fd10:244::/32"}, {"dst": "::/0", "gw": "fd10:244:83::1"}]));
    node.add(&node.sepal(), &client);
    web.serve(80);
    wait_until("the gateway has its address", || !node.netns.run("ip -6 addr show cni0").contains("tentative"));
    assert_eq!(tcp(&client.netns, at("fd10:244:83::2", 80)).expect("an answer"), "web");
    assert_eq!(tcp(&client.netns, at("fd10:244:83::1", 8080)).expect("an answer"), "web");
    assert!(!node.nat().contains("8080") && !node.netns.run("ip -4 addr show cni0").contains("inet "));
    assert!(node.netns.run("sysctl net.ipv6.conf.all.forwarding").contains("forwarding = 1"));
    run("CHECK", &json!({"prevResult": result})).expect("it is connected");
    run("DEL", &json!({})).expect("it is disconnected");
    node.gc(&[]);
    node.assert_clean();
    assert!(!node.netns.run("ip6tables-save -t nat").contains("CNI-DN-"));
}

/// The plugin disables router advertisements on its bridge, also on a bridge that another program made.
#[test]
fn no_bridge_takes_router_advertisements() {
    let node = Node::new();
    node.netns.run("ip link add cni0 type bridge; sysctl -w net.ipv6.conf.cni0.accept_ra=1");
    node.add(&node.sepal(), &Pod::new("abc"));
    assert!(node.netns.run("sysctl net.ipv6.conf.cni0.accept_ra").contains("accept_ra = 0"));
}

#[test]
fn ports_of_one_family_are_checked_as_they_are_made() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let ports = |ip: &str| json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ip}]);
    let nat6 = || node.netns.run("ip6tables-save -t nat");
    let mut conflist = node.sepal();
    conflist["plugins"][0]["conditionsV4"] = json!(["!", "-s", "192.0.2.1"]);
    for ip in ["10.0.0.1", "0.0.0.0"] {
        let run = |verb: &str, more: &Value| node.run(verb, &conflist, Some(&pod), &ports(ip), more);
        let result = run("ADD", &json!({})).expect("it is connected");
        assert!(nat6().contains("--dports 8080") && !nat6().contains("--to-destination"), "{ip}: {}", nat6());
        run("CHECK", &json!({"prevResult": result})).expect("its ports are there");
        node.netns.run("iptables -t nat -F CNI-HOSTPORT-DNAT");
        let (_, words) = failed(run("CHECK", &json!({"prevResult": result})));
        assert_eq!(words, "a rule of host ports of container abc is missing");
        run("DEL", &json!({})).expect("it is disconnected");
    }
    let result = node.run("ADD", &node.sepal(), Some(&pod), &ports("::"), &json!({})).expect("it is connected");
    assert!(nat6().contains("--to-destination") && !node.nat().contains("--to-destination"));
    node.run("CHECK", &node.sepal(), Some(&pod), &ports("::"), &json!({"prevResult": result})).expect("its ports are there");
}

#[test]
fn loopbacks_are_set_up() {
    let node = Node::new();
    let pod = Pod::new("abc");
    pod.netns.run("ip link set lo down");
    let config = json!({"cniVersion": "1.0.0", "name": "cni-loopback", "type": "loopback"});
    let call = |verb: &str, config: &Value| node.call(verb, Some(&pod), config);
    assert_eq!(failed(call("CHECK", &config)), (999, "loopback interface is down".to_owned()));
    let result = call("ADD", &config).expect("it is set up");
    assert_eq!(result["ips"], json!([{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}]));
    assert_eq!(result["interfaces"], json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.netns.path()}]));
    assert_eq!(call("CHECK", &config), Ok(Value::Null));
    assert_eq!(call("DEL", &config), Ok(Value::Null));
    assert!(!pod.netns.run("ip link show lo").contains("UP"));
}

/// Invalid input is refused with the CNI error code before anything is changed.
#[test]
fn what_makes_no_sense_is_answered_by_its_number() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let frame = |more: Value| {
        let mut config = node.sepal()["plugins"][0].clone();
        config["name"] = json!("cbr0");
        config["cniVersion"] = json!("1.1.0");
        more.as_object().expect("keys").iter().for_each(|(key, value)| config[key] = value.clone());
        config
    };
    for (verb, more, code, words) in [
        ("ADD", json!({"cniVersion": "9.9.9"}), 1, "incompatible CNI versions"),
        ("GC", json!({"cniVersion": "1.0.0"}), 1, "config version does not allow GC"),
        ("STATUS", json!({"cniVersion": "1.0.0"}), 1, "config version does not allow STATUS"),
        ("CHECK", json!({"cniVersion": "0.3.1"}), 1, "config version does not allow CHECK"),
        ("ADD", json!({"delegate": {"macspoofchk": true}}), 2, "failed to delegate add: macspoofchk is not supported"),
        ("FOO", json!({}), 4, "unknown CNI_COMMAND: FOO"),
        ("ADD", json!({"name": 5}), 6, "error unmarshall network config: name: invalid type: integer `5`, expected a string"),
        ("ADD", json!({"name": ""}), 7, "missing network name"),
        ("ADD", json!({"name": "../x"}), 7, "invalid characters found in network name"),
        ("ADD", json!({"delegate": []}), 7, "failed to load netconf: delegate"),
        ("GC", json!({}), 7, "\"cni.dev/valid-attachments\" is missing"),
        ("CHECK", json!({"prevResult": {"ips": 5}}), 999, ""),
    ] {
        let (found, message) = failed(node.call(verb, Some(&pod), &frame(more.clone())));
        assert!(found == code && message.starts_with(words), "{verb} {more}: {found} {message}");
    }
    let same = Pod { netns: Netns::new(), id: "abc".into() };
    let mut command = same.netns.command(&node.path("bin").join("sepal").to_string_lossy());
    command
        .env("CNI_COMMAND", "ADD")
        .env("CNI_PATH", "/")
        .env("CNI_CONTAINERID", "abc")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", same.netns.path());
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), frame(json!({})).to_string().as_bytes()).expect("it reads");
    let said: Value = serde_json::from_slice(&child.wait_with_output().expect("it ends").stdout).expect("JSON");
    assert_eq!((&said["code"], &said["cniVersion"]), (&json!(8), &json!("1.1.0")));
    assert!(same.netns.run("ip -o link").lines().count() == 1, "nothing was made");
    let (code, words) = failed(node.call("ADD", Some(&pod), &json!({"cniVersion": "1.0.0", "name": "n", "type": "portmap"})));
    assert_eq!((code, words.as_str()), (7, "must be called as chained plugin"));
    node.assert_clean();
}

#[test]
fn status_tells_when_pods_can_be_connected() {
    let node = Node::new();
    let status = || node.run("STATUS", &node.sepal(), None, &Value::Null, &json!({}));
    assert_eq!(status(), Ok(Value::Null));
    node.write_subnet_env("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n");
    let path = node.path("subnet.env");
    let why = |words: &str| format!("failed to load flannel 'subnet.env' file: {words}. Check the flannel pod log for this node.");
    assert_eq!(failed(status()), (50, why(&format!("{} is missing FLANNEL_MTU, FLANNEL_IPMASQ", path.display()))));
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(failed(status()), (50, why(&format!("open {}: no such file or directory", path.display()))));
    let pod = Pod::new("abc");
    assert_eq!(failed(node.run("ADD", &node.flannel(), Some(&pod), &Value::Null, &json!({}))).0, 999);
    // DEL with partly invalid input still deletes what exists of the pod.
    node.del(&node.flannel(), &pod);
    let versions = node.call("VERSION", None, &json!({"type": "portmap"})).expect("an answer");
    assert_eq!(versions["supportedVersions"], json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
}

/// `sepal cni install` while the plugin that it replaces runs.
#[test]
fn the_plugin_is_put_in_place_while_it_runs() {
    let node = Node::new();
    let (bin, conf) = (node.path("opt"), node.path("net.d"));
    std::fs::create_dir(&bin).expect("writable");
    let install = |program: &Path, more: &[&str]| {
        let mut command = node.netns.command(&program.to_string_lossy());
        let output = command.args(["cni", "install", "--bin-dir"]).arg(&bin).args(more).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    let conf_dir = conf.to_string_lossy().into_owned();
    assert_eq!(install(&node.path("bin/sepal"), &["--conf-dir", &conf_dir]), 7);
    let conflist: Value = serde_json::from_slice(&std::fs::read(conf.join("10-sepal.conflist")).expect("written")).expect("JSON");
    assert_eq!((&conflist["name"], &conflist["plugins"][0]["type"]), (&json!("cbr0"), &json!("sepal")));
    // A plugin process that waits for its configuration.
    let mut running = node.netns.command(&bin.join("sepal").to_string_lossy());
    running.env("CNI_COMMAND", "STATUS").env("CNI_PATH", &bin).stdin(std::process::Stdio::piped());
    let mut running = running.spawn().expect("it starts");
    let newer = node.path("newer");
    // Another process writes the file: a program that another test starts meanwhile would inherit a file that this process has open for writing.
    let shown = newer.display();
    node.netns.run(&format!("cp {} {shown} && printf newer >> {shown}", node.path("bin/sepal").display()));
    assert_eq!(install(&newer, &["--conf-dir", &conf_dir]), 6, "the conflist is as it was");
    assert!(
        std::fs::read_dir(&bin)
            .expect("readable")
            .flatten()
            .all(|file| file.metadata().expect("there").len() == newer.metadata().expect("there").len())
    );
    running.kill().expect("it still runs");
    running.wait().expect("it ends");
}
