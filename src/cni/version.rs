//! Versions of the CNI specification. PURE.

use super::error::{CniError, ErrorCode};

/// A version of the CNI specification that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// What a configuration without a version is of.
    V0_1_0,
    /// 0.2.0
    V0_2_0,
    /// Results with interfaces.
    V0_3_0,
    /// The one of flannel's conflist.
    V0_3_1,
    /// CHECK.
    V0_4_0,
    /// Addresses without a version of their own.
    V1_0_0,
    /// GC and STATUS.
    V1_1_0,
}

impl CniVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] = [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest one.
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The names of all versions.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        Self::ALL.into_iter().map(Self::as_str).collect()
    }

    /// Finds a version by its name; none is the oldest.
    ///
    /// # Errors
    /// There is no such version, or it is not spoken here [flannel 10.1].
    pub fn named(name: &str) -> Result<Self, CniError> {
        if name.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == name).ok_or_else(|| CniError {
            details: format!("config is {name:?}, plugin supports {:?}", Self::names()),
            ..CniError::new(ErrorCode::INCOMPATIBLE_VERSION, "incompatible CNI versions")
        })
    }
}
