//! Proxies between a client and a server: HTTP, HTTP over TLS, and SOCKS5.

mod http;
mod socks;
mod state;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::certificates::Identity;
use crate::listener_thread::ListenerThread;
use crate::tls::{HttpVersions, Tls};

pub use state::ProxyRequest;

use state::{ProxyProtocol, ProxyState};

/// A proxy. It connects to loopback addresses, and to the targets that a test maps to an address with [`Self::route`].
#[derive(Debug)]
pub struct Proxy {
    state: Arc<ProxyState>,
    address: SocketAddr,
    _thread: ListenerThread,
}

impl Proxy {
    /// Starts an HTTP proxy at a free port of 127.0.0.1. It accepts CONNECT, and requests with an absolute `http://` URL.
    ///
    /// # Errors
    /// Fails if the system has no free port or cannot start a thread.
    pub fn http() -> io::Result<Self> {
        Self::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, ProxyProtocol::Http)
    }

    /// Like [`Self::http`], with a listener.
    ///
    /// # Errors
    /// Fails if the listener is not usable or the system cannot start a thread.
    pub fn http_at(listener: TcpListener) -> io::Result<Self> {
        Self::start(listener, ProxyProtocol::Http)
    }

    /// Starts an HTTP proxy that clients connect to with TLS.
    ///
    /// # Errors
    /// Fails if the key is not usable, or if the system has no free port or cannot start a thread.
    pub fn https(identity: &Identity) -> io::Result<Self> {
        let tls = Tls::new(identity, HttpVersions::Http1, false, false)?;
        Self::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, ProxyProtocol::Https(Arc::new(tls)))
    }

    /// Starts a SOCKS5 proxy.
    ///
    /// # Errors
    /// Fails if the system has no free port or cannot start a thread.
    pub fn socks5() -> io::Result<Self> {
        Self::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, ProxyProtocol::Socks5)
    }

    fn start(listener: TcpListener, protocol: ProxyProtocol) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let state = Arc::new(ProxyState::new(protocol));
        let shared = state.clone();
        let thread = ListenerThread::start("proxy", listener, |listener| accept(listener, shared))?;
        Ok(Self { state, address, _thread: thread })
    }

    /// The address of the listener.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for clients: `http://127.0.0.1:41234`, `https://…` or `socks5://…`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = match self.state.protocol {
            ProxyProtocol::Http => "http",
            ProxyProtocol::Https(_) => "https",
            ProxyProtocol::Socks5 => "socks5",
        };
        format!("{scheme}://{}", self.address)
    }

    /// Maps a target, such as `192.0.2.11:6443` or `api.example:6443`, to an address.
    pub fn route(&self, target: &str, to: SocketAddr) {
        self.state.behaviour().routes.insert(target.to_owned(), to);
    }

    /// Requires a user and a password. An HTTP proxy reads them from `Proxy-Authorization: Basic …` and refuses other requests with
    /// 407. A SOCKS5 proxy uses the authentication of RFC 1929.
    pub fn require(&self, user: &str, password: &str) {
        self.state.behaviour().credentials = Some(format!("{user}:{password}"));
    }

    /// Refuses every request with a status code, such as 403. SOCKS5 proxies reply "connection not allowed by ruleset" instead.
    pub fn refuse(&self, code: u16) {
        self.state.behaviour().refuse_with = Some(code);
    }

    /// Ends the refusal of [`Self::refuse`].
    pub fn allow(&self) {
        self.state.behaviour().refuse_with = None;
    }

    /// The requests of clients, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<ProxyRequest> {
        self.state.behaviour().requests.clone()
    }

    /// True if the proxy made the connection that a server sees from this address: the field `peer` of `Connection`.
    #[must_use]
    pub fn carried(&self, peer: SocketAddr) -> bool {
        self.state.behaviour().own_addresses.contains(&peer)
    }
}

/// Accepts connections until the proxy stops.
async fn accept(listener: tokio::net::TcpListener, state: Arc<ProxyState>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // If this fails, bytes are late but correct.
                let _ = stream.set_nodelay(true);
                let state = state.clone();
                // An error ends only this connection.
                tokio::spawn(async move { drop(serve(stream, &state).await) });
            }
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(stream: TcpStream, state: &ProxyState) -> io::Result<()> {
    match &state.protocol {
        ProxyProtocol::Http => http::serve(stream, state).await,
        ProxyProtocol::Https(tls) => http::serve(tls.acceptor().accept(stream).await?, state).await,
        ProxyProtocol::Socks5 => socks::serve(stream, state).await,
    }
}
