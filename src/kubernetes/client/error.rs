//! Errors of the client: why it cannot be built, and why a request has no answer.

use std::error::Error;
use std::io;

use super::credentials::BadCredentials;
use super::kubeconfig::KubeconfigError;
use super::server_url::BadUrl;
use super::tls::BadTls;

/// Why no client for the API server can be built.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// A kubeconfig that cannot be used.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// An address of the server or of a proxy that is not valid.
    #[error("{what}: {cause}")]
    Url {
        /// The setting that holds it.
        what: String,
        /// What is wrong.
        cause: BadUrl,
    },
    /// Credentials that cannot be read or sent.
    #[error("{origin}: {cause}")]
    Credentials {
        /// Where they come from.
        origin: String,
        /// What is wrong.
        cause: BadCredentials,
    },
    /// Certificates or keys that cannot be used.
    #[error("{origin}: {cause}")]
    Tls {
        /// Where they come from.
        origin: String,
        /// What is wrong.
        cause: BadTls,
    },
    /// A kubeconfig without a server.
    #[error("{0} names no server: set clusters[].cluster.server and current-context, or give --master")]
    NoServer(String),
    /// An impersonated user, uid or group that no HTTP header can carry.
    #[error("{0}: the user, uid or group to act as holds a character that no HTTP header can carry")]
    Impersonation(String),
    /// No flag, file or variable says where the API server is.
    #[error("no API server to talk to: give --kubeconfig, or --manifests to do without one")]
    Nothing,
}

/// A request without an answer. One sentence says where it went and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct RequestError {
    text: String,
    /// The error of the system, if there was one. The sentence has it, too.
    #[source]
    cause: Option<io::Error>,
}

impl RequestError {
    pub(super) const fn new(text: String) -> Self {
        Self { text, cause: None }
    }

    /// An error whose sentence ends with the innermost cause. The outer errors of connectors only say that connecting failed.
    pub(super) fn caused(before: &str, error: &(dyn Error + 'static)) -> Self {
        let cause = innermost(error);
        Self { text: format!("{before}: {}", plain(&cause.to_string())), cause: system_error(cause) }
    }

    /// A copy of the error.
    pub(super) fn copy(&self) -> Self {
        Self { text: self.text.clone(), cause: self.cause.as_ref().and_then(|cause| system_error(cause)) }
    }
}

/// A library's error text in plain words. Unknown texts stay as they are.
pub(super) fn plain(text: &str) -> &str {
    const MEANINGS: [(&str, &str); 9] = [
        ("deadline has elapsed", "no answer in time"),
        ("close_notify", "the server closed the connection"),
        ("invalid HTTP version parsed", "the answer is not HTTP; if the server speaks TLS, its URL begins with https://"),
        ("corrupt message of type InvalidContentType", "the server does not speak TLS; is the port right?"),
        ("proxy authorization required", "the proxy asks for a user and a password; put them into its URL"),
        ("tunnel error: unsuccessful", "the proxy refused to connect"),
        ("tunnel error: unexpected end of file", "the proxy closed the connection"),
        ("proxy response headers too long", "the answer of the proxy is too long"),
        ("no acceptable", "the proxy accepts no way to sign in that is known here"),
    ];
    MEANINGS.iter().find(|(part, _)| text.contains(part)).map_or(text, |(_, meaning)| meaning)
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}

fn system_error(error: &(dyn Error + 'static)) -> Option<io::Error> {
    error.downcast_ref::<io::Error>()?.raw_os_error().map(io::Error::from_raw_os_error)
}
