//! Feature gates (spec section 1.9).

use std::collections::BTreeMap;

/// A feature gate that means something to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// Its stage as metrics spell it; empty for what is generally available.
    pub stage: &'static str,
    /// Whether it is on if nobody says otherwise.
    pub default: bool,
    /// It can no longer be changed.
    pub locked: bool,
}

/// The gates that kube-proxy's code in iptables mode asks for, sorted by name.
pub const GATES: [Gate; 9] = [
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

/// Whether a gate is on. `AllAlpha` and `AllBeta` move those that nobody named.
#[must_use]
pub fn enabled(asked: &BTreeMap<String, bool>, name: &str) -> bool {
    let Some(gate) = GATES.iter().find(|gate| gate.name == name) else { return false };
    let of_stage = match gate.stage {
        "ALPHA" => asked.get("AllAlpha"),
        "BETA" => asked.get("AllBeta"),
        _ => None,
    };
    *asked.get(name).or(of_stage).unwrap_or(&gate.default)
}

/// What is wrong with gates that are locked, or whose name is none; in order of their names.
#[must_use]
pub fn problems(asked: &BTreeMap<String, bool>) -> Vec<String> {
    let problem = |(name, value): (&String, &bool)| match GATES.iter().find(|gate| gate.name == name) {
        Some(gate) if gate.locked && *value != gate.default => {
            Some(format!("cannot set feature gate {name} to {value}, feature is locked to {}", gate.default))
        }
        None if !is_name(name) => Some(format!("unrecognized feature gate: {name}")),
        _ => None,
    };
    asked.iter().filter_map(problem).collect()
}

/// Gates that are written down but mean nothing here. Kubernetes has some hundred that do not concern a proxy, and a new one every other
/// week, so a name is only refused if it cannot be one.
pub fn foreign(asked: &BTreeMap<String, bool>) -> impl Iterator<Item = &str> {
    asked.keys().map(String::as_str).filter(|name| !matches!(*name, "AllAlpha" | "AllBeta") && GATES.iter().all(|gate| gate.name != *name))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(gates: &[(&str, bool)]) -> BTreeMap<String, bool> {
        gates.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn gates_have_defaults_stages_and_locks() {
        assert!(enabled(&asked(&[]), "AllowServiceExternalIPs"));
        assert!(!enabled(&asked(&[("AllowServiceExternalIPs", false)]), "AllowServiceExternalIPs"));
        assert!(!enabled(&asked(&[("AllBeta", false)]), "ComponentFlagz"));
        assert!(enabled(&asked(&[("AllBeta", false), ("ComponentFlagz", true)]), "ComponentFlagz"));
        assert!(enabled(&asked(&[("AllAlpha", true)]), "NativeHistograms"));
        assert_eq!(
            problems(&asked(&[("MultiCIDRServiceAllocator", false), ("PreferSameTrafficDistribution", true), ("no gate", true)])),
            ["cannot set feature gate MultiCIDRServiceAllocator to false, feature is locked to true", "unrecognized feature gate: no gate"]
        );
        assert_eq!(foreign(&asked(&[("AllAlpha", true), ("SidecarContainers", true)])).collect::<Vec<_>>(), ["SidecarContainers"]);
    }
}
