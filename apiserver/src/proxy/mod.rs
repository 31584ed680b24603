//! Proxies between a client and a server: HTTP, HTTP over TLS, and SOCKS5.

mod http;
mod socks;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::background::Background;
use crate::certificates::Identity;
use crate::tls::{Protocols, Tls};

/// A proxy. It reaches loopback addresses, and the targets that a test maps to an address.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    _background: Background,
}

/// What a client asked a proxy for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRequest {
    /// `CONNECT`, `SOCKS5`, or the method of a request with a whole URL.
    pub method: String,
    /// `192.0.2.11:6443`, `[2001:db8::1]:6443` or `api.example:6443`.
    pub target: String,
    /// `user:password`; empty if the client sent none.
    pub credentials: String,
    /// `User-Agent`.
    pub user_agent: String,
    /// Whether the target was reached.
    pub is_accepted: bool,
}

/// How clients speak to a proxy.
#[derive(Debug)]
enum Protocol {
    Http,
    Https(Arc<Tls>),
    Socks5,
}

#[derive(Debug)]
struct Shared {
    protocol: Protocol,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    routes: BTreeMap<String, SocketAddr>,
    /// `user:password` that clients must send, if any.
    credentials: Option<String>,
    refuses: Option<u16>,
    requests: Vec<ProxyRequest>,
    /// The addresses from which the proxy has connected.
    own_addresses: BTreeSet<SocketAddr>,
}

impl Proxy {
    /// An HTTP proxy at a free port of 127.0.0.1. It accepts CONNECT, and requests with a whole `http://` URL.
    ///
    /// # Errors
    /// The system has no port or no thread left.
    pub fn http() -> io::Result<Self> {
        Self::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, Protocol::Http)
    }

    /// The same behind a listener.
    ///
    /// # Errors
    /// The listener is not usable, or there is no thread left.
    pub fn http_at(listener: TcpListener) -> io::Result<Self> {
        Self::start(listener, Protocol::Http)
    }

    /// An HTTP proxy to which clients speak over TLS.
    ///
    /// # Errors
    /// The key is of no use to a server, or the system has no port or no thread left.
    pub fn https(identity: &Identity) -> io::Result<Self> {
        let tls = Tls::new(identity, Protocols::Http1, false, false)?;
        Self::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, Protocol::Https(Arc::new(tls)))
    }

    /// A SOCKS5 proxy.
    ///
    /// # Errors
    /// The system has no port or no thread left.
    pub fn socks5() -> io::Result<Self> {
        Self::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, Protocol::Socks5)
    }

    fn start(listener: TcpListener, protocol: Protocol) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { protocol, state: Mutex::default() });
        let served = shared.clone();
        let background = Background::start("proxy", listener, |listener| accept(listener, served))?;
        Ok(Self { shared, address, _background: background })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:41234`, `https://…` or `socks5://…`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = match self.shared.protocol {
            Protocol::Http => "http",
            Protocol::Https(_) => "https",
            Protocol::Socks5 => "socks5",
        };
        format!("{scheme}://{}", self.address)
    }

    /// Maps a target, such as `192.0.2.11:6443` or `api.example:6443`, to an address.
    pub fn route(&self, target: &str, to: SocketAddr) {
        self.shared.state().routes.insert(target.to_owned(), to);
    }

    /// Requires a user and a password: `Proxy-Authorization: Basic …`, or those of SOCKS5. Without them the answer is 407.
    pub fn require(&self, user: &str, password: &str) {
        self.shared.state().credentials = Some(format!("{user}:{password}"));
    }

    /// Refuses every request with a status code, such as 403. SOCKS5 has no codes: the ruleset does not allow it.
    pub fn refuse(&self, code: u16) {
        self.shared.state().refuses = Some(code);
    }

    /// Ends a refusal.
    pub fn allow(&self) {
        self.shared.state().refuses = None;
    }

    /// What clients asked for, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<ProxyRequest> {
        self.shared.state().requests.clone()
    }

    /// True if a connection that a server sees from this address came through the proxy. See `peer` of [`Connection`](crate::Connection).
    #[must_use]
    pub fn carried(&self, peer: SocketAddr) -> bool {
        self.shared.state().own_addresses.contains(&peer)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to a target.
    async fn connect(&self, target: &str) -> io::Result<TcpStream> {
        let route = self.state().routes.get(target).copied();
        let loopback = || target.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback());
        let address = route.or_else(loopback).ok_or_else(|| io::Error::other(format!("no route to {target}")))?;
        let stream = TcpStream::connect(address).await?;
        // Without it bytes are late, and no worse.
        let _ = stream.set_nodelay(true);
        self.state().own_addresses.insert(stream.local_addr()?);
        Ok(stream)
    }
}

/// Accepts connections until the proxy stops.
async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it bytes are late, and no worse.
                let _ = stream.set_nodelay(true);
                let shared = shared.clone();
                // An error ends this connection only.
                tokio::spawn(async move { drop(serve(stream, &shared).await) });
            }
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    match &shared.protocol {
        Protocol::Http => http::serve(stream, shared).await,
        Protocol::Https(tls) => http::serve(tls.acceptor().accept(stream).await?, shared).await,
        Protocol::Socks5 => socks::serve(stream, shared).await,
    }
}

/// Passes bytes on in both directions.
async fn pass(mut client: impl AsyncRead + AsyncWrite + Unpin, mut server: TcpStream) -> io::Result<()> {
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}
