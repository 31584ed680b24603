//! iptables-restore in memory, as strict as the real one about what exists.

use std::collections::BTreeMap;

/// One table: chains by name, rules in order, each as its words after the chain's name.
pub type Chains = BTreeMap<String, Vec<String>>;

/// Tables by name, with the built-in chains in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulator {
    pub tables: BTreeMap<String, Chains>,
}

const BUILT_IN: [(&str, &[&str]); 2] =
    [("filter", &["INPUT", "FORWARD", "OUTPUT"]), ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"])];

const TARGETS: [&str; 8] = ["ACCEPT", "DROP", "REJECT", "RETURN", "MASQUERADE", "MARK", "DNAT", "SNAT"];

impl Default for Simulator {
    fn default() -> Self {
        let chains = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect();
        Self { tables: BUILT_IN.iter().map(|(table, names)| ((*table).to_owned(), chains(names))).collect() }
    }
}

impl Simulator {
    /// Takes restore input as with `--noflush`; `after` sees the tables after every COMMIT.
    ///
    /// # Errors
    /// What the real program would refuse, with the line.
    pub fn restore(&mut self, text: &str, mut after: impl FnMut(&Self)) -> Result<(), String> {
        let mut table = String::new();
        let mut draft = Chains::new();
        for line in text.lines() {
            let bad = |why: &str| format!("{why}: {line}");
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
                draft = self.tables.get(name).ok_or_else(|| bad("no such table"))?.clone();
            } else if line == "COMMIT" {
                check_targets(&draft)?;
                self.tables.insert(std::mem::take(&mut table), std::mem::take(&mut draft));
                after(self);
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.strip_suffix(" - [0:0]").ok_or_else(|| bad("odd declaration"))?;
                draft.insert(name.to_owned(), Vec::new());
            } else if let Some((operation, rest)) = line.split_once(' ') {
                let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
                let rules = draft.get_mut(chain).ok_or_else(|| bad("no such chain"))?;
                match operation {
                    "-A" => rules.push(rule.to_owned()),
                    "-I" => rules.insert(0, rule.to_owned()),
                    "-X" if !rules.is_empty() => return Err(bad("chain is not empty")),
                    "-X" if draft.values().flatten().any(|rule| target(rule) == Some(chain)) => return Err(bad("chain is in use")),
                    "-X" => drop(draft.remove(chain)),
                    _ => return Err(bad("not understood")),
                }
            } else {
                return Err(bad("not understood"));
            }
        }
        if table.is_empty() { Ok(()) } else { Err("no COMMIT at the end".into()) }
    }

    /// The tables as iptables-save would print them.
    pub fn save(&self) -> String {
        let mut out = String::new();
        for (table, chains) in &self.tables {
            out.extend(["*", table, "\n"]);
            out.extend(chains.keys().map(|chain| format!(":{chain} - [0:0]\n")));
            out.extend(chains.iter().flat_map(|(chain, rules)| rules.iter().map(move |rule| format!("-A {chain} {rule}\n"))));
            out += "COMMIT\n";
        }
        out
    }
}

/// The last `-j` word; comments hold no ` -j `, their names being harmless.
fn target(rule: &str) -> Option<&str> {
    let (_, target) = rule.rsplit_once("-j ")?;
    target.split(' ').next()
}

fn check_targets(chains: &Chains) -> Result<(), String> {
    for (chain, rules) in chains {
        for rule in rules {
            match target(rule) {
                Some(target) if !TARGETS.contains(&target) && !chains.contains_key(target) => {
                    return Err(format!("{chain} jumps to {target}, which does not exist: {rule}"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
