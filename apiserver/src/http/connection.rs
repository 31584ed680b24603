//! Accepts connections, does the TLS handshake and serves HTTP/1.1 or HTTP/2.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::pin;
use tokio::time::sleep;

use crate::connections::{Connection, ConnectionCommand, ConnectionHandle};
use crate::state::ServerState;
use crate::tls::{ClientCertificate, Tls, client_chain};

use super::handle::handle;

/// HTTP/2 streams that a client may have open in one connection, as in kube-apiserver.
const MAX_STREAMS: u32 = 100;

/// Accepts connections until the server stops.
pub(crate) async fn accept(listener: TcpListener, state: Arc<ServerState>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(serve_tcp(stream, peer, state.clone()))),
            // The process has no file descriptor left, or the client has closed the connection. The next attempt may succeed.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Serves one TCP connection to its end.
async fn serve_tcp(stream: TcpStream, peer: SocketAddr, state: Arc<ServerState>) {
    let connections = state.connections.clone();
    let open = connections.open();
    // If this fails, responses are late but correct.
    let _ = stream.set_nodelay(true);
    let connection = Connection { number: open.number, peer, tls: None, server_name: None, client: None };
    match state.tls.clone() {
        None => serve_http(stream, ConnectionHandle::new(connection, Vec::new()), state, false).await,
        Some(tls) => serve_tls(stream, connection, state, &tls).await,
    }
}

/// Does the TLS handshake, then serves HTTP.
async fn serve_tls(stream: TcpStream, connection: Connection, state: Arc<ServerState>, tls: &Tls) {
    let mut commands = state.connections.commands();
    let stream = tokio::select! {
        accepted = tls.acceptor().accept(stream) => match accepted {
            Ok(stream) => stream,
            Err(error) => return state.connections.add_failed_handshake(error.to_string()),
        },
        () = wait_for_drop(&mut commands) => return,
    };
    let (_, session) = stream.get_ref();
    let chain = client_chain(session);
    let connection = Connection {
        tls: session.protocol_version().map(|version| format!("{version:?}")),
        server_name: session.server_name().map(str::to_owned),
        client: chain.first().and_then(ClientCertificate::read),
        ..connection
    };
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    serve_http(stream, ConnectionHandle::new(connection, chain), state, is_http2).await;
}

async fn serve_http<S>(stream: S, connection: ConnectionHandle, state: Arc<ServerState>, is_http2: bool)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connection = Arc::new(connection);
    let (service_state, service_connection) = (state.clone(), connection.clone());
    let service = service_fn(move |request| {
        let (state, connection) = (service_state.clone(), service_connection.clone());
        async move { Ok::<_, Infallible>(handle(request, state, connection).await) }
    });
    let stream = TokioIo::new(stream);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(MAX_STREAMS);
        run(builder.serve_connection(stream, service), &state, &connection).await;
    } else {
        run(http1::Builder::new().serve_connection(stream, service), &state, &connection).await;
    }
}

/// Runs an HTTP connection until it ends, or until a command or an injected failure ends it.
async fn run(http: impl GracefulConnection, state: &ServerState, connection: &ConnectionHandle) {
    let mut commands = state.connections.commands();
    pin!(http);
    loop {
        tokio::select! {
            // An error means that the client broke the connection, or that a watch was dropped.
            _ = http.as_mut() => return,
            () = connection.closed() => return,
            changed = commands.changed() => match (changed, *commands.borrow_and_update()) {
                (Ok(()), ConnectionCommand::GoAway) => http.as_mut().graceful_shutdown(),
                _ => return,
            },
        }
    }
}

/// Waits for the command to drop all connections.
async fn wait_for_drop(commands: &mut tokio::sync::watch::Receiver<ConnectionCommand>) {
    while commands.changed().await.is_ok() && *commands.borrow_and_update() != ConnectionCommand::Drop {}
}
