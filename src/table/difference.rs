//! The differences of one service port between the desired rules and the acknowledged ones, and the steps that write its own chains.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::Table;
use super::acknowledged::Acknowledged;
use super::chain_names::ChainName;
use super::outline::{Outline, Outlines};
use super::plan::{PlanStep, Write};
use super::rule::split_line;
use crate::cluster::ServicePortName;

/// The differences of one service port.
pub(super) struct Difference<'a> {
    pub(super) name: &'a ServicePortName,
    pub(super) desired: Option<&'a Rc<Outline>>,
    /// Own chains to write.
    pub(super) write: Vec<ChainName>,
    /// Own chains to delete.
    pub(super) delete: Vec<ChainName>,
    /// Lines to add to shared chains, in their order.
    pub(super) add: Vec<(Table, &'a str)>,
    /// Lines of `add` that exist in the wrong place. They are deleted before they are added.
    pub(super) moved: Vec<(Table, &'a str)>,
    /// Lines to delete from shared chains.
    pub(super) remove: Vec<(Table, &'a str)>,
}

/// Compares the desired rules of a service port with the acknowledged ones. `None` if they are equal. `spared` chains are
/// not deleted.
pub(super) fn difference<'a>(
    name: &'a ServicePortName,
    desired: &'a Outlines,
    spared: &[ChainName],
    acknowledged: &'a Acknowledged,
) -> Option<Difference<'a>> {
    let (new, old) = (desired.get(name), acknowledged.services.get(name));
    if let (Some(new), Some(old)) = (new, old)
        && Rc::ptr_eq(new, old)
    {
        return None;
    }
    let chains = |outline: Option<&'a Rc<Outline>>| outline.map(|outline| &*outline.chains).unwrap_or_default();
    let acknowledged_digest = |chain: &ChainName| old.and_then(|old| old.chain(chain));
    let is_desired = |chain: &ChainName| new.is_some_and(|new| new.chain(chain).is_some());
    let write = chains(new).iter().filter(|(chain, digest)| acknowledged_digest(chain) != Some(*digest)).map(|(chain, _)| *chain).collect();
    let delete = chains(old).iter().filter(|(chain, _)| !is_desired(chain)).map(|(chain, _)| *chain);
    let delete = delete.filter(|chain| !spared.contains(chain)).collect();
    let mut difference = Difference { name, desired: new, write, delete, add: Vec::new(), moved: Vec::new(), remove: Vec::new() };
    for table in Table::ALL {
        let lines = |outline: Option<&'a Rc<Outline>>| outline.map(|outline| outline.dispatch(table)).unwrap_or_default();
        if lines(new) == lines(old) {
            continue;
        }
        let mut chains: BTreeMap<&str, (Vec<&'a str>, Vec<&'a str>)> = BTreeMap::new();
        lines(new).lines().for_each(|line| chains.entry(split_line(line).0).or_default().0.push(line));
        lines(old).lines().for_each(|line| chains.entry(split_line(line).0).or_default().1.push(line));
        for (new, old) in chains.into_values() {
            difference.edit_chain(table, &new, &old);
        }
    }
    let Difference { write, delete, add, remove, .. } = &difference;
    let same = write.is_empty() && delete.is_empty() && add.is_empty() && remove.is_empty();
    (!same).then_some(difference)
}

impl<'a> Difference<'a> {
    /// Finds the lines of one chain to delete and to add, so that the chain ends up with the new lines in their order. Lines are added at
    /// the top, and `-D` deletes the first of equal lines. So the lines that can stay are matched from the end.
    fn edit_chain(&mut self, table: Table, new: &[&'a str], old: &[&'a str]) {
        let mut kept = 0;
        let mut gone: Vec<&'a str> = Vec::new();
        for line in old.iter().rev() {
            if new.iter().rev().nth(kept) == Some(line) && !gone.contains(line) {
                kept += 1;
            } else {
                gone.push(line);
            }
        }
        let add = &new[..new.len() - kept];
        self.add.extend(add.iter().map(|line| (table, *line)));
        for line in gone.into_iter().rev() {
            if add.contains(&line) { &mut self.moved } else { &mut self.remove }.push((table, line));
        }
    }
}

/// Declares the chains that are written.
pub(super) fn declare_own(difference: &Difference<'_>) -> Vec<PlanStep> {
    match difference.desired {
        Some(outline) if outline.chains.len() == difference.write.len() && !difference.write.is_empty() => {
            vec![PlanStep::owned(difference.name, Write::DeclareAll(Rc::clone(outline)))]
        }
        _ => difference.write.iter().map(|chain| PlanStep::owned(difference.name, Write::DeclareOwn(*chain))).collect(),
    }
}

/// Writes the rules of these chains.
pub(super) fn own_rules(difference: &Difference<'_>) -> Option<PlanStep> {
    let outline = difference.desired.filter(|_| !difference.write.is_empty())?;
    let write = if outline.chains.len() == difference.write.len() {
        Write::OwnAll(Rc::clone(outline))
    } else {
        Write::Own(difference.write.iter().copied().collect())
    };
    Some(PlanStep::owned(difference.name, write))
}
