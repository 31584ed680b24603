//! A client with one long-lived TCP connection. It reports when the connection breaks.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::netns::Netns;

/// Time between two messages.
const PERIOD: Duration = Duration::from_millis(20);
/// Time limit for an answer. It is much longer than TCP retransmissions take, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A TCP connection to a pod's echo server. It sends a number every 20 ms and checks that the same number comes back. Dropping the
/// `Session` closes it.
#[derive(Debug)]
pub struct Session {
    exchanged: Arc<AtomicU64>,
    fault: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    /// Connects from a namespace.
    pub fn start(from: &Netns, to: SocketAddr) -> Self {
        let exchanged = Arc::new(AtomicU64::new(0));
        let fault = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let (thread_exchanged, thread_fault, thread_stop) = (Arc::clone(&exchanged), Arc::clone(&fault), Arc::clone(&stop));
        let thread = from.spawn_thread(move || {
            if let Err(error) = exchange_numbers(to, &thread_exchanged, &thread_stop) {
                *thread_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("connection to {to}: {error}"));
            }
        });
        Self { exchanged, fault, stop, thread: Some(thread) }
    }

    /// Returns the error that ended the connection; `None` while it is open.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how many numbers have come back.
    pub fn exchanged(&self) -> u64 {
        self.exchanged.load(Ordering::Relaxed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The result is in `fault`.
            let _ = thread.join();
        }
    }
}

fn exchange_numbers(to: SocketAddr, exchanged: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    while !stop.load(Ordering::Relaxed) {
        let number = exchanged.load(Ordering::Relaxed).to_be_bytes();
        stream.write_all(&number)?;
        let mut echo = [0; 8];
        stream.read_exact(&mut echo)?;
        if echo != number {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{number:?} came back as {echo:?}")));
        }
        exchanged.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PERIOD);
    }
    Ok(())
}
