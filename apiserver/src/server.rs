//! [`ApiServer`]: starts a server, and reads and changes its state.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::authentication::Authenticator;
use crate::certificates::{Authority, Identity};
use crate::connections::{ConnectionCommand, ConnectionCounts};
use crate::failure::InjectedFailure;
use crate::http;
use crate::kubeconfig::{self, User};
use crate::listener_thread::ListenerThread;
use crate::object::Entry;
use crate::options::Options;
use crate::request_log::{BytesSent, LogEntry};
use crate::resource::Resource;
use crate::state::ServerState;
use crate::status_error::StatusError;
use crate::store::Store;
use crate::tls::Tls;

/// An API server that runs on its own thread. It stops when this value is dropped.
///
/// Methods take the plural or the kind of a resource: `services`, `Service`. They take the name of an object as `namespace/name`, or as
/// `name` for cluster-wide resources.
#[derive(Debug)]
pub struct ApiServer {
    state: Arc<ServerState>,
    address: SocketAddr,
    thread: ListenerThread,
}

impl ApiServer {
    /// Starts a server on a free port of 127.0.0.1, with the namespaces and the `ServiceCIDR` of a new cluster.
    ///
    /// # Errors
    /// Fails if the system has no free port or cannot start a thread.
    pub fn start() -> io::Result<Self> {
        Self::serve(TcpListener::bind("127.0.0.1:0")?)
    }

    /// Like [`Self::start`], with a listener, which may belong to another network namespace.
    ///
    /// # Errors
    /// Fails if the listener is not usable or the system cannot start a thread.
    pub fn serve(listener: TcpListener) -> io::Result<Self> {
        Self::serve_loaded(listener, Vec::new())
    }

    /// Like [`Self::serve`], with more objects. The history starts after them.
    ///
    /// # Errors
    /// Fails if an object has an unknown kind or no name, if the listener is not usable, or if the system cannot start a thread.
    pub fn serve_loaded(listener: TcpListener, objects: Vec<Value>) -> io::Result<Self> {
        Self::serve_objects(listener, new_cluster().into_iter().chain(objects).collect())
    }

    /// Starts a server with exactly these objects. The history starts after them.
    ///
    /// # Errors
    /// Fails if an object has an unknown kind or no name, if the listener is not usable, or if the system cannot start a thread.
    pub fn serve_objects(listener: TcpListener, objects: Vec<Value>) -> io::Result<Self> {
        Self::run(listener, objects, None, Arc::default())
    }

    /// Like [`Self::start`], with options for TLS and authentication.
    ///
    /// # Errors
    /// Fails if the server's key is not usable, or if the system has no free port or cannot start a thread.
    pub fn start_with(options: Options) -> io::Result<Self> {
        Self::serve_with(TcpListener::bind("127.0.0.1:0")?, Vec::new(), options)
    }

    /// Like [`Self::serve_loaded`], with options for TLS and authentication.
    ///
    /// # Errors
    /// Fails if the server's key is not usable, if an object has an unknown kind or no name, if the listener is not usable, or if the
    /// system cannot start a thread.
    pub fn serve_with(listener: TcpListener, objects: Vec<Value>, options: Options) -> io::Result<Self> {
        let (tls, authenticator) = options.build()?;
        Self::run(listener, new_cluster().into_iter().chain(objects).collect(), tls, authenticator)
    }

    fn run(listener: TcpListener, objects: Vec<Value>, tls: Option<Arc<Tls>>, authenticator: Arc<Authenticator>) -> io::Result<Self> {
        let mut store = Store::new();
        store.load(objects).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        store.clear_history();
        let address = listener.local_addr()?;
        let state = Arc::new(ServerState::new(store, tls, authenticator));
        let shared = state.clone();
        let thread = ListenerThread::start("apiserver", listener, |listener| http::accept(listener, shared))?;
        Ok(Self { state, address, thread })
    }

    /// Stops this server and starts another one at the same address. The new server has the same objects and no history, and its
    /// resource versions start again.
    ///
    /// # Errors
    /// Fails if the address is no longer free.
    pub fn restart(self) -> io::Result<Self> {
        self.stop();
        let (tls, authenticator) = (self.state.tls.clone(), self.state.authenticator.clone());
        Self::run(TcpListener::bind(self.address)?, self.objects(), tls, authenticator)
    }

    /// Closes the port and every connection. Objects, counters and log stay readable.
    pub fn stop(&self) {
        self.thread.stop();
    }

    /// The address of the listener.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:41234`, or `https://127.0.0.1:41234` with TLS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.state.tls.is_some() { "https" } else { "http" }, self.address)
    }

    /// A kubeconfig for this server, without credentials.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        kubeconfig::write(&self.url(), "", &User::Anonymous)
    }

    /// A kubeconfig for this server, with the CA that signed the server's certificate and with a user's credentials.
    #[must_use]
    pub fn kubeconfig_as(&self, authority_pem: &str, user: &User<'_>) -> String {
        kubeconfig::write(&self.url(), authority_pem, user)
    }

    /// Stores an object without defaults or checks, replaces an object of the same name, and returns the new resource version.
    ///
    /// # Errors
    /// Fails if the object has an unknown kind or no name.
    #[allow(clippy::needless_pass_by_value, reason = "callers build the value for this call")]
    pub fn put(&self, object: Value) -> Result<u64, StatusError> {
        self.load(vec![object])
    }

    /// Stores objects like [`Self::put`], and returns the resource version of the last one. Stores none of them if one is invalid.
    ///
    /// # Errors
    /// Fails if an object has an unknown kind or no name.
    pub fn load(&self, objects: Vec<Value>) -> Result<u64, StatusError> {
        self.state.store().load(objects)
    }

    /// Removes an object, even if it has finalizers. False if there is no such object.
    ///
    /// # Panics
    /// Panics if there is no such resource.
    pub fn remove(&self, resource: &str, name: &str) -> bool {
        let resource = find_resource(resource);
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let mut store = self.state.store();
        store.get(resource, namespace, name).is_some_and(|entry| store.remove(resource, &entry).is_ok())
    }

    /// One object; `None` if it does not exist.
    ///
    /// # Panics
    /// Panics if there is no such resource.
    #[must_use]
    pub fn get(&self, resource: &str, name: &str) -> Option<Value> {
        let resource = find_resource(resource);
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let entry = self.state.store().get(resource, namespace, name);
        entry.and_then(|entry| decode(&entry))
    }

    /// All objects of a resource, sorted by namespace and name.
    ///
    /// # Panics
    /// Panics if there is no such resource.
    #[must_use]
    pub fn list(&self, resource: &str) -> Vec<Value> {
        let entries = self.state.store().list(find_resource(resource), "");
        entries.iter().filter_map(|entry| decode(entry)).collect()
    }

    /// All objects of all resources.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let entries = self.state.store().all();
        entries.iter().filter_map(|(_, entry)| decode(entry)).collect()
    }

    /// The current resource version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.state.store().version()
    }

    /// The number of open watches of a resource.
    ///
    /// # Panics
    /// Panics if there is no such resource.
    #[must_use]
    pub fn watches(&self, resource: &str) -> usize {
        self.state.store().watches(find_resource(resource))
    }

    /// Breaks every open watch after it has sent the events up to now.
    pub fn drop_watches(&self) {
        self.state.store().drop_watches();
    }

    /// Sends a bookmark now on every watch that asked for bookmarks.
    pub fn send_bookmarks(&self) {
        self.state.store().request_bookmarks();
    }

    /// Compacts the history: requests for earlier resource versions get 410. Open watches continue.
    pub fn compact(&self) {
        self.state.store().compact();
    }

    /// Raises the resource version, compacts the history and breaks the watches, like an etcd that was restored from a backup.
    pub fn new_history(&self, by: u64) {
        self.state.store().new_history(by);
    }

    /// Limits the history of each resource to this many events. A watch that is further behind ends with 410.
    pub fn limit_history(&self, events: usize) {
        self.state.store().limit_history(events);
    }

    /// Sends no responses and no watch events for this time. Requests are still accepted. A later call replaces the pause.
    pub fn pause(&self, time: Duration) {
        self.state.faults.pause(time);
    }

    /// Makes requests fail. Replaces all earlier failures.
    pub fn fail(&self, failure: InjectedFailure) {
        self.state.faults.fail(failure);
    }

    /// Makes requests fail, in addition to the earlier failures. The first failure that matches a request applies.
    pub fn fail_also(&self, failure: InjectedFailure) {
        self.state.faults.fail_also(failure);
    }

    /// Ends all failures.
    pub fn stop_failing(&self) {
        self.state.faults.stop_failing();
    }

    /// Delays every response and every batch of watch events.
    pub fn delay(&self, time: Duration) {
        self.state.faults.delay(time);
    }

    /// Refuses a verb on a resource, such as `nodes` or `nodes/status`, with 403. Access reviews report it. `*` stands for any verb or
    /// resource.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.state.faults.deny(verb, resource);
    }

    /// Removes all denials of [`Self::deny`].
    pub fn allow_all(&self) {
        self.state.faults.allow_all();
    }

    /// Replaces the server certificate for new connections.
    ///
    /// # Errors
    /// Fails if the key is not usable or the server speaks plain HTTP.
    pub fn set_certificate(&self, identity: &Identity) -> io::Result<()> {
        let tls = self.state.tls.as_ref().ok_or_else(|| io::Error::other("this server has no TLS"))?;
        tls.set_certificate(identity)
    }

    /// Accepts only client certificates of these CAs, from the next request on. Has no effect on handshakes: a server that started
    /// without client CAs never requests a client certificate.
    pub fn accept_client_cas(&self, authorities: &[&Authority]) {
        let authorities = authorities.iter().map(|authority| authority.certificate().clone()).collect();
        self.state.authenticator.accepted().authorities = Some(authorities);
    }

    /// Accepts only these bearer tokens, from the next request on.
    pub fn accept_tokens(&self, tokens: &[&str]) {
        self.state.authenticator.accepted().tokens = Some(tokens.iter().map(|token| (*token).to_owned()).collect());
    }

    /// Counts of connections.
    #[must_use]
    pub fn connections(&self) -> ConnectionCounts {
        self.state.connections.counts()
    }

    /// Breaks every open connection.
    pub fn drop_connections(&self) {
        self.state.connections.send(ConnectionCommand::Drop);
    }

    /// Asks clients to use new connections: GOAWAY in HTTP/2, `Connection: close` in HTTP/1.1. Pending requests still get responses.
    pub fn go_away(&self) {
        self.state.connections.send(ConnectionCommand::GoAway);
    }

    /// Bytes of response bodies for one kind of request, such as `list services`.
    #[must_use]
    pub fn sent(&self, kind: &str) -> BytesSent {
        self.state.request_log.sent(kind)
    }

    /// The number of requests per kind, such as `list services`, `patch nodes/status` or `failed`.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.state.request_log.counts()
    }

    /// The number of requests of one kind.
    #[must_use]
    pub fn count(&self, kind: &str) -> u64 {
        self.requests().get(kind).copied().unwrap_or_default()
    }

    /// Sets the counters of requests and bytes to zero.
    pub fn reset_requests(&self) {
        self.state.request_log.reset();
    }

    /// The logged requests, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<LogEntry> {
        self.state.request_log.entries()
    }
}

#[allow(clippy::panic, reason = "a misspelt resource is a mistake in the test that names it")]
fn find_resource(resource: &str) -> Resource {
    Resource::named(resource).unwrap_or_else(|| panic!("no resource is called {resource}"))
}

fn decode(entry: &Entry) -> Option<Value> {
    entry.object().ok().map(Value::Object)
}

/// The objects of every new cluster.
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
