//! Two servers for the endpoints of a [`Cluster`]. Measurements move a Service from one server to the other.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::netns::Netns;

/// The addresses of the servers.
pub const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 255, 0, 1), Ipv4Addr::new(10, 255, 0, 2)];

/// Returns the cluster IP and port of a Service.
pub fn service_address(service: usize) -> SocketAddr {
    SocketAddr::new(Cluster::cluster_ip(service).parse().expect("an address"), 80)
}

/// Starts the servers on addresses of the node. Each one answers with its own address.
pub fn serve_endpoints(node: &Netns) {
    for ip in SERVERS {
        node.run(&format!("ip addr add {ip}/32 dev lo"));
        let listener = node.run_thread(move || TcpListener::bind((ip, 8080)).expect("the port is free"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = { stream }.write_all(ip.to_string().as_bytes());
            }
        });
    }
}

/// Connects to a Service until this server answers.
pub fn wait_for_server(node: &Netns, to: SocketAddr, server: Ipv4Addr) {
    let expected = server.to_string();
    node.run_thread(move || {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            let mut answer = String::new();
            if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(20)) {
                let _ = stream.read_to_string(&mut answer);
            }
            if answer == expected {
                return;
            }
            assert!(Instant::now() < limit, "{to} does not lead to {server} within 120 s");
        }
    });
}
