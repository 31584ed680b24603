//! A client that sends a request every 20 ms and counts lost answers.

use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::netns::{Netns, wait_until};

/// Time between two requests.
const PERIOD: Duration = Duration::from_millis(20);
/// A UDP request counts as lost after this many periods without an answer: after one second, and later on a busy machine, where the prober
/// itself is slow, too.
const UDP_PERIODS: u32 = 50;
/// Time limit for a TCP connection. TCP retransmits a lost packet after one second, and such a connection counts as answered.
const TCP_TIMEOUT: Duration = Duration::from_secs(3);
/// Source ports. Requests use them in turn.
///
/// A port is used again only after minutes: conntrack remembers a UDP flow for half a minute and a TCP flow for two minutes. A request
/// from the same port within that time would belong to the old flow, which may have begun when the rules were missing.
const SOURCE_PORTS: Range<u16> = 20_000..32_000;

/// The state of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestState {
    Open,
    Answered,
    Lost,
}

/// Requests in the order in which they were sent.
type Requests = Mutex<Vec<RequestState>>;

/// Sends a request every 20 ms, each from another source port, so that each is a new connection for the rules. Dropping the `Prober`
/// stops it.
#[derive(Debug)]
pub struct Prober {
    requests: Arc<Requests>,
    /// Index of the first request that [`Prober::lost`] has not reported yet.
    next: AtomicUsize,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts to probe a UDP server from a namespace.
    pub fn start(from: &Netns, to: SocketAddr) -> Self {
        Self::start_with(from, to, probe_udp)
    }

    /// Starts to probe a TCP server, with one connection per request. It waits for each answer, so slow answers reduce the rate.
    pub(crate) fn start_tcp(from: &Netns, to: SocketAddr) -> Self {
        Self::start_with(from, to, probe_tcp)
    }

    fn start_with(from: &Netns, to: SocketAddr, probe: fn(SocketAddr, &Requests, &AtomicBool)) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (thread_requests, thread_stop) = (Arc::clone(&requests), Arc::clone(&stop));
        let thread = from.spawn_thread(move || probe(to, &thread_requests, &thread_stop));
        Self { requests, next: AtomicUsize::new(0), stop, thread: Some(thread) }
    }

    /// Returns how many requests since the last call got no answer. Waits until all of them are answered or lost.
    pub fn lost(&self) -> usize {
        let until = lock(&self.requests).len();
        let from = self.next.swap(until, Ordering::Relaxed);
        loop {
            let requests = lock(&self.requests)[from..until].to_vec();
            if !requests.contains(&RequestState::Open) {
                return requests.iter().filter(|state| **state == RequestState::Lost).count();
            }
            thread::sleep(PERIOD);
        }
    }

    /// Waits until this many more requests are sent.
    pub fn wait_for_requests(&self, count: usize) {
        let wanted = self.asked() + count;
        wait_until("the prober sends requests", || self.asked() >= wanted);
    }

    /// Returns how many requests were sent until now.
    pub fn asked(&self) -> usize {
        lock(&self.requests).len()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread returns nothing.
            let _ = thread.join();
        }
    }
}

fn lock(requests: &Requests) -> MutexGuard<'_, Vec<RequestState>> {
    requests.lock().unwrap_or_else(PoisonError::into_inner)
}

fn probe_udp(to: SocketAddr, requests: &Requests, stop: &AtomicBool) {
    let mut open: Vec<(usize, u32, UdpSocket)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = lock(requests).len();
        let sent = send_udp(to, number);
        let mut states = lock(requests);
        match sent {
            Ok(socket) => {
                states.push(RequestState::Open);
                open.push((number, 0, socket));
            }
            Err(_) => states.push(RequestState::Lost),
        }
        drop(states);
        thread::sleep(PERIOD);
        open.retain_mut(|(number, periods, socket)| {
            *periods += 1;
            let state = match socket.recv(&mut [0; 64]) {
                Ok(_) => RequestState::Answered,
                Err(_) if *periods < UDP_PERIODS => return true,
                Err(_) => RequestState::Lost,
            };
            lock(requests)[*number] = state;
            false
        });
    }
}

fn probe_tcp(to: SocketAddr, requests: &Requests, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let number = lock(requests).len();
        lock(requests).push(RequestState::Open);
        let answered = request_tcp(to, number).is_ok_and(|answer| !answer.is_empty());
        if let Some(state) = lock(requests).last_mut() {
            *state = if answered { RequestState::Answered } else { RequestState::Lost };
        }
        thread::sleep(PERIOD);
    }
}

/// Opens a TCP connection from the request's source port and reads the answer.
fn request_tcp(to: SocketAddr, number: usize) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&source(to, number).into()).or_else(|_| socket.bind(&unspecified(to, 0).into()))?;
    socket.connect_timeout(&to.into(), TCP_TIMEOUT)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TCP_TIMEOUT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Sends a UDP request from its source port. The socket does not block.
fn send_udp(to: SocketAddr, number: usize) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(source(to, number)).or_else(|_| UdpSocket::bind(unspecified(to, 0)))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    socket.send(b"?")?;
    Ok(socket)
}

/// Returns the source address of a request.
fn source(to: SocketAddr, number: usize) -> SocketAddr {
    unspecified(to, SOURCE_PORTS.start + u16::try_from(number % SOURCE_PORTS.len()).unwrap_or_default())
}

/// Returns the unspecified address of the same family with this port.
fn unspecified(to: SocketAddr, port: u16) -> SocketAddr {
    if to.is_ipv4() { ([0, 0, 0, 0], port).into() } else { ([0_u16; 8], port).into() }
}
