//! Parses the API server's address in kubeconfigs and flags as client-go does (`rest.DefaultServerURL`).

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use percent_encoding::percent_decode_str;

/// An address that is not valid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadUrl {
    /// The text cannot be read as a URL or as `host:port`.
    #[error("{0:?} is neither a URL like https://10.0.0.1:6443 nor host:port")]
    Unreadable(String),
    /// The scheme is not allowed for this URL.
    #[error("{url:?} has the scheme {scheme:?}; {known} are known")]
    Scheme {
        /// The URL, without a password.
        url: String,
        /// Its scheme.
        scheme: String,
        /// The allowed schemes.
        known: &'static str,
    },
}

/// The user name and the password of a URL, decoded.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct UserInfo {
    /// The name.
    pub user: String,
    /// The password; empty if there is none.
    pub password: String,
}

impl UserInfo {
    /// The value of an `Authorization` or `Proxy-Authorization` header (RFC 7617).
    #[must_use]
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", self.user, self.password)))
    }
}

impl fmt::Debug for UserInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserInfo").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A URL without user and password, and the user beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    /// Scheme, host, port and path; never a user or password.
    pub uri: Uri,
    /// The user that the URL names.
    pub user: Option<UserInfo>,
}

impl Url {
    /// Reads a URL. A text without a scheme gets `default_scheme`.
    ///
    /// # Errors
    /// The text is not a URL, or has another scheme than the `known` ones.
    pub(super) fn parse(text: &str, default_scheme: &str, known: &'static str) -> Result<Self, BadUrl> {
        let text = text.trim();
        let hidden = || BadUrl::Unreadable(without_password(text));
        let full = if text.contains("://") { text.to_owned() } else { format!("{default_scheme}://{text}") };
        let (scheme, rest) = full.split_once("://").ok_or_else(hidden)?;
        let scheme = scheme.to_ascii_lowercase();
        if !known.split([',', ' ']).any(|one| one == scheme) {
            return Err(BadUrl::Scheme { url: without_password(text), scheme, known });
        }
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user_info(user)), host),
            None => (None, authority),
        };
        // Queries and fragments of a server's URL are ignored.
        let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let authority: Authority = host.parse().map_err(|_| hidden())?;
        let port = &authority.as_str()[authority.host().len()..];
        let fine = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        if authority.host().is_empty() || !fine {
            return Err(hidden());
        }
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme.parse::<Scheme>().map_err(|_| hidden())?);
        parts.authority = Some(authority);
        parts.path_and_query = Some(if path.is_empty() { PathAndQuery::from_static("/") } else { path.parse().map_err(|_| hidden())? });
        Ok(Self { uri: Uri::from_parts(parts).map_err(|_| hidden())?, user })
    }

    /// True if the connection uses TLS.
    #[must_use]
    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Uri` prints `/` for an empty path.
        f.write_str(self.uri.to_string().trim_end_matches('/'))
    }
}

/// The host of a URI: a name or an address, without the brackets of IPv6.
#[must_use]
pub(super) fn host_of(uri: &Uri) -> &str {
    let host = uri.host().unwrap_or_default();
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn user_info(text: &str) -> UserInfo {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    UserInfo { user: decoded(user), password: decoded(password) }
}

/// The text of a URL with `***` in place of its password.
#[must_use]
pub(crate) fn without_password(text: &str) -> String {
    let (before, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{before}***@{host}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "http, https";

    fn parse(text: &str) -> Result<Url, BadUrl> {
        Url::parse(text, "http", KNOWN)
    }

    #[test]
    fn urls_are_read_as_client_go_reads_them() {
        for (text, url, host, tls) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443", "10.0.0.1", true),
            ("HTTPS://k8s.example/", "https://k8s.example", "k8s.example", true),
            ("127.0.0.1:8077", "http://127.0.0.1:8077", "127.0.0.1", false),
            ("localhost:8080", "http://localhost:8080", "localhost", false),
            ("k8s", "http://k8s", "k8s", false),
            ("[fd00::1]:6443", "http://[fd00::1]:6443", "fd00::1", false),
            ("https://rancher.example/k8s/clusters/c-1/?x=1#y", "https://rancher.example/k8s/clusters/c-1", "rancher.example", true),
        ] {
            let parsed = parse(text).expect(text);
            assert_eq!((parsed.to_string().as_str(), host_of(&parsed.uri), parsed.is_tls()), (url, host, tls), "{text}");
            assert_eq!(parsed.user, None);
        }
    }

    #[test]
    fn a_password_is_decoded_and_never_shown() {
        let url = parse("https://me:s%40cret:x@10.0.0.1:6443").expect("a URL");
        assert_eq!(url.to_string(), "https://10.0.0.1:6443");
        let user = url.user.clone().expect("a user");
        assert_eq!((user.user.as_str(), user.password.as_str()), ("me", "s@cret:x"));
        assert_eq!(user.basic(), format!("Basic {}", BASE64_STANDARD.encode("me:s@cret:x")));
        assert!(!format!("{url:?}").contains("cret"), "{url:?}");
        for bad in ["ftp://me:secret@host", "https://me:secret@ho st", "me:secret@:80:80"] {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for bad in ["", "https://", "https://host:99999", "https://host:", "http://[::1", "https:///path", "::1", "a b"] {
            assert!(matches!(parse(bad), Err(BadUrl::Unreadable(_))), "{bad}: {:?}", parse(bad));
        }
        let error = parse("unix:///run/x.sock").expect_err("a socket").to_string();
        assert_eq!(error, "\"unix:///run/x.sock\" has the scheme \"unix\"; http, https are known");
    }
}
