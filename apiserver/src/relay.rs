//! A TCP relay between a client and a server. A test makes its connections silent, slow or broken.

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

use crate::listener_thread::ListenerThread;

/// One of the two ends of a relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The end that connected to the relay.
    Client,
    /// The end that the relay connected to.
    Server,
}

/// Forwards the bytes of each accepted connection to a server, and back.
///
/// A silent connection forwards no bytes, but the kernel still acknowledges them. So HTTP/2 pings and requests get no response, while TCP
/// keepalive does. To test TCP keepalive, drop packets in a network namespace.
#[derive(Debug)]
pub struct Relay {
    state: Arc<RelayState>,
    address: SocketAddr,
    _thread: ListenerThread,
}

/// Shared by all connections of a relay.
#[derive(Debug)]
struct RelayState {
    target: SocketAddr,
    commands: watch::Sender<Commands>,
    accepted: AtomicU64,
    open: AtomicUsize,
    closed_by_client: AtomicU64,
    to_client: AtomicU64,
    to_server: AtomicU64,
}

/// The commands to the connections. A command with a number applies to all connections up to this number.
#[derive(Clone, Copy, Debug, Default)]
struct Commands {
    silent: u64,
    broken: u64,
    /// One number per [`End`].
    half_closed: [u64; 2],
    refuse: bool,
    silent_from_start: bool,
    delay: Duration,
}

impl Relay {
    /// Starts a relay at a free port of 127.0.0.1.
    ///
    /// # Errors
    /// Fails if the system has no free port or cannot start a thread.
    pub fn to(target: SocketAddr) -> io::Result<Self> {
        Self::at(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, target)
    }

    /// Like [`Self::to`], with a listener.
    ///
    /// # Errors
    /// Fails if the listener is not usable or the system cannot start a thread.
    pub fn at(listener: TcpListener, target: SocketAddr) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let state = Arc::new(RelayState {
            target,
            commands: watch::Sender::default(),
            accepted: AtomicU64::default(),
            open: AtomicUsize::default(),
            closed_by_client: AtomicU64::default(),
            to_client: AtomicU64::default(),
            to_server: AtomicU64::default(),
        });
        let shared = state.clone();
        let thread = ListenerThread::start("relay", listener, move |listener| accept(listener, address, shared))?;
        Ok(Self { state, address, _thread: thread })
    }

    /// The address of the listener.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops forwarding bytes on the open connections, and keeps them open. New connections work.
    pub fn silence(&self) {
        let last = self.accepted();
        self.command(|commands| commands.silent = last);
    }

    /// Makes new connections silent from the start, or normal again.
    pub fn silence_new(&self, is_silent: bool) {
        self.command(|commands| commands.silent_from_start = is_silent);
    }

    /// Ends the silence of all connections, and forwards the bytes that they held back.
    pub fn resume(&self) {
        self.command(|commands| (commands.silent, commands.silent_from_start) = (0, false));
    }

    /// Breaks the open connections with RST.
    pub fn break_connections(&self) {
        let last = self.accepted();
        self.command(|commands| commands.broken = last);
    }

    /// Sends FIN to one end of the open connections. Bytes from this end are still forwarded.
    pub fn half_close(&self, end: End) {
        let last = self.accepted();
        self.command(|commands| commands.half_closed[end as usize] = last);
    }

    /// Refuses new connections, or accepts them again. Open connections do not change.
    pub fn refuse(&self, refuse: bool) {
        self.command(|commands| commands.refuse = refuse);
    }

    /// Delays all bytes by this time.
    pub fn delay(&self, time: Duration) {
        self.command(|commands| commands.delay = time);
    }

    /// The number of accepted connections.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// The number of open connections. A silent connection counts as open even after its client has closed it.
    #[must_use]
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// The number of connections that their client has closed, including silent ones.
    #[must_use]
    pub fn closed_by_client(&self) -> u64 {
        self.state.closed_by_client.load(Ordering::SeqCst)
    }

    /// The number of bytes forwarded to one end, as on the wire: encrypted and compressed.
    #[must_use]
    pub fn bytes_to(&self, end: End) -> u64 {
        self.state.bytes_to(end).load(Ordering::SeqCst)
    }

    fn command(&self, change: impl FnOnce(&mut Commands)) {
        self.state.commands.send_modify(change);
    }
}

impl RelayState {
    const fn bytes_to(&self, end: End) -> &AtomicU64 {
        match end {
            End::Client => &self.to_client,
            End::Server => &self.to_server,
        }
    }
}

/// Waits for commands that meet a condition, and returns them.
async fn wait_for(commands: &mut watch::Receiver<Commands>, condition: impl FnMut(&Commands) -> bool) -> Commands {
    let found = commands.wait_for(condition).await.map(|found| *found);
    match found {
        Ok(found) => found,
        // The relay was dropped, which also ends this task.
        Err(_) => pending().await,
    }
}

/// Accepts connections until the relay stops. Closes the listener while connections are to be refused.
async fn accept(mut listener: tokio::net::TcpListener, address: SocketAddr, state: Arc<RelayState>) {
    let mut commands = state.commands.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => drop(tokio::spawn(relay(client, state.clone()))),
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            _ = wait_for(&mut commands, |commands| commands.refuse) => {}
        }
        let refuse = commands.borrow().refuse;
        if refuse {
            drop(listener);
            wait_for(&mut commands, |commands| !commands.refuse).await;
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

/// Counts a connection as open until it is dropped.
struct OpenRelayed(Arc<RelayState>);

impl Drop for OpenRelayed {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Relays one connection.
async fn relay(mut client: TcpStream, state: Arc<RelayState>) {
    let number = state.accepted.fetch_add(1, Ordering::SeqCst) + 1;
    state.open.fetch_add(1, Ordering::SeqCst);
    let _open = OpenRelayed(state.clone());
    let (mut start_commands, mut break_commands) = (state.commands.subscribe(), state.commands.subscribe());
    let connect = async {
        wait_for(&mut start_commands, |commands| !commands.silent_from_start).await;
        TcpStream::connect(state.target).await
    };
    let connected = tokio::select! {
        connected = connect => connected,
        _ = wait_for(&mut break_commands, |commands| number <= commands.broken) => Err(io::ErrorKind::ConnectionReset.into()),
    };
    let Ok(mut server) = connected else { return drop(client.set_zero_linger()) };
    for stream in [&client, &server] {
        // If this fails, bytes are late but correct.
        let _ = stream.set_nodelay(true);
    }
    let forward_both = async {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let [to_server_direction, to_client_direction] = [End::Server, End::Client].map(|to| Direction { number, to, state: &state });
        tokio::try_join!(to_server_direction.forward(from_client, to_server), to_client_direction.forward(from_server, to_client))
    };
    let is_complete = tokio::select! {
        ended = forward_both => ended.is_ok(),
        _ = wait_for(&mut break_commands, |commands| number <= commands.broken) => false,
    };
    if !is_complete {
        // Fails only for a connection that is already broken.
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// One direction of a connection.
struct Direction<'a> {
    /// Number of the connection.
    number: u64,
    /// The end that receives the bytes.
    to: End,
    state: &'a RelayState,
}

impl Direction<'_> {
    /// Forwards bytes until the sender has sent everything, or until one end has broken the connection.
    async fn forward(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let (mut commands, mut close_commands) = (self.state.commands.subscribe(), self.state.commands.subscribe());
        let mut buffer = vec![0; 64 * 1024];
        let (mut pending, mut ended, mut is_closed) = (Vec::new(), None, false);
        loop {
            let has_work = ended.is_some() || !pending.is_empty();
            tokio::select! {
                read = from.read(&mut buffer), if ended.is_none() => match read {
                    Ok(0) => ended = Some(self.count_end(Ok(()))),
                    Ok(length) => pending.extend_from_slice(&buffer[..length]),
                    Err(error) => ended = Some(self.count_end(Err(error))),
                },
                _ = wait_for(&mut close_commands, |commands| self.number <= commands.half_closed[self.to as usize]), if !is_closed => {
                    to.shutdown().await?;
                    is_closed = true;
                }
                Commands { delay, .. } = wait_for(&mut commands, |commands| commands.silent < self.number), if has_work => {
                    if !delay.is_zero() {
                        sleep(delay).await;
                        let is_silent = commands.borrow().silent >= self.number;
                        if is_silent {
                            continue;
                        }
                    }
                    if !is_closed {
                        to.write_all(&pending).await?;
                        self.state.bytes_to(self.to).fetch_add(pending.len() as u64, Ordering::SeqCst);
                    }
                    pending.clear();
                    if let Some(ended) = ended.take() {
                        ended?;
                        return if is_closed { Ok(()) } else { to.shutdown().await };
                    }
                }
            }
        }
    }

    /// Counts the connection as closed by its client if the client was the sender. Returns its argument.
    fn count_end(&self, ended: io::Result<()>) -> io::Result<()> {
        if self.to == End::Server {
            self.state.closed_by_client.fetch_add(1, Ordering::SeqCst);
        }
        ended
    }
}
