//! TLS: how a server presents itself, and which client certificates it accepts.

pub(crate) mod der;
mod verifier;
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

pub use verifier::ClientCertificate;
pub(crate) use verifier::is_accepted;

use verifier::AnyClient;

/// Which versions of HTTP a server offers over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocols {
    Both,
    Http1,
    Http2,
}

/// The TLS side of a server. Its certificate can be replaced while it runs.
#[derive(Debug)]
pub(crate) struct Tls {
    presented: Arc<Presented>,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// `asks` says whether clients are asked for a certificate.
    pub(crate) fn new(identity: &Identity, protocols: Protocols, only_tls12: bool, asks: bool) -> io::Result<Self> {
        let presented = Arc::new(Presented(Mutex::new(certified(identity)?)));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions = if only_tls12 { &[&TLS12][..] } else { &[&TLS13, &TLS12] };
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).map_err(io::Error::other)?;
        let builder = if asks { builder.with_client_cert_verifier(Arc::new(AnyClient::new())) } else { builder.with_no_client_auth() };
        let mut config = builder.with_cert_resolver(presented.clone());
        config.alpn_protocols = match protocols {
            Protocols::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Protocols::Http1 => vec![b"http/1.1".to_vec()],
            Protocols::Http2 => vec![b"h2".to_vec()],
        };
        Ok(Self { presented, config: Arc::new(config) })
    }

    /// Replaces the certificate for new connections.
    pub(crate) fn present(&self, identity: &Identity) -> io::Result<()> {
        *self.presented.0.lock().unwrap_or_else(PoisonError::into_inner) = certified(identity)?;
        Ok(())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.config.clone().into()
    }
}

/// The certificate that is presented.
#[derive(Debug)]
struct Presented(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified(identity: &Identity) -> io::Result<Arc<CertifiedKey>> {
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(identity.key()).map_err(io::Error::other)?;
    Ok(Arc::new(CertifiedKey::new(identity.chain().to_vec(), key)))
}

/// The certificates that a client has sent.
pub(crate) fn client_chain(connection: &ServerConnection) -> Vec<CertificateDer<'static>> {
    connection.peer_certificates().unwrap_or_default().iter().cloned().map(CertificateDer::into_owned).collect()
}
