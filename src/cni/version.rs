//! Versions of the CNI specification. PURE.

use super::error::{CniError, ErrorCode};

/// A version of the CNI specification that this program supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// The version of a configuration that names none.
    V0_1_0,
    /// 0.2.0
    V0_2_0,
    /// The first version with interfaces in results.
    V0_3_0,
    /// The version in flannel's conflist.
    V0_3_1,
    /// The first version with CHECK.
    V0_4_0,
    /// The first version whose addresses have no `version` key.
    V1_0_0,
    /// The first version with GC and STATUS.
    V1_1_0,
}

impl CniVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] = [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest version.
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    /// Returns its name.
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

    /// Returns the names of all versions.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        Self::ALL.into_iter().map(Self::as_str).collect()
    }

    /// Finds a version by its name. No name means the oldest version.
    ///
    /// # Errors
    /// The version does not exist or is not supported [flannel 10.1].
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
