//! A host made of values, for tests.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;

use crate::config::settings::{HostFacts, NfacctCounters};

use super::host::Host;

/// A host with the facts it is given; remembers what was done to it.
#[derive(Debug, Default)]
pub struct FakeHost {
    /// Its facts.
    pub facts: HostFacts,
    /// Whether it lets itself be changed.
    pub read_only: bool,
    /// `route_localnet` is on.
    pub route_localnet: Cell<bool>,
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

    fn allow_route_localnet(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        }
        self.route_localnet.set(true);
        Ok(())
    }
}
