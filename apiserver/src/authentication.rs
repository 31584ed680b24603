//! Authenticates requests by client certificate and bearer token.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::pki_types::CertificateDer;

use crate::status_error::StatusError;
use crate::tls;

/// Checks the credentials of requests.
#[derive(Debug, Default)]
pub(crate) struct Authenticator(Mutex<AcceptedCredentials>);

/// The credentials that a server accepts. If `authorities` and `tokens` are both `None`, it accepts every request.
#[derive(Debug, Default)]
pub(crate) struct AcceptedCredentials {
    /// CAs that sign client certificates.
    pub(crate) authorities: Option<Vec<CertificateDer<'static>>>,
    pub(crate) tokens: Option<BTreeSet<String>>,
    /// True: requests without credentials belong to the anonymous user, which has no permissions. False: they are refused with 401.
    pub(crate) anonymous: bool,
}

/// The user that sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Authenticated,
    Anonymous,
}

impl Authenticator {
    pub(crate) fn new(accepted: AcceptedCredentials) -> Self {
        Self(Mutex::new(accepted))
    }

    /// Locks the accepted credentials. A test changes them while the server runs.
    pub(crate) fn accepted(&self) -> MutexGuard<'_, AcceptedCredentials> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the credentials of a request. One valid credential is enough.
    pub(crate) fn check(&self, chain: &[CertificateDer<'_>], authorization: Option<&str>) -> Result<Caller, StatusError> {
        let accepted = self.accepted();
        if accepted.authorities.is_none() && accepted.tokens.is_none() {
            return Ok(Caller::Authenticated);
        }
        let token = authorization.and_then(bearer_token);
        let authorities = accepted.authorities.as_deref().unwrap_or_default();
        let is_valid = tls::is_accepted(chain, authorities)
            || token.is_some_and(|token| accepted.tokens.as_ref().is_some_and(|tokens| tokens.contains(token)));
        if is_valid {
            Ok(Caller::Authenticated)
        } else if accepted.anonymous && chain.is_empty() && token.is_none() {
            Ok(Caller::Anonymous)
        } else {
            Err(StatusError::unauthorized())
        }
    }
}

/// The token in an `Authorization` header; `None` if its scheme is not `Bearer`.
fn bearer_token(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
