//! Requests that are to fail: which, how often and how.

use std::time::Duration;

use crate::refusal::Refusal;

/// Requests that are to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub(crate) count: u32,
    pub(crate) time: Duration,
    path: String,
    scope: Scope,
    form: Form,
    code: u16,
    message: Option<String>,
    retry_after: Option<u32>,
}

/// Which requests fail, besides their path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Any,
    Watches,
    StreamingLists,
}

/// How requests fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// With a `Status` object.
    Status,
    /// With a body that is text.
    Text(String),
    /// With code 200 and a watch event of type ERROR.
    Event,
    /// With 504: the resource version lies in the future.
    TooLarge,
    /// With code 200 and nothing more.
    Silence,
    /// The connection breaks before there is an answer.
    Close,
    /// A watch ends behind its initial events, without a bookmark.
    Ended,
    /// A watch goes on behind its initial events, without a bookmark that ends them.
    NoBookmark,
}

impl Failure {
    /// The next requests fail with a status code; one that is no error becomes 500.
    #[must_use]
    pub fn next(count: u32, code: u16) -> Self {
        let code = if (400..600).contains(&code) { code } else { 500 };
        let (path, message) = (String::new(), None);
        Self { count, time: Duration::ZERO, path, scope: Scope::Any, form: Form::Status, code, message, retry_after: None }
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

    /// Every streaming list fails as it does with kube-apiserver 1.36 in front of an etcd that is too old for it.
    #[must_use]
    pub fn old_etcd() -> Self {
        let message = "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
        Self::always(500).streaming().as_event().message(message)
    }

    pub(crate) fn for_time(self, time: Duration) -> Self {
        Self { time, ..self }
    }

    /// Only requests whose path and query contain a text.
    #[must_use]
    pub fn at(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Only watches.
    #[must_use]
    pub fn watches(self) -> Self {
        Self { scope: Scope::Watches, ..self }
    }

    /// Only streaming lists: watches with `sendInitialEvents=true`.
    #[must_use]
    pub fn streaming(self) -> Self {
        Self { scope: Scope::StreamingLists, ..self }
    }

    /// With this message.
    #[must_use]
    pub fn message(self, message: &str) -> Self {
        Self { message: Some(message.to_owned()), ..self }
    }

    /// The answer asks clients to wait: in the header `Retry-After`, and in the `Status`.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The body is this text, and no `Status`.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.form(Form::Text(text.to_owned()))
    }

    /// Watches are answered with 200 and an event of type ERROR that holds the `Status`. Other requests do not fail.
    #[must_use]
    pub fn as_event(self) -> Self {
        self.form(Form::Event)
    }

    /// The code is 504, as for a resource version that the server has not reached.
    #[must_use]
    pub fn too_large_resource_version(self) -> Self {
        self.form(Form::TooLarge)
    }

    /// Requests are answered with 200, and nothing follows.
    #[must_use]
    pub fn silent(self) -> Self {
        self.form(Form::Silence)
    }

    /// The connection breaks before an answer.
    #[must_use]
    pub fn closed(self) -> Self {
        self.form(Form::Close)
    }

    /// Watches end behind their initial events, before the bookmark that says so. Other requests do not fail.
    #[must_use]
    pub fn ended(self) -> Self {
        self.form(Form::Ended)
    }

    /// Watches send no bookmark behind their initial events, but go on. Other requests do not fail.
    #[must_use]
    pub fn without_bookmark(self) -> Self {
        self.form(Form::NoBookmark)
    }

    pub(crate) fn form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    pub(crate) const fn how(&self) -> &Form {
        &self.form
    }

    pub(crate) const fn code(&self) -> u16 {
        self.code
    }

    pub(crate) const fn retry_after_seconds(&self) -> Option<u32> {
        self.retry_after
    }

    /// The `Status` it fails with.
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal::ordered(self.code, self.message.as_deref(), self.retry_after)
    }

    /// True if a request is meant.
    pub(crate) fn fits(&self, path: &str, is_watch: bool, is_streaming: bool) -> bool {
        let only_watches = matches!(self.form, Form::Event | Form::Ended | Form::NoBookmark);
        let in_scope = match self.scope {
            Scope::Any => is_watch || !only_watches,
            Scope::Watches => is_watch,
            Scope::StreamingLists => is_streaming,
        };
        in_scope && path.contains(&self.path)
    }
}
