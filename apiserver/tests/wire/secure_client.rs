//! A TLS client with HTTP/2 or HTTP/1.1.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sepal_apiserver::{ApiServer, Authority, Identity};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Tests fail if an event takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition is true.
pub(crate) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < PATIENCE, "timed out: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The options of a TLS handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handshake<'a> {
    /// The trusted CA; `None` trusts every server.
    pub(crate) trusted: Option<&'a Authority>,
    /// The client certificate.
    pub(crate) identity: Option<&'a Identity>,
    /// The offered ALPN protocols.
    pub(crate) offers: &'a [&'a str],
    /// The expected name of the server.
    pub(crate) name: &'a str,
}

impl Default for Handshake<'_> {
    fn default() -> Self {
        Self { trusted: None, identity: None, offers: &["h2", "http/1.1"], name: "localhost" }
    }
}

impl Handshake<'_> {
    /// Does the handshake over a stream.
    pub(crate) async fn over<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let builder =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider())).with_safe_default_protocol_versions().unwrap();
        let builder = match self.trusted {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.certificate().clone()).unwrap();
                builder.with_root_certificates(roots)
            }
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServerVerifier)),
        };
        let mut config = match self.identity {
            // `with_client_auth_cert` parses the certificate and refuses X.509 v1.
            Some(identity) => {
                let key = aws_lc_rs::sign::any_supported_type(&identity.key()).unwrap();
                let certified = CertifiedKey::new(identity.chain().to_vec(), key);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.offers.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(self.name.to_owned()).unwrap(), stream).await
    }

    /// Connects to an address.
    pub(crate) async fn connect(&self, address: SocketAddr) -> io::Result<Client> {
        Client::new(self.over(TcpStream::connect(address).await?).await?).await
    }

    /// Connects to a server.
    pub(crate) async fn to(&self, server: &ApiServer) -> Client {
        self.connect(server.address()).await.unwrap()
    }
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Client {
    /// The certificate that the server sent.
    pub(crate) server_certificate: CertificateDer<'static>,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    pub(crate) async fn new<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: TlsStream<S>) -> io::Result<Self> {
        let session = stream.get_ref().1;
        let server_certificate = session.peer_certificates().unwrap()[0].clone().into_owned();
        let sender = if session.alpn_protocol() == Some(b"h2") {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Ok(Self { server_certificate, sender })
    }

    /// Sends GET; returns the response when its head arrives.
    pub(crate) async fn send(&mut self, path: &str, headers: &[(&str, &str)]) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::new(Empty::new());
        let named = |(name, value): &(&str, &str)| -> (HeaderName, HeaderValue) { (name.parse().unwrap(), value.parse().unwrap()) };
        request.headers_mut().extend(headers.iter().map(named));
        match &mut self.sender {
            Sender::Http1(sender) => {
                *request.uri_mut() = path.parse().unwrap();
                request.headers_mut().insert("host", HeaderValue::from_static("test"));
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                *request.uri_mut() = Uri::builder().scheme("https").authority("test").path_and_query(path).build().unwrap();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Sends GET; returns code, headers and body.
    pub(crate) async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> (u16, HeaderMap, Bytes) {
        let (head, body) = self.send(path, headers).await.unwrap().into_parts();
        (head.status.as_u16(), head.headers, body.collect().await.unwrap().to_bytes())
    }

    /// Sends GET; returns code and JSON body.
    pub(crate) async fn json(&mut self, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
        let (code, _, body) = self.get(path, headers).await;
        (code, serde_json::from_slice(&body).unwrap())
    }
}

/// Trusts every server. Tests compare the server's certificate themselves.
#[derive(Debug)]
struct AnyServerVerifier;

impl ServerCertVerifier for AnyServerVerifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
