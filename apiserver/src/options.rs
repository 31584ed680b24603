//! The options of a server.

use std::io;
use std::sync::Arc;

use crate::authentication::{AcceptedCredentials, Authenticator};
use crate::certificates::{Authority, Identity, certificates};
use crate::tls::{HttpVersions, Tls};

/// The options of a server. The default is plain HTTP without authentication.
#[derive(Debug)]
pub struct Options {
    identity: Option<Identity>,
    http_versions: HttpVersions,
    only_tls12: bool,
    accepted: AcceptedCredentials,
}

impl Default for Options {
    fn default() -> Self {
        Self { identity: None, http_versions: HttpVersions::Both, only_tls12: false, accepted: AcceptedCredentials::default() }
    }
}

impl Options {
    /// Serves over TLS. The client chooses HTTP/2 or HTTP/1.1 by ALPN.
    #[must_use]
    pub fn tls(self, identity: &Identity) -> Self {
        Self { identity: Some(identity.clone()), ..self }
    }

    /// Offers only HTTP/1.1 over TLS.
    #[must_use]
    pub fn only_http1(self) -> Self {
        Self { http_versions: HttpVersions::Http1, ..self }
    }

    /// Offers only HTTP/2 over TLS.
    #[must_use]
    pub fn only_http2(self) -> Self {
        Self { http_versions: HttpVersions::Http2, ..self }
    }

    /// Offers only TLS 1.2.
    #[must_use]
    pub fn only_tls12(self) -> Self {
        Self { only_tls12: true, ..self }
    }

    /// Accepts client certificates that a CA signed. Further calls add CAs. Requests without credentials are refused with 401.
    #[must_use]
    pub fn client_ca(mut self, authority: &Authority) -> Self {
        self.accepted.authorities.get_or_insert_default().push(authority.certificate().clone());
        self
    }

    /// Like [`Self::client_ca`], with all CAs of a PEM text.
    ///
    /// # Errors
    /// Fails if the text contains no certificate.
    pub fn client_ca_pem(mut self, text: &[u8]) -> io::Result<Self> {
        self.accepted.authorities.get_or_insert_default().extend(certificates(text)?);
        Ok(self)
    }

    /// Accepts a bearer token. Further calls add tokens. Requests without credentials are refused with 401.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.accepted.tokens.get_or_insert_default().insert(token.to_owned());
        self
    }

    /// Accepts requests without credentials as anonymous, as kubeadm clusters do. They may read `/version` and the health checks; all
    /// other requests without credentials are refused with 403.
    #[must_use]
    pub fn anonymous(mut self) -> Self {
        self.accepted.anonymous = true;
        self
    }

    /// Builds the TLS side and the authenticator of a server.
    pub(crate) fn build(self) -> io::Result<(Option<Arc<Tls>>, Arc<Authenticator>)> {
        let request_client_certificate = self.accepted.authorities.is_some();
        let tls = self.identity.map(|identity| Tls::new(&identity, self.http_versions, self.only_tls12, request_client_certificate));
        Ok((tls.transpose()?.map(Arc::new), Arc::new(Authenticator::new(self.accepted))))
    }
}
