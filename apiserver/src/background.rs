//! A thread that serves a listener until it is stopped.

use std::io;
use std::net::TcpListener;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::runtime::{self, Runtime};
use tokio::sync::oneshot;

/// A thread with a runtime of its own. It stops when this is dropped.
#[derive(Debug)]
pub(crate) struct Background(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Background {
    /// Starts a thread that runs what `serve` makes of the listener.
    pub(crate) fn start<F>(
        name: &str,
        listener: TcpListener,
        serve: impl FnOnce(tokio::net::TcpListener) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = ()>,
    {
        let (stop, stopped) = oneshot::channel();
        let (report, started) = mpsc::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let (runtime, listener) = match runtime(listener) {
                Ok(made) => made,
                Err(error) => return drop(report.send(Err(error))),
            };
            // The receiver is gone only while the caller's thread ends.
            let _ = report.send(Ok(()));
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener) => {}
                    _ = stopped => {}
                }
            });
        })?;
        started.recv().unwrap_or_else(|_| Err(io::Error::other("the server's thread has ended")))?;
        Ok(Self(Mutex::new(Some(Running { stop, thread }))))
    }

    /// Closes the listener and every connection.
    pub(crate) fn stop(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { stop, thread }) = running {
            // Both fail only if the thread has ended before.
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The runtime and its listener. Made on the thread itself, because a runtime must not be dropped inside of another one.
fn runtime(listener: TcpListener) -> io::Result<(Runtime, tokio::net::TcpListener)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    listener.set_nonblocking(true)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    Ok((runtime, listener))
}
