//! A node between its pods and the outside, with the addresses of `testdata/traffic.yaml`.

use std::io::Write;
use std::net::{IpAddr, TcpListener, UdpSocket};

use crate::netns::Netns;

/// Endpoint addresses: two per family.
pub const ENDPOINTS: [&str; 4] = ["10.61.3.10", "10.61.3.11", "fd61:a:0:3::10", "fd61:a:0:3::11"];
/// TCP port of the servers.
pub(crate) const TCP_PORT: u16 = 8080;
/// UDP port of the servers.
pub(crate) const UDP_PORT: u16 = 5353;
/// TCP port where an endpoint answers with its own address and the client's address.
pub const WHO_PORT: u16 = 8082;

/// A node between its pods and the outside.
#[derive(Debug)]
pub struct SingleNode {
    /// The node.
    pub node: Netns,
    /// The endpoints. They share this namespace. Clients must not run in it, because answers to them would not pass the node.
    pub pods: Netns,
    /// A pod without servers.
    pub client: Netns,
    /// A host outside the cluster with two addresses per family.
    pub outside: Netns,
}

impl SingleNode {
    /// Creates and connects the namespaces, and starts the servers on every endpoint address.
    pub fn new() -> Self {
        let site = Self { node: Netns::new(), pods: Netns::new(), client: Netns::new(), outside: Netns::new() };
        site.node.link("pods0", &site.pods, "eth0");
        site.node.link("pods1", &site.client, "eth0");
        site.node.link("ext0", &site.outside, "eth0");
        // The default route leads to an unused interface. Without a route to cluster IPs, their packets would not reach the filter rules.
        site.node.run(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
             ip addr add 10.61.3.1/24 dev pods0; ip addr add fd61:a:0:3::1/64 dev pods0 nodad
             ip addr add 10.61.4.1/24 dev pods1; ip addr add fd61:a:0:4::1/64 dev pods1 nodad
             ip addr add 192.168.61.13/24 dev ext0; ip addr add fd61::13/64 dev ext0 nodad
             ip link add beyond type veth peer name horizon; ip link set beyond up; ip link set horizon up
             ip route add default dev beyond; ip -6 route add default dev beyond",
        );
        site.pods.run(
            "for i in 10 11; do ip addr add 10.61.3.$i/24 dev eth0; ip addr add fd61:a:0:3::$i/64 dev eth0 nodad; done
             ip route add default via 10.61.3.1; ip -6 route add default via fd61:a:0:3::1",
        );
        site.client.run(
            "ip addr add 10.61.4.20/24 dev eth0; ip addr add fd61:a:0:4::20/64 dev eth0 nodad
             ip route add default via 10.61.4.1; ip -6 route add default via fd61:a:0:4::1",
        );
        site.outside.run(
            "for i in 50 51; do ip addr add 192.168.61.$i/24 dev eth0; ip addr add fd61::$i/64 dev eth0 nodad; done
             ip route add default via 192.168.61.13 src 192.168.61.50; ip -6 route add default via fd61::13 src fd61::50",
        );
        site.serve();
        site
    }

    /// Sets the source address of packets that go from the outside to this address.
    pub fn outside_source(&self, to: IpAddr, source: &str) {
        let (tool, gateway) = if to.is_ipv4() { ("ip", "192.168.61.13") } else { ("ip -6", "fd61::13") };
        self.outside.run(&format!("{tool} route replace {to} via {gateway} src {source}"));
    }

    /// Starts the servers: one by TCP and one by UDP that answer with the endpoint's address, and the one of [`WHO_PORT`].
    fn serve(&self) {
        for address in ENDPOINTS {
            let ip: IpAddr = address.parse().expect("an address");
            let (tcp, udp) = self.pods.run_thread(move || {
                (TcpListener::bind((ip, TCP_PORT)).expect("the port is free"), UdpSocket::bind((ip, UDP_PORT)).expect("the port is free"))
            });
            let who = self.pods.run_thread(move || TcpListener::bind((ip, WHO_PORT)).expect("the port is free"));
            std::thread::spawn(move || {
                while let Ok((mut stream, peer)) = who.accept() {
                    let _ = stream.write_all(format!("{ip} {}", peer.ip()).as_bytes());
                }
            });
            std::thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    let _ = { stream }.write_all(ip.to_string().as_bytes());
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(ip.to_string().as_bytes(), peer);
                }
            });
        }
    }
}
