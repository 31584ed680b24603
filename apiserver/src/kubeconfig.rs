//! Writes kubeconfig files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::certificates::Identity;

/// The credentials in a kubeconfig.
#[derive(Clone, Copy, Debug)]
pub enum User<'a> {
    /// No credentials.
    Anonymous,
    /// A client certificate.
    Certificate(&'a Identity),
    /// A bearer token.
    Token(&'a str),
}

/// Writes a kubeconfig. Omits the CA if `authority_pem` is empty.
pub(crate) fn write(url: &str, authority_pem: &str, user: &User<'_>) -> String {
    let authority = match authority_pem {
        "" => String::new(),
        pem => format!("    certificate-authority-data: {}\n", STANDARD.encode(pem)),
    };
    let user = match user {
        User::Anonymous => " {}".to_owned(),
        User::Token(token) => format!("\n    token: {token:?}"),
        User::Certificate(identity) => format!(
            "\n    client-certificate-data: {}\n    client-key-data: {}",
            STANDARD.encode(identity.chain_pem()),
            STANDARD.encode(identity.key_pem())
        ),
    };
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- name: test\n  cluster:\n    server: {url}\n{authority}\
         contexts:\n- name: test\n  context:\n    cluster: test\n    user: test\n\
         users:\n- name: test\n  user:{user}\n"
    )
}
