//! Opens connections to the API server: TCP, a proxy if one is configured, and TLS.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::{Service, service_fn};

use super::error::{RequestError, plain};
use super::server_url::{Url, host_of};
use crate::error_text::error_text;

/// Time limit for the TCP connection, for all addresses of a name together.
const TCP: Duration = Duration::from_secs(15);
/// Time limit from the start of a connection until requests can be sent.
const ALL: Duration = Duration::from_secs(30);
/// A connection without a received packet for this long gets TCP keepalive probes (RFC 9293 section 3.8.4) ...
const KEEPALIVE: Duration = Duration::from_secs(30);
/// ... in this interval ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// ... and is closed after this many probes without an answer: 45 s after the last packet.
const KEEPALIVE_PROBES: u32 = 3;
/// A connection is closed when sent bytes are not acknowledged for this long (`TCP_USER_TIMEOUT`, RFC 5482).
const UNACKNOWLEDGED: Duration = Duration::from_secs(40);

/// Opens connections to one server.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    proxy: Option<Url>,
    /// `None` for a server without TLS.
    tls: Option<Arc<ClientConfig>>,
    /// For a proxy whose URL begins with `https`.
    proxy_tls: Option<Arc<ClientConfig>>,
    /// The name that the server's certificate must hold, if it is not the URL's host.
    server_name: Option<String>,
    open: Arc<OpenConnections>,
}

/// Counts the open connections of a client.
#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    /// Open connections that carry any number of requests (HTTP/2).
    shared: AtomicUsize,
    /// Open connections that carry one request at a time.
    single: AtomicUsize,
    opened: Notify,
}

impl OpenConnections {
    /// True if a connection is open, so that a request need not wait until another one has opened it.
    pub(super) fn any(&self) -> bool {
        self.shared.load(Ordering::Relaxed) + self.single.load(Ordering::Relaxed) > 0
    }

    /// Waits until a connection is opened.
    pub(super) async fn opened(&self) {
        self.opened.notified().await;
    }

    fn count(&self, is_shared: bool) -> &AtomicUsize {
        if is_shared { &self.shared } else { &self.single }
    }
}

impl Connector {
    /// A connector. As in Go, the TLS settings of the server are also used for an https proxy; `proxy_tls` has those for a server without TLS.
    pub(super) fn new(tls: Option<ClientConfig>, proxy_tls: Option<ClientConfig>, server_name: Option<String>, proxy: Option<Url>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(TCP));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let mut proxy_tls = proxy_tls.or_else(|| tls.clone());
        if let Some(proxy_tls) = &mut proxy_tls {
            proxy_tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        Self { tcp, proxy, tls: tls.map(Arc::new), proxy_tls: proxy_tls.map(Arc::new), server_name, open: Arc::default() }
    }

    pub(super) fn open_connections(&self) -> Arc<OpenConnections> {
        Arc::clone(&self.open)
    }

    /// The value of `Proxy-Authorization` for requests that are sent to the proxy itself: those without TLS.
    pub(super) fn proxy_authorization(&self) -> Option<HeaderValue> {
        if self.tls.is_some() { None } else { self.proxy.as_ref().and_then(proxy_authorization) }
    }

    async fn connect(self, server: Uri) -> Result<Io, RequestError> {
        let address = address(&server);
        let through = self.proxy.as_ref().map_or(String::new(), |proxy| format!(" through the proxy {proxy}"));
        let late = |_| RequestError::new(format!("cannot connect to {address}{through}: no answer within {} s", ALL.as_secs()));
        timeout(ALL, self.connect_now(&server, &address)).await.map_err(late)?
    }

    async fn connect_now(self, server: &Uri, address: &str) -> Result<Io, RequestError> {
        let (stream, forwards) = self.transport(server, address).await?;
        let Some(tls) = self.tls else { return Ok(Io::new(stream, false, forwards, self.open)) };
        let name = self.server_name.as_deref().unwrap_or_else(|| host_of(server));
        let (stream, is_shared) =
            encrypt(tls, name, stream).await.map_err(|why| RequestError::new(format!("TLS with {address} failed: {why}")))?;
        Ok(Io::new(stream, is_shared, false, self.open))
    }

    /// Opens a connection on which TLS, or the first request, can begin. True if a proxy reads that request.
    async fn transport(&self, server: &Uri, address: &str) -> Result<(Stream, bool), RequestError> {
        let mut tcp = self.tcp.clone();
        let Some(proxy) = &self.proxy else {
            let stream = tcp.call(server.clone()).await;
            let refused = |error| RequestError::caused(&format!("cannot connect to {address}"), &error);
            return Ok((Box::new(stream.map_err(refused)?), false));
        };
        let before = format!("cannot connect to {address} through the proxy {proxy}");
        let refused = |error: &(dyn std::error::Error + 'static)| RequestError::caused(&before, error);
        let scheme = proxy.uri.scheme_str().unwrap_or_default();
        let is_socks = scheme.starts_with("socks");
        let to = with_port(&proxy.uri, if is_socks { 1080 } else { default_port(&proxy.uri) });
        let stream: Stream = Box::new(tcp.call(to.clone()).await.map_err(|error| refused(&error))?);
        if is_socks {
            let mut socks = SocksV5::new(to, connected(stream));
            if let Some(user) = &proxy.user {
                socks = socks.with_auth(user.user.clone(), user.password.clone());
            }
            let stream = socks.call(with_port(server, default_port(server))).await;
            return Ok((stream.map_err(|error| refused(&error))?, false));
        }
        let stream = match self.proxy_tls.clone().filter(|_| scheme == "https") {
            Some(tls) => encrypt(tls, host_of(&to), stream).await.map_err(|why| RequestError::new(format!("{before}: {why}")))?.0,
            None => stream,
        };
        if self.tls.is_none() {
            return Ok((stream, true));
        }
        let mut tunnel = Tunnel::new(to, connected(stream));
        if let Some(authorization) = proxy_authorization(proxy) {
            tunnel = tunnel.with_auth(authorization);
        }
        Ok((tunnel.call(server.clone()).await.map_err(|error| refused(&error))?, false))
    }
}

/// A connector that returns this stream once.
fn connected(stream: Stream) -> impl Service<Uri, Response = Stream, Error = std::io::Error, Future: Send + 'static> {
    let mut stream = Some(stream);
    service_fn(move |_| std::future::ready(stream.take().ok_or_else(|| std::io::Error::other("the connection is in use"))))
}

impl Service<Uri> for Connector {
    type Response = Io;
    type Error = RequestError;
    type Future = BoxFuture<'static, Result<Io, RequestError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        self.clone().connect(server).boxed()
    }
}

/// A stream of bytes in both directions.
trait Bytes: Read + Write + Unpin + Send {}

impl<T: Read + Write + Unpin + Send> Bytes for T {}

type Stream = Box<dyn Bytes>;

/// Starts TLS on a stream. True if HTTP/2 was negotiated.
async fn encrypt(tls: Arc<ClientConfig>, name: &str, stream: Stream) -> Result<(Stream, bool), String> {
    let name = ServerName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is not a name that a certificate can hold"))?;
    let stream = TlsConnector::from(tls).connect(name, TokioIo::new(stream)).await.map_err(|error| tls_problem(&error))?;
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Box::new(TokioIo::new(stream)), is_h2))
}

/// Why a handshake failed. Adds the cure if the certificate is the cause.
fn tls_problem(error: &std::io::Error) -> String {
    use rustls::CertificateError as Bad;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let cure = match inner {
        Some(rustls::Error::InvalidCertificate(Bad::UnknownIssuer)) => "is the certificate authority of the configuration the server's?",
        Some(rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
            "use a name of the certificate, or set tls-server-name"
        }
        Some(rustls::Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        )) => "renew the server's certificate, or set the clock of this node",
        _ => return plain(&error_text(error)).to_owned(),
    };
    format!("{}; {cure}", error_text(error))
}

fn proxy_authorization(proxy: &Url) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(proxy.user.as_ref()?.basic()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn default_port(uri: &Uri) -> u16 {
    if uri.scheme_str() == Some("https") { 443 } else { 80 }
}

/// The host and the port of a URI.
fn address(uri: &Uri) -> String {
    format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or_else(|| default_port(uri)))
}

/// The URI with a port in it.
fn with_port(uri: &Uri, port: u16) -> Uri {
    let mut parts = uri.clone().into_parts();
    if uri.port().is_none()
        && let Ok(authority) = format!("{}:{port}", uri.host().unwrap_or_default()).parse()
    {
        parts.authority = Some(authority);
    }
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// An open connection.
pub(super) struct Io {
    stream: Stream,
    /// HTTP/2 was negotiated.
    is_shared: bool,
    /// A proxy reads the requests and needs absolute URLs.
    forwards: bool,
    open: Arc<OpenConnections>,
}

impl Io {
    fn new(stream: Stream, is_shared: bool, forwards: bool, open: Arc<OpenConnections>) -> Self {
        open.count(is_shared).fetch_add(1, Ordering::Relaxed);
        open.opened.notify_waiters();
        Self { stream, is_shared, forwards, open }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.open.count(self.is_shared).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection for Io {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.forwards);
        if self.is_shared { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
