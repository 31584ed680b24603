//! What it takes to find and delete conntrack entries, how that can fail, and the real thing over netlink.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::TimeVal;

use crate::cluster::Family;

use super::stale::{Flow, UDP};
use super::wire::{self, Message, Messages};

/// Time for one listing or one deletion of many, a table of millions included.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Time the kernel may take for one answer.
const ANSWER_SECONDS: i64 = 10;

/// How often an interrupted listing is tried, as kube-proxy does (spec section 8, step 1).
const TRIES: u32 = 5;

/// Room for one answer; the kernel sends 32 KiB at most.
const ANSWER_LEN: usize = 64 * 1024;

/// Requests to delete that are on their way at once. Their acknowledgements have to fit the socket's default buffer of 208 KiB.
const BATCH: usize = 64;

/// The conntrack table of this network namespace.
pub trait FlowTable {
    /// Reads all UDP flows of a family and keeps those that `wanted` says, but not more than `most`: memory goes with what is
    /// kept, not with what is in the table.
    ///
    /// # Errors
    /// They cannot be read.
    fn select(
        &self,
        family: Family,
        most: usize,
        wanted: impl Fn(&Flow) -> bool + Send + 'static,
    ) -> impl Future<Output = Result<Selection, FlowError>>;

    /// Deletes exactly these flows and says how many; one that is gone already counts.
    ///
    /// # Errors
    /// One or more cannot be deleted; all have been tried.
    fn delete(&self, flows: Vec<Flow>) -> impl Future<Output = Result<usize, FlowError>>;
}

/// What a listing brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The flows that were wanted.
    pub flows: Vec<Flow>,
    /// How many UDP flows were looked at.
    pub listed: usize,
    /// Where it ended.
    pub end: End,
}

/// Where a listing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the end of the table.
    Whole,
    /// Where as many were found as were asked for; there may be more.
    Full,
    /// At the end, but the table was changed so much meanwhile that some flows may have been missed.
    Interrupted,
}

/// How listing or deleting flows can fail.
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
    /// It took too long.
    #[error("cannot {call}: not done after {seconds} s; is the node out of CPU time?")]
    Timeout {
        /// What was tried.
        call: &'static str,
        /// The time it was given.
        seconds: u64,
    },
    /// The kernel refused, or the socket failed.
    #[error("cannot {call}: {cause}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// Some flows could not be deleted.
    #[error("cannot delete {failed} of {} conntrack entries, the first of them {first}: {cause}", failed + deleted)]
    Delete {
        /// How many could not.
        failed: usize,
        /// How many were.
        deleted: usize,
        /// One that could not.
        first: Box<Flow>,
        /// Why.
        cause: io::Error,
    },
    /// The work ended before its time, with the runtime that did it.
    #[error("cannot {0}: stopped half-way")]
    Stopped(&'static str),
}

const LIST: &str = "list conntrack entries";
const DELETE: &str = "delete conntrack entries";

impl FlowError {
    fn new(call: &'static str, cause: io::Error) -> Self {
        match cause.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::Permission(call),
            // Netlink says EINVAL for a subsystem that does not exist.
            Some(Errno::EINVAL | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => Self::Missing(call),
            Some(Errno::EAGAIN) => Self::Timeout { call, seconds: ANSWER_SECONDS.unsigned_abs() },
            _ => Self::Io { call, cause },
        }
    }

    fn errno(call: &'static str, errno: i32) -> Self {
        Self::new(call, io::Error::from_raw_os_error(errno))
    }
}

/// The kernel's table. The work is done on a thread for blocking work, so that a large table does not keep the runtime from its
/// other tasks.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelFlows;

impl FlowTable for KernelFlows {
    async fn select(&self, family: Family, most: usize, wanted: impl Fn(&Flow) -> bool + Send + 'static) -> Result<Selection, FlowError> {
        let work = move || select(family, most, wanted);
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(FlowError::Stopped(LIST)))
    }

    async fn delete(&self, flows: Vec<Flow>) -> Result<usize, FlowError> {
        tokio::task::spawn_blocking(move || delete(&flows)).await.unwrap_or(Err(FlowError::Stopped(DELETE)))
    }
}

/// [`FlowTable::select`] on this very thread.
pub(crate) fn select(family: Family, most: usize, wanted: impl Fn(&Flow) -> bool) -> Result<Selection, FlowError> {
    let mut connection = Connection::open(LIST)?;
    let mut filtered = true;
    let mut attempt = 1;
    loop {
        let mut selection = Selection { flows: Vec::new(), listed: 0, end: End::Whole };
        match connection.list(family, filtered, most, &wanted, &mut selection)? {
            Listed::Done => return Ok(selection),
            // Kernels that know the filter's name but not this use of it.
            Listed::Refused(Errno::EINVAL | Errno::EOPNOTSUPP) if filtered => filtered = false,
            Listed::Refused(Errno::EINTR) if attempt < TRIES => attempt += 1,
            Listed::Refused(Errno::EINTR) => return Ok(Selection { end: End::Interrupted, ..selection }),
            Listed::Refused(errno) => return Err(FlowError::errno(LIST, errno as i32)),
        }
    }
}

/// [`FlowTable::delete`] on this very thread.
pub(crate) fn delete(flows: &[Flow]) -> Result<usize, FlowError> {
    let mut connection = Connection::open(DELETE)?;
    let mut failures = Failures::default();
    for batch in flows.chunks(BATCH) {
        connection.delete(batch, &mut failures)?;
    }
    let deleted = flows.len() - failures.count;
    match failures.first {
        None => Ok(deleted),
        Some((_, Errno::EPERM)) => Err(FlowError::Permission(DELETE)),
        Some((first, errno)) => Err(FlowError::Delete { failed: failures.count, deleted, first: Box::new(first), cause: errno.into() }),
    }
}

/// How a listing went.
enum Listed {
    Done,
    Refused(Errno),
}

#[derive(Debug, Default)]
struct Failures {
    count: usize,
    first: Option<(Flow, Errno)>,
}

/// A socket to the kernel's netfilter, for one piece of work.
struct Connection {
    socket: Socket,
    call: &'static str,
    deadline: Instant,
    sequence: u32,
    answer: Vec<u8>,
}

impl Connection {
    fn open(call: &'static str) -> Result<Self, FlowError> {
        let error = |cause| FlowError::new(call, cause);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(error)?;
        socket.bind_auto().map_err(error)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0)).map_err(|errno| error(errno.into()))?;
        // Acknowledgements without the request they are for. Kernels before 4.3 cannot, and theirs fit as well.
        let _ = socket.set_cap_ack(true);
        Ok(Self { socket, call, deadline: Instant::now() + TIMEOUT, sequence: 0, answer: Vec::with_capacity(ANSWER_LEN) })
    }

    /// Lists a family into `selection`. An interrupted listing is read to its end and then counts as refused.
    fn list(
        &mut self,
        family: Family,
        filtered: bool,
        most: usize,
        wanted: &impl Fn(&Flow) -> bool,
        selection: &mut Selection,
    ) -> Result<Listed, FlowError> {
        self.sequence += 1;
        self.send(&wire::dump(family, self.sequence, filtered))?;
        let mut interrupted = false;
        loop {
            self.receive()?;
            for message in Messages(&self.answer).filter(|message| message.sequence == self.sequence) {
                interrupted |= message.flags & wire::FLAG_INTERRUPTED != 0;
                match message.kind {
                    wire::ENTRY => {
                        let Some(flow) = message.flow().filter(|flow| flow.protocol == UDP) else { continue };
                        selection.listed += 1;
                        if wanted(&flow) {
                            if selection.flows.len() == most {
                                selection.end = End::Full;
                                return Ok(Listed::Done);
                            }
                            selection.flows.push(flow);
                        }
                    }
                    wire::DONE | wire::ERROR if message.errno() != 0 => return Ok(Listed::Refused(Errno::from_raw(message.errno()))),
                    wire::DONE if interrupted => return Ok(Listed::Refused(Errno::EINTR)),
                    wire::DONE => return Ok(Listed::Done),
                    _ => {}
                }
            }
        }
    }

    /// Sends all requests of a batch at once, then reads their acknowledgements.
    fn delete(&mut self, batch: &[Flow], failures: &mut Failures) -> Result<(), FlowError> {
        let first = self.sequence + 1;
        let mut requests = Vec::with_capacity(batch.len() * 128);
        for flow in batch {
            self.sequence += 1;
            wire::delete(&mut requests, flow, self.sequence);
        }
        self.send(&requests)?;
        let mut missing = batch.len();
        while missing > 0 {
            self.receive()?;
            for message in Messages(&self.answer).filter(|message| message.kind == wire::ERROR) {
                let Some(flow) = acknowledged(&message, first, batch) else { continue };
                missing -= 1;
                match Errno::from_raw(message.errno()) {
                    // ENOENT: it has gone by itself, and maybe there is a newer flow in its place.
                    Errno::UnknownErrno | Errno::ENOENT => {}
                    errno => {
                        failures.count += 1;
                        failures.first.get_or_insert((*flow, errno));
                    }
                }
            }
        }
        Ok(())
    }

    fn send(&self, request: &[u8]) -> Result<(), FlowError> {
        self.socket.send(request, 0).map(|_| ()).map_err(|cause| FlowError::new(self.call, cause))
    }

    fn receive(&mut self) -> Result<(), FlowError> {
        loop {
            if Instant::now() > self.deadline {
                return Err(FlowError::Timeout { call: self.call, seconds: TIMEOUT.as_secs() });
            }
            self.answer.clear();
            match self.socket.recv(&mut self.answer, 0) {
                Ok(_) => return Ok(()),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(FlowError::new(self.call, cause)),
            }
        }
    }
}

/// The flow of a batch that a message acknowledges; requests are numbered from `first`.
fn acknowledged<'a>(message: &Message<'_>, first: u32, batch: &'a [Flow]) -> Option<&'a Flow> {
    batch.get(message.sequence.checked_sub(first)? as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_call_and_the_cure() {
        let text = |errno: Errno| FlowError::new(LIST, errno.into()).to_string();
        assert!(text(Errno::EPERM).contains("list conntrack entries: no permission") && text(Errno::EPERM).contains("NET_ADMIN"));
        for errno in [Errno::EINVAL, Errno::EPROTONOSUPPORT] {
            assert!(text(errno).contains("modprobe nf_conntrack_netlink"), "{errno}");
        }
        assert!(text(Errno::EAGAIN).contains("10 s"));
        assert!(text(Errno::ENOBUFS).contains("No buffer space"));
    }
}
