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
        Self { text: format!("{before}: {cause}"), cause: system_error(cause) }
    }

    /// The same error once more, for another owner.
    pub(super) fn copy(&self) -> Self {
        Self { text: self.text.clone(), cause: self.cause.as_ref().and_then(|cause| system_error(cause)) }
    }
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
