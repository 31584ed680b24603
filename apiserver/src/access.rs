//! Authentication: client certificates and bearer tokens.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::pki_types::CertificateDer;

use crate::refusal::Refusal;
use crate::tls;

/// The accepted credentials. Without CAs and tokens, every request is accepted.
#[derive(Debug, Default)]
pub(crate) struct Access(Mutex<Rules>);

#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// CAs that sign client certificates.
    pub(crate) authorities: Option<Vec<CertificateDer<'static>>>,
    pub(crate) tokens: Option<BTreeSet<String>>,
    /// Requests without credentials belong to an anonymous user, who has no permissions. Otherwise they are refused with 401.
    pub(crate) anonymous: bool,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    Known,
    Anonymous,
}

impl Access {
    pub(crate) fn new(rules: Rules) -> Self {
        Self(Mutex::new(rules))
    }

    pub(crate) fn rules(&self) -> MutexGuard<'_, Rules> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the credentials of a request. One valid credential is enough.
    pub(crate) fn check(&self, chain: &[CertificateDer<'_>], authorization: Option<&str>) -> Result<Caller, Refusal> {
        let rules = self.rules();
        if rules.authorities.is_none() && rules.tokens.is_none() {
            return Ok(Caller::Known);
        }
        let token = authorization.and_then(bearer);
        let authorities = rules.authorities.as_deref().unwrap_or_default();
        let good = tls::is_accepted(chain, authorities)
            || token.is_some_and(|token| rules.tokens.as_ref().is_some_and(|tokens| tokens.contains(token)));
        if good {
            Ok(Caller::Known)
        } else if rules.anonymous && chain.is_empty() && token.is_none() {
            Ok(Caller::Anonymous)
        } else {
            Err(Refusal::unauthorized())
        }
    }
}

/// The token of an `Authorization` header.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
