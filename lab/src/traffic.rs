//! One try of a client at a server, and what came of it.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::netns::Netns;

/// Longer than any answer takes, short enough to wait for where none comes.
const SOON: Duration = Duration::from_secs(2);

/// Connects by TCP and gives what the server says until it closes: in a [`crate::Site`], the address the client was sent to.
///
/// # Errors
/// `ConnectionRefused` where somebody says no, `TimedOut` where nobody says anything.
pub fn tcp(from: &Netns, to: SocketAddr) -> io::Result<String> {
    from.within(move || {
        let mut stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })
}

/// Asks by UDP from a port of its own and gives the answer: in a [`crate::Site`], the address the client was sent to.
///
/// # Errors
/// No answer, or an ICMP error in its place.
pub fn udp(from: &Netns, to: SocketAddr) -> io::Result<String> {
    from.within(move || {
        let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send(b"?")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}
