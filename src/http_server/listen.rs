//! Opens listening sockets as Go does: `tcp`, `tcp4` and `tcp6` have the same meaning.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// The most connections that wait to be accepted. The kernel may lower it (`net.core.somaxconn`).
const BACKLOG: i32 = 1024;

/// The families of connections that a socket accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// The family of the address. Both families if the address is unspecified and the host has IPv6.
    Tcp,
    /// Only IPv4.
    Tcp4,
    /// Only IPv6.
    Tcp6,
}

/// An address to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenAddress {
    /// Families.
    pub network: Network,
    /// Address and port. Port 0 means any free port.
    pub address: SocketAddr,
}

impl ListenAddress {
    /// An address from a flag or a configuration file.
    #[must_use]
    pub(crate) const fn tcp(address: SocketAddr) -> Self {
        Self { network: Network::Tcp, address }
    }

    fn both_families(self) -> bool {
        self.network == Network::Tcp && self.address.ip().is_unspecified()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = match self.network {
            Network::Tcp => "tcp",
            Network::Tcp4 => "tcp4",
            Network::Tcp6 => "tcp6",
        };
        write!(f, "{network} {}", self.address)
    }
}

/// Listening on an address failed.
#[derive(Debug, thiserror::Error)]
#[error("listen {address}: {call}: {cause}{}", self.cure())]
pub(crate) struct ListenError {
    /// The address.
    pub address: ListenAddress,
    /// The system call that failed.
    pub call: &'static str,
    /// The cause.
    pub cause: io::Error,
}

impl ListenError {
    fn cure(&self) -> String {
        match self.cause.kind() {
            io::ErrorKind::AddrInUse => format!("; `ss -ltnp sport = :{}` shows who has it", self.address.address.port()),
            io::ErrorKind::AddrNotAvailable => "; no interface of this host has that address".to_owned(),
            _ => String::new(),
        }
    }
}

/// Opens a listening socket. Must be called within a runtime.
///
/// # Errors
/// The address is in use, does not belong to this host, or the host lacks the family.
pub(crate) fn listen(at: ListenAddress) -> Result<TcpListener, ListenError> {
    if !at.both_families() {
        return open(at, at.address, at.network == Network::Tcp6);
    }
    let both = open(at, SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), at.address.port()), false);
    match both {
        Err(error) if at.address.is_ipv4() && lacks_ipv6(&error.cause) => open(at, at.address, false),
        other => other,
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL, Errno::EPROTONOSUPPORT].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn open(at: ListenAddress, address: SocketAddr, only_v6: bool) -> Result<TcpListener, ListenError> {
    let failed = |call| move |cause| ListenError { address: at, call, cause };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).map_err(failed("socket"))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6).map_err(failed("setsockopt"))?;
    }
    // A port can be reused while connections of the previous program are in TIME_WAIT.
    socket.set_reuse_address(true).map_err(failed("setsockopt"))?;
    socket.set_nonblocking(true).map_err(failed("fcntl"))?;
    socket.bind(&address.into()).map_err(failed("bind"))?;
    socket.listen(BACKLOG).map_err(failed("listen"))?;
    TcpListener::from_std(socket.into()).map_err(failed("epoll_ctl"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::array;
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;
    use tokio::net::TcpStream;

    /// Free ports on this address, below the ephemeral ports.
    pub(crate) fn free_ports<const N: usize>(ip: &str) -> [u16; N] {
        static TRIED: AtomicU16 = AtomicU16::new(0);
        let start = 20_000 + (std::process::id() % 10_000) as u16;
        array::from_fn(|_| {
            let mut candidates = (0..1000).map(|_| start + TRIED.fetch_add(1, Ordering::Relaxed));
            candidates.find(|port| std::net::TcpListener::bind((ip, *port)).is_ok()).expect("a free port")
        })
    }

    fn listen_address(network: Network, address: &str) -> ListenAddress {
        ListenAddress { network, address: address.parse().expect("an address") }
    }

    async fn reaches(ip: &str, port: u16) -> bool {
        TcpStream::connect((ip, port)).await.is_ok()
    }

    #[tokio::test]
    async fn an_unspecified_address_takes_both_families() {
        for address in ["0.0.0.0:0", "[::]:0"] {
            let listener = listen(listen_address(Network::Tcp, address)).expect("a free port");
            let port = listener.local_addr().expect("an address").port();
            assert!(reaches("127.0.0.1", port).await && reaches("::1", port).await, "{address}");
        }
    }

    #[tokio::test]
    async fn one_port_can_serve_each_family_separately() {
        let [port] = free_ports("::");
        let v6 = listen(listen_address(Network::Tcp6, &format!("[::]:{port}"))).expect("IPv6 is free");
        assert!(reaches("::1", port).await && !reaches("127.0.0.1", port).await);
        let v4 = listen(ListenAddress { network: Network::Tcp4, address: SocketAddr::from(([0, 0, 0, 0], port)) }).expect("IPv4 is free");
        assert!(reaches("127.0.0.1", port).await);
        drop(v6);
        assert!(!reaches("::1", port).await);
        drop(v4);
    }

    #[tokio::test]
    async fn errors_name_the_address_and_the_cause() {
        let first = listen(listen_address(Network::Tcp, "127.0.0.1:0")).expect("a free port");
        let port = first.local_addr().expect("an address").port();
        let error = listen(listen_address(Network::Tcp, &format!("127.0.0.1:{port}"))).expect_err("the port is taken");
        assert_eq!(
            error.to_string(),
            format!("listen tcp 127.0.0.1:{port}: bind: Address already in use (os error 98); `ss -ltnp sport = :{port}` shows who has it")
        );
        let error = listen(listen_address(Network::Tcp4, "192.0.2.1:0")).expect_err("not an address of this host");
        assert!(error.to_string().starts_with("listen tcp4 192.0.2.1:0: bind: Cannot assign requested address"), "{error}");
    }
}
