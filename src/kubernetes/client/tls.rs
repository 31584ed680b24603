//! TLS to the API server: rustls with the cryptography of AWS-LC. [`super::verifier`] verifies certificates as Go does.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use x509_parser::parse_x509_certificate;

use super::verifier::{AcceptAny, Roots, Verifier};

/// Certificates or keys that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadTls {
    /// A bundle of certificate authorities without a usable certificate.
    #[error("it holds no certificate of an authority")]
    NoAuthority,
    /// A client certificate without a usable certificate.
    #[error("no certificate is in the client certificate")]
    NoCertificate,
    /// A client key without a usable private key.
    #[error("no usable private key is in the client key (RSA of 2048 bits and more, P-256, P-384, P-521 and Ed25519 are known)")]
    NoKey,
    /// Certificate and key do not belong together.
    #[error("the client key is not the key of the client certificate")]
    OtherKey,
    /// The system has no authorities, and the configuration names none.
    #[error("no certificate authority is configured, and this system has none: {0}")]
    NoSystemAuthorities(String),
}

/// A client certificate with its chain, and its key; both as PEM.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

/// How the server's certificate is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Every certificate is accepted: `insecure-skip-tls-verify`.
    Anything,
    /// An authority in this PEM bundle must have signed it.
    Bundle(Vec<u8>),
    /// An authority that the system trusts must have signed it.
    System,
}

/// TLS settings for connections. HTTP/2 is preferred to HTTP/1.1.
///
/// # Errors
/// A bundle, certificate or key that cannot be used.
pub(super) fn client_config(trust: &Trust, identity: Option<&Identity>) -> Result<ClientConfig, BadTls> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let schemes = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    // The provider has cipher suites for both TLS versions.
    let builder = builder.map_err(|_| BadTls::NoAuthority)?.dangerous();
    let builder = match trust {
        Trust::Anything => builder.with_custom_certificate_verifier(Arc::new(AcceptAny::new(schemes))),
        Trust::Bundle(pem) => builder.with_custom_certificate_verifier(Arc::new(Verifier::new(bundle(pem)?, &provider))),
        Trust::System => builder.with_custom_certificate_verifier(Arc::new(Verifier::new(system()?, &provider))),
    };
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(Always(Arc::new(certified_key(identity, &provider)?)))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The authorities of a PEM bundle. Other blocks are ignored, as in Go.
fn bundle(pem: &[u8]) -> Result<Roots, BadTls> {
    let roots = Roots::new(certificates(pem));
    if roots.is_empty() { Err(BadTls::NoAuthority) } else { Ok(roots) }
}

fn system() -> Result<Roots, BadTls> {
    let found = rustls_native_certs::load_native_certs();
    let roots = Roots::new(found.certs);
    if roots.is_empty() {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(BadTls::NoSystemAuthorities(if why.is_empty() {
            "the folder of certificates is empty".into()
        } else {
            why.join("; ")
        }));
    }
    Ok(roots)
}

/// The certificates of a PEM text, in order.
fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    sections(pem).filter(|(kind, _)| *kind == SectionKind::Certificate).map(|(_, der)| CertificateDer::from(der)).collect()
}

/// The readable sections of a PEM text. A broken section is skipped and does not affect the others.
fn sections(pem: &[u8]) -> impl Iterator<Item = (SectionKind, Vec<u8>)> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let starts: Vec<usize> = pem.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN).map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied().chain([pem.len()]).collect::<Vec<_>>();
    let blocks: Vec<Vec<u8>> = starts.into_iter().zip(ends).map(|(start, end)| pem[start..end].to_vec()).collect();
    blocks.into_iter().filter_map(|block| <(SectionKind, Vec<u8>)>::from_pem_slice(&block).ok())
}

/// Checks that the certificate and the key belong together.
fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, BadTls> {
    let chain = certificates(&identity.certificate);
    let leaf = chain.first().ok_or(BadTls::NoCertificate)?;
    let key = signing_key(&identity.key, provider).ok_or(BadTls::NoKey)?;
    // rustls only reads certificates of version 3. In older ones the key has the same place.
    let (_, certificate) = parse_x509_certificate(leaf).map_err(|_| BadTls::NoCertificate)?;
    match key.public_key() {
        Some(public) if public.as_ref() != certificate.public_key().raw => Err(BadTls::OtherKey),
        _ => Ok(CertifiedKey::new(chain, key)),
    }
}

/// The first private key of a PEM text. As in Go, its label does not matter: PKCS #8, PKCS #1 and SEC 1 are tried in turn.
fn signing_key(pem: &[u8], provider: &CryptoProvider) -> Option<Arc<dyn SigningKey>> {
    const KEYS: [SectionKind; 3] = [SectionKind::PrivateKey, SectionKind::RsaPrivateKey, SectionKind::EcPrivateKey];
    let (_, der) = sections(pem).find(|(kind, _)| KEYS.contains(kind))?;
    let forms: [PrivateKeyDer<'static>; 3] =
        [PrivatePkcs8KeyDer::from(der.clone()).into(), PrivatePkcs1KeyDer::from(der.clone()).into(), PrivateSec1KeyDer::from(der).into()];
    forms.into_iter().find_map(|form| provider.key_provider.load_private_key(form).ok())
}

/// Sends the client certificate to every server that asks for one, whatever authorities the server names. client-go does the same.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
