//! The error of a CNI plugin: a code for the runtime and a text for its log [flannel 10.1].

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::json_keys::Json;

/// The error codes of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// The version of the configuration is not supported, or it has no such verb.
    pub(crate) const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A key of the configuration is not supported.
    pub(crate) const UNSUPPORTED_FIELD: Self = Self(2);
    /// A variable of the environment is missing or invalid.
    pub(crate) const BAD_ENVIRONMENT: Self = Self(4);
    /// Standard input cannot be read.
    pub const INPUT: Self = Self(5);
    /// The configuration cannot be decoded.
    pub(crate) const DECODE: Self = Self(6);
    /// The configuration is invalid.
    pub(crate) const BAD_CONFIG: Self = Self(7);
    /// The pod's network namespace is that of the host.
    pub(crate) const SAME_NAMESPACE: Self = Self(8);
    /// No pod can be connected now (STATUS).
    pub(crate) const NOT_AVAILABLE: Self = Self(50);
    /// Every other error.
    pub const OTHER: Self = Self(999);
}

/// Why a verb failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CniError {
    /// The error code.
    pub code: ErrorCode,
    /// The error and its cause.
    pub message: String,
    /// Details; often empty.
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl CniError {
    /// An error with this code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// An error without a code of its own.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::OTHER, message)
    }

    /// Puts words before the message. Code and details stay.
    #[must_use]
    pub fn within(self, words: &str) -> Self {
        Self { message: format!("{words}: {}", self.message), ..self }
    }

    /// Adds the error of undoing the work, if that failed, too.
    #[must_use]
    pub fn and(self, undone: Result<(), Self>) -> Self {
        match undone {
            Ok(()) => self,
            Err(other) => Self { message: format!("{}; {}", self.message, other.message), ..self },
        }
    }

    /// Returns the document that the runtime reads.
    #[must_use]
    pub fn render(&self, version: &str) -> Value {
        let mut document = json!({"cniVersion": version, "code": self.code.0, "msg": self.message});
        if !self.details.is_empty() {
            document["details"] = json!(self.details);
        }
        document
    }
}

/// Collects the errors of several steps. All steps run, and the result is the first error with the messages of the others.
#[derive(Debug, Default)]
pub struct CniErrors(Vec<CniError>);

impl CniErrors {
    /// Notes the outcome of one step.
    pub fn note<T>(&mut self, result: Result<T, CniError>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// Returns all errors as one.
    ///
    /// # Errors
    /// A step failed.
    pub(crate) fn into_result(self) -> Result<(), CniError> {
        match self.0.into_iter().reduce(|first, other| first.and(Err(other))) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}

/// Decodes a part of a configuration.
///
/// # Errors
/// A value has the wrong type: code 7, with `words` before the message.
pub fn parse<T: DeserializeOwned>(json: &Json, words: &str) -> Result<T, CniError> {
    serde_path_to_error::deserialize(json.decoder()).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        CniError::new(ErrorCode::BAD_CONFIG, format!("{words}: {place}{}", error.into_inner()))
    })
}
