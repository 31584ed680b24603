//! The TLS side of a server, and the checks of client certificates.

mod client_certificate;
mod x509;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, ServerConnection};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Identity;

pub use client_certificate::ClientCertificate;
pub(crate) use client_certificate::is_accepted;

use client_certificate::AnyClientVerifier;

/// The HTTP versions that a server offers over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersions {
    Both,
    Http1,
    Http2,
}

/// The TLS side of a server. Its certificate can be replaced while the server runs.
#[derive(Debug)]
pub(crate) struct Tls {
    certificate: Arc<ServerCertificate>,
    config: Arc<ServerConfig>,
}

impl Tls {
    pub(crate) fn new(identity: &Identity, versions: HttpVersions, only_tls12: bool, request_client_certificate: bool) -> io::Result<Self> {
        let certificate = Arc::new(ServerCertificate(Mutex::new(certified_key(identity)?)));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls_versions = if only_tls12 { &[&TLS12][..] } else { &[&TLS13, &TLS12] };
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(tls_versions).map_err(io::Error::other)?;
        let builder = if request_client_certificate {
            builder.with_client_cert_verifier(Arc::new(AnyClientVerifier::new()))
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(certificate.clone());
        config.alpn_protocols = match versions {
            HttpVersions::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            HttpVersions::Http1 => vec![b"http/1.1".to_vec()],
            HttpVersions::Http2 => vec![b"h2".to_vec()],
        };
        Ok(Self { certificate, config: Arc::new(config) })
    }

    /// Replaces the certificate for new connections.
    pub(crate) fn set_certificate(&self, identity: &Identity) -> io::Result<()> {
        *self.certificate.0.lock().unwrap_or_else(PoisonError::into_inner) = certified_key(identity)?;
        Ok(())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.config.clone().into()
    }
}

/// The certificate for new connections.
#[derive(Debug)]
struct ServerCertificate(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified_key(identity: &Identity) -> io::Result<Arc<CertifiedKey>> {
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(identity.key()).map_err(io::Error::other)?;
    Ok(Arc::new(CertifiedKey::new(identity.chain().to_vec(), key)))
}

/// The certificates that a client sent in the handshake.
pub(crate) fn client_chain(connection: &ServerConnection) -> Vec<CertificateDer<'static>> {
    connection.peer_certificates().unwrap_or_default().iter().cloned().map(CertificateDer::into_owned).collect()
}
