//! A running server and the handle to it.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::{self, Runtime};
use tokio::sync::oneshot;

use crate::faults::Failure;
use crate::http::{self, Shared};
use crate::journal::LogEntry;
use crate::object::Entry;
use crate::refusal::Refusal;
use crate::resource::Resource;
use crate::store::Store;

/// A server on a thread of its own. It stops when this is dropped.
///
/// Resources are named by plural or kind: `services`, `Service`. Objects are named `namespace/name`, or `name` where there is no
/// namespace.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl ApiServer {
    /// Starts a server on a free port of 127.0.0.1, with the namespaces and the `ServiceCIDR` of a new cluster.
    ///
    /// # Errors
    /// The system has no port or no thread left.
    pub fn start() -> io::Result<Self> {
        Self::serve(TcpListener::bind("127.0.0.1:0")?)
    }

    /// The same behind a listener, which may belong to another network namespace.
    ///
    /// # Errors
    /// The listener is not usable, or there is no thread left.
    pub fn serve(listener: TcpListener) -> io::Result<Self> {
        Self::serve_loaded(listener, Vec::new())
    }

    /// The same with objects besides. None of them has a history.
    ///
    /// # Errors
    /// An object is of no known kind or has no name, the listener is not usable, or there is no thread left.
    pub fn serve_loaded(listener: TcpListener, objects: Vec<Value>) -> io::Result<Self> {
        Self::serve_objects(listener, new_cluster().into_iter().chain(objects).collect())
    }

    /// Starts a server that has these objects and no others, and no history.
    ///
    /// # Errors
    /// An object is of no known kind or has no name, the listener is not usable, or there is no thread left.
    pub fn serve_objects(listener: TcpListener, objects: Vec<Value>) -> io::Result<Self> {
        let mut store = Store::new();
        store.load(objects).map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal))?;
        store.begin();
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(store));
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let served = shared.clone();
        let thread = thread::Builder::new().name("apiserver".into()).spawn(move || {
            let started = runtime(listener);
            let (runtime, listener) = match started {
                Ok(started) => started,
                Err(error) => return drop(tell.send(Err(error))),
            };
            // Nobody waits for it only if the caller's thread is being torn down.
            let _ = tell.send(Ok(()));
            runtime.block_on(async {
                tokio::select! {
                    () = http::accept(listener, served) => {}
                    _ = stopped => {}
                }
            });
        })?;
        told.recv().unwrap_or_else(|_| Err(io::Error::other("the server's thread has ended")))?;
        Ok(Self { shared, address, running: Mutex::new(Some(Running { stop, thread })) })
    }

    /// Stops this server and starts another at the same address: the same objects, no history, and versions that start again.
    ///
    /// # Errors
    /// The address cannot be listened at again.
    pub fn restart(self) -> io::Result<Self> {
        self.stop();
        Self::serve_objects(TcpListener::bind(self.address)?, self.objects())
    }

    /// Closes the port and every connection. Objects, counters and log can still be read.
    pub fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { stop, thread }) = running {
            // Both fail only if the thread has ended by itself.
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:41234`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Text of a kubeconfig that points here.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let url = self.url();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster:\n    server: {url}\n\
             contexts:\n- name: test\n  context:\n    cluster: test\n    user: test\n\
             users:\n- name: test\n  user: {{}}\n"
        )
    }

    /// Stores an object as it is, in place of the one of the same name, and returns its resource version.
    ///
    /// # Errors
    /// It is of no known kind or has no name.
    #[allow(clippy::needless_pass_by_value, reason = "a value is stored, and what is put is mostly made for it")]
    pub fn put(&self, object: Value) -> Result<u64, Refusal> {
        self.load(vec![object])
    }

    /// Stores objects as they are and returns the version of the last; either all are stored or none.
    ///
    /// # Errors
    /// One is of no known kind or has no name.
    pub fn load(&self, objects: Vec<Value>) -> Result<u64, Refusal> {
        self.shared.store().load(objects)
    }

    /// Removes an object, whatever holds it. False if there is none.
    ///
    /// # Panics
    /// There is no such resource.
    pub fn remove(&self, resource: &str, name: &str) -> bool {
        let resource = known(resource);
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let mut store = self.shared.store();
        store.get(resource, namespace, name).is_some_and(|entry| store.remove(resource, &entry).is_ok())
    }

    /// An object.
    ///
    /// # Panics
    /// There is no such resource.
    #[must_use]
    pub fn get(&self, resource: &str, name: &str) -> Option<Value> {
        let resource = known(resource);
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let entry = self.shared.store().get(resource, namespace, name);
        entry.and_then(|entry| value(&entry))
    }

    /// Every object of a resource, sorted by namespace and name.
    ///
    /// # Panics
    /// There is no such resource.
    #[must_use]
    pub fn list(&self, resource: &str) -> Vec<Value> {
        let entries = self.shared.store().list(known(resource), "");
        entries.iter().filter_map(|entry| value(entry)).collect()
    }

    /// Every object.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let entries = self.shared.store().all();
        entries.iter().filter_map(|(_, entry)| value(entry)).collect()
    }

    /// The current resource version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// How many watches of a resource are open.
    ///
    /// # Panics
    /// There is no such resource.
    #[must_use]
    pub fn watches(&self, resource: &str) -> usize {
        self.shared.store().watches(known(resource))
    }

    /// Breaks every open watch, after what happened until now.
    pub fn drop_watches(&self) {
        self.shared.store().drop_watches();
    }

    /// Sends a bookmark on every watch that takes them, without waiting until one is due.
    pub fn send_bookmarks(&self) {
        self.shared.store().call_bookmarks();
    }

    /// Forgets what happened: whoever asks for older versions gets 410. Open watches go on.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Like a restored backup: versions jump, what happened is forgotten, watches break.
    pub fn new_history(&self, by: u64) {
        self.shared.store().new_history(by);
    }

    /// Remembers at most so many events per resource. A watch that is further behind ends with 410.
    pub fn keep_history(&self, events: usize) {
        self.shared.store().keep_history(events);
    }

    /// Takes requests and answers none for a time; watches are silent. A new time replaces the one that runs.
    pub fn pause(&self, time: Duration) {
        self.shared.faults.pause(time);
    }

    /// Lets requests fail. It replaces the failure before.
    pub fn fail(&self, failure: Failure) {
        self.shared.faults.fail(failure);
    }

    /// Lets every request, and every batch of watch events, wait.
    pub fn delay(&self, time: Duration) {
        self.shared.faults.delay(time);
    }

    /// Refuses a verb on a resource (`nodes`, `nodes/status`) with 403, and says so in access reviews. `*` stands for any.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.shared.faults.deny(verb, resource);
    }

    /// Denies nothing any more.
    pub fn allow_all(&self) {
        self.shared.faults.allow_all();
    }

    /// How many requests there were of each sort: `list services`, `patch nodes/status`, `failed`.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.shared.journal.counts()
    }

    /// How many requests there were of one sort.
    #[must_use]
    pub fn count(&self, sort: &str) -> u64 {
        self.requests().get(sort).copied().unwrap_or_default()
    }

    /// Counts from zero again.
    pub fn reset_requests(&self) {
        self.shared.journal.reset();
    }

    /// The requests that were answered, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.journal.entries()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a server runs on. Made on its thread, because it must not be dropped inside of another runtime.
fn runtime(listener: TcpListener) -> io::Result<(Runtime, tokio::net::TcpListener)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    listener.set_nonblocking(true)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    Ok((runtime, listener))
}

#[allow(clippy::panic, reason = "a misspelt resource is a mistake in the test that names it")]
fn known(resource: &str) -> Resource {
    Resource::named(resource).unwrap_or_else(|| panic!("no resource is called {resource}"))
}

fn value(entry: &Entry) -> Option<Value> {
    entry.object().ok().map(Value::Object)
}

/// What every cluster has.
fn new_cluster() -> Vec<Value> {
    let namespace = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        })
    };
    let mut objects: Vec<_> = ["default", "kube-system", "kube-public", "kube-node-lease"].map(namespace).into();
    objects.push(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/12"]}, "status": {},
    }));
    objects
}
