//! A fake host for tests and benches.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::cluster::host_facts::{HostFacts, NfacctCounters};

use super::host::Host;

/// A host with fixed facts. It records what is written.
#[derive(Debug, Default)]
pub struct FakeHost {
    /// The facts.
    pub facts: HostFacts,
    /// The number of hardware threads.
    pub cores: usize,
    /// The error of every write; `None` if writes succeed.
    pub refusal: Option<io::ErrorKind>,
    /// True for a nested node, where no program can write the limit of connections.
    pub nested: bool,
    /// Kernel settings by path.
    pub settings: RefCell<BTreeMap<String, u64>>,
    /// The writes, in order, each as `path text`.
    pub written: RefCell<Vec<String>>,
    /// The number of refused writes.
    pub refused: Cell<usize>,
}

impl Host for FakeHost {
    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(self.facts.addresses.clone())
    }

    fn tcp_be_liberal(&self) -> bool {
        self.facts.tcp_be_liberal
    }

    fn ipv6_enabled(&self) -> bool {
        true
    }

    fn counters(&self, _create: bool) -> NfacctCounters {
        self.facts.nfacct
    }

    fn cores(&self) -> usize {
        self.cores
    }

    fn read_setting(&self, path: &str) -> io::Result<u64> {
        self.settings.borrow().get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn can_write_setting(&self, _path: &str) -> io::Result<()> {
        self.refusal.map_or(Ok(()), |refusal| Err(refusal.into()))
    }

    fn is_read_only_setting(&self, _path: &str) -> bool {
        self.nested
    }

    fn write_setting(&self, path: &str, text: &str) -> io::Result<()> {
        if let Some(refusal) = self.refusal {
            self.refused.set(self.refused.get() + 1);
            return Err(refusal.into());
        }
        // Negative values are stored as 0; no test reads one back.
        self.settings.borrow_mut().insert(path.to_owned(), text.parse().unwrap_or_default());
        self.written.borrow_mut().push(format!("{path} {text}"));
        Ok(())
    }
}
