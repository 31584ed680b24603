//! Two servers that endpoints of a [`Cluster`] are moved between.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::{Cluster, Netns};

/// Their addresses.
pub const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 255, 0, 1), Ipv4Addr::new(10, 255, 0, 2)];

/// Where one service is reached.
pub fn address(service: usize) -> SocketAddr {
    SocketAddr::new(Cluster::cluster_ip(service).parse().expect("an address"), 80)
}

/// Servers on addresses of the node's own; each says which it is.
pub fn serve_endpoints(node: &Netns) {
    for ip in SERVERS {
        node.run(&format!("ip addr add {ip}/32 dev lo"));
        let listener = node.within(move || TcpListener::bind((ip, 8080)).expect("free"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = { stream }.write_all(ip.to_string().as_bytes());
            }
        });
    }
}

/// Connects until the server that answers is this one.
pub fn wait_for(node: &Netns, to: SocketAddr, server: Ipv4Addr) {
    let wanted = server.to_string();
    node.within(move || {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            let mut said = String::new();
            if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(20)) {
                let _ = stream.read_to_string(&mut said);
            }
            if said == wanted {
                return;
            }
            assert!(Instant::now() < limit, "the change never arrives");
        }
    });
}
