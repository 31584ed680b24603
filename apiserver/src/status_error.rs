//! Errors in the form and with the messages of kube-apiserver.

use serde_json::{Map, Value, json};

use crate::resource::Resource;

/// An error that the API server returns as a `Status` object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StatusError {
    code: u16,
    reason: &'static str,
    message: String,
    details: Map<String, Value>,
}

impl StatusError {
    /// HTTP status code.
    #[must_use]
    pub const fn code(&self) -> u16 {
        self.code
    }

    /// Reason in one word, such as `NotFound`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.reason
    }

    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Map::new() }
    }

    /// Adds the details of the object that the error is about.
    fn about(mut self, resource: Resource, name: &str) -> Self {
        self.details = details(resource, name);
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn not_found(resource: Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", resource.qualified())).about(resource, name)
    }

    pub(crate) fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    pub(crate) fn already_exists(resource: Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", resource.qualified())).about(resource, name)
    }

    pub(crate) fn conflict(resource: Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified());
        Self::new(409, "Conflict", message).about(resource, name)
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    pub(crate) fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// The request as a whole is invalid.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// A field of an object is invalid. `subject` is the kind or the qualified resource: kube-apiserver uses both, depending on the check.
    pub(crate) fn invalid_object(resource: Resource, subject: &str, name: &str, why: &str) -> Self {
        Self::new(422, "Invalid", format!("{subject} \"{name}\" is invalid: {why}")).about(resource, name)
    }

    /// The requested resource version is higher than the current one.
    pub(crate) fn version_too_large(requested: u64, current: u64) -> Self {
        let mut error = Self::new(504, "Timeout", format!("Timeout: Too large resource version: {requested}, current: {current}"));
        error.details = into_map(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            RETRY_AFTER: 1,
        }));
        error
    }

    /// RBAC denies access to a resource. `object` is empty for a whole collection, `namespace` is empty for all namespaces, `attempt` is
    /// verb and resource.
    pub(crate) fn forbidden(user: &str, resource: Resource, object: &str, namespace: &str, attempt: (&str, &str)) -> Self {
        let (verb, attempted) = attempt;
        let subject = if object.is_empty() { resource.qualified() } else { format!("{} \"{object}\"", resource.qualified()) };
        let scope = if namespace.is_empty() { "at the cluster scope".to_owned() } else { format!("in the namespace \"{namespace}\"") };
        let group = resource.group;
        let message =
            format!("{subject} is forbidden: User \"{user}\" cannot {verb} resource \"{attempted}\" in API group \"{group}\" {scope}");
        Self::new(403, "Forbidden", message).about(resource, object)
    }

    /// RBAC denies access to a path that belongs to no resource.
    pub(crate) fn forbidden_path(user: &str, path: &str) -> Self {
        Self::new(403, "Forbidden", format!("forbidden: User \"{user}\" cannot get path \"{path}\""))
    }

    /// A failure that a test asked for.
    pub(crate) fn injected(code: u16, message: Option<&str>, retry_after: Option<u32>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            406 => "NotAcceptable",
            409 => "Conflict",
            410 => "Expired",
            413 => "RequestEntityTooLarge",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            500 => "InternalError",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "Unknown",
        };
        let default = if code == 500 { "Internal error occurred: asked to fail" } else { "asked to fail" };
        let mut error = Self::new(code, reason, message.unwrap_or(default));
        if let Some(seconds) = retry_after {
            error.details.insert(RETRY_AFTER.into(), seconds.into());
        }
        error
    }

    /// Seconds that the client should wait before it tries again.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.details.get(RETRY_AFTER).and_then(Value::as_u64)
    }

    pub(crate) fn internal(why: &str) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {why}"))
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_empty() {
            status["details"] = Value::Object(self.details.clone());
        }
        status
    }
}

/// Field in the details of a `Status`: seconds that the client should wait.
const RETRY_AFTER: &str = "retryAfterSeconds";
/// The user of requests without credentials.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// The user of all authenticated requests.
pub(crate) const USER: &str = "system:serviceaccount:kube-system:sepal";

/// The `details` of a `Status` about an object.
pub(crate) fn details(resource: Resource, name: &str) -> Map<String, Value> {
    let fields = [("name", name), ("group", resource.group), ("kind", resource.plural)];
    fields.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key.to_owned(), text.into())).collect()
}

fn into_map(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}
