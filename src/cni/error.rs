//! The error of a CNI plugin: a code for the runtime and a text for its log [flannel 10.1].

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::json_keys::Json;

/// Kinds of failures, by their numbers in the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// The version of the configuration is not one of those supported, or does not have the verb.
    pub(crate) const INCOMPATIBLE_VERSION: Self = Self(1);
    /// A key of the configuration is not supported.
    pub(crate) const UNSUPPORTED_FIELD: Self = Self(2);
    /// The environment is not as a runtime makes it.
    pub(crate) const BAD_ENVIRONMENT: Self = Self(4);
    /// Standard input cannot be read.
    pub const INPUT: Self = Self(5);
    /// The configuration cannot be decoded.
    pub(crate) const DECODE: Self = Self(6);
    /// The configuration makes no sense.
    pub(crate) const BAD_CONFIG: Self = Self(7);
    /// The pod's network namespace is the host's.
    pub(crate) const SAME_NAMESPACE: Self = Self(8);
    /// No pod can be connected at present (STATUS).
    pub(crate) const NOT_AVAILABLE: Self = Self(50);
    /// Anything else.
    pub const OTHER: Self = Self(999);
}

/// Why a verb was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CniError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What happened.
    pub message: String,
    /// More about it; often empty.
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl CniError {
    /// A failure of this kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// A failure without a number of its own.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::OTHER, message)
    }

    /// The same with words before it; number and details stay.
    #[must_use]
    pub fn within(self, words: &str) -> Self {
        Self { message: format!("{words}: {}", self.message), ..self }
    }

    /// The same, with what went wrong while it was undone.
    #[must_use]
    pub fn and(self, undone: Result<(), Self>) -> Self {
        match undone {
            Ok(()) => self,
            Err(other) => Self { message: format!("{}; {}", self.message, other.message), ..self },
        }
    }

    /// The document that a runtime reads.
    #[must_use]
    pub fn render(&self, version: &str) -> Value {
        let mut document = json!({"cniVersion": version, "code": self.code.0, "msg": self.message});
        if !self.details.is_empty() {
            document["details"] = json!(self.details);
        }
        document
    }
}

/// Gives every failure a chance to be seen: all of what can be done is done, and the first failure is what is told, with the others.
#[derive(Debug, Default)]
pub struct CniErrors(Vec<CniError>);

impl CniErrors {
    /// Takes the outcome of one piece of work.
    pub fn note<T>(&mut self, result: Result<T, CniError>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// What came of all of it.
    ///
    /// # Errors
    /// Something failed.
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
/// A value is of the wrong type; number 7, with these words before it.
pub fn parse<T: DeserializeOwned>(json: &Json, words: &str) -> Result<T, CniError> {
    serde_path_to_error::deserialize(json.decoder()).map_err(|error| {
        let path = error.path().to_string();
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        CniError::new(ErrorCode::BAD_CONFIG, format!("{words}: {place}{}", error.into_inner()))
    })
}
