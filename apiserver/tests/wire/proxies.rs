//! Clients that connect to the server through a proxy.

use std::net::SocketAddr;

use sepal_apiserver::{ApiServer, Authority, Options, Proxy};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::request;
use crate::secure_client::{Client, Handshake};

const SERVICES: &str = "/api/v1/services";
const TARGET: &str = "192.0.2.11:6443";

fn secure() -> (Authority, ApiServer) {
    let authority = Authority::new("ca").unwrap();
    let server = ApiServer::start_with(Options::default().tls(&authority.server(&["localhost", "192.0.2.11"]).unwrap())).unwrap();
    (authority, server)
}

/// Sends CONNECT and returns the head of the response.
async fn connect(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), target: &str, headers: &str) -> String {
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn through(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, authority: &Authority) -> Client {
    let handshake = Handshake { trusted: Some(authority), name: "192.0.2.11", ..Handshake::default() };
    Client::new(handshake.over(stream).await.unwrap()).await.unwrap()
}

#[tokio::test]
async fn http_proxies_connect_over_tcp_and_tls() {
    let (authority, server) = secure();
    for with_tls in [false, true] {
        let proxy = if with_tls { Proxy::https(&authority.server(&["localhost"]).unwrap()) } else { Proxy::http() }.unwrap();
        proxy.route(TARGET, server.address());
        assert_eq!(proxy.url(), format!("{}://{}", if with_tls { "https" } else { "http" }, proxy.address()));
        let tcp = TcpStream::connect(proxy.address()).await.unwrap();
        let mut client = if with_tls {
            let mut stream = Handshake { trusted: Some(&authority), ..Handshake::default() }.over(tcp).await.unwrap();
            assert!(connect(&mut stream, TARGET, "User-Agent: tester\r\n").await.starts_with("HTTP/1.1 200 "));
            // The future of TLS inside TLS is large.
            Box::pin(through(stream, &authority)).await
        } else {
            let mut stream = tcp;
            assert!(connect(&mut stream, TARGET, "User-Agent: tester\r\n").await.starts_with("HTTP/1.1 200 "));
            through(stream, &authority).await
        };
        assert_eq!(client.json(SERVICES, &[]).await.0, 200);
        let entry = server.log().pop().unwrap();
        assert_eq!((entry.http.as_str(), proxy.carried(entry.connection.peer)), ("HTTP/2.0", true));
        let asked = &proxy.requests()[0];
        assert_eq!((asked.method.as_str(), asked.target.as_str(), asked.credentials.as_str()), ("CONNECT", TARGET, ""));
        assert_eq!((asked.user_agent.as_str(), asked.is_accepted), ("tester", true));
        Handshake::default().to(&server).await.json(SERVICES, &[]).await;
        assert!(!proxy.carried(server.log().pop().unwrap().connection.peer));
    }
}

#[tokio::test]
async fn http_proxies_refuse() {
    let (_, server) = secure();
    let proxy = Proxy::http().unwrap();
    let try_connect =
        async |target: &str, headers: &str| connect(&mut TcpStream::connect(proxy.address()).await.unwrap(), target, headers).await;
    assert!(try_connect(TARGET, "").await.starts_with("HTTP/1.1 502 "), "there is no route");
    assert!(try_connect(&server.address().to_string(), "").await.starts_with("HTTP/1.1 200 "), "loopback needs no route");
    proxy.route(TARGET, server.address());
    proxy.refuse(403);
    assert!(try_connect(TARGET, "").await.starts_with("HTTP/1.1 403 "));
    proxy.allow();
    proxy.require("user", "pass:word");
    for headers in ["", "Proxy-Authorization: Basic dXNlcjpubw==\r\n"] {
        let head = try_connect(TARGET, headers).await;
        assert!(head.starts_with("HTTP/1.1 407 ") && head.contains("\r\nProxy-Authenticate: Basic "), "{head}");
    }
    assert!(try_connect(TARGET, "proxy-authorization: Basic dXNlcjpwYXNzOndvcmQ=\r\n").await.starts_with("HTTP/1.1 200 "));
    let asked: Vec<_> = proxy.requests().into_iter().map(|request| (request.credentials, request.is_accepted)).collect();
    let expected = [("", false), ("", true), ("", false), ("", false), ("user:no", false), ("user:pass:word", true)];
    assert_eq!(asked, expected.map(|(credentials, accepted)| (credentials.to_owned(), accepted)));
}

#[test]
fn http_proxies_forward_absolute_urls() {
    let server = ApiServer::start().unwrap();
    let proxy = Proxy::http().unwrap();
    proxy.route("api.example:8080", server.address());
    assert_eq!(request(proxy.address(), "GET", "http://api.example:8080/version?x=1", "", b"").ok()["minor"], "36");
    let entry = server.log().pop().unwrap();
    assert_eq!((entry.path.as_str(), entry.host.as_str()), ("/version?x=1", "api.example:8080"));
    assert_eq!(proxy.requests()[0].target, "api.example:8080");
    assert_eq!(request(proxy.address(), "GET", "/version", "", b"").code, 400);
}

/// Does the SOCKS5 handshake and requests a target. Returns the reply codes up to the first refusal.
async fn socks(proxy: SocketAddr, credentials: Option<(&str, &str)>, address: &[u8]) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(if credentials.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] }).await.unwrap();
    let mut replies = Vec::new();
    let mut reply = async |stream: &mut TcpStream, length: usize| {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await.unwrap();
        replies.push(bytes[1]);
        bytes[1]
    };
    let method = reply(&mut stream, 2).await;
    if let (2, Some((user, password))) = (method, credentials) {
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        stream.write_all(&[vec![1], text(user), text(password)].concat()).await.unwrap();
        if reply(&mut stream, 2).await != 0 {
            return (stream, replies);
        }
    }
    if method != 0xff {
        stream.write_all(&[&[5, 1, 0], address, &6443_u16.to_be_bytes()].concat()).await.unwrap();
        reply(&mut stream, 10).await;
    }
    (stream, replies)
}

#[tokio::test]
async fn socks_proxies_connect_and_refuse() {
    let (authority, server) = secure();
    let proxy = Proxy::socks5().unwrap();
    assert_eq!(proxy.url(), format!("socks5://{}", proxy.address()));
    let (ipv4, name) = ([1, 192, 0, 2, 11], [&[3, 11][..], b"api.example"].concat());
    let ipv6 = [&[4, 0x20, 0x01, 0x0d, 0xb8][..], &[0; 11], &[1]].concat();
    for target in [TARGET, "api.example:6443", "[2001:db8::1]:6443"] {
        proxy.route(target, server.address());
    }
    for address in [&ipv4[..], &name, &ipv6] {
        let (stream, replies) = socks(proxy.address(), None, address).await;
        assert_eq!(replies, [0, 0]);
        assert_eq!(through(stream, &authority).await.json(SERVICES, &[]).await.0, 200);
        assert!(proxy.carried(server.log().pop().unwrap().connection.peer));
    }
    assert_eq!(socks(proxy.address(), None, &[1, 192, 0, 2, 12]).await.1, [0, 4], "there is no route");
    proxy.refuse(403);
    assert_eq!(socks(proxy.address(), None, &ipv4).await.1, [0, 2]);
    proxy.allow();
    proxy.require("user", "word");
    assert_eq!(socks(proxy.address(), None, &ipv4).await.1, [0xff]);
    assert_eq!(socks(proxy.address(), Some(("user", "no")), &ipv4).await.1, [2, 1]);
    assert_eq!(socks(proxy.address(), Some(("user", "word")), &ipv4).await.1, [2, 0, 0]);
    let asked: Vec<_> = proxy.requests().into_iter().map(|request| (request.target, request.is_accepted)).collect();
    let expected = [
        (TARGET, true),
        ("api.example:6443", true),
        ("[2001:db8::1]:6443", true),
        ("192.0.2.12:6443", false),
        (TARGET, false),
        (TARGET, true),
    ];
    assert_eq!(asked, expected.map(|(target, accepted)| (target.to_owned(), accepted)));
    assert_eq!(proxy.requests().pop().unwrap().credentials, "user:word");
}
