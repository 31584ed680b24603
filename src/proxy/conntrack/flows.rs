//! Finds and deletes conntrack entries: the interface, its errors, and the implementation over netlink.

use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use nix::errno::Errno;

use crate::cluster::Family;
use crate::netlink::error::Cause;
use crate::netlink::socket::{Connection, DumpEnd};

use super::stale::{Flow, UDP};
use super::wire;

/// The time limit of one listing, or of the deletion of all selected flows. It is enough for a table with millions of entries.
const LIMIT: Duration = Duration::from_secs(60);

/// The largest number of attempts at a listing. Changes of the table can interrupt a listing [kube-proxy 8], step 1.
const ATTEMPTS: u32 = 5;

/// The conntrack table of this network namespace.
pub trait FlowTable {
    /// Lists all UDP flows of a family and keeps at most `most` of those that `is_selected` accepts. Memory grows with the kept flows, not
    /// with the table.
    ///
    /// # Errors
    /// The listing fails.
    fn select(
        &self,
        family: Family,
        most: usize,
        is_selected: impl Fn(&Flow) -> bool + Send + 'static,
    ) -> impl Future<Output = Result<Selection, FlowError>>;

    /// Deletes exactly these flows and returns their number. A flow that has expired counts as deleted.
    ///
    /// # Errors
    /// At least one flow cannot be deleted. All have been tried.
    fn delete(&self, flows: Vec<Flow>) -> impl Future<Output = Result<usize, FlowError>>;
}

/// The result of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The selected flows.
    pub flows: Vec<Flow>,
    /// The number of UDP flows that were listed.
    pub listed: usize,
    /// How the listing ended.
    pub end: ListEnd,
}

/// How a listing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListEnd {
    /// The table was read to its end.
    Complete,
    /// As many flows were found as were requested. There may be more.
    Full,
    /// The table was read to its end, but it changed meanwhile, so that flows may be missing.
    Interrupted,
}

/// An error of listing or deleting flows.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// No permission.
    #[error("cannot {0}: no permission. Run as root, or with the capability NET_ADMIN in this network namespace")]
    Permission(&'static str),
    /// The kernel has no interface to conntrack entries.
    #[error(
        "cannot {0}: this kernel offers no conntrack entries over netlink. Load the module (modprobe nf_conntrack_netlink), or use a kernel with CONFIG_NF_CT_NETLINK"
    )]
    Missing(&'static str),
    /// It took longer than the time limit.
    #[error("cannot {call}: not done after {seconds} s; is the node out of CPU time?")]
    Timeout {
        /// The call that failed.
        call: &'static str,
        /// The time limit.
        seconds: u64,
    },
    /// The kernel refused, or the socket failed.
    #[error("cannot {call}: {cause}")]
    Other {
        /// The call that failed.
        call: &'static str,
        /// Why.
        cause: Cause,
    },
    /// Some flows could not be deleted.
    #[error("cannot delete {failed} of {} conntrack entries, the first of them {first}: {cause}", failed + deleted)]
    Delete {
        /// The number of flows that could not be deleted.
        failed: usize,
        /// The number of flows that were deleted.
        deleted: usize,
        /// The first flow that could not be deleted.
        first: Box<Flow>,
        /// Why.
        cause: Cause,
    },
    /// The runtime stopped before the work was done.
    #[error("cannot {0}: stopped half-way")]
    Stopped(&'static str),
}

const LIST: &str = "list conntrack entries";
const DELETE: &str = "delete conntrack entries";

impl FlowError {
    fn new(call: &'static str, cause: Cause) -> Self {
        match (cause.errno(), cause) {
            (_, Cause::Timeout(seconds)) => Self::Timeout { call, seconds },
            (Some(Errno::EPERM | Errno::EACCES), _) => Self::Permission(call),
            // nfnetlink answers EINVAL for a subsystem that does not exist.
            (Some(Errno::EINVAL | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP), _) => Self::Missing(call),
            (_, cause) => Self::Other { call, cause },
        }
    }
}

/// The kernel's table. Runs its calls on tokio's threads for blocking work, so that a large table does not block other tasks.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelFlows;

impl FlowTable for KernelFlows {
    async fn select(
        &self,
        family: Family,
        most: usize,
        is_selected: impl Fn(&Flow) -> bool + Send + 'static,
    ) -> Result<Selection, FlowError> {
        let work = move || select(family, most, is_selected);
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(FlowError::Stopped(LIST)))
    }

    async fn delete(&self, flows: Vec<Flow>) -> Result<usize, FlowError> {
        tokio::task::spawn_blocking(move || delete(&flows)).await.unwrap_or(Err(FlowError::Stopped(DELETE)))
    }
}

/// [`FlowTable::select`] on the calling thread.
pub(crate) fn select(family: Family, most: usize, is_selected: impl Fn(&Flow) -> bool) -> Result<Selection, FlowError> {
    let start = || Selection { flows: Vec::new(), listed: 0, end: ListEnd::Complete };
    let read = |selection: &mut Selection, kind, body: &[u8]| {
        let entry = (kind == wire::ENTRY).then(|| wire::flow(body)).flatten();
        match entry.filter(|flow| flow.protocol == UDP) {
            Some(flow) => selection.add(flow, most, &is_selected),
            None => ControlFlow::Continue(()),
        }
    };
    let mut connection = open(LIST)?;
    let mut list = |filtered| connection.dump_into(&wire::list(family, filtered), ATTEMPTS, start, read);
    // Some kernels know the attribute `CTA_FILTER` but not a filter by protocol. They refuse the request, so list all entries.
    let (selection, end) = match list(true) {
        Err(Cause::Kernel { errno: Errno::EINVAL | Errno::EOPNOTSUPP, .. }) => list(false),
        listed => listed,
    }
    .map_err(|cause| FlowError::new(LIST, cause))?;
    Ok(if end == DumpEnd::Interrupted { Selection { end: ListEnd::Interrupted, ..selection } } else { selection })
}

impl Selection {
    /// Counts a flow, and keeps it if it is selected. Stops the listing if there is no room for it.
    fn add(&mut self, flow: Flow, most: usize, is_selected: impl Fn(&Flow) -> bool) -> ControlFlow<()> {
        self.listed += 1;
        if !is_selected(&flow) {
            return ControlFlow::Continue(());
        }
        if self.flows.len() == most {
            self.end = ListEnd::Full;
            return ControlFlow::Break(());
        }
        self.flows.push(flow);
        ControlFlow::Continue(())
    }
}

/// [`FlowTable::delete`] on the calling thread.
pub(crate) fn delete(flows: &[Flow]) -> Result<usize, FlowError> {
    let outcomes = open(DELETE)?.batch(flows.iter().map(wire::delete));
    let failures = flows.iter().zip(outcomes).filter_map(|(flow, outcome)| match outcome {
        // ENOENT: the entry expired. A newer flow may have the same tuple, and stays.
        Ok(()) | Err(Cause::Kernel { errno: Errno::ENOENT, .. }) => None,
        Err(cause) => Some((flow, cause)),
    });
    let (mut failed, mut first) = (0, None);
    for failure in failures {
        failed += 1;
        first.get_or_insert(failure);
    }
    let deleted = flows.len() - failed;
    match first {
        None => Ok(deleted),
        Some((_, cause @ (Cause::Timeout(_) | Cause::Kernel { errno: Errno::EPERM, .. }))) => Err(FlowError::new(DELETE, cause)),
        Some((first, cause)) => Err(FlowError::Delete { failed, deleted, first: Box::new(*first), cause }),
    }
}

fn open(call: &'static str) -> Result<Connection, FlowError> {
    Connection::netfilter().map(|connection| connection.with_limit(LIMIT)).map_err(|cause| FlowError::new(call, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_call_and_the_cure() {
        let of = |cause| FlowError::new(LIST, cause).to_string();
        let text = |errno: Errno| of(errno.into());
        assert!(text(Errno::EPERM).contains("list conntrack entries: no permission") && text(Errno::EPERM).contains("NET_ADMIN"));
        for errno in [Errno::EINVAL, Errno::EPROTONOSUPPORT] {
            assert!(text(errno).contains("modprobe nf_conntrack_netlink"), "{errno}");
        }
        assert!(of(Cause::Timeout(10)).contains("not done after 10 s"));
        assert!(text(Errno::ENOBUFS).contains("No buffer space"));
    }
}
