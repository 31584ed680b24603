//! How a server is started.

use std::io;
use std::sync::Arc;

use crate::access::{Access, Rules};
use crate::certificates::{Authority, Identity, certificates};
use crate::tls::{Protocols, Tls};

/// How a server is started. By default it serves plain HTTP and accepts every request.
#[derive(Debug)]
pub struct Options {
    identity: Option<Identity>,
    protocols: Protocols,
    only_tls12: bool,
    rules: Rules,
}

impl Default for Options {
    fn default() -> Self {
        Self { identity: None, protocols: Protocols::Both, only_tls12: false, rules: Rules::default() }
    }
}

impl Options {
    /// Serves over TLS. The client chooses HTTP/2 or HTTP/1.1 by ALPN.
    #[must_use]
    pub fn tls(self, identity: &Identity) -> Self {
        Self { identity: Some(identity.clone()), ..self }
    }

    /// Offers no HTTP/2 over TLS.
    #[must_use]
    pub fn only_http1(self) -> Self {
        Self { protocols: Protocols::Http1, ..self }
    }

    /// Offers no HTTP/1.1 over TLS.
    #[must_use]
    pub fn only_http2(self) -> Self {
        Self { protocols: Protocols::Http2, ..self }
    }

    /// Offers no TLS 1.3.
    #[must_use]
    pub fn only_tls12(self) -> Self {
        Self { only_tls12: true, ..self }
    }

    /// Accepts client certificates of a CA; further calls add CAs. Requests without credentials are refused with 401.
    #[must_use]
    pub fn client_ca(mut self, authority: &Authority) -> Self {
        self.rules.authorities.get_or_insert_default().push(authority.certificate().clone());
        self
    }

    /// The same with the CAs of a PEM text.
    ///
    /// # Errors
    /// There is no certificate in it.
    pub fn client_ca_pem(mut self, text: &[u8]) -> io::Result<Self> {
        self.rules.authorities.get_or_insert_default().extend(certificates(text)?);
        Ok(self)
    }

    /// Accepts a bearer token; further calls add tokens. Requests without credentials are refused with 401.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.rules.tokens.get_or_insert_default().insert(token.to_owned());
        self
    }

    /// Requests without credentials are anonymous: they may read `/version` and the health checks, the rest is refused with 403. kubeadm
    /// sets up its clusters this way.
    #[must_use]
    pub fn anonymous(mut self) -> Self {
        self.rules.anonymous = true;
        self
    }

    pub(crate) fn build(self) -> io::Result<(Option<Arc<Tls>>, Arc<Access>)> {
        let asks = self.rules.authorities.is_some();
        let tls = self.identity.map(|identity| Tls::new(&identity, self.protocols, self.only_tls12, asks)).transpose()?;
        Ok((tls.map(Arc::new), Arc::new(Access::new(self.rules))))
    }
}
