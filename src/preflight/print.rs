//! Checks as text, for people, and as JSON, for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Check, Outcome, Part, passed};

const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// The report, with colours; whoever prints it where there are none takes them out.
#[must_use]
pub fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    let mut part: Option<Part> = None;
    for check in checks {
        if part != Some(check.part) {
            part = Some(check.part);
            let _ = writeln!(text, "{BOLD}{}{PLAIN}", check.part.as_str());
        }
        let (sign, colour) = match check.outcome {
            Outcome::Ok => ("\u{2713}", GREEN),
            Outcome::Warning => ("!", YELLOW),
            Outcome::Failed => ("\u{2717}", RED),
            Outcome::NotChecked => ("?", DIM),
        };
        let _ = writeln!(text, "  {colour}{sign}{PLAIN} {}: {}", check.name, check.found);
        for line in check.cure.lines() {
            let _ = writeln!(text, "      {line}");
        }
    }
    let count = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
    let [ok, warnings, failed, unknown] = [Outcome::Ok, Outcome::Warning, Outcome::Failed, Outcome::NotChecked].map(count);
    let _ = writeln!(text, "\n{ok} ok, {warnings} to think about, {failed} failed, {unknown} not checked");
    text
}

/// The report as an object: `passed`, the program's `version`, and `checks`, each with `part`, `name`, `outcome` (`ok`, `warning`, `failed`
/// or `not checked`), `found` and `cure` (null where there is none).
#[must_use]
pub fn json(checks: &[Check]) -> Value {
    let cure = |check: &Check| (!check.cure.is_empty()).then(|| check.cure.clone());
    let one = |check: &Check| json!({"part": check.part.as_str(), "name": check.name, "outcome": check.outcome.as_str(), "found": check.found, "cure": cure(check)});
    json!({"passed": passed(checks), "version": env!("CARGO_PKG_VERSION"), "checks": checks.iter().map(one).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_heads_and_cures_stand_below() {
        let checks = [
            Check::ok(Part::Iptables, "version", "1.8.9"),
            Check::failed(Part::Cluster, "permissions", "not allowed: list nodes", "rules:\n  - x"),
            Check::not_checked(Part::Cluster, "Node", "no connection"),
        ];
        let plain = [RED, YELLOW, GREEN, DIM, BOLD, PLAIN].iter().fold(text(&checks), |text, code| text.replace(code, ""));
        let wanted = "iptables\n  \u{2713} version: 1.8.9\ncluster\n  \u{2717} permissions: not allowed: list nodes\n      rules:\n        - x\n  ? Node: no connection\n\n1 ok, 0 to think about, 1 failed, 1 not checked\n";
        assert_eq!(plain, wanted);
        let object = json(&checks);
        assert_eq!(object["passed"], false);
        assert_eq!(object["checks"][1]["cure"], "rules:\n  - x");
        assert_eq!(object["checks"][0]["cure"], Value::Null);
    }
}
