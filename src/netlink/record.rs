//! A host made of values, for tests.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::cluster::host_facts::{HostFacts, NfacctCounters};

use super::host::Host;

/// A host with the facts it is given; remembers what was done to it.
#[derive(Debug, Default)]
pub struct FakeHost {
    /// Its facts.
    pub facts: HostFacts,
    /// Its hardware threads.
    pub cores: usize,
    /// What it says to whoever wants to change a setting; `None` if it lets them.
    pub refusal: Option<io::ErrorKind>,
    /// It is a nested node: the kernel lets no program write the limit of connections.
    pub nested: bool,
    /// Its settings by path.
    pub settings: RefCell<BTreeMap<String, u64>>,
    /// What was written, in order, each as `path text`.
    pub written: RefCell<Vec<String>>,
    /// How often it let nothing be written.
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
        // What is negative cannot be read back, and nobody does.
        self.settings.borrow_mut().insert(path.to_owned(), text.parse().unwrap_or_default());
        self.written.borrow_mut().push(format!("{path} {text}"));
        Ok(())
    }
}
