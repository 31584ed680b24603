//! A netlink socket for one thread: single requests, listings, and many requests in one datagram. Every wait has a limit, and no async
//! runtime is needed.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{MsgFlags, setsockopt};
use nix::sys::time::TimeVal;

use super::error::Cause;
use super::message::Messages;
pub use super::message::Request;

/// The longest wait for one answer of the kernel, in seconds.
const ANSWER_SECONDS: i64 = 10;
/// The largest number of attempts of [`Connection::dump`] at a listing. Changes of the table can interrupt a listing.
const ATTEMPTS: u32 = 10;
/// Room for one datagram. In a listing, the kernel fills at most 32 KiB.
const DATAGRAM_LEN: usize = 64 * 1024;
/// Receive buffer, in bytes. The kernel doubles it.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// The largest part of the receive buffer that one acknowledgement takes, in bytes.
const ACKNOWLEDGEMENT: usize = 2048;
/// The largest size of a datagram with several requests. It must fit into the send buffer, which has 208 KiB by default.
const BATCH_LEN: usize = 128 * 1024;

/// How a listing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DumpEnd {
    /// The table was read to its end.
    Complete,
    /// The reader stopped it. Another listing needs another connection.
    Stopped,
    /// The table was read to its end, but it changed meanwhile, so that entries may be missing.
    Interrupted,
}

/// A socket to the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    sequence: u32,
    answer: Vec<u8>,
    deadline: Option<Deadline>,
    /// The number of requests whose acknowledgements fit into the receive buffer; `None` before the first batch.
    in_flight: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Connection {
    /// Opens a socket for links, addresses, routes and neighbours (rtnetlink).
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn route() -> Result<Self, Cause> {
        let connection = Self::open(NETLINK_ROUTE)?;
        // Kernels before 4.20 cannot filter listings. The decoders drop the entries that were not requested.
        let _ = connection.socket.set_netlink_get_strict_chk(true);
        Ok(connection)
    }

    /// Opens a socket for generic netlink.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn generic() -> Result<Self, Cause> {
        Self::open(NETLINK_GENERIC)
    }

    /// Opens a socket for conntrack, nfacct and `nf_tables` (nfnetlink).
    pub(crate) fn netfilter() -> Result<Self, Cause> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> Result<Self, Cause> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        // Acknowledgements without a copy of the request (Linux 4.3) and with an error text (Linux 4.12).
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Self { socket, sequence: 0, answer: Vec::with_capacity(DATAGRAM_LEN), deadline: None, in_flight: None })
    }

    /// Sets a common time limit for all following calls of this connection.
    pub(crate) fn with_limit(self, limit: Duration) -> Self {
        Self { deadline: Some(Deadline { at: Instant::now() + limit, limit }), ..self }
    }

    /// Sends one request and waits for the acknowledgement.
    ///
    /// # Errors
    /// The kernel refuses, or does not answer.
    pub fn request(&mut self, request: &Request) -> Result<(), Cause> {
        self.get(request, |_, _| None::<()>).map(|_| ())
    }

    /// Sends one request and collects the values that `read` returns for the answers. `read` gets the message type and the bytes after the
    /// netlink header.
    ///
    /// # Errors
    /// The kernel refuses, or does not answer.
    pub fn get<T>(&mut self, request: &Request, read: impl Fn(u16, &[u8]) -> Option<T>) -> Result<Vec<T>, Cause> {
        let mut answers = Vec::new();
        self.exchange(request, NLM_F_ACK, |kind, body| collect(&mut answers, read(kind, body)))?;
        Ok(answers)
    }

    /// Lists a table and collects the values that `read` returns for its entries. An interrupted listing is repeated.
    ///
    /// # Errors
    /// The kernel refuses or does not answer, or every attempt was interrupted.
    pub fn dump<T>(&mut self, request: &Request, read: impl Fn(u16, &[u8]) -> Option<T>) -> Result<Vec<T>, Cause> {
        match self.dump_into(request, ATTEMPTS, Vec::new, |entries, kind, body| collect(entries, read(kind, body)))? {
            (_, DumpEnd::Interrupted) => Err(Cause::Interrupted(ATTEMPTS)),
            (entries, _) => Ok(entries),
        }
    }

    /// Lists a table into a value. `start` creates the value, `read` adds one entry and can stop the listing. An interrupted listing starts
    /// again with a new value. The result of the last attempt is returned even if it was interrupted.
    pub(crate) fn dump_into<T>(
        &mut self,
        request: &Request,
        attempts: u32,
        start: impl Fn() -> T,
        read: impl Fn(&mut T, u16, &[u8]) -> ControlFlow<()>,
    ) -> Result<(T, DumpEnd), Cause> {
        let mut attempt = 1;
        loop {
            let mut entries = start();
            let end = match self.exchange(request, NLM_F_DUMP, |kind, body| read(&mut entries, kind, body)) {
                Err(Cause::Kernel { errno: Errno::EINTR, .. }) => DumpEnd::Interrupted,
                end => end?,
            };
            if end != DumpEnd::Interrupted || attempt >= attempts {
                return Ok((entries, end));
            }
            attempt += 1;
        }
    }

    /// Sends many requests, as many as fit in each datagram, and returns the result of each, in order. A request that fails does not stop
    /// the others. A request whose answer is lost is sent again, so all requests must be idempotent.
    pub fn batch(&mut self, requests: impl IntoIterator<Item = Request>) -> Vec<Result<(), Cause>> {
        let mut outcomes = Vec::new();
        let mut requests = requests.into_iter().peekable();
        let mut datagram = Vec::with_capacity(BATCH_LEN);
        let mut starts = Vec::new();
        let in_flight = self.in_flight();
        while requests.peek().is_some() {
            datagram.clear();
            starts.clear();
            let first = self.sequence.wrapping_add(1);
            while let Some(request) =
                requests.next_if(|next| starts.is_empty() || starts.len() < in_flight && datagram.len() + next.length() < BATCH_LEN)
            {
                self.sequence = self.sequence.wrapping_add(1);
                starts.push(datagram.len());
                request.append(&mut datagram, NLM_F_ACK, self.sequence);
            }
            self.send_batch(&datagram, &starts, first, &mut outcomes);
        }
        outcomes
    }

    fn in_flight(&mut self) -> usize {
        let socket = &self.socket;
        *self.in_flight.get_or_insert_with(|| {
            large_buffer(socket);
            (socket.get_rx_buf_sz().unwrap_or_default() / ACKNOWLEDGEMENT).max(1)
        })
    }

    fn send_batch(&mut self, datagram: &[u8], starts: &[usize], first: u32, outcomes: &mut Vec<Result<(), Cause>>) {
        let mut answers = vec![None; starts.len()];
        let mut ended = self.send(datagram).and_then(|()| self.acknowledgements(first, &mut answers));
        if ended == Err(Errno::ENOBUFS.into()) {
            self.drain();
            for (at, start) in starts.iter().enumerate().filter(|(at, _)| answers[*at].is_none()).collect::<Vec<_>>() {
                let end = starts.get(at + 1).copied().unwrap_or(datagram.len());
                let sequence = first.wrapping_add(at as u32);
                ended = self.send(&datagram[*start..end]).and_then(|()| self.acknowledgements(sequence, &mut answers[at..=at]));
                if let Err(cause) = &ended {
                    answers[at].get_or_insert(Err(cause.clone()));
                }
            }
        }
        let lost = || ended.clone().and(Err(Cause::Timeout(ANSWER_SECONDS.unsigned_abs())));
        outcomes.extend(answers.into_iter().map(|answer| answer.unwrap_or_else(lost)));
    }

    /// Receives answers until each of these requests has one. `first` is the sequence number of the first request.
    fn acknowledgements(&mut self, first: u32, answers: &mut [Option<Result<(), Cause>>]) -> Result<(), Cause> {
        let mut missing = answers.len();
        while missing > 0 {
            self.receive(MsgFlags::empty())?;
            for message in Messages(&self.answer).filter(|message| message.kind == NLMSG_ERROR) {
                let Some(answer) = answers.get_mut(message.sequence.wrapping_sub(first) as usize) else { continue };
                missing -= usize::from(answer.is_none());
                *answer = Some(message.outcome());
            }
        }
        Ok(())
    }

    /// Sends one request and calls `read` with each answer, until the kernel acknowledges the request, the listing ends, or `read` stops
    /// it.
    fn exchange(&mut self, request: &Request, flags: u16, mut read: impl FnMut(u16, &[u8]) -> ControlFlow<()>) -> Result<DumpEnd, Cause> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(request.length().next_multiple_of(4));
        request.append(&mut datagram, flags, self.sequence);
        self.send(&datagram)?;
        let mut end = DumpEnd::Complete;
        loop {
            self.receive(MsgFlags::empty())?;
            for message in Messages(&self.answer).filter(|message| message.sequence == self.sequence) {
                if message.interrupted() {
                    end = DumpEnd::Interrupted;
                }
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => return message.outcome().map(|()| end),
                    kind if read(kind, message.body).is_break() => return Ok(DumpEnd::Stopped),
                    _ => {}
                }
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<(), Cause> {
        self.check_deadline()?;
        loop {
            match self.socket.send(datagram, 0) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                sent => return sent.map(|_| ()).map_err(Cause::from),
            }
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> Result<(), Cause> {
        loop {
            self.check_deadline()?;
            self.answer.clear();
            match self.socket.recv(&mut self.answer, (flags | MsgFlags::MSG_TRUNC).bits()) {
                Ok(length) if length > self.answer.len() => return Err(Errno::EMSGSIZE.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(Cause::Timeout(ANSWER_SECONDS.unsigned_abs())),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn check_deadline(&self) -> Result<(), Cause> {
        match self.deadline {
            Some(Deadline { at, limit }) if Instant::now() > at => Err(Cause::Timeout(limit.as_secs())),
            _ => Ok(()),
        }
    }

    /// Drops all answers that have arrived.
    fn drain(&mut self) {
        while self.receive(MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
}

fn collect<T>(entries: &mut Vec<T>, entry: Option<T>) -> ControlFlow<()> {
    entries.extend(entry);
    ControlFlow::Continue(())
}

/// Enlarges a socket's receive buffer. If it may not exceed the kernel's limit (`net.core.rmem_max`), enlarges it up to that limit.
pub(super) fn large_buffer(socket: &Socket) {
    if setsockopt(socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel of the machine that runs the tests refuses an unknown message type, alone and in a batch.
    #[test]
    fn the_kernel_answers_each_request() {
        let mut connection = Connection::generic().expect("a socket");
        let unknown = |kind| Request { kind, flags: 0, body: vec![0; 4] };
        assert!(connection.request(&unknown(0x7fff)).is_err());
        let outcomes = connection.batch((0..3000_u16).map(|n| unknown(0x7000 + n % 16)));
        assert_eq!(outcomes.len(), 3000);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Cause::Kernel { .. }))), "{:?}", outcomes[0]);
    }

    #[test]
    fn requests_whose_answers_do_not_fit_the_receive_buffer_are_made_again() {
        let mut connection = Connection::generic().expect("a socket");
        connection.socket.set_rx_buf_sz(2048_u32).expect("smaller");
        connection.in_flight = Some(500);
        let outcomes = connection.batch((0..500).map(|_| Request { kind: 0x7fff, flags: 0, body: vec![0; 4] }));
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Cause::Kernel { errno: Errno::ENOENT, .. }))), "{:?}", outcomes[499]);
    }

    /// `CTRL_CMD_GETFAMILY` of generic netlink, which every kernel has.
    fn families() -> Request {
        Request::generic(0x10, 3, |_| ())
    }

    #[test]
    fn a_listing_ends_where_its_reader_stops() {
        let mut connection = Connection::generic().expect("a socket");
        let read = |count: &mut usize, _, _: &[u8]| {
            *count += 1;
            if *count == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert_eq!(connection.dump_into(&families(), 1, || 0, read), Ok((2, DumpEnd::Stopped)));
        let all = Connection::generic().expect("a socket").dump(&families(), |kind, _| Some(kind)).expect("a list");
        assert!(all.len() >= 2, "{all:?}");
    }

    #[test]
    fn nothing_is_sent_after_the_deadline() {
        let mut connection = Connection::generic().expect("a socket").with_limit(Duration::ZERO);
        assert_eq!(connection.dump(&families(), |kind, _| Some(kind)), Err(Cause::Timeout(0)));
        assert_eq!(connection.batch([families()]), [Err(Cause::Timeout(0))]);
    }
}
