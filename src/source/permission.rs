//! Permissions that requests need, and how to give one that is missing.

use std::fmt;

/// What must be allowed to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The verb: `patch`.
    pub verb: &'static str,
    /// API group; empty for core.
    pub group: &'static str,
    /// The resource, with its subresource: `nodes/status`.
    pub resource: &'static str,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, group, resource } = self;
        write!(
            f,
            "the verb {verb} on {resource} is missing: add to the rules of its role \
             {{apiGroups: [\"{group}\"], resources: [\"{resource}\"], verbs: [\"{verb}\"]}}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_rule_can_be_pasted() {
        let permission = Permission { verb: "patch", group: "", resource: "nodes/status" };
        let rule = "{apiGroups: [\"\"], resources: [\"nodes/status\"], verbs: [\"patch\"]}";
        assert_eq!(permission.to_string(), format!("the verb patch on nodes/status is missing: add to the rules of its role {rule}"));
    }
}
