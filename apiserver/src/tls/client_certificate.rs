//! Client certificates. As in kube-apiserver, the handshake accepts any certificate, and a request is refused if no accepted CA signed the
//! certificate.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::generate::wall_clock;

use super::x509::Certificate;

/// The fields of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Subject, such as `O=system:nodes,CN=system:node:a`.
    pub subject: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// X.509 version, 1 to 3.
    pub version: u8,
}

impl ClientCertificate {
    pub(crate) fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let read = Certificate::parse(certificate)?;
        Some(Self { subject: read.subject(), serial: read.serial(), version: read.version() })
    }
}

/// True if one of these CAs signed the first certificate of a chain, directly or through other certificates of the chain.
pub(crate) fn is_accepted(chain: &[CertificateDer<'_>], authorities: &[CertificateDer<'_>]) -> bool {
    let algorithms = algorithms().all;
    let now = i64::try_from(wall_clock().as_secs()).unwrap_or(i64::MAX);
    let Some(chain) = chain.iter().map(|der| Certificate::parse(der)).collect::<Option<Vec<_>>>() else { return false };
    let Some((leaf, others)) = chain.split_first() else { return false };
    let authorities: Vec<_> = authorities.iter().filter_map(|der| Certificate::parse(der)).collect();
    let mut current = leaf;
    // Each certificate can issue at most once; more steps mean a circle.
    for _ in 0..chain.len() {
        if !current.is_valid_at(now) {
            return false;
        }
        if authorities.iter().any(|authority| current.is_signed_by(authority, algorithms)) {
            return true;
        }
        match others.iter().find(|other| current.is_signed_by(other, algorithms)) {
            Some(issuer) => current = issuer,
            None => return false,
        }
    }
    false
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

/// Accepts any certificate whose private key the client has. Parses certificates itself, because rustls does not support X.509 v1.
#[derive(Debug)]
pub(super) struct AnyClientVerifier(WebPkiSupportedAlgorithms);

impl AnyClientVerifier {
    pub(super) fn new() -> Self {
        Self(algorithms())
    }

    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = Certificate::parse(certificate).ok_or(CertificateError::BadEncoding)?.key();
        let mut algorithms = self.0.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme).flat_map(|(_, algorithms)| *algorithms);
        if algorithms.any(|algorithm| key.verifies(*algorithm, message, signed.signature())) {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

impl ClientCertVerifier for AnyClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match Certificate::parse(certificate) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
