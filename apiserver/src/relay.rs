//! A TCP relay between a client and a server. On command its connections go silent, break or are slow.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::background::Background;

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that connected to the relay.
    Client,
    /// The one that the relay connects to.
    Server,
}

/// Accepts connections and connects each of them to a server. It passes on the bytes of both directions, unless it is ordered otherwise.
///
/// Silence is at the level of bytes: the kernel goes on to acknowledge what is sent into a silent connection, so it stays silent for HTTP/2
/// pings and for answers, but not for TCP keepalive. To test that, drop packets in a network namespace.
#[derive(Debug)]
pub struct Relay {
    state: Arc<Shared>,
    address: SocketAddr,
    _background: Background,
}

/// What is the same for every connection.
#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    orders: watch::Sender<Orders>,
    accepted: AtomicU64,
    open: AtomicUsize,
    closed_by_client: AtomicU64,
    to_client: AtomicU64,
    to_server: AtomicU64,
}

/// What connections are ordered to do. A number orders it for connections up to this one.
#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    silent: u64,
    broken: u64,
    half_closed: [u64; 2],
    refuses: bool,
    silent_from_start: bool,
    delay: Duration,
}

impl Relay {
    /// A relay at a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The system has no port or no thread left.
    pub fn to(target: SocketAddr) -> io::Result<Self> {
        Self::at(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, target)
    }

    /// The same behind a listener.
    ///
    /// # Errors
    /// The listener is not usable, or there is no thread left.
    pub fn at(listener: TcpListener, target: SocketAddr) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let state = Arc::new(Shared {
            target,
            orders: watch::Sender::default(),
            accepted: AtomicU64::default(),
            open: AtomicUsize::default(),
            closed_by_client: AtomicU64::default(),
            to_client: AtomicU64::default(),
            to_server: AtomicU64::default(),
        });
        let shared = state.clone();
        let background = Background::start("relay", listener, move |listener| accept(listener, address, shared))?;
        Ok(Self { state, address, _background: background })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops passing on bytes in the open connections, and closes none of them. New connections work.
    pub fn silence(&self) {
        let last = self.accepted();
        self.order(|orders| orders.silent = last);
    }

    /// New connections are silent from the start, or they are not.
    pub fn silence_new(&self, is_silent: bool) {
        self.order(|orders| orders.silent_from_start = is_silent);
    }

    /// Passes on what silent connections have held back, and what follows.
    pub fn resume(&self) {
        self.order(|orders| (orders.silent, orders.silent_from_start) = (0, false));
    }

    /// Breaks the open connections, with RST.
    pub fn break_connections(&self) {
        let last = self.accepted();
        self.order(|orders| orders.broken = last);
    }

    /// Sends FIN to one end of the open connections. What this end sends is still passed on.
    pub fn half_close(&self, end: End) {
        let last = self.accepted();
        self.order(|orders| orders.half_closed[end as usize] = last);
    }

    /// Refuses new connections, or accepts them again. Open connections are not changed.
    pub fn refuse(&self, refuses: bool) {
        self.order(|orders| orders.refuses = refuses);
    }

    /// Delays all bytes by this time.
    pub fn delay(&self, time: Duration) {
        self.order(|orders| orders.delay = time);
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open now. A silent one is, even if its client has closed it.
    #[must_use]
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// How many connections were closed by their client. Silent ones count, too.
    #[must_use]
    pub fn closed_by_client(&self) -> u64 {
        self.state.closed_by_client.load(Ordering::SeqCst)
    }

    /// The bytes that were passed on to an end, on the wire: with TLS and compressed.
    #[must_use]
    pub fn bytes_to(&self, end: End) -> u64 {
        self.state.bytes_to(end).load(Ordering::SeqCst)
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        self.state.orders.send_modify(change);
    }
}

impl Shared {
    const fn bytes_to(&self, end: End) -> &AtomicU64 {
        match end {
            End::Client => &self.to_client,
            End::Server => &self.to_server,
        }
    }
}

/// Waits until something is ordered.
async fn ordered(orders: &mut watch::Receiver<Orders>, is_ordered: impl FnMut(&Orders) -> bool) -> Orders {
    let found = orders.wait_for(is_ordered).await.map(|found| *found);
    match found {
        Ok(found) => found,
        // The relay is gone, and its runtime with it.
        Err(_) => pending().await,
    }
}

/// Accepts connections until the relay stops. While they are refused, there is no listener.
async fn accept(mut listener: tokio::net::TcpListener, address: SocketAddr, shared: Arc<Shared>) {
    let mut orders = shared.orders.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => drop(tokio::spawn(relay(client, shared.clone()))),
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            _ = ordered(&mut orders, |orders| orders.refuses) => {}
        }
        let refuses = orders.borrow().refuses;
        if refuses {
            drop(listener);
            ordered(&mut orders, |orders| !orders.refuses).await;
            listener = loop {
                match listen(address) {
                    Ok(listener) => break listener,
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            };
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

/// A connection that is counted as open.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Passes one connection on.
async fn relay(mut client: TcpStream, shared: Arc<Shared>) {
    let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
    shared.open.fetch_add(1, Ordering::SeqCst);
    let _open = Open(shared.clone());
    let (mut orders, mut breaks) = (shared.orders.subscribe(), shared.orders.subscribe());
    let starts = async {
        ordered(&mut orders, |orders| !orders.silent_from_start).await;
        TcpStream::connect(shared.target).await
    };
    let connected = tokio::select! {
        connected = starts => connected,
        _ = ordered(&mut breaks, |orders| number <= orders.broken) => Err(io::ErrorKind::ConnectionReset.into()),
    };
    let Ok(mut server) = connected else { return drop(client.set_zero_linger()) };
    for stream in [&client, &server] {
        // Without it bytes are late, and no worse.
        let _ = stream.set_nodelay(true);
    }
    let passes = async {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let [there, back] = [End::Server, End::Client].map(|end| Way { number, end, shared: &shared });
        tokio::try_join!(there.pass(from_client, to_server), back.pass(from_server, to_client))
    };
    let is_whole = tokio::select! {
        ended = passes => ended.is_ok(),
        _ = ordered(&mut breaks, |orders| number <= orders.broken) => false,
    };
    if !is_whole {
        // Fails only for a connection that is broken already.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// One direction of a connection.
struct Way<'a> {
    number: u64,
    /// Where it leads to.
    end: End,
    shared: &'a Shared,
}

impl Way<'_> {
    /// Passes bytes on until both sides have sent everything, or one is gone.
    async fn pass(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let (mut orders, mut closes) = (self.shared.orders.subscribe(), self.shared.orders.subscribe());
        let mut buffer = vec![0; 64 * 1024];
        let (mut held, mut ended, mut is_closed) = (Vec::new(), None, false);
        loop {
            tokio::select! {
                read = from.read(&mut buffer), if ended.is_none() => match read {
                    Ok(0) => ended = Some(self.end_of(Ok(()))),
                    Ok(length) => held.extend_from_slice(&buffer[..length]),
                    Err(error) => ended = Some(self.end_of(Err(error))),
                },
                _ = ordered(&mut closes, |orders| self.number <= orders.half_closed[self.end as usize]), if !is_closed => {
                    to.shutdown().await?;
                    is_closed = true;
                }
                Orders { delay, .. } = ordered(&mut orders, |orders| orders.silent < self.number), if ended.is_some() || !held.is_empty() => {
                    if !delay.is_zero() {
                        sleep(delay).await;
                        let is_silent = orders.borrow().silent >= self.number;
                        if is_silent {
                            continue;
                        }
                    }
                    if !is_closed {
                        to.write_all(&held).await?;
                        self.shared.bytes_to(self.end).fetch_add(held.len() as u64, Ordering::SeqCst);
                    }
                    held.clear();
                    if let Some(ended) = ended.take() {
                        ended?;
                        return if is_closed { Ok(()) } else { to.shutdown().await };
                    }
                }
            }
        }
    }

    /// Notes how the side that is read from has ended.
    fn end_of(&self, ended: io::Result<()>) -> io::Result<()> {
        if self.end == End::Server {
            self.shared.closed_by_client.fetch_add(1, Ordering::SeqCst);
        }
        ended
    }
}
