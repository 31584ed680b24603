//! Failures that a test injects: which requests fail, how often and how.

use std::time::Duration;

use crate::status_error::StatusError;

/// A failure that a test injects with `ApiServer::fail`. It says which requests fail, how often and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectedFailure {
    /// How many requests still fail.
    pub(crate) count: u32,
    /// How long all matching requests fail, regardless of `count`.
    pub(crate) time: Duration,
    /// Text that path and query must contain.
    path: String,
    scope: Scope,
    form: FailureForm,
    code: u16,
    message: Option<String>,
    retry_after: Option<u32>,
}

/// The sort of requests that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Any,
    Watches,
    StreamingLists,
}

/// The form in which requests fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FailureForm {
    /// A `Status` object.
    Status,
    /// A text body.
    Text(String),
    /// Code 200 and a watch event of type ERROR.
    ErrorEvent,
    /// Code 504 with the reason that the resource version is too large.
    VersionTooLarge,
    /// Code 200, and then no body and no end of the body.
    Silent,
    /// The connection breaks before the response.
    Closed,
    /// A watch ends after its initial events, without the bookmark that ends them.
    Ended,
    /// A watch omits the bookmark that ends its initial events, and continues.
    WithoutBookmark,
}

impl InjectedFailure {
    /// The next `count` requests fail with a status code. A code outside of 400 to 599 becomes 500.
    #[must_use]
    pub fn next(count: u32, code: u16) -> Self {
        let code = if (400..600).contains(&code) { code } else { 500 };
        let (path, message) = (String::new(), None);
        Self { count, time: Duration::ZERO, path, scope: Scope::Any, form: FailureForm::Status, code, message, retry_after: None }
    }

    /// Every request fails for a time.
    #[must_use]
    pub fn during(time: Duration, code: u16) -> Self {
        Self::next(0, code).for_time(time)
    }

    /// Every request fails, until the failure is replaced or stopped.
    #[must_use]
    pub fn always(code: u16) -> Self {
        Self::during(Duration::MAX, code)
    }

    /// Every streaming list fails as it does with kube-apiserver 1.36 and an etcd that is too old for streaming lists.
    #[must_use]
    pub fn old_etcd() -> Self {
        let message = "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
        Self::always(500).streaming().as_event().message(message)
    }

    pub(crate) fn for_time(self, time: Duration) -> Self {
        Self { time, ..self }
    }

    /// Limits the failure to requests whose path and query contain a text.
    #[must_use]
    pub fn at(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Limits the failure to watches.
    #[must_use]
    pub fn watches(self) -> Self {
        Self { scope: Scope::Watches, ..self }
    }

    /// Limits the failure to streaming lists: watches with `sendInitialEvents=true`.
    #[must_use]
    pub fn streaming(self) -> Self {
        Self { scope: Scope::StreamingLists, ..self }
    }

    /// Sets the message of the `Status`.
    #[must_use]
    pub fn message(self, message: &str) -> Self {
        Self { message: Some(message.to_owned()), ..self }
    }

    /// Adds a time to wait to the `Retry-After` header and to the `Status`.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Sends this text as the body instead of a `Status`.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.with_form(FailureForm::Text(text.to_owned()))
    }

    /// Watches get code 200 and an event of type ERROR that holds the `Status`. Other requests do not fail.
    #[must_use]
    pub fn as_event(self) -> Self {
        self.with_form(FailureForm::ErrorEvent)
    }

    /// Requests get code 504, as for a resource version that the server has not reached.
    #[must_use]
    pub fn too_large_resource_version(self) -> Self {
        self.with_form(FailureForm::VersionTooLarge)
    }

    /// Requests get code 200, and then neither a body nor its end.
    #[must_use]
    pub fn silent(self) -> Self {
        self.with_form(FailureForm::Silent)
    }

    /// The connection breaks before the response.
    #[must_use]
    pub fn closed(self) -> Self {
        self.with_form(FailureForm::Closed)
    }

    /// Watches end after their initial events, without the bookmark that ends them. Other requests do not fail.
    #[must_use]
    pub fn ended(self) -> Self {
        self.with_form(FailureForm::Ended)
    }

    /// Watches omit the bookmark that ends their initial events, and continue. Other requests do not fail.
    #[must_use]
    pub fn without_bookmark(self) -> Self {
        self.with_form(FailureForm::WithoutBookmark)
    }

    pub(crate) fn with_form(self, form: FailureForm) -> Self {
        Self { form, ..self }
    }

    pub(crate) const fn form(&self) -> &FailureForm {
        &self.form
    }

    pub(crate) const fn code(&self) -> u16 {
        self.code
    }

    pub(crate) const fn retry_after_seconds(&self) -> Option<u32> {
        self.retry_after
    }

    /// The `Status` of failed requests.
    pub(crate) fn status_error(&self) -> StatusError {
        StatusError::injected(self.code, self.message.as_deref(), self.retry_after)
    }

    /// True if the failure applies to a request.
    pub(crate) fn matches(&self, path: &str, is_watch: bool, is_streaming_list: bool) -> bool {
        let only_watches = matches!(self.form, FailureForm::ErrorEvent | FailureForm::Ended | FailureForm::WithoutBookmark);
        let in_scope = match self.scope {
            Scope::Any => is_watch || !only_watches,
            Scope::Watches => is_watch,
            Scope::StreamingLists => is_streaming_list,
        };
        in_scope && path.contains(&self.path)
    }
}
