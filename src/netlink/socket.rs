//! A netlink socket for one thread at a time: single requests, listings, and many requests in one datagram. It never waits for ever,
//! and it needs no runtime.

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    Nla, NlasIterator,
};
use netlink_sys::Socket;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{MsgFlags, setsockopt};
use nix::sys::time::TimeVal;

use super::error::Cause;

/// Time the kernel may take for one answer.
const ANSWER_SECONDS: i64 = 10;
/// How often an interrupted listing is tried.
const TRIES: u32 = 10;
/// Room for one datagram; the kernel fills 32 KiB at most with a listing.
const ANSWER_LEN: usize = 64 * 1024;
/// Receive buffer, in bytes. The kernel doubles it.
pub(super) const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Receive buffer that an acknowledgement takes, more than enough, in bytes.
const ACKNOWLEDGEMENT: usize = 2048;
/// Bytes of requests in one datagram. The kernel takes what fits its send buffer, 208 KiB where nobody changed it.
const DATAGRAM: usize = 128 * 1024;
const HEADER_LEN: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's words.
const ATTRIBUTE_WORDS: u16 = 1;

/// A request: what follows the netlink header, and what the header is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its kind (`RTM_*`, or a family of generic netlink).
    pub kind: u16,
    /// Its flags, beside those that say how it is to be answered.
    pub flags: u16,
    /// Header of its kind, and attributes.
    pub body: Vec<u8>,
}

impl Request {
    /// A request with this header of its kind and these attributes.
    pub fn new<A: Nla>(kind: u16, flags: u16, header: &impl Emitable, attributes: &[A]) -> Self {
        let (start, length) = (header.buffer_len(), attributes.buffer_len());
        let mut body = vec![0; start + length];
        header.emit(&mut body[..start]);
        attributes.emit(&mut body[start..]);
        Self { kind, flags, body }
    }

    fn append(&self, out: &mut Vec<u8>, flags: u16, sequence: u32) {
        let start = out.len();
        out.resize(start + HEADER_LEN, 0);
        let mut header = NetlinkBuffer::new(&mut out[start..]);
        header.set_length((HEADER_LEN + self.body.len()) as u32);
        header.set_message_type(self.kind);
        header.set_flags(NLM_F_REQUEST | self.flags | flags);
        header.set_sequence_number(sequence);
        out.extend_from_slice(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// One netlink message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// What it is.
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    /// What follows its header.
    pub(super) body: &'a [u8],
}

/// The messages in a datagram. Ends at anything that cannot be one.
#[derive(Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let message = NetlinkBuffer::new_checked(self.0).ok()?;
        let (kind, flags, sequence) = (message.message_type(), message.flags(), message.sequence_number());
        self.0 = self.0.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, flags, sequence, body: message.payload() })
    }
}

impl Message<'_> {
    /// How a request ended: of an acknowledgement, or of the end of a listing.
    fn outcome(&self) -> Result<(), Cause> {
        let errno = self.body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes).saturating_neg());
        if errno == 0 { Ok(()) } else { Err(Cause::Kernel { errno: Errno::from_raw(errno), said: self.words().unwrap_or_default() }) }
    }

    /// What the kernel says beside the number of an error.
    fn words(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let rest = self.body.get(4..)?;
        // An acknowledgement repeats the request, at least its header.
        let request = match self.kind {
            NLMSG_ERROR if self.flags & NLM_F_CAPPED != 0 => HEADER_LEN,
            NLMSG_ERROR => u32::from_ne_bytes(*rest.first_chunk()?) as usize,
            _ => 0,
        };
        let attributes = rest.get(request.next_multiple_of(4)..)?;
        let words = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == ATTRIBUTE_WORDS)?;
        Some(String::from_utf8_lossy(words.value()).trim_end_matches('\0').to_owned())
    }
}

/// A socket to the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    sequence: u32,
    answer: Vec<u8>,
    /// Requests whose acknowledgements fit the receive buffer.
    in_flight: usize,
}

impl Connection {
    /// A socket for links, addresses, routes and neighbours (rtnetlink).
    ///
    /// # Errors
    /// There are no more sockets to be had.
    pub fn route() -> Result<Self, Cause> {
        let connection = Self::open(NETLINK_ROUTE)?;
        // Kernels before 4.20 cannot filter listings; what comes too much is left out by who reads it.
        let _ = connection.socket.set_netlink_get_strict_chk(true);
        Ok(connection)
    }

    /// A socket for generic netlink.
    ///
    /// # Errors
    /// There are no more sockets to be had.
    pub fn generic() -> Result<Self, Cause> {
        Self::open(NETLINK_GENERIC)
    }

    fn open(protocol: isize) -> Result<Self, Cause> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        // Acknowledgements without the request they are for, and with words. Kernels before 4.3 and 4.12 cannot.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        large_buffer(&socket);
        let in_flight = (socket.get_rx_buf_sz()? / ACKNOWLEDGEMENT).max(1);
        Ok(Self { socket, sequence: 0, answer: Vec::with_capacity(ANSWER_LEN), in_flight })
    }

    /// Makes one request.
    ///
    /// # Errors
    /// The kernel refuses, or does not answer.
    pub fn request(&mut self, request: &Request) -> Result<(), Cause> {
        self.get(request, |_, _| None::<()>).map(|_| ())
    }

    /// Makes one request and gives what `read` makes of the answers to it, each with its kind and what follows its netlink header.
    ///
    /// # Errors
    /// The kernel refuses, or does not answer.
    pub fn get<T>(&mut self, request: &Request, read: impl Fn(u16, &[u8]) -> Option<T>) -> Result<Vec<T>, Cause> {
        self.exchange(request, NLM_F_ACK, &read).map(|(answers, _)| answers)
    }

    /// Lists a table and gives what `read` makes of its entries. A listing that was disturbed is made again.
    ///
    /// # Errors
    /// The kernel refuses or does not answer, or every listing was disturbed.
    pub fn dump<T>(&mut self, request: &Request, read: impl Fn(u16, &[u8]) -> Option<T>) -> Result<Vec<T>, Cause> {
        for _ in 0..TRIES {
            match self.exchange(request, NLM_F_DUMP, &read) {
                Ok((entries, false)) => return Ok(entries),
                Ok((_, true)) | Err(Cause::Kernel { errno: Errno::EINTR, .. }) => {}
                Err(cause) => return Err(cause),
            }
        }
        Err(Cause::Interrupted(TRIES))
    }

    /// Makes many requests, many in each datagram, and says of each in turn how it went. None depends on the others' success. Where
    /// answers are lost, the requests are made once more: they have to be such that doing them twice is doing them once.
    pub fn batch(&mut self, requests: impl IntoIterator<Item = Request>) -> Vec<Result<(), Cause>> {
        let mut outcomes = Vec::new();
        let mut requests = requests.into_iter().peekable();
        let mut datagram = Vec::with_capacity(DATAGRAM);
        let mut starts = Vec::new();
        while requests.peek().is_some() {
            datagram.clear();
            starts.clear();
            let first = self.sequence.wrapping_add(1);
            while let Some(request) = requests.next_if(|next| {
                starts.is_empty() || starts.len() < self.in_flight && datagram.len() + HEADER_LEN + next.body.len() < DATAGRAM
            }) {
                self.sequence = self.sequence.wrapping_add(1);
                starts.push(datagram.len());
                request.append(&mut datagram, NLM_F_ACK, self.sequence);
            }
            self.send_batch(&datagram, &starts, first, &mut outcomes);
        }
        outcomes
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
        let lost = || ended.clone().and(Err(Cause::Timeout(ANSWER_SECONDS)));
        outcomes.extend(answers.into_iter().map(|answer| answer.unwrap_or_else(lost)));
    }

    /// Receives until each of these requests, numbered from `first`, is answered.
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

    /// Makes one request; gives what is made of the answers, and whether the table changed meanwhile.
    fn exchange<T>(&mut self, request: &Request, flags: u16, read: &impl Fn(u16, &[u8]) -> Option<T>) -> Result<(Vec<T>, bool), Cause> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut datagram = Vec::with_capacity(HEADER_LEN + request.body.len());
        request.append(&mut datagram, flags, self.sequence);
        self.send(&datagram)?;
        let (mut entries, mut interrupted) = (Vec::new(), false);
        loop {
            self.receive(MsgFlags::empty())?;
            for message in Messages(&self.answer).filter(|message| message.sequence == self.sequence) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => return message.outcome().map(|()| (entries, interrupted)),
                    kind => entries.extend(read(kind, message.body)),
                }
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<(), Cause> {
        loop {
            match self.socket.send(datagram, 0) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                sent => return sent.map(|_| ()).map_err(Cause::from),
            }
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> Result<(), Cause> {
        loop {
            self.answer.clear();
            match self.socket.recv(&mut self.answer, (flags | MsgFlags::MSG_TRUNC).bits()) {
                Ok(length) if length > self.answer.len() => return Err(Errno::EMSGSIZE.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(Cause::Timeout(ANSWER_SECONDS)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Throws away what has come in.
    fn drain(&mut self) {
        while self.receive(MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
}

/// Gives a socket a large receive buffer: as large as it should be where that is permitted, as large as it may be where not.
pub(super) fn large_buffer(socket: &Socket) {
    if setsockopt(socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = socket.set_rx_buf_sz(RECEIVE_BUFFER as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::DefaultNla;
    use proptest::prelude::*;

    fn acknowledgement(errno: i32, flags: u16, repeated: &[u8], words: Option<&str>) -> Vec<u8> {
        let mut body = (-errno).to_ne_bytes().to_vec();
        body.extend_from_slice(repeated);
        if let Some(words) = words {
            let attribute = DefaultNla::new(ATTRIBUTE_WORDS, [words.as_bytes(), b"\0"].concat());
            let start = body.len();
            body.resize(start + attribute.buffer_len(), 0);
            attribute.emit(&mut body[start..]);
        }
        let mut out = Vec::new();
        Request { kind: NLMSG_ERROR, flags, body }.append(&mut out, 0, 7);
        out
    }

    #[test]
    fn acknowledgements_carry_errno_and_words() {
        let mut request = Vec::new();
        Request { kind: 24, flags: 0, body: vec![1; 30] }.append(&mut request, NLM_F_ACK, 7);
        let said = |said: &str| Err(Cause::Kernel { errno: Errno::EINVAL, said: said.to_owned() });
        for (bytes, want) in [
            (acknowledgement(0, NLM_F_CAPPED, &request[..16], None), Ok(())),
            (acknowledgement(22, NLM_F_CAPPED, &request[..16], None), said("")),
            (acknowledgement(22, NLM_F_CAPPED | NLM_F_ACK_TLVS, &request[..16], Some("No such thing")), said("No such thing")),
            (acknowledgement(22, NLM_F_ACK_TLVS, &request, Some("Not there")), said("Not there")),
        ] {
            let message = Messages(&bytes).next().expect("a message");
            assert_eq!((message.kind, message.sequence), (NLMSG_ERROR, 7));
            assert_eq!(message.outcome(), want);
        }
    }

    #[test]
    fn requests_follow_each_other_in_a_datagram() {
        let mut datagram = Vec::new();
        for (sequence, length) in [(1, 5), (2, 0), (3, 8)] {
            Request { kind: 24, flags: 0x500, body: vec![9; length] }.append(&mut datagram, NLM_F_ACK, sequence);
        }
        let found: Vec<_> = Messages(&datagram).map(|message| (message.sequence, message.flags, message.body.len())).collect();
        assert_eq!(found, [(1, 0x505, 5), (2, 0x505, 0), (3, 0x505, 8)]);
    }

    /// The kernel of whoever runs this is asked for something that is not there, and a batch of nonsense.
    #[test]
    fn the_kernel_answers_each_request() {
        let mut connection = Connection::generic().expect("a socket");
        let nonsense = |kind| Request { kind, flags: 0, body: vec![0; 4] };
        assert!(connection.request(&nonsense(0x7fff)).is_err());
        let outcomes = connection.batch((0..3000_u16).map(|n| nonsense(0x7000 + n % 16)));
        assert_eq!(outcomes.len(), 3000);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Cause::Kernel { .. }))), "{:?}", outcomes[0]);
    }

    /// Answers that do not fit the receive buffer are asked for again.
    #[test]
    fn lost_answers_are_asked_for_again() {
        let mut connection = Connection::generic().expect("a socket");
        connection.socket.set_rx_buf_sz(2048_u32).expect("smaller");
        connection.in_flight = 500;
        let outcomes = connection.batch((0..500).map(|_| Request { kind: 0x7fff, flags: 0, body: vec![0; 4] }));
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Cause::Kernel { errno: Errno::ENOENT, .. }))), "{:?}", outcomes[499]);
    }

    proptest! {
        /// Bytes that make no sense end quietly.
        #[test]
        fn nothing_that_comes_in_panics(mut noise in proptest::collection::vec(any::<u8>(), 0..120), length in 0..140_u32, kind in 1..4_u16) {
            if noise.len() >= 8 {
                noise[..4].copy_from_slice(&length.to_ne_bytes());
                noise[4..6].copy_from_slice(&kind.to_ne_bytes());
            }
            for message in Messages(&noise) {
                let _ = message.outcome();
            }
        }
    }
}
