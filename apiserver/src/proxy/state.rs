//! The state of a proxy, shared by its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpStream;

use crate::tls::Tls;

/// A request that a client sent to a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRequest {
    /// `CONNECT`, `SOCKS5`, or the method of a request with an absolute URL.
    pub method: String,
    /// `192.0.2.11:6443`, `[2001:db8::1]:6443` or `api.example:6443`.
    pub target: String,
    /// `user:password`; empty if the client sent none.
    pub credentials: String,
    /// `User-Agent`; empty for SOCKS5.
    pub user_agent: String,
    /// True if the proxy connected to the target.
    pub is_accepted: bool,
}

/// The protocol between clients and a proxy.
#[derive(Debug)]
pub(super) enum ProxyProtocol {
    Http,
    Https(Arc<Tls>),
    Socks5,
}

/// The state that all connections of a proxy share.
#[derive(Debug)]
pub(super) struct ProxyState {
    pub(super) protocol: ProxyProtocol,
    behaviour: Mutex<ProxyBehaviour>,
}

/// What a test has set on a proxy, and what the proxy has recorded.
#[derive(Debug, Default)]
pub(super) struct ProxyBehaviour {
    /// Addresses of targets.
    pub(super) routes: BTreeMap<String, SocketAddr>,
    /// `user:password` that clients must send, if any.
    pub(super) credentials: Option<String>,
    /// Status code with which every request is refused, if any.
    pub(super) refuse_with: Option<u16>,
    pub(super) requests: Vec<ProxyRequest>,
    /// The local addresses of the proxy's connections to servers.
    pub(super) own_addresses: BTreeSet<SocketAddr>,
}

impl ProxyState {
    pub(super) fn new(protocol: ProxyProtocol) -> Self {
        Self { protocol, behaviour: Mutex::default() }
    }

    pub(super) fn behaviour(&self) -> MutexGuard<'_, ProxyBehaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to a target that has a route, or to a loopback address.
    pub(super) async fn connect(&self, target: &str) -> io::Result<TcpStream> {
        let route = self.behaviour().routes.get(target).copied();
        let loopback = || target.parse().ok().filter(|address: &SocketAddr| address.ip().is_loopback());
        let address = route.or_else(loopback).ok_or_else(|| io::Error::other(format!("no route to {target}")))?;
        let stream = TcpStream::connect(address).await?;
        // If this fails, bytes are late but correct.
        let _ = stream.set_nodelay(true);
        self.behaviour().own_addresses.insert(stream.local_addr()?);
        Ok(stream)
    }
}
