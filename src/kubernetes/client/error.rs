//! Why a request has no answer.

use std::error::Error;
use std::io;

/// A request without an answer: where it went, and why nothing came back, in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct RequestError {
    text: String,
    /// What the system said, where it said something; it stands in the sentence, too.
    #[source]
    cause: Option<io::Error>,
}

impl RequestError {
    pub(super) const fn new(text: String) -> Self {
        Self { text, cause: None }
    }

    /// A sentence that ends with the innermost cause of an error. Outer errors of connectors only say that connecting failed.
    pub(super) fn caused(before: &str, error: &(dyn Error + 'static)) -> Self {
        let cause = innermost(error);
        Self { text: format!("{before}: {}", plain(&cause.to_string())), cause: system_error(cause) }
    }

    /// The same error once more, for another owner.
    pub(super) fn copy(&self) -> Self {
        Self { text: self.text.clone(), cause: self.cause.as_ref().and_then(|cause| system_error(cause)) }
    }
}

/// What texts of libraries mean here. Others stay as they are.
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
