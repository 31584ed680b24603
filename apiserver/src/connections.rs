//! The connections of a server: their properties, their number, and orders to all of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};

use crate::tls::ClientCertificate;

/// A connection to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Counted from 1 in the order in which they were accepted.
    pub number: u64,
    /// Address and port of the client, or of the proxy or relay between.
    pub peer: SocketAddr,
    /// `TLSv1_3`; none in plain HTTP.
    pub tls: Option<String>,
    /// The name of the server that the client asked for in its TLS handshake (SNI).
    pub server_name: Option<String>,
    /// The client's certificate, whether or not it is accepted.
    pub client: Option<ClientCertificate>,
}

/// Counts of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Accepted since the server started.
    pub accepted: u64,
    /// Open now.
    pub open: usize,
    /// Why TLS handshakes failed, oldest first.
    pub failed_handshakes: Vec<String>,
}

/// An order to every open connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    #[default]
    Nothing,
    /// To end after the pending requests are answered.
    GoAway,
    /// To break.
    Drop,
}

/// All connections of a server.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    accepted: AtomicU64,
    open: AtomicUsize,
    failed: Mutex<Vec<String>>,
    orders: watch::Sender<Order>,
}

impl Connections {
    /// Counts a connection. It is open until this is dropped.
    pub(crate) fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::SeqCst);
        Open { number: self.accepted.fetch_add(1, Ordering::SeqCst) + 1, connections: self.clone() }
    }

    /// Remembers a handshake that failed.
    pub(crate) fn failed(&self, error: String) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(error);
    }

    pub(crate) fn order(&self, order: Order) {
        self.orders.send_replace(order);
    }

    pub(crate) fn orders(&self) -> watch::Receiver<Order> {
        self.orders.subscribe()
    }

    pub(crate) fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            accepted: self.accepted.load(Ordering::SeqCst),
            open: self.open.load(Ordering::SeqCst),
            failed_handshakes: self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// A connection that is counted as open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) number: u64,
    connections: Arc<Connections>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection as its requests see it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) connection: Arc<Connection>,
    /// The certificates that the client has sent.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    close: Notify,
}

impl Link {
    pub(crate) fn new(connection: Connection, chain: Vec<CertificateDer<'static>>) -> Self {
        Self { connection: Arc::new(connection), chain, close: Notify::new() }
    }

    /// Breaks the connection.
    pub(crate) fn close(&self) {
        self.close.notify_one();
    }

    /// Waits until the connection is to be broken.
    pub(crate) async fn closed(&self) {
        self.close.notified().await;
    }
}
