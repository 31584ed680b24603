//! Configurations and objects of the reference CNI plugins: JSON keys in any case, addresses of bridges, and rules of port mappings. The
//! expected values are what the reference plugins do with the same input.

use serde_json::{Value, json};

use crate::cni_node::{Node, Pod, address, failed};

/// Calls a plugin with a configuration in which `@` is the node's own folder.
fn call(node: &Node, verb: &str, kind: &str, pod: &Pod, config: &str) -> Result<Value, Value> {
    node.call_text([verb, kind, ""], pod, &config.replace('@', &node.path("").to_string_lossy()))
}

#[test]
fn bridge_and_host_local_read_keys_in_any_case() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let config = r#"{"cniVersion":"0.4.0","name":"casey","type":"bridge","bridge":"cbr1","isDefaultGateWay":true,"ipMASQ":true,"hairpinmode":true,
        "MTU":1400,"dns":{"Nameservers":["10.96.0.10"]},"args":{"CNI":{"MAC":"02:00:00:00:00:77"}},
        "ipam":{"type":"host-local","DataDir":"@/networks","subnet":"10.2.0.0/24","rangestart":"10.2.0.50","Routes":[{"Dst":"10.9.0.0/16","Gw":"10.2.0.9"}]}}"#;
    let result = call(&node, "ADD", "bridge", &pod, config).expect("it is connected");
    assert_eq!(address(&result, 0), "10.2.0.50");
    assert_eq!(result["routes"], json!([{"dst": "10.9.0.0/16", "gw": "10.2.0.9"}, {"dst": "0.0.0.0/0", "gw": "10.2.0.1"}]));
    assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"]}));
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:77");
    let inside = pod.netns.run("ip link show eth0; ip route");
    assert!(inside.contains("mtu 1400") && inside.contains("default via 10.2.0.1"), "{inside}");
    assert!(node.netns.run("ip -d link show type veth").contains("hairpin on"));
    assert!(node.nat().contains("-A POSTROUTING -s 10.2.0.50/32 "), "{}", node.nat());
    let mut check: Value = serde_json::from_str(&config.replace('@', &node.path("").to_string_lossy())).expect("JSON");
    check["PREVRESULT"] =
        json!({"CNIVersion": "0.4.0", "Interfaces": result["interfaces"], "IPs": result["ips"], "Routes": result["routes"]});
    node.call("CHECK", Some(&pod), &check).expect("it is connected");
    call(&node, "DEL", "bridge", &pod, config).expect("it is disconnected");
    assert!(!node.nat().contains("casey") && node.ports().is_empty() && !node.path("networks/casey/10.2.0.50").exists());
}

/// The keys of `delegate` are passed on as they are written, and `bridge` reads them in any case.
#[test]
fn flannel_reads_keys_in_any_case() {
    let node = Node::new();
    for (kind, id) in [("flannel", "one"), ("sepal", "two")] {
        let pod = Pod::new(id);
        let config = r#"{"cniVersion":"1.0.0","name":"cbr0","TYPE":"sepal","SubnetFile":"@/subnet.env","DATADIR":"@/flannel","Ipam":{"dataDir":"@/networks"},
            "Delegate":{"hairpinmode":true,"isdefaultgateway":true}}"#;
        let result = call(&node, "ADD", kind, &pod, config).expect("it is connected");
        let routes = result["routes"].as_array().expect("routes");
        assert!(routes.contains(&json!({"dst": "0.0.0.0/0", "gw": "10.244.1.1"})), "{kind}: {routes:?}");
        assert!(node.netns.run("ip -d link show type veth").contains("hairpin on"), "{kind}");
        let kept: Value = serde_json::from_slice(&std::fs::read(node.path("flannel").join(id)).expect("kept")).expect("JSON");
        assert_eq!((&kept["hairpinmode"], &kept["isdefaultgateway"], &kept["isGateway"]), (&json!(true), &json!(true), &json!(true)));
        call(&node, "DEL", kind, &pod, config).expect("it is disconnected");
    }
    node.assert_clean();
}

/// containerd writes `HostPort`, `ContainerPort`, `Protocol` and `HostIP`.
#[test]
fn portmap_reads_the_keys_of_containerd() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let plugin = |more: &str| {
        format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","Snat":false,{more},"prevresult":{{"cniVersion":"1.0.0","interfaces":[
            {{"Name":"lo","Sandbox":"/run/netns/p1"}},{{"Name":"eth0","Sandbox":"/run/netns/p1"}}],"Ips":[{{"Address":"10.244.3.2/24","Interface":1}}]}}}}"#
        )
    };
    for ports in [
        r#""runtimeConfig":{"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":""}]}"#,
        r#""runtimeconfig":{"portmappings":[{"hostport":8080,"containerport":80,"protocol":"tcp"}]}"#,
        r#""runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"udp","HOSTPORT":8080,"ContainerPort":80,"Protocol":"tcp"}]}"#,
        r#""runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":2,"protocol":"udp"}]},"RuntimeConfig":{"PortMappings":[{"hostPort":8080,"containerPort":80,"protocol":"TCP"}]}"#,
    ] {
        let config = plugin(ports);
        let result = call(&node, "ADD", "portmap", &pod, &config).expect("its ports are mapped");
        assert_eq!(result["interfaces"][1], json!({"name": "eth0", "sandbox": "/run/netns/p1"}));
        let nat = node.nat();
        assert!(nat.contains("-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.3.2:80"), "{ports}: {nat}");
        assert!(!nat.contains("SETMARK") && !nat.contains("udp"), "{ports}: {nat}");
        call(&node, "CHECK", "portmap", &pod, &config).expect("its ports are mapped");
        call(&node, "DEL", "portmap", &pod, &config).expect("its ports are removed");
        assert!(!node.nat().contains("8080"), "{ports}");
    }
    let unmapped = plugin(r#""runtimeConfig":{"portMappings":[{"HostPort":8080}],"portMappings":null}"#);
    call(&node, "ADD", "portmap", &pod, &unmapped).expect("there is nothing to do");
    assert!(!node.nat().contains("8080"));
    let text = r#"{"cniversion":"0.3.1","NAME":"lo","type":"loopback"}"#;
    assert_eq!(call(&node, "ADD", "loopback", &pod, text).expect("it is set up")["cniVersion"], "0.3.1");
}

#[test]
fn the_last_of_two_equal_keys_counts() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let config = r#"{"cniVersion":"0.3.1","CNIVersion":"1.0.0","name":"first","name":"second","bridge":"br1","Bridge":"br2","isGateway":false,"IsGateway":true,
        "isGateway":null,"mtu":1300,"MTU":1400,"Mtu":null,
        "ipam":{"type":"host-local","dataDir":"@/networks","subnet":"10.2.0.0/24"},"IPAM":{"gateway":"10.2.0.200","rangeStart":"10.2.0.30","RangeStart":"10.2.0.40"},
        "ipMasq":true,"ipmasq":false}"#;
    let result = call(&node, "ADD", "bridge", &pod, config).expect("it is connected");
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!((address(&result, 0).as_str(), &result["ips"][0]["gateway"]), ("10.2.0.40", &json!("10.2.0.200")));
    assert!(node.path("networks/second/10.2.0.40").exists());
    let listed = node.netns.run("ip addr show br2");
    assert!(listed.contains("10.2.0.200/24") && !node.netns.run("ip link").contains("br1"), "{listed}");
    assert!(pod.netns.run("ip link show eth0").contains("mtu 1400") && !node.nat().contains("MASQUERADE"));
    call(&node, "DEL", "bridge", &pod, config).expect("it is disconnected");
}

#[test]
fn empty_addresses_are_not_given() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let empty = r#""rangeStart":"","rangeEnd":"","gateway":"""#;
    for (ipam, runtime) in [
        (format!(r#""subnet":"10.2.0.0/24",{empty},"routes":[{{"dst":"10.9.0.0/16","gw":""}}]"#), r#"{"ips":[""]}"#.to_owned()),
        (format!(r#""ranges":[[{{"subnet":"10.2.0.0/24",{empty}}}]]"#), "{}".to_owned()),
        (r#""ranges":null"#.to_owned(), format!(r#"{{"ipRanges":[[{{"subnet":"10.2.0.0/24",{empty}}}]]}}"#)),
    ] {
        let config = format!(
            r#"{{"cniVersion":"1.0.0","name":"net","ipam":{{"type":"host-local","dataDir":"@/networks",{ipam}}},"runtimeConfig":{runtime},"args":{{"cni":{{"ips":[""]}}}}}}"#
        );
        let result = call(&node, "ADD", "host-local", &pod, &config).expect("there is an address");
        assert_eq!(result["ips"], json!([{"address": "10.2.0.2/24", "gateway": "10.2.0.1"}]), "{config}");
        call(&node, "DEL", "host-local", &pod, &config).expect("the address is freed");
        std::fs::remove_dir_all(node.path("networks")).expect("it is there");
    }
    let bad =
        r#"{"cniVersion":"1.0.0","name":"net","ipam":{"type":"host-local","dataDir":"@/networks","subnet":"10.2.0.0/24","gateway":"x"}}"#;
    assert_eq!(
        failed(call(&node, "ADD", "host-local", &pod, bad)),
        (7, "failed to load netconf: ipam.gateway: \"x\" is not an IP address".to_owned())
    );
}

/// Of the reference plugins, `bridge` and `host-local` read `CNI_ARGS`.
#[test]
fn malformed_arguments_fail_only_plugins_that_read_them() {
    let node = Node::new();
    let pod = Pod::new("abc");
    let of = |more: &str| format!(r#"{{"cniVersion":"1.1.0","name":"cbr0",{more}}}"#).replace('@', &node.path("").to_string_lossy());
    let bridge = of(r#""bridge":"br1","ipam":{"type":"host-local","dataDir":"@/networks","subnet":"10.2.0.0/24"}"#);
    let flannel = of(r#""type":"sepal","subnetFile":"@/subnet.env","dataDir":"@/flannel","ipam":{"dataDir":"@/networks"}"#);
    let portmap = of(r#""prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.244.1.2/24"}]}"#);
    for args in ["novalue", "=", "IgnoreUnknown=1;x", "IP=10.2.0.9;MAC"] {
        for (kind, config, reads) in [
            ("bridge", &bridge, true),
            ("host-local", &bridge, true),
            ("flannel", &flannel, true),
            ("sepal", &flannel, true),
            ("portmap", &portmap, false),
            ("loopback", &portmap, false),
        ] {
            let run = |verb: &str| node.call_text([verb, kind, args], &pod, config);
            for verb in ["VERSION", "DEL", "STATUS"] {
                run(verb).unwrap_or_else(|error| panic!("{verb} of {kind} with {args}: {error}"));
            }
            let added = run("ADD");
            assert_eq!(added.is_err(), reads, "{kind} with {args}: {added:?}");
            if reads {
                let (code, words) = failed(added);
                assert!(code == 4 && words.contains("ARGS: invalid pair"), "{kind} with {args}: {words}");
            }
        }
    }
    node.assert_clean();
}

/// The hardware addresses of a bridge and of its ports.
fn macs(node: &Node, bridge: &str) -> (String, Vec<String>) {
    let of = |command: &str| -> Vec<String> {
        let listed = node.netns.run(command);
        listed.lines().filter_map(|line| line.split("link/ether ").nth(1)?.split(' ').next()).map(str::to_owned).collect()
    };
    (of(&format!("ip -o link show {bridge}")).remove(0), of(&format!("ip -o link show master {bridge}")))
}

#[test]
fn a_bridge_keeps_its_own_hardware_address() {
    let node = Node::new();
    let config = |bridge: &str, gateway: bool| {
        json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": bridge, "isDefaultGateway": gateway,
            "ipam": {"type": "host-local", "dataDir": node.path("networks"), "subnet": "10.1.2.0/24"}})
    };
    // On two bridges the lowest MAC address is a port's, and the bridge's own was not set.
    node.netns.run(
        "ip link add there type bridge; ip link set there up
         ip link add busy type bridge; ip link add low type veth peer name low1; ip link set low address 02:00:00:00:00:01
         ip link add high type veth peer name high1; ip link set high address fe:ff:ff:ff:ff:fe; ip link set high master busy; ip link set busy up",
    );
    for (bridge, gateway) in [("new", true), ("plain", false), ("there", true), ("busy", true)] {
        let before = (bridge == "there" || bridge == "busy").then(|| macs(&node, bridge).0);
        let (first, second) = (Pod::new(&format!("{bridge}1")), Pod::new(&format!("{bridge}2")));
        let result = node.call("ADD", Some(&first), &config(bridge, gateway)).expect("it is connected");
        let (own, ports) = macs(&node, bridge);
        if let Some(before) = before {
            assert_eq!(own, before, "{bridge} was there");
        }
        assert!(bridge == "busy" || !ports.contains(&own), "{bridge} has {own}, its ports {ports:?}");
        assert_eq!(result["interfaces"][0], json!({"name": bridge, "mac": own}));
        let mut check = config(bridge, gateway);
        check["prevResult"] = result;
        node.call("ADD", Some(&second), &config(bridge, gateway)).expect("it is connected");
        node.netns.run(&format!("ip link set low master {bridge}"));
        node.call("CHECK", Some(&first), &check).expect("it is connected");
        for pod in [&first, &second] {
            node.call("DEL", Some(pod), &config(bridge, gateway)).expect("it is disconnected");
            assert_eq!(macs(&node, bridge).0, own, "{bridge}");
        }
        node.netns.run("ip link set low nomaster");
        assert_eq!(macs(&node, bridge).0, own, "{bridge}");
    }
}

/// The listing is the one that the reference plugin makes of the same configuration.
#[test]
fn port_mappings_of_both_families_are_written_as_the_reference_plugin_does() {
    let node = Node::with_iptables("nft");
    node.netns.run("ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.244.3.1/24 dev cni0");
    let pod = Pod::new("abc123");
    let config = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap",
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "10.1.1.1"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "fd00::1"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "fd00::1"},
            {"hostPort": 54, "containerPort": 53, "protocol": "udp"}]},
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": pod.netns.path()}],
            "ips": [{"address": "10.244.3.2/24", "interface": 0}, {"address": "fd00:3::2/64", "interface": 0}]}});
    node.call("ADD", Some(&pod), &config).expect("its ports are mapped");
    let listed = |program: &str| {
        let listed = node.netns.run(&format!("{program}-nft -t nat -S"));
        listed
            .lines()
            .filter(|line| line.contains("CNI-DN-"))
            .map(|line| line.replace("CNI-DN-3e9a3d0f9583cdc0e7133", "DN"))
            .collect::<Vec<_>>()
    };
    let entries = [
        r#"-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"cbr0\" id: \"abc123\"" -m multiport --dports 8080,8080 -j DN"#,
        r#"-A CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \"cbr0\" id: \"abc123\"" -m multiport --dports 53,54 -j DN"#,
    ];
    let v4 = [
        "-N DN",
        "-A DN -s 10.244.3.0/24 -d 10.1.1.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        "-A DN -s 127.0.0.1/32 -d 10.1.1.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        "-A DN -d 10.1.1.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.3.2:80",
        "-A DN -s 10.244.3.0/24 -p udp -m udp --dport 54 -j CNI-HOSTPORT-SETMARK",
        "-A DN -s 127.0.0.1/32 -p udp -m udp --dport 54 -j CNI-HOSTPORT-SETMARK",
        "-A DN -p udp -m udp --dport 54 -j DNAT --to-destination 10.244.3.2:53",
    ];
    assert_eq!(listed("iptables"), [&v4[..], &entries[..]].concat());
    let v6 = [
        "-N DN",
        "-A DN -s fd00:3::/64 -d fd00::1/128 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        "-A DN -d fd00::1/128 -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:3::2]:80",
        "-A DN -s fd00:3::/64 -d fd00::1/128 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK",
        "-A DN -d fd00::1/128 -p udp -m udp --dport 53 -j DNAT --to-destination [fd00:3::2]:53",
        "-A DN -s fd00:3::/64 -p udp -m udp --dport 54 -j CNI-HOSTPORT-SETMARK",
        "-A DN -p udp -m udp --dport 54 -j DNAT --to-destination [fd00:3::2]:53",
    ];
    assert_eq!(listed("ip6tables"), [&v6[..], &entries[..]].concat());
    node.call("CHECK", Some(&pod), &config).expect("its ports are mapped");
    // CHECK of the reference plugin asks for the entry rules of both families, too.
    node.netns.run("ip6tables-nft -t nat -D CNI-HOSTPORT-DNAT 2");
    assert_eq!(failed(node.call("CHECK", Some(&pod), &config)).1, "a rule of host ports of container abc123 is missing");
    node.call("DEL", Some(&pod), &config).expect("its ports are removed");
    assert!(listed("iptables").is_empty() && listed("ip6tables").is_empty());
}
