//! Makes CAs and certificates for tests, valid and invalid ones.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::der::{self, Reader, tag};
use crate::generate::wall_clock;

const HOUR: Duration = Duration::from_secs(60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The type of a private key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA, P-256.
    #[default]
    P256,
    /// ECDSA, P-384.
    P384,
    /// ECDSA, P-521.
    P521,
    /// RSA, 2048 bits.
    Rsa2048,
    /// Ed25519.
    Ed25519,
}

impl KeyType {
    fn generate(self) -> io::Result<KeyPair> {
        let algorithm: &'static SignatureAlgorithm = match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::P521 => &rcgen::PKCS_ECDSA_P521_SHA512,
            Self::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
        };
        KeyPair::generate_for(algorithm).map_err(io::Error::other)
    }
}

/// A CA.
#[derive(Debug)]
pub struct Authority {
    parameters: CertificateParams,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    /// Certificates that are sent with an issued one: this CA and the CAs above it, without the root.
    chain: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// Makes a root CA with a P-256 key.
    ///
    /// # Errors
    /// Fails if the name is not valid in a certificate.
    pub fn new(name: &str) -> io::Result<Self> {
        Self::with_key(name, KeyType::default())
    }

    /// Makes a root CA with a key of the given type.
    ///
    /// # Errors
    /// Fails if the name is not valid in a certificate.
    pub fn with_key(name: &str, key: KeyType) -> io::Result<Self> {
        let (parameters, key) = (authority_parameters(name)?, key.generate()?);
        let certificate = parameters.self_signed(&key).map_err(io::Error::other)?;
        Ok(Self { parameters, key, certificate: certificate.der().clone(), chain: Vec::new() })
    }

    /// Makes an intermediate CA that this CA signs. Certificates that it issues are sent with its own certificate.
    ///
    /// # Errors
    /// Fails if the name is not valid in a certificate.
    pub fn intermediate(&self, name: &str) -> io::Result<Self> {
        let (parameters, key) = (authority_parameters(name)?, KeyType::default().generate()?);
        let issuer = Issuer::from_params(&self.parameters, &self.key);
        let certificate = parameters.signed_by(&key, &issuer).map_err(io::Error::other)?.der().clone();
        let mut chain = vec![certificate.clone()];
        chain.extend(self.chain.iter().cloned());
        Ok(Self { parameters, key, certificate, chain })
    }

    /// Issues a server certificate for names and IP addresses.
    ///
    /// # Errors
    /// Fails if a name is not valid in a certificate.
    pub fn server(&self, names: &[&str]) -> io::Result<Identity> {
        self.issue(&CertificateRequest::server(names))
    }

    /// Issues a client certificate for a user.
    ///
    /// # Errors
    /// Fails if a name is not valid in a certificate.
    pub fn client(&self, user: &str) -> io::Result<Identity> {
        self.issue(&CertificateRequest::client(user))
    }

    /// Issues the requested certificate, with a new key.
    ///
    /// # Errors
    /// Fails if a name is not valid in a certificate.
    pub fn issue(&self, request: &CertificateRequest) -> io::Result<Identity> {
        let key = request.key.generate()?;
        let mut parameters = request.parameters()?;
        parameters.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_params(&self.parameters, &self.key);
        let certificate = parameters.signed_by(&key, &issuer).map_err(io::Error::other)?.der().clone();
        let certificate = if request.version1 { version1(&certificate, &self.key)? } else { certificate };
        let mut chain = vec![certificate];
        chain.extend(self.chain.iter().cloned());
        Ok(Identity::new(chain, &key))
    }

    /// The certificate of this CA.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate of this CA as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }
}

/// The content of a certificate to issue.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    names: Vec<String>,
    common_name: String,
    group: String,
    usage: ExtendedKeyUsagePurpose,
    key: KeyType,
    /// Start of the validity: time since 1970.
    not_before: Duration,
    /// End of the validity: time since 1970.
    not_after: Duration,
    is_ca: bool,
    version1: bool,
}

impl CertificateRequest {
    fn new(names: &[&str], common_name: &str, usage: ExtendedKeyUsagePurpose) -> Self {
        let now = wall_clock();
        Self {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            common_name: common_name.to_owned(),
            group: String::new(),
            usage,
            key: KeyType::default(),
            not_before: now.saturating_sub(HOUR),
            not_after: now + YEAR,
            is_ca: false,
            version1: false,
        }
    }

    /// A request for a server with these names and IP addresses. The first one is also the common name.
    #[must_use]
    pub fn server(names: &[&str]) -> Self {
        Self::new(names, names.first().unwrap_or(&"kube-apiserver"), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A request for a client. The user is the common name.
    #[must_use]
    pub fn client(user: &str) -> Self {
        Self::new(&[], user, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// Sets the user's group, as the organization.
    #[must_use]
    pub fn group(mut self, group: &str) -> Self {
        group.clone_into(&mut self.group);
        self
    }

    /// Sets the type of the key.
    #[must_use]
    pub fn key(self, key: KeyType) -> Self {
        Self { key, ..self }
    }

    /// Makes the certificate expire an hour ago.
    #[must_use]
    pub fn expired(self) -> Self {
        let now = wall_clock();
        Self { not_before: now.saturating_sub(YEAR), not_after: now.saturating_sub(HOUR), ..self }
    }

    /// Makes the certificate valid in an hour.
    #[must_use]
    pub fn not_yet_valid(self) -> Self {
        Self { not_before: wall_clock() + HOUR, ..self }
    }

    /// Makes the certificate expire after this time.
    #[must_use]
    pub fn valid_for(self, time: Duration) -> Self {
        Self { not_after: wall_clock() + time, ..self }
    }

    /// Marks the certificate as a CA (`CA:TRUE`).
    #[must_use]
    pub fn ca(self) -> Self {
        Self { is_ca: true, ..self }
    }

    /// Makes an X.509 v1 certificate, which has no extensions.
    #[must_use]
    pub fn version1(self) -> Self {
        Self { version1: true, ..self }
    }

    /// Makes a self-signed certificate, with a new key.
    ///
    /// # Errors
    /// Fails if a name is not valid in a certificate.
    pub fn self_signed(&self) -> io::Result<Identity> {
        let key = self.key.generate()?;
        let certificate = self.parameters()?.self_signed(&key).map_err(io::Error::other)?.der().clone();
        let certificate = if self.version1 { version1(&certificate, &key)? } else { certificate };
        Ok(Identity::new(vec![certificate], &key))
    }

    fn parameters(&self) -> io::Result<CertificateParams> {
        let mut parameters = CertificateParams::new(self.names.clone()).map_err(io::Error::other)?;
        let mut name = DistinguishedName::new();
        if !self.group.is_empty() {
            name.push(DnType::OrganizationName, &self.group);
        }
        name.push(DnType::CommonName, &self.common_name);
        parameters.distinguished_name = name;
        (parameters.not_before, parameters.not_after) = (date(self.not_before)?, date(self.not_after)?);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![self.usage.clone()];
        if self.is_ca {
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }
        Ok(parameters)
    }
}

/// A certificate with its chain and private key.
#[derive(Clone, Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Identity {
    fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        Self { chain, key: Arc::new(PrivatePkcs8KeyDer::from(key.serialize_der()).into()) }
    }

    /// Reads a chain and a key from PEM.
    ///
    /// # Errors
    /// Fails if a text contains no certificate or no key.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> io::Result<Self> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(io::Error::other)?;
        Ok(Self { chain, key: Arc::new(key) })
    }

    /// The certificate, followed by the CA certificates that are sent with it.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// The chain as PEM.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }

    /// The key as PEM: `PRIVATE KEY`, PKCS #8.
    #[must_use]
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.secret_der())
    }

    /// The key as PEM in the older format: `EC PRIVATE KEY` or `RSA PRIVATE KEY`. `None` for key types without such a format.
    #[must_use]
    pub fn traditional_key_pem(&self) -> Option<String> {
        let mut fields = Reader(Reader(self.key.secret_der()).expect(tag::SEQUENCE)?.content);
        fields.expect(tag::INTEGER)?;
        let mut algorithm = Reader(fields.expect(tag::SEQUENCE)?.content);
        let inner = fields.expect(tag::OCTET_STRING)?.content;
        algorithm.expect(tag::OBJECT_IDENTIFIER)?;
        let Some(curve) = algorithm.optional(tag::OBJECT_IDENTIFIER) else {
            let mut rsa = Reader(inner);
            rsa.expect(tag::SEQUENCE)?;
            return Some(pem("RSA PRIVATE KEY", inner));
        };
        let mut fields = Reader(Reader(inner).expect(tag::SEQUENCE)?.content);
        let (version, secret) = (fields.expect(tag::INTEGER)?, fields.expect(tag::OCTET_STRING)?);
        fields.optional(tag::EXPLICIT_0);
        let curve = der::write(tag::EXPLICIT_0, &[curve.whole]);
        Some(pem("EC PRIVATE KEY", &der::write(tag::SEQUENCE, &[version.whole, secret.whole, &curve, fields.0])))
    }
}

/// The certificates of a PEM text.
pub(crate) fn certificates(text: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    if certificates.is_empty() { Err(io::Error::other("there is no certificate")) } else { Ok(certificates) }
}

fn authority_parameters(name: &str) -> io::Result<CertificateParams> {
    let mut parameters = CertificateParams::default();
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    parameters.distinguished_name = distinguished;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.not_before = date(wall_clock().saturating_sub(HOUR))?;
    parameters.not_after = date(wall_clock() + 10 * YEAR)?;
    Ok(parameters)
}

fn date(time: Duration) -> io::Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(time.as_secs()).map_err(io::Error::other)?).map_err(io::Error::other)
}

/// Converts a certificate to X.509 v1: removes version and extensions, and signs it again.
fn version1(certificate: &CertificateDer<'_>, issuer: &KeyPair) -> io::Result<CertificateDer<'static>> {
    let malformed = || io::Error::other("the certificate is malformed");
    let mut outer = Reader(Reader(certificate).expect(tag::SEQUENCE).ok_or_else(malformed)?.content);
    let mut fields = Reader(outer.expect(tag::SEQUENCE).ok_or_else(malformed)?.content);
    let algorithm = outer.expect(tag::SEQUENCE).ok_or_else(malformed)?.whole;
    fields.optional(tag::EXPLICIT_0).ok_or_else(malformed)?;
    // Serial number, algorithm, issuer, validity, subject and key.
    let fields: Option<Vec<_>> = (0..6).map(|_| fields.next().map(|item| item.whole)).collect();
    let signed = der::write(tag::SEQUENCE, &fields.ok_or_else(malformed)?);
    let signature = issuer.sign(&signed).map_err(io::Error::other)?;
    let signature = der::write(tag::BIT_STRING, &[&[0], &signature]);
    Ok(der::write(tag::SEQUENCE, &[&signed, algorithm, &signature]).into())
}

/// PEM text with lines of 64 characters.
fn pem(label: &str, bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
