//! One request of a client to a server, and its result.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::netns::Netns;

/// TCP port of a pod's sink server, which receives data and answers with its length and checksum.
pub(crate) const SINK_PORT: u16 = 9000;
/// TCP port of a pod's echo server, which sends back what it receives.
pub(crate) const ECHO_PORT: u16 = 7007;

/// Time limit of a request. It is longer than any answer takes, also on a busy machine, and short enough for tests that expect no answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Connects by TCP and returns what the server sends until it closes. The servers of a `SingleNode` send their own address.
///
/// # Errors
/// `ConnectionRefused` if the connection is refused, `TimedOut` if no answer comes.
pub fn tcp(from: &Netns, to: SocketAddr) -> io::Result<String> {
    tcp_within(from, to, TIMEOUT)
}

/// Does the same as [`tcp`] with another time limit.
///
/// # Errors
/// As for [`tcp`].
pub fn tcp_within(from: &Netns, to: SocketAddr, timeout: Duration) -> io::Result<String> {
    from.run_thread(move || {
        let mut stream = TcpStream::connect_timeout(&to, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

/// Sends a UDP request from a new port and returns the answer. The servers of a `SingleNode` send their own address.
///
/// # Errors
/// If no answer comes, or an ICMP error.
pub fn udp(from: &Netns, to: SocketAddr) -> io::Result<String> {
    from.run_thread(move || {
        let unspecified: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(unspecified)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.send(b"?")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

/// Sends `length` bytes to a pod's sink server, and checks the length and checksum that the server answers with.
///
/// # Errors
/// If the connection breaks, or if the server received something else.
pub fn send(from: &Netns, to: SocketAddr, length: usize) -> io::Result<()> {
    from.run_thread(move || {
        // Pseudo-random bytes (xorshift), so that a lost or repeated segment changes the checksum.
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
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(&bytes)?;
        stream.shutdown(Shutdown::Write)?;
        let (mut answer, expected) = (String::new(), format!("{length} {:016x}", checksum(&bytes)));
        stream.read_to_string(&mut answer)?;
        if answer == expected {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("sent {expected}, but the server received {answer:?}")))
    })
}

/// Returns the 64-bit FNV-1a hash.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Sends one ping with this payload and without fragmentation. Returns whether the answer came.
pub fn ping_whole(from: &Netns, to: IpAddr, payload: u32) -> bool {
    let ping = format!("ping -n -c 1 -W 5 -M do -s {payload} {to}");
    from.output(&ping).status.success()
}
