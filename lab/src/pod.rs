//! A pod as the CNI bridge plugin connects it [flannel 10.3], and the servers in it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use crate::netns::Netns;
use crate::single_node::{TCP_PORT, UDP_PORT};
use crate::traffic::{ECHO_PORT, SINK_PORT, checksum};

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// The pod's network namespace.
    pub netns: Netns,
    /// One address per family of the pod network, IPv4 first.
    pub ips: Vec<IpAddr>,
}

impl Pod {
    /// Returns the pod's address in the family of `other`.
    ///
    /// # Panics
    /// If the pod has no address in that family.
    pub fn ip_like(&self, other: IpAddr) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv4() == other.is_ipv4()).expect("the pod has an address of this family")
    }

    /// Returns the address of the TCP server that answers with the client's address.
    pub fn tcp(&self, like: IpAddr) -> SocketAddr {
        (self.ip_like(like), TCP_PORT).into()
    }

    /// Returns the address of the UDP server that answers with the client's address.
    pub fn udp(&self, like: IpAddr) -> SocketAddr {
        (self.ip_like(like), UDP_PORT).into()
    }

    /// Returns the address of the echo server, for a `Session`.
    pub fn echo(&self, like: IpAddr) -> SocketAddr {
        (self.ip_like(like), ECHO_PORT).into()
    }

    /// Returns the address of the sink server, for [`send`](crate::traffic::send).
    pub fn sink(&self, like: IpAddr) -> SocketAddr {
        (self.ip_like(like), SINK_PORT).into()
    }
}

/// Starts the pod's servers on these addresses: one by TCP and one by UDP that answer with the client's address, a sink and an echo
/// server.
pub(crate) fn serve(netns: &Netns, ips: &[IpAddr]) {
    for ip in ips.iter().copied() {
        let (tcp, udp, sink, echo) = netns.run_thread(move || {
            let tcp = |port| TcpListener::bind((ip, port)).expect("the port is free");
            (tcp(TCP_PORT), UdpSocket::bind((ip, UDP_PORT)).expect("the port is free"), tcp(SINK_PORT), tcp(ECHO_PORT))
        });
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = tcp.accept() {
                let _ = stream.write_all(peer.ip().to_string().as_bytes());
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(peer.ip().to_string().as_bytes(), peer);
            }
        });
        thread::spawn(move || {
            for mut stream in echo.incoming().flatten() {
                thread::spawn(move || {
                    let mut bytes = [0; 512];
                    while let Ok(length @ 1..) = stream.read(&mut bytes) {
                        if stream.write_all(&bytes[..length]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        thread::spawn(move || {
            for mut stream in sink.incoming().flatten() {
                thread::spawn(move || {
                    let mut bytes = Vec::new();
                    if stream.read_to_end(&mut bytes).is_ok() {
                        let _ = write!(stream, "{} {:016x}", bytes.len(), checksum(&bytes));
                    }
                });
            }
        });
    }
}
