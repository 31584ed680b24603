//! A connection that lasts, and notices when it does not.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::netns::Netns;

/// Time from one message to the next.
const PERIOD: Duration = Duration::from_millis(20);
/// Longer than TCP takes to send again what was lost once.
const PATIENCE: Duration = Duration::from_secs(3);

/// One TCP connection to a pod's echo, by which a number goes there and back every 20 ms. It ends when this is dropped.
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
        let (count, told, stopped) = (Arc::clone(&exchanged), Arc::clone(&fault), Arc::clone(&stop));
        let thread = from.start(move || {
            if let Err(error) = talk(to, &count, &stopped) {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("connection to {to}: {error}"));
            }
        });
        Self { exchanged, fault, stop, thread: Some(thread) }
    }

    /// What has ended it; `None` while it lasts.
    pub fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many numbers have come back.
    pub fn exchanged(&self) -> u64 {
        self.exchanged.load(Ordering::Relaxed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

fn talk(to: SocketAddr, exchanged: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    while !stop.load(Ordering::Relaxed) {
        let number = exchanged.load(Ordering::Relaxed).to_be_bytes();
        stream.write_all(&number)?;
        let mut back = [0; 8];
        stream.read_exact(&mut back)?;
        if back != number {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{number:?} came back as {back:?}")));
        }
        exchanged.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PERIOD);
    }
    Ok(())
}
