//! Relayed connections that become silent, half-closed or broken.

use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use sepal_apiserver::{ApiServer, Authority, End, Options, Relay};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::client::service;
use crate::secure_client::{Handshake, PATIENCE, until};

const SERVICES: &str = "/api/v1/services";
/// A connection counts as silent after this time. On a slow machine the test may miss an error, but it does not fail wrongly.
const SILENCE: Duration = Duration::from_millis(200);

fn start_with_tls() -> ApiServer {
    let authority = Authority::new("ca").unwrap();
    ApiServer::start_with(Options::default().tls(&authority.server(&["localhost"]).unwrap())).unwrap()
}

/// Connects through a relay. Returns the relay and both ends of the connection.
async fn connect_plain() -> (Relay, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::to(listener.local_addr().unwrap()).unwrap();
    let client = TcpStream::connect(relay.address()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (relay, client, server)
}

async fn check_forwarding(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"ping").await.unwrap();
    let mut read = [0; 4];
    timeout(PATIENCE, to.read_exact(&mut read)).await.unwrap().unwrap();
    assert_eq!(&read, b"ping");
}

async fn next_event(watch: &mut Incoming) -> String {
    let frame = timeout(PATIENCE, watch.frame()).await.unwrap().unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_connection_becomes_silent_and_a_new_one_works() {
    let server = start_with_tls();
    let relay = Relay::to(server.address()).unwrap();
    let handshake = Handshake::default();
    let mut old = handshake.connect(relay.address()).await.unwrap();
    let mut watch = old.send(&format!("{SERVICES}?watch=true"), &[]).await.unwrap().into_body();
    server.put(service("default", "one", &json!({}))).unwrap();
    assert!(next_event(&mut watch).await.contains("one"));
    relay.silence();
    server.put(service("default", "two", &json!({}))).unwrap();
    assert!(timeout(SILENCE, watch.frame()).await.is_err());
    assert!(timeout(SILENCE, old.send(SERVICES, &[])).await.is_err());
    assert_eq!(handshake.connect(relay.address()).await.unwrap().json(SERVICES, &[]).await.0, 200);
    assert_eq!((relay.accepted(), server.connections().open > 0, watch.is_end_stream()), (2, true, false));
    relay.resume();
    assert!(next_event(&mut watch).await.contains("two"));
    assert!(relay.bytes_to(End::Client) > relay.bytes_to(End::Server) && relay.bytes_to(End::Server) > 500);
}

#[tokio::test]
async fn a_client_that_closes_a_silent_connection_is_counted() {
    let (relay, mut client, mut server) = connect_plain().await;
    check_forwarding(&mut client, &mut server).await;
    relay.silence();
    client.write_all(b"lost").await.unwrap();
    drop(client);
    until("the client has closed the connection", || relay.closed_by_client() == 1).await;
    assert!(timeout(SILENCE, server.read_u8()).await.is_err(), "the server does not see it");
    assert_eq!(relay.open(), 1);
    relay.break_connections();
    until("the relay has closed the connection", || relay.open() == 0).await;
}

#[tokio::test]
async fn new_connections_may_be_silent_or_refused() {
    let server = start_with_tls();
    let relay = Relay::to(server.address()).unwrap();
    let handshake = Handshake::default();
    let mut old = handshake.connect(relay.address()).await.unwrap();
    relay.silence_new(true);
    let mut new = Box::pin(handshake.connect(relay.address()));
    assert!(timeout(SILENCE, &mut new).await.is_err());
    assert_eq!(old.json(SERVICES, &[]).await.0, 200);
    relay.resume();
    assert_eq!(timeout(PATIENCE, new).await.unwrap().unwrap().json(SERVICES, &[]).await.0, 200);
    relay.refuse(true);
    let start = Instant::now();
    while let Ok(stream) = TcpStream::connect(relay.address()).await {
        drop(stream);
        assert!(start.elapsed() < PATIENCE, "still not refused");
    }
    assert_eq!(old.json(SERVICES, &[]).await.0, 200);
    relay.refuse(false);
    let mut again = handshake.connect(relay.address()).await;
    while again.is_err() {
        assert!(start.elapsed() < PATIENCE, "still refused");
        again = handshake.connect(relay.address()).await;
    }
    assert_eq!(again.unwrap().json(SERVICES, &[]).await.0, 200);
}

#[tokio::test]
async fn each_end_can_be_half_closed() {
    for end in [End::Client, End::Server] {
        let (relay, mut client, mut server) = connect_plain().await;
        check_forwarding(&mut client, &mut server).await;
        relay.half_close(end);
        let (closed, open) = if end == End::Client { (&mut client, &mut server) } else { (&mut server, &mut client) };
        assert_eq!(timeout(PATIENCE, closed.read(&mut [0])).await.unwrap().unwrap(), 0);
        check_forwarding(closed, open).await;
        open.write_all(b"lost").await.unwrap();
        assert_eq!(relay.open(), 1);
        drop((client, server));
        until("the relay has closed the connection", || relay.open() == 0).await;
    }
}

#[tokio::test]
async fn both_ends_are_reset() {
    let (relay, mut client, mut server) = connect_plain().await;
    check_forwarding(&mut server, &mut client).await;
    relay.break_connections();
    for end in [&mut client, &mut server] {
        let error = timeout(PATIENCE, end.read(&mut [0])).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn bytes_are_delayed() {
    let (relay, mut client, mut server) = connect_plain().await;
    relay.delay(Duration::from_millis(300));
    let start = Instant::now();
    check_forwarding(&mut client, &mut server).await;
    check_forwarding(&mut server, &mut client).await;
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
    client.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, server.read(&mut [0])).await.unwrap().unwrap(), 0, "FIN is forwarded");
    check_forwarding(&mut server, &mut client).await;
}
