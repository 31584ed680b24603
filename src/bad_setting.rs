//! The error for a setting that cannot be used.

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {cause}")]
pub struct BadSetting {
    /// The field, as the configuration spells it.
    pub field: String,
    /// What is wrong and what would be right.
    pub cause: String,
}
