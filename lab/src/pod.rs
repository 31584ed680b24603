//! A pod as the CNI bridge plugin leaves it (network spec, section 10.3), and servers to talk to.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use crate::netns::Netns;
use crate::site::{TCP_PORT, UDP_PORT};
use crate::traffic::{ECHO_PORT, SINK_PORT, checksum};

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Where its programs run.
    pub netns: Netns,
    /// Its addresses: of each family that the network has one, IPv4 first.
    pub ips: Vec<IpAddr>,
}

impl Pod {
    /// Its address of the family of another address.
    ///
    /// # Panics
    /// It has none of that family.
    pub fn ip_like(&self, other: IpAddr) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv4() == other.is_ipv4()).expect("the pod has an address of this family")
    }

    /// Where it says who asked, by TCP.
    pub fn tcp(&self, like: IpAddr) -> SocketAddr {
        (self.ip_like(like), TCP_PORT).into()
    }

    /// Where it says who asked, by UDP.
    pub fn udp(&self, like: IpAddr) -> SocketAddr {
        (self.ip_like(like), UDP_PORT).into()
    }

    /// Where it sends back what it gets: see [`crate::Session`].
    pub fn echo(&self, like: IpAddr) -> SocketAddr {
        (self.ip_like(like), ECHO_PORT).into()
    }

    /// Where it takes whatever is sent, and says what that was: see [`crate::traffic::send`].
    pub fn sink(&self, like: IpAddr) -> SocketAddr {
        (self.ip_like(like), SINK_PORT).into()
    }
}

/// Starts servers on these addresses: by TCP and by UDP one that tells the address that the client has, one that takes whatever is
/// sent, and one that sends it back.
pub(crate) fn serve(netns: &Netns, ips: &[IpAddr]) {
    for ip in ips.iter().copied() {
        let (tcp, udp, sink, echo) = netns.within(move || {
            let tcp = |port| TcpListener::bind((ip, port)).expect("free");
            (tcp(TCP_PORT), UdpSocket::bind((ip, UDP_PORT)).expect("free"), tcp(SINK_PORT), tcp(ECHO_PORT))
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
