//! Prints the checks as text for people and as JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Check, CheckGroup, CheckOutcome, passed};

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// Prints the report as coloured text. The caller removes the colours if the output is no terminal.
#[must_use]
pub(crate) fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    let mut group: Option<CheckGroup> = None;
    for check in checks {
        if group != Some(check.group) {
            group = Some(check.group);
            let _ = writeln!(text, "{BOLD}{}{PLAIN}", check.group.as_str());
        }
        let (sign, colour) = match check.outcome {
            CheckOutcome::Ok => ("\u{2713}", GREEN),
            CheckOutcome::Warning => ("!", YELLOW),
            CheckOutcome::Failed => ("\u{2717}", RED),
            CheckOutcome::NotChecked => ("?", DIM),
        };
        let _ = writeln!(text, "  {colour}{sign}{PLAIN} {}: {}", check.name, check.found);
        for line in check.cure.lines() {
            let _ = writeln!(text, "      {line}");
        }
    }
    let count = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
    let [ok, warnings, failed, unknown] =
        [CheckOutcome::Ok, CheckOutcome::Warning, CheckOutcome::Failed, CheckOutcome::NotChecked].map(count);
    let _ = writeln!(text, "\n{ok} ok, {warnings} warnings, {failed} failed, {unknown} not checked");
    text
}

/// Returns the report as a JSON object: `passed`, the program's `version`, and `checks`, each with `part`, `name`, `outcome` (`ok`,
/// `warning`, `failed` or `not checked`), `found` and `cure` (null if there is none).
#[must_use]
pub(crate) fn json(checks: &[Check]) -> Value {
    let cure = |check: &Check| (!check.cure.is_empty()).then(|| check.cure.clone());
    let one = |check: &Check| json!({"part": check.group.as_str(), "name": check.name, "outcome": check.outcome.as_str(), "found": check.found, "cure": cure(check)});
    json!({"passed": passed(checks), "version": env!("CARGO_PKG_VERSION"), "checks": checks.iter().map(one).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_headings_and_cures_are_indented() {
        let checks = [
            Check::ok(CheckGroup::Iptables, "version", "1.8.9"),
            Check::failed(CheckGroup::Cluster, "permissions", "not allowed: list nodes", "rules:\n  - x"),
            Check::not_checked(CheckGroup::Cluster, "Node", "no connection"),
        ];
        let plain = [RED, YELLOW, GREEN, DIM, BOLD, PLAIN].iter().fold(text(&checks), |text, code| text.replace(code, ""));
        let expected = "iptables\n  \u{2713} version: 1.8.9\ncluster\n  \u{2717} permissions: not allowed: list nodes\n      rules:\n        - x\n  ? Node: no connection\n\n1 ok, 0 warnings, 1 failed, 1 not checked\n";
        assert_eq!(plain, expected);
        let object = json(&checks);
        assert_eq!(object["passed"], false);
        assert_eq!(object["checks"][1]["cure"], "rules:\n  - x");
        assert_eq!(object["checks"][0]["cure"], Value::Null);
    }
}
