//! Groups the differences between two sets of tables by Service, for operators who know their Services but not the chain names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use super::Table;
use super::parse::Tables;
use super::rule::{canonical, words};

/// Prefixes of the chains that belong to one service port. The prefix is followed by the hash of the service port's name.
const PREFIXES: [&str; 4] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-"];
const ENDPOINT: &str = "KUBE-SEP-";

/// Services, each as `namespace/name`, grouped by how their rules differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByService {
    /// The Service had no rules before.
    pub added: BTreeSet<String>,
    /// The Service had different rules before.
    pub changed: BTreeSet<String>,
    /// The Service has no desired rules any more.
    pub gone: BTreeSet<String>,
    /// The desired rules did not change since they were applied, but the live rules differ: another program changed them.
    pub drifted: BTreeSet<String>,
}

/// Compares the desired tables with the live ones. `applied` holds the tables that sepal applied before. With it, changes of the cluster
/// can be distinguished from changes that another program made.
#[must_use]
pub(crate) fn by_service(desired: &Tables<'_>, live: &Tables<'_>, applied: Option<&Tables<'_>>) -> ByService {
    let [desired, live] = [desired, live].map(rules_by_service);
    let before = applied.map(rules_by_service);
    let mut found = ByService::default();
    let names: BTreeSet<&String> = desired.keys().chain(live.keys()).chain(before.iter().flat_map(BTreeMap::keys)).collect();
    for name in names {
        let (desired, live) = (desired.get(name), live.get(name));
        let before = before.as_ref().map_or(live, |before| before.get(name));
        let group = match (before, desired) {
            (None, Some(_)) => &mut found.added,
            (Some(_), None) => &mut found.gone,
            (Some(before), Some(desired)) if before != desired => &mut found.changed,
            _ if desired != live => &mut found.drifted,
            _ => continue,
        };
        group.insert(name.clone());
    }
    found
}

impl ByService {
    /// Adds the differences of another family.
    pub fn join(&mut self, other: Self) {
        self.added.extend(other.added);
        self.changed.extend(other.changed);
        self.gone.extend(other.gone);
        self.drifted.extend(other.drifted);
    }
}

impl fmt::Display for ByService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = [("added", &self.added), ("changed", &self.changed), ("gone", &self.gone), ("drifted", &self.drifted)];
        let counts: Vec<String> = groups.iter().map(|(what, services)| format!("{} {what}", services.len())).collect();
        writeln!(f, "# Services: {}", counts.join(", "))?;
        for (what, services) in groups {
            services.iter().try_for_each(|service| writeln!(f, "# {what} {service}"))?;
        }
        Ok(())
    }
}

/// Returns the rules of each Service in canonical spelling, by table and chain. Rules of one chain keep their order.
fn rules_by_service(tables: &Tables<'_>) -> BTreeMap<String, Vec<String>> {
    let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let nat = tables.chains(Table::Nat);
    let mut owners: HashMap<&str, String> = HashMap::new();
    for (chain, rules) in nat {
        if let (Some(hash), Some(service)) = (hash(chain), rules.iter().find_map(|rule| service(rule))) {
            owners.entry(hash).or_insert(service);
        }
    }
    for table in Table::ALL {
        for (chain, rules) in tables.chains(table) {
            for rule in rules {
                let owner = service(rule).or_else(|| owners.get(hash(chain)?).cloned());
                if let Some(owner) = owner {
                    services.entry(owner).or_default().push(format!("{table} {chain} {}", canonical(rule)));
                }
            }
        }
    }
    services
}

/// Returns the hash at the end of the chain name. All chains of a service port share one hash; each endpoint chain has its own.
fn hash(chain: &str) -> Option<&str> {
    PREFIXES.iter().chain([&ENDPOINT]).find_map(|prefix| chain.strip_prefix(prefix))
}

/// Returns the Service that a rule names in its comment: the first word with a slash, without the port.
fn service(rule: &str) -> Option<String> {
    let mut words = words(rule);
    words.find(|word| word == "--comment")?;
    let comment = words.next()?;
    let name = comment.split(' ').find(|word| word.contains('/'))?;
    Some(name.split(':').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(services: &[(&str, &str, &[&str])]) -> String {
        let mut lines = vec!["*nat".to_owned(), ":KUBE-SERVICES - [0:0]".into()];
        lines.push("-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports\" -j KUBE-NODEPORTS".into());
        for (name, hash, endpoints) in services {
            lines.push(format!("-A KUBE-SERVICES -m comment --comment \"{name}:http cluster IP\" -d 10.96.0.1 -j KUBE-SVC-{hash}"));
            lines.push(format!(
                "-A KUBE-EXT-{hash} -m comment --comment \"masquerade traffic for {name}:http external destinations\" -j KUBE-MARK-MASQ"
            ));
            lines.push(format!("-A KUBE-EXT-{hash} -j KUBE-SVC-{hash}"));
            let endpoint = |ip: &&str| format!("-A KUBE-SVC-{hash} -m comment --comment \"{name}:http -> {ip}\" -j KUBE-SEP-{hash}{ip}");
            lines.extend(endpoints.iter().map(endpoint));
        }
        lines.join("\n") + "\nCOMMIT\n"
    }

    fn found(desired: &str, live: &str, applied: Option<&str>) -> String {
        let tables = |text| {
            let mut tables = Tables::default();
            tables.read(text);
            tables
        };
        by_service(&tables(desired), &tables(live), applied.map(tables).as_ref()).to_string()
    }

    #[test]
    fn differences_are_grouped_by_service() {
        let desired = tables(&[("a/new", "N", &["1"]), ("a/same", "S", &["1"]), ("a/other", "O", &["1", "2"])]);
        let live = tables(&[("a/same", "S", &["1"]), ("a/other", "O", &["1"]), ("a/old", "Z", &["1"])]);
        assert_eq!(
            found(&desired, &live, None),
            "# Services: 1 added, 1 changed, 1 gone, 0 drifted\n# added a/new\n# changed a/other\n# gone a/old\n"
        );
        assert_eq!(found(&live, &live, None), "# Services: 0 added, 0 changed, 0 gone, 0 drifted\n");
    }

    /// A rule whose comment names no Service belongs to the Service of its chain.
    #[test]
    fn changes_of_other_programs_are_drift() {
        let applied = tables(&[("a/b", "B", &["1"]), ("a/c", "C", &["1"])]);
        let desired = tables(&[("a/b", "B", &["1"]), ("a/c", "C", &["1", "2"])]);
        let live = applied.replace("-A KUBE-EXT-B -j KUBE-SVC-B\n", "");
        assert_eq!(
            found(&desired, &live, Some(&applied)),
            "# Services: 0 added, 1 changed, 0 gone, 1 drifted\n# changed a/c\n# drifted a/b\n"
        );
        assert_eq!(found(&desired, &live, None), "# Services: 0 added, 2 changed, 0 gone, 0 drifted\n# changed a/b\n# changed a/c\n");
    }
}
