//! One try of a client at a server, and what came of it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::netns::Netns;

/// Where a [`crate::Pod`] takes what is sent to it.
pub const SINK_PORT: u16 = 9000;
/// Where a [`crate::Pod`] sends back what it gets.
pub const ECHO_PORT: u16 = 7007;

/// Longer than any answer takes, short enough to wait for where none comes.
const SOON: Duration = Duration::from_secs(2);

/// Connects by TCP and gives what the server says until it closes: in a [`crate::Site`], the address the client was sent to.
///
/// # Errors
/// `ConnectionRefused` where somebody says no, `TimedOut` where nobody says anything.
pub fn tcp(from: &Netns, to: SocketAddr) -> io::Result<String> {
    tcp_within(from, to, SOON)
}

/// The same with less patience, for whoever asks until an answer comes.
///
/// # Errors
/// As for [`tcp`].
pub fn tcp_within(from: &Netns, to: SocketAddr, patience: Duration) -> io::Result<String> {
    from.within(move || {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
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

/// Sends so many bytes by TCP, and compares what the other side says that it got: their number and their checksum.
///
/// # Errors
/// The connection does not last, or something else arrived.
pub fn send(from: &Netns, to: SocketAddr, length: usize) -> io::Result<()> {
    from.within(move || {
        // Bytes of which no piece is like another one.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()
        })
        .flatten()
        .take(length)
        .collect();
        let mut stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        stream.write_all(&bytes)?;
        stream.shutdown(Shutdown::Write)?;
        let (mut said, wanted) = (String::new(), format!("{length} {:016x}", checksum(&bytes)));
        stream.read_to_string(&mut said)?;
        if said == wanted {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("{wanted} was sent, {said:?} has arrived")))
    })
}

/// FNV-1a of 64 bits.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Pings once with a payload of so many bytes that must not be fragmented. False if that does not get through.
pub fn ping_whole(from: &Netns, to: std::net::IpAddr, payload: u32) -> bool {
    let ping = format!("ping -n -c 1 -W 2 -M do -s {payload} {to}");
    from.output(&ping).status.success()
}
