//! Credentials of the client and trust in the server: their sources, and their current values.
//!
//! Files are read again while the client lives: kubelet replaces client certificates, service account tokens and the authority bundle.

use std::path::{Path, PathBuf};

use http::HeaderValue;

use super::kubeconfig::{self, Cluster, User};
use super::server_url::UserInfo;
use super::tls::{BadTls, Identity, Trust};

/// Credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadCredentials {
    /// A file that cannot be read.
    #[error("cannot read {what} {path}: {cause}")]
    Read {
        /// The expected content.
        what: &'static str,
        /// Its path.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A `*-data` field that is not base64.
    #[error("{0}")]
    Data(String),
    /// A token file without a token.
    #[error("the token file {0} is empty")]
    EmptyToken(String),
    /// A token that does not fit into an HTTP header.
    #[error("{0} holds a line break or another character that no HTTP header can carry; write the token on one line")]
    Token(String),
}

/// Bytes that the kubeconfig holds, or a file that holds them.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Material {
    Given(Vec<u8>),
    File(PathBuf),
}

impl Material {
    /// The source of a field and its `*-data` variant; `None` if neither is set.
    fn of(field: &str, data: &str, file: &str) -> Result<Option<Self>, BadCredentials> {
        if !data.is_empty() {
            return kubeconfig::decode(field, data).map(Self::Given).map(Some).map_err(BadCredentials::Data);
        }
        Ok((!file.is_empty()).then(|| Self::File(file.into())))
    }

    pub(super) fn read(&self, what: &'static str) -> Result<Vec<u8>, BadCredentials> {
        match self {
            Self::Given(bytes) => Ok(bytes.clone()),
            Self::File(path) => read(what, path),
        }
    }
}

/// Reads a regular file. Reading a FIFO might never end.
fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, BadCredentials> {
    let regular = std::fs::metadata(path).and_then(|found| {
        if found.is_file() { Ok(()) } else { Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file")) }
    });
    let bytes = regular.and_then(|()| std::fs::read(path));
    bytes.map_err(|cause| BadCredentials::Read { what, path: path.display().to_string(), cause })
}

/// How the server's certificate is verified.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum TrustSource {
    Anything,
    Authorities(Material),
    System,
}

/// The source of the `Authorization` header, unless an exec plugin gives it.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum TokenSource {
    Nothing,
    Token(String),
    /// The token in the file; `before` is used while the file cannot be read.
    File {
        path: PathBuf,
        before: Option<String>,
    },
    Password(UserInfo),
}

/// The sources of all credentials.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sources {
    pub trust: TrustSource,
    /// Client certificate and key.
    pub identity: Option<(Material, Material)>,
    pub token: TokenSource,
}

/// The current credentials. A new connection is needed only when they change.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Loaded {
    pub trust: Trust,
    pub identity: Option<Identity>,
    pub authorization: Option<HeaderValue>,
}

impl Sources {
    /// No credentials, for a server without TLS.
    pub(super) const fn none() -> Self {
        Self { trust: TrustSource::System, identity: None, token: TokenSource::Nothing }
    }

    /// The sources in a kubeconfig. The token file overrides the token, and both override a password.
    ///
    /// # Errors
    /// A field that is not base64.
    pub(super) fn of_kubeconfig(cluster: &Cluster, user: &User) -> Result<Self, BadCredentials> {
        let authorities = Material::of("certificate-authority-data", &cluster.certificate_authority_data, &cluster.certificate_authority)?;
        let trust = match authorities {
            Some(authorities) => TrustSource::Authorities(authorities),
            None if cluster.insecure_skip_tls_verify => TrustSource::Anything,
            None => TrustSource::System,
        };
        let certificate = Material::of("client-certificate-data", &user.client_certificate_data, &user.client_certificate)?;
        let key = Material::of("client-key-data", &user.client_key_data, &user.client_key)?;
        let inline = user.token.trim();
        let before = (!inline.is_empty()).then(|| inline.to_owned());
        let token = match before {
            before if !user.token_file.is_empty() => TokenSource::File { path: user.token_file.clone().into(), before },
            Some(token) => TokenSource::Token(token),
            None if !user.username.is_empty() || !user.password.is_empty() => {
                TokenSource::Password(UserInfo { user: user.username.clone(), password: user.password.clone() })
            }
            None => TokenSource::Nothing,
        };
        Ok(Self { trust, identity: certificate.zip(key), token })
    }

    /// The sources in a pod's service account folder. Without a CA file there, the system's CAs are used, as in client-go.
    pub(super) fn in_cluster(folder: &Path) -> Self {
        let authority = folder.join("ca.crt");
        let trust = match std::fs::read(&authority) {
            Ok(_) => TrustSource::Authorities(Material::File(authority)),
            Err(error) => {
                tracing::warn!("cannot read {}: {error}; the certificate authorities of this system are used", authority.display());
                TrustSource::System
            }
        };
        Self { trust, identity: None, token: TokenSource::File { path: folder.join("token"), before: None } }
    }

    /// The file that caused a problem with certificates or keys.
    pub(super) fn file_of(&self, problem: &BadTls) -> Option<&Path> {
        let material = match (problem, &self.trust, &self.identity) {
            (BadTls::NoAuthority, TrustSource::Authorities(material), _) => material,
            (BadTls::NoCertificate, _, Some((certificate, _))) => certificate,
            (BadTls::NoKey | BadTls::OtherKey, _, Some((_, key))) => key,
            _ => return None,
        };
        match material {
            Material::File(path) => Some(path),
            Material::Given(_) => None,
        }
    }

    /// Reads all sources.
    ///
    /// # Errors
    /// A file that cannot be read, or a token that cannot be sent.
    pub(super) fn load(&self) -> Result<Loaded, BadCredentials> {
        let trust = match &self.trust {
            TrustSource::Anything => Trust::Anything,
            TrustSource::Authorities(material) => Trust::Bundle(material.read("certificate authority")?),
            TrustSource::System => Trust::System,
        };
        let identity = self
            .identity
            .as_ref()
            .map(|(certificate, key)| Ok(Identity { certificate: certificate.read("client certificate")?, key: key.read("client key")? }));
        Ok(Loaded { trust, identity: identity.transpose()?, authorization: self.token.authorization()? })
    }
}

impl TokenSource {
    fn authorization(&self) -> Result<Option<HeaderValue>, BadCredentials> {
        match self {
            Self::Nothing => Ok(None),
            Self::Token(token) => bearer("the token", token).map(Some),
            Self::Password(user) => Ok(HeaderValue::try_from(user.basic()).ok().map(sensitive)),
            Self::File { path, before } => match (read_token(path), before) {
                (Ok(token), _) => bearer(&format!("the token file {}", path.display()), &token).map(Some),
                (Err(_), Some(before)) => bearer("the token", before).map(Some),
                (Err(error), None) => Err(error),
            },
        }
    }
}

/// Reads the token of a file, without surrounding whitespace.
fn read_token(path: &Path) -> Result<String, BadCredentials> {
    let text = String::from_utf8_lossy(&read("token file", path)?).trim().to_owned();
    if text.is_empty() { Err(BadCredentials::EmptyToken(path.display().to_string())) } else { Ok(text) }
}

/// The header for a token (RFC 6750 section 2.1).
///
/// # Errors
/// The token holds a character that a header cannot hold; `what` names it.
pub(super) fn bearer(what: &str, token: &str) -> Result<HeaderValue, BadCredentials> {
    HeaderValue::try_from(format!("Bearer {token}")).map(sensitive).map_err(|_| BadCredentials::Token(what.to_owned()))
}

fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorization(user: &User) -> Result<Option<String>, String> {
        let sources = Sources::of_kubeconfig(&Cluster::default(), user).map_err(|error| error.to_string())?;
        let loaded = sources.load().map_err(|error| error.to_string())?;
        Ok(loaded.authorization.map(|value| value.to_str().expect("text").to_owned()))
    }

    fn user(token: &str, token_file: &Path) -> User {
        User { token: token.to_owned(), token_file: token_file.display().to_string(), ..User::default() }
    }

    #[test]
    fn tokens_are_read_as_client_go_reads_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        let sent = |text: &str| Ok(Some(format!("Bearer {text}")));
        assert_eq!(authorization(&user("", Path::new(""))), Ok(None), "an empty token sends no header");
        assert_eq!(authorization(&user("old", Path::new(""))), sent("old"));
        // The file does not exist yet: the token is used until it does.
        assert_eq!(authorization(&user("old", &file)), sent("old"));
        let missing = authorization(&user("", &file)).expect_err("no file");
        assert!(missing.starts_with(&format!("cannot read token file {}: ", file.display())), "{missing}");
        for text in ["abc", "abc\n", " abc\r\n\n", "\tabc "] {
            std::fs::write(&file, text).expect("writable");
            assert_eq!(authorization(&user("old", &file)), sent("abc"), "{text:?}");
            assert_eq!(authorization(&user("", &file)), sent("abc"), "{text:?}");
        }
        std::fs::write(&file, "a\nb").expect("writable");
        let error = authorization(&user("", &file)).expect_err("a line break");
        assert!(error.contains("line break") && error.contains("token file") && !error.contains("a\nb"), "{error}");
        std::fs::write(&file, " \n").expect("writable");
        assert!(authorization(&user("", &file)).expect_err("empty").ends_with("is empty"));
    }

    #[test]
    fn a_password_is_used_without_a_token() {
        let named = User { username: "u".into(), password: "p".into(), ..User::default() };
        assert_eq!(authorization(&named), Ok(Some("Basic dTpw".into())));
    }

    #[test]
    fn a_pod_uses_its_service_account() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "abc\n").expect("writable");
        let without = Sources::in_cluster(folder.path()).load().unwrap_or_else(|error| panic!("{error}"));
        assert!(without.trust == Trust::System);
        std::fs::write(folder.path().join("ca.crt"), "pem").expect("writable");
        let loaded = Sources::in_cluster(folder.path()).load().unwrap_or_else(|error| panic!("{error}"));
        assert!(loaded.trust == Trust::Bundle(b"pem".to_vec()));
        assert_eq!(loaded.authorization.expect("a token"), "Bearer abc");
    }
}
