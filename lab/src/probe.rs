//! A client that asks all the time and notices every answer that does not come.

use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::netns::Netns;

/// Time from one question to the next.
pub const PERIOD: Duration = Duration::from_millis(20);
/// Longer than an answer takes, also on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(1);

/// TCP sends again after a second what was lost; a connection that comes about then has not failed.
const TCP_PATIENCE: Duration = Duration::from_secs(3);

/// The ports that are asked from, one after the other.
const PORTS: Range<u16> = 20_000..32_000;

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Answered,
    Lost,
}

/// Asks a server every 20 ms, each time from a port of its own, so that rules take each question for a new connection. It stops when
/// this is dropped.
#[derive(Debug)]
pub struct Prober {
    fates: Arc<Mutex<Vec<Fate>>>,
    /// The first question that was not yet reported about.
    next: AtomicUsize,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Begins to ask from a namespace.
    pub fn start(from: &Netns, to: SocketAddr) -> Self {
        Self::asking(from, to, ask)
    }

    /// Begins to ask a TCP server, by a connection for each question. While no answer comes it waits, so it asks more rarely.
    pub fn start_tcp(from: &Netns, to: SocketAddr) -> Self {
        Self::asking(from, to, ask_tcp)
    }

    fn asking(from: &Netns, to: SocketAddr, ask: fn(SocketAddr, &Mutex<Vec<Fate>>, &AtomicBool)) -> Self {
        let fates = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (of_thread, stopped) = (Arc::clone(&fates), Arc::clone(&stop));
        let thread = from.start(move || ask(to, &of_thread, &stopped));
        Self { fates, next: AtomicUsize::new(0), stop, thread: Some(thread) }
    }

    /// How many questions got no answer since this was called last. Waits for the last of them.
    pub fn lost(&self) -> usize {
        let until = lock(&self.fates).len();
        let from = self.next.swap(until, Ordering::Relaxed);
        loop {
            let fates = lock(&self.fates)[from..until].to_vec();
            if !fates.contains(&Fate::Open) {
                return fates.iter().filter(|fate| **fate == Fate::Lost).count();
            }
            thread::sleep(PERIOD);
        }
    }

    /// How many were asked until now.
    pub fn asked(&self) -> usize {
        lock(&self.fates).len()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

fn lock(fates: &Mutex<Vec<Fate>>) -> MutexGuard<'_, Vec<Fate>> {
    fates.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask(to: SocketAddr, fates: &Mutex<Vec<Fate>>, stop: &AtomicBool) {
    let mut open: Vec<(usize, Instant, UdpSocket)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = lock(fates).len();
        let asked = question(to, number);
        let mut fates_now = lock(fates);
        match asked {
            Ok(socket) => {
                fates_now.push(Fate::Open);
                open.push((number, Instant::now(), socket));
            }
            Err(_) => fates_now.push(Fate::Lost),
        }
        drop(fates_now);
        thread::sleep(PERIOD);
        open.retain(|(number, since, socket)| {
            let fate = match socket.recv(&mut [0; 64]) {
                Ok(_) => Fate::Answered,
                Err(_) if since.elapsed() < PATIENCE => return true,
                Err(_) => Fate::Lost,
            };
            lock(fates)[*number] = fate;
            false
        });
    }
}

fn ask_tcp(to: SocketAddr, fates: &Mutex<Vec<Fate>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let number = lock(fates).len();
        lock(fates).push(Fate::Open);
        let answered = connection(to, number).is_ok_and(|answer| !answer.is_empty());
        if let Some(fate) = lock(fates).last_mut() {
            *fate = if answered { Fate::Answered } else { Fate::Lost };
        }
        thread::sleep(PERIOD);
    }
}

/// From a port as [`question`] does, for the same reason: of TCP such a flow is remembered for two minutes.
fn connection(to: SocketAddr, number: usize) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&address_of(to, number).into()).or_else(|_| socket.bind(&any(to, 0).into()))?;
    socket.connect_timeout(&to.into(), TCP_PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TCP_PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Asks from a port that was not asked from for minutes: a flow that began without rules is remembered for half a minute, and whoever has
/// its ports meanwhile is a part of it.
fn question(to: SocketAddr, number: usize) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address_of(to, number)).or_else(|_| UdpSocket::bind(any(to, 0)))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    socket.send(b"?")?;
    Ok(socket)
}

/// Where a question is asked from.
fn address_of(to: SocketAddr, number: usize) -> SocketAddr {
    any(to, PORTS.start + u16::try_from(number % PORTS.len()).unwrap_or_default())
}

fn any(to: SocketAddr, port: u16) -> SocketAddr {
    if to.is_ipv4() { ([0, 0, 0, 0], port).into() } else { ([0_u16; 8], port).into() }
}
