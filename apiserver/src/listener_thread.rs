//! Runs an async server on its own thread.

use std::io;
use std::net::TcpListener;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::runtime::{self, Runtime};
use tokio::sync::oneshot;

/// A thread with its own tokio runtime that serves one listener. It stops when this value is dropped.
#[derive(Debug)]
pub(crate) struct ListenerThread(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ListenerThread {
    /// Starts the thread and runs the future that `serve` returns.
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
            let (runtime, listener) = match build(listener) {
                Ok(built) => built,
                Err(error) => return drop(report.send(Err(error))),
            };
            // Fails only if the caller no longer waits for the report.
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

    /// Stops the thread, which closes the listener and every connection.
    pub(crate) fn stop(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { stop, thread }) = running {
            // Both fail only if the thread has already ended.
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

impl Drop for ListenerThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Builds the runtime and its listener. Runs on the new thread, because tokio forbids dropping a runtime inside another one.
fn build(listener: TcpListener) -> io::Result<(Runtime, tokio::net::TcpListener)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    listener.set_nonblocking(true)?;
    let listener = {
        let _guard = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    Ok((runtime, listener))
}
