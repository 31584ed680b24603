//! The kernel's nfacct counters of packets that rules drop or accept.

use sepal::netlink::nfacct::{PacketCounters, Packets};
use sepal::netlink::{Host, Kernel};
use sepal_lab::Netns;

/// Nothing is read before the counters exist. After that every packet that a rule counts is read.
#[test]
fn packets_are_read_from_the_kernel() {
    let node = Netns::new();
    let packets = || node.run_thread(|| Kernel.packets());
    assert_eq!(packets(), Packets::default());
    let made = node.run_thread(|| Kernel.counters(true));
    assert!(made.ct_state_invalid && made.localhost_node_ports, "this kernel has no nfacct counters");
    assert_eq!(packets(), Packets { ct_state_invalid: Some(0), localhost_node_ports: Some(0) });
    for (variant, seen) in [("nft", 1), ("legacy", 2)] {
        node.run(&format!("iptables-{variant} -A OUTPUT -p udp --dport 9 -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP"));
        node.run_thread(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
            // The rule drops the packet on output, and send may return an error.
            let _ = socket.send_to(b"x", "127.0.0.1:9");
        });
        assert_eq!(packets(), Packets { ct_state_invalid: Some(seen), localhost_node_ports: Some(0) }, "{variant}");
        node.run(&format!("iptables-{variant} -F OUTPUT"));
    }
}
