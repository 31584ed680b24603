//! The connections of a server: their properties, counts, and commands to all of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};

use crate::tls::ClientCertificate;

/// A connection to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Number of the connection: the first one that the server accepted is 1.
    pub number: u64,
    /// Address and port of the client, or of a proxy or relay in between.
    pub peer: SocketAddr,
    /// TLS version, such as `TLSv1_3`; `None` for plain HTTP.
    pub tls: Option<String>,
    /// The server name in the client's TLS handshake (SNI).
    pub server_name: Option<String>,
    /// The client's certificate, accepted or not.
    pub client: Option<ClientCertificate>,
}

/// Counts of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Connections accepted since the server started.
    pub accepted: u64,
    /// Connections that are open now.
    pub open: usize,
    /// Errors of failed TLS handshakes, oldest first.
    pub failed_handshakes: Vec<String>,
}

/// A command to every open connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ConnectionCommand {
    #[default]
    None,
    /// End after the pending responses.
    GoAway,
    /// Break at once.
    Drop,
}

/// All connections of a server.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    accepted: AtomicU64,
    open: AtomicUsize,
    failed_handshakes: Mutex<Vec<String>>,
    commands: watch::Sender<ConnectionCommand>,
}

impl Connections {
    /// Counts a connection. It counts as open until the returned value is dropped.
    pub(crate) fn open(self: &Arc<Self>) -> OpenConnection {
        self.open.fetch_add(1, Ordering::SeqCst);
        OpenConnection { number: self.accepted.fetch_add(1, Ordering::SeqCst) + 1, connections: self.clone() }
    }

    /// Stores the error of a failed TLS handshake.
    pub(crate) fn add_failed_handshake(&self, error: String) {
        self.failed_handshakes.lock().unwrap_or_else(PoisonError::into_inner).push(error);
    }

    pub(crate) fn send(&self, command: ConnectionCommand) {
        self.commands.send_replace(command);
    }

    pub(crate) fn commands(&self) -> watch::Receiver<ConnectionCommand> {
        self.commands.subscribe()
    }

    pub(crate) fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            accepted: self.accepted.load(Ordering::SeqCst),
            open: self.open.load(Ordering::SeqCst),
            failed_handshakes: self.failed_handshakes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Counts a connection as open until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    pub(crate) number: u64,
    connections: Arc<Connections>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The connection of a request.
#[derive(Debug)]
pub(crate) struct ConnectionHandle {
    pub(crate) connection: Arc<Connection>,
    /// The certificates that the client sent.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    close: Notify,
}

impl ConnectionHandle {
    pub(crate) fn new(connection: Connection, chain: Vec<CertificateDer<'static>>) -> Self {
        Self { connection: Arc::new(connection), chain, close: Notify::new() }
    }

    /// Breaks the connection.
    pub(crate) fn close(&self) {
        self.close.notify_one();
    }

    /// Waits for a call of `close`.
    pub(crate) async fn closed(&self) {
        self.close.notified().await;
    }
}
