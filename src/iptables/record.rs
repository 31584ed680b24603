//! A runner that writes to a text instead of the kernel, for dry runs and tests.

use std::cell::RefCell;
use std::io::Write;

use crate::cluster::Family;
use crate::table::Table;
use crate::table::plan::{Plan, Variant};
use crate::table::rules::RuleSource;

use super::runner::{IptablesError, RestoreResult, Runner};

/// Writes the input of iptables-restore to `out` instead of the kernel. Its live tables are empty.
#[derive(Debug)]
pub struct Recorder<W> {
    variant: Variant,
    out: RefCell<W>,
}

impl<W: Write> Recorder<W> {
    /// Creates a recorder that writes the input for a variant.
    pub const fn new(variant: Variant, out: W) -> Self {
        Self { variant, out: RefCell::new(out) }
    }

    /// Writes a comment line.
    ///
    /// # Errors
    /// The line cannot be written.
    pub fn note(&self, line: &str) -> Result<(), IptablesError> {
        self.out.borrow_mut().write_all(line.as_bytes()).map_err(IptablesError::Print)
    }

    /// Returns the output.
    pub fn into_inner(self) -> W {
        self.out.into_inner()
    }
}

impl<W: Write> Runner for Recorder<W> {
    fn variant(&self) -> Variant {
        self.variant
    }

    async fn save(&self, _family: Family, _table: Table, _line: &mut dyn FnMut(&str)) -> Result<(), IptablesError> {
        Ok(())
    }

    async fn restore(&self, _family: Family, plan: &Plan, renderer: &dyn RuleSource) -> Result<RestoreResult, IptablesError> {
        let mut out = self.out.borrow_mut();
        plan.texts(renderer)
            .try_for_each(|(text, _)| out.write_all(text.as_bytes()))
            .and_then(|()| out.flush())
            .map(|()| RestoreResult::default())
            .map_err(IptablesError::Print)
    }

    async fn canary(&self, _family: Family) -> Option<bool> {
        Some(true)
    }

    async fn builtin_jumps(&self, _family: Family, _table: Table) -> Result<String, IptablesError> {
        Ok(String::new())
    }

    fn generation(&self) -> Option<u32> {
        None
    }

    async fn set_canary(&self, _family: Family) -> Result<(), IptablesError> {
        Ok(())
    }
}
