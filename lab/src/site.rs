//! A node between its pods and the world outside, as `testdata/traffic.yaml` describes it.

use std::io::Write;
use std::net::{IpAddr, TcpListener, UdpSocket};

use crate::netns::Netns;

/// Addresses of the serving pods: two of each family.
pub const ENDPOINTS: [&str; 4] = ["10.61.3.10", "10.61.3.11", "fd61:a:0:3::10", "fd61:a:0:3::11"];
/// Where every serving pod answers by TCP.
pub const TCP_PORT: u16 = 8080;
/// Where every serving pod answers by UDP.
pub const UDP_PORT: u16 = 5353;

/// Where every serving pod tells by TCP who it is, and who asked.
pub const WHO_PORT: u16 = 8082;

/// A node between its pods and the world outside.
#[derive(Debug)]
pub struct Site {
    /// The node.
    pub node: Netns,
    /// The endpoints. They share a namespace, so no client may be in it: answers to it would not pass the node.
    pub pods: Netns,
    /// A pod that only asks.
    pub client: Netns,
    /// Outside the cluster: two addresses of each family.
    pub outside: Netns,
}

impl Site {
    /// Makes the namespaces, connects them, and starts a TCP and a UDP server on every endpoint address.
    pub fn new() -> Self {
        let site = Self { node: Netns::new(), pods: Netns::new(), client: Netns::new(), outside: Netns::new() };
        site.node.link("pods0", &site.pods, "eth0");
        site.node.link("pods1", &site.client, "eth0");
        site.node.link("ext0", &site.outside, "eth0");
        // The default route leads nowhere, but cluster IPs have to be routable for the filter rules to see them.
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

    /// Sends what goes from outside to an address out with this source.
    pub fn outside_source(&self, to: IpAddr, source: &str) {
        let (tool, gateway) = if to.is_ipv4() { ("ip", "192.168.61.13") } else { ("ip -6", "fd61::13") };
        self.outside.run(&format!("{tool} route replace {to} via {gateway} src {source}"));
    }

    /// On every endpoint address, a TCP and a UDP server that tell the address they were reached at.
    fn serve(&self) {
        for address in ENDPOINTS {
            let ip: IpAddr = address.parse().expect("an address");
            let (tcp, udp) = self
                .pods
                .within(move || (TcpListener::bind((ip, TCP_PORT)).expect("free"), UdpSocket::bind((ip, UDP_PORT)).expect("free")));
            let who = self.pods.within(move || TcpListener::bind((ip, WHO_PORT)).expect("free"));
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
