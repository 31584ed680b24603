//! The error for an invalid setting.

/// An invalid setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {cause}")]
pub struct BadSetting {
    /// The field, as it is written in the configuration.
    pub field: String,
    /// What is wrong, and which values are valid.
    pub cause: String,
}
