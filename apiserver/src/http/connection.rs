//! Connections: accepted, secured and served.

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

use crate::connections::{Connection, Link, Order};
use crate::tls::{ClientCertificate, Tls, client_chain};

use super::{Shared, answer};

/// Streams that a client may have open in one connection, as with a real API server.
const STREAMS: u32 = 100;

/// Accepts connections until the server stops.
pub(crate) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(converse(stream, peer, shared.clone()))),
            // Out of file descriptors, or the client is gone already: the next attempt may work.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Answers the requests of one connection.
async fn converse(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let connections = shared.connections.clone();
    let open = connections.open();
    // Without it answers are late, and no worse.
    let _ = stream.set_nodelay(true);
    let connection = Connection { number: open.number, peer, tls: None, server_name: None, client: None };
    match shared.tls.clone() {
        None => serve(stream, Link::new(connection, Vec::new()), shared, false).await,
        Some(tls) => secure(stream, connection, shared, &tls).await,
    }
}

/// Does the TLS handshake, then answers requests.
async fn secure(stream: TcpStream, connection: Connection, shared: Arc<Shared>, tls: &Tls) {
    let mut orders = shared.connections.orders();
    let stream = tokio::select! {
        accepted = tls.acceptor().accept(stream) => match accepted {
            Ok(stream) => stream,
            Err(error) => return shared.connections.failed(error.to_string()),
        },
        () = dropped(&mut orders) => return,
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
    serve(stream, Link::new(connection, chain), shared, is_http2).await;
}

async fn serve<S>(stream: S, link: Link, shared: Arc<Shared>, is_http2: bool)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let link = Arc::new(link);
    let (answered, for_link) = (shared.clone(), link.clone());
    let service = service_fn(move |request| {
        let (shared, link) = (answered.clone(), for_link.clone());
        async move { Ok::<_, Infallible>(answer(request, shared, link).await) }
    });
    let stream = TokioIo::new(stream);
    if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(STREAMS);
        drive(builder.serve_connection(stream, service), &shared, &link).await;
    } else {
        drive(http1::Builder::new().serve_connection(stream, service), &shared, &link).await;
    }
}

/// Runs a connection to its end.
async fn drive(connection: impl GracefulConnection, shared: &Shared, link: &Link) {
    let mut orders = shared.connections.orders();
    pin!(connection);
    loop {
        tokio::select! {
            // Fails when the client breaks off, or a watch is dropped.
            _ = connection.as_mut() => return,
            () = link.closed() => return,
            changed = orders.changed() => match (changed, *orders.borrow_and_update()) {
                (Ok(()), Order::GoAway) => connection.as_mut().graceful_shutdown(),
                _ => return,
            },
        }
    }
}

/// Waits until every connection is to be dropped.
async fn dropped(orders: &mut tokio::sync::watch::Receiver<Order>) {
    while orders.changed().await.is_ok() && *orders.borrow_and_update() != Order::Drop {}
}
