//! Verifies the certificate of a server as Go does (`crypto/x509`).
//!
//! webpki verifies first. It refuses two sorts of certificates that Go accepts and that clusters use: a server certificate that is itself one
//! of the trusted certificates, and one that is marked as an authority. For these, this file does the checks of RFC 5280 section 6. It is
//! stricter than Go in rare cases: a chain with name constraints, or with an unknown critical extension, fails.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::FromDer;
use x509_parser::x509::AlgorithmIdentifier;

/// The most signatures that are checked for one server certificate. Go has the same limit.
const MAX_SIGNATURES: usize = 100;
/// The most intermediate authorities between a server certificate and a root.
const LONGEST_CHAIN: usize = 8;

/// The trusted certificate authorities.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    /// The authorities that webpki can use.
    store: RootCertStore,
    /// All authorities.
    all: Vec<CertificateDer<'static>>,
}

impl Roots {
    /// Takes the certificates that can be parsed and ignores the others.
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        let all: Vec<_> = certificates.into_iter().filter(|der| X509Certificate::from_der(der).is_ok()).collect();
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(all.iter().cloned());
        Self { store, all }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// Accepts a server certificate that a root signed, directly or through intermediates, for the server's name.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None` if webpki can use none of the roots.
    webpki: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(roots: Roots, provider: &Arc<CryptoProvider>) -> Self {
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.store), Arc::clone(provider)).build().ok();
        Self { webpki, roots: roots.all, algorithms: provider.signature_verification_algorithms }
    }

    /// Verifies a certificate that webpki refused. Returns the problem; `None` if the certificate is good.
    fn problem(&self, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], now: UnixTime) -> Option<CertificateError> {
        let Some(certificate) = parsed(leaf) else { return Some(CertificateError::BadEncoding) };
        if let Some(error) = unusable(&certificate, now) {
            return Some(error);
        }
        if self.roots.iter().any(|root| root == leaf) {
            return None;
        }
        let search = Search {
            intermediates: intermediates.iter().filter_map(parsed).collect(),
            roots: self.roots.iter().filter_map(parsed).collect(),
            algorithms: self.algorithms,
            now,
        };
        let mut left = MAX_SIGNATURES;
        if search.reaches_root(&certificate, 0, &mut left) { None } else { Some(CertificateError::UnknownIssuer) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = match &self.webpki {
            Some(webpki) => match webpki.verify_server_cert(leaf, intermediates, name, ocsp, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => error,
            },
            None => Error::InvalidCertificate(CertificateError::UnknownIssuer),
        };
        if self.problem(leaf, intermediates, now).is_some() {
            return Err(refused);
        }
        rustls::client::verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// A search for a chain of signatures from a server certificate to a root.
struct Search<'a> {
    intermediates: Vec<X509Certificate<'a>>,
    roots: Vec<X509Certificate<'a>>,
    algorithms: WebPkiSupportedAlgorithms,
    now: UnixTime,
}

impl Search<'_> {
    /// True if a root has signed the certificate, or an intermediate that reaches a root. `between` counts the authorities below, `left` the
    /// signatures that may still be checked.
    fn reaches_root(&self, certificate: &X509Certificate<'_>, between: usize, left: &mut usize) -> bool {
        let mut signs = |authority: &X509Certificate<'_>, is_root: bool| {
            authority.subject().as_raw() == certificate.issuer().as_raw()
                && may_sign(authority, is_root, between)
                && unusable(authority, self.now).is_none()
                && *left > 0
                && {
                    *left -= 1;
                    self.has_signed(authority, certificate)
                }
        };
        if self.roots.iter().any(|root| signs(root, true)) {
            return true;
        }
        let signers: Vec<&X509Certificate<'_>> = self.intermediates.iter().filter(|authority| signs(authority, false)).collect();
        between < LONGEST_CHAIN && signers.into_iter().any(|authority| self.reaches_root(authority, between + 1, left))
    }

    fn has_signed(&self, authority: &X509Certificate<'_>, certificate: &X509Certificate<'_>) -> bool {
        let signature = &certificate.signature_algorithm;
        if *signature != certificate.tbs_certificate.signature {
            return false;
        }
        let (key, by) = (identifier(&authority.public_key().algorithm), identifier(signature));
        let fitting = |algorithm: &&&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
            algorithm.public_key_alg_id().as_ref() == key && algorithm.signature_alg_id().as_ref() == by
        };
        self.algorithms.all.iter().filter(fitting).any(|algorithm| {
            let public_key = authority.public_key().subject_public_key.data.as_ref();
            algorithm.verify_signature(public_key, certificate.tbs_certificate.as_ref(), certificate.signature_value.data.as_ref()).is_ok()
        })
    }
}

/// The content of an `AlgorithmIdentifier` (RFC 5280 section 4.1.1.2) as DER: its object identifier and its parameters.
fn identifier(algorithm: &AlgorithmIdentifier<'_>) -> Vec<u8> {
    let oid = algorithm.algorithm.as_bytes();
    // Every algorithm's identifier is shorter than 128 bytes.
    let mut der = vec![0x06, u8::try_from(oid.len()).unwrap_or(u8::MAX)];
    der.extend_from_slice(oid);
    if let Some(parameters) = &algorithm.parameters {
        let length = u8::try_from(parameters.data.len()).unwrap_or(u8::MAX);
        der.extend([
            u8::try_from(parameters.tag().0).unwrap_or(u8::MAX) | if parameters.header.is_constructed() { 0x20 } else { 0 },
            length,
        ]);
        der.extend_from_slice(parameters.data);
    }
    der
}

/// Why a certificate cannot be used: its validity period, its usage, or an unknown critical extension.
fn unusable(certificate: &X509Certificate<'_>, now: UnixTime) -> Option<CertificateError> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < certificate.validity().not_before.timestamp() {
        return Some(CertificateError::NotValidYet);
    }
    if now > certificate.validity().not_after.timestamp() {
        return Some(CertificateError::Expired);
    }
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::ExtendedKeyUsage(usage) if !usage.any && !usage.server_auth => return Some(CertificateError::InvalidPurpose),
            ParsedExtension::NameConstraints(_) => return Some(CertificateError::UnhandledCriticalExtension),
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => {}
            ParsedExtension::ParseError { .. } => return Some(CertificateError::BadEncoding),
            _ if extension.critical => return Some(CertificateError::UnhandledCriticalExtension),
            _ => {}
        }
    }
    let mut oids: Vec<&Oid<'_>> = certificate.extensions().iter().map(|extension| &extension.oid).collect();
    oids.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    oids.windows(2).any(|pair| pair[0] == pair[1]).then_some(CertificateError::BadEncoding)
}

/// True if a certificate may sign others, with this many authorities below it. A root of version 1 has no extension that says so.
fn may_sign(authority: &X509Certificate<'_>, is_root: bool, below: usize) -> bool {
    let constraints = authority.basic_constraints().ok().flatten().map(|found| found.value);
    let is_authority = match constraints {
        Some(constraints) => constraints.ca && constraints.path_len_constraint.is_none_or(|most| below <= most as usize),
        None => is_root && authority.version().0 == 0,
    };
    let usage = authority.key_usage().ok().flatten();
    is_authority && usage.is_none_or(|usage| usage.value.key_cert_sign())
}

/// Accepts every certificate, for `insecure-skip-tls-verify`. The server must still own the certificate's key.
#[derive(Debug)]
pub(super) struct AcceptAny {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AcceptAny {
    pub(super) const fn new(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { algorithms }
    }
}

impl ServerCertVerifier for AcceptAny {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Err(error) = verify_tls13_signature(message, certificate, signed, &self.algorithms) else {
            return Ok(HandshakeSignatureValid::assertion());
        };
        // webpki does not read certificates of version 1. In these the key has the same place.
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| error)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
