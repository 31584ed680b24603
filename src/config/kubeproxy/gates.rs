//! Feature gates [kube-proxy 1.9].

use std::collections::BTreeMap;

/// A feature gate that affects the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// Its stage as metrics spell it; empty for general availability.
    pub stage: &'static str,
    /// The value that it has if it is not set.
    pub default: bool,
    /// It can no longer be set to another value.
    pub locked: bool,
}

/// The gates that kube-proxy reads in iptables mode, sorted by name.
pub(crate) const GATES: [Gate; 9] = [
    Gate { name: "AllowServiceExternalIPs", stage: "", default: true, locked: false },
    Gate { name: "ComponentFlagz", stage: "BETA", default: true, locked: false },
    Gate { name: "ComponentStatusz", stage: "BETA", default: true, locked: false },
    Gate { name: "ContextualLogging", stage: "BETA", default: true, locked: false },
    Gate { name: "LoggingAlphaOptions", stage: "ALPHA", default: false, locked: false },
    Gate { name: "LoggingBetaOptions", stage: "BETA", default: true, locked: false },
    Gate { name: "MultiCIDRServiceAllocator", stage: "", default: true, locked: true },
    Gate { name: "NativeHistograms", stage: "ALPHA", default: false, locked: false },
    Gate { name: "PreferSameTrafficDistribution", stage: "", default: true, locked: true },
];

/// True if a gate is on. `AllAlpha` and `AllBeta` set the gates of their stage that are not set by name.
#[must_use]
pub(crate) fn enabled(set: &BTreeMap<String, bool>, name: &str) -> bool {
    let Some(gate) = GATES.iter().find(|gate| gate.name == name) else { return false };
    let of_stage = match gate.stage {
        "ALPHA" => set.get("AllAlpha"),
        "BETA" => set.get("AllBeta"),
        _ => None,
    };
    *set.get(name).or(of_stage).unwrap_or(&gate.default)
}

/// The errors of gates: a locked gate that is changed, or an invalid name. Sorted by name.
#[must_use]
pub fn problems(set: &BTreeMap<String, bool>) -> Vec<String> {
    let problem = |(name, value): (&String, &bool)| match GATES.iter().find(|gate| gate.name == name) {
        Some(gate) if gate.locked && *value != gate.default => {
            Some(format!("cannot set feature gate {name} to {value}, feature is locked to {}", gate.default))
        }
        None if !is_name(name) => Some(format!("unrecognized feature gate: {name}")),
        _ => None,
    };
    set.iter().filter_map(problem).collect()
}

/// Gates that are set but do not affect the proxy. Kubernetes has some hundred of them, and a new one every other week. So a name is only
/// refused if it is not a valid name.
pub fn unknown(set: &BTreeMap<String, bool>) -> impl Iterator<Item = &str> {
    set.keys().map(String::as_str).filter(|name| !matches!(*name, "AllAlpha" | "AllBeta") && GATES.iter().all(|gate| gate.name != *name))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(gates: &[(&str, bool)]) -> BTreeMap<String, bool> {
        gates.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn gates_have_defaults_stages_and_locks() {
        assert!(enabled(&set(&[]), "AllowServiceExternalIPs"));
        assert!(!enabled(&set(&[("AllowServiceExternalIPs", false)]), "AllowServiceExternalIPs"));
        assert!(!enabled(&set(&[("AllBeta", false)]), "ComponentFlagz"));
        assert!(enabled(&set(&[("AllBeta", false), ("ComponentFlagz", true)]), "ComponentFlagz"));
        assert!(enabled(&set(&[("AllAlpha", true)]), "NativeHistograms"));
        assert_eq!(
            problems(&set(&[("MultiCIDRServiceAllocator", false), ("PreferSameTrafficDistribution", true), ("no gate", true)])),
            ["cannot set feature gate MultiCIDRServiceAllocator to false, feature is locked to true", "unrecognized feature gate: no gate"]
        );
        assert_eq!(unknown(&set(&[("AllAlpha", true), ("SidecarContainers", true)])).collect::<Vec<_>>(), ["SidecarContainers"]);
    }
}
