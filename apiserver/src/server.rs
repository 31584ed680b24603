//! A running server and the handle to it.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::access::Access;
use crate::background::Background;
use crate::certificates::{Authority, Identity};
use crate::connections::{ConnectionCounts, Order};
use crate::failure::Failure;
use crate::http::{self, Shared};
use crate::journal::{LogEntry, Sent};
use crate::kubeconfig::{self, User};
use crate::object::Entry;
use crate::options::Options;
use crate::refusal::Refusal;
use crate::resource::Resource;
use crate::store::Store;
use crate::tls::Tls;

/// A server on a thread of its own. It stops when this is dropped.
///
/// Resources are named by plural or kind: `services`, `Service`. Objects are named `namespace/name`, or `name` where there is no
/// namespace.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    background: Background,
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
        Self::run(listener, objects, None, Arc::default())
    }

    /// Starts a server on a free port of 127.0.0.1, with TLS and authentication as the options say.
    ///
    /// # Errors
    /// A key is of no use to a server, or the system has no port or no thread left.
    pub fn start_with(options: Options) -> io::Result<Self> {
        Self::serve_with(TcpListener::bind("127.0.0.1:0")?, Vec::new(), options)
    }

    /// The same behind a listener, with objects besides.
    ///
    /// # Errors
    /// A key is of no use to a server, an object is of no known kind or has no name, the listener is not usable, or there is no thread left.
    pub fn serve_with(listener: TcpListener, objects: Vec<Value>, options: Options) -> io::Result<Self> {
        let (tls, access) = options.build()?;
        Self::run(listener, new_cluster().into_iter().chain(objects).collect(), tls, access)
    }

    fn run(listener: TcpListener, objects: Vec<Value>, tls: Option<Arc<Tls>>, access: Arc<Access>) -> io::Result<Self> {
        let mut store = Store::new();
        store.load(objects).map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal))?;
        store.begin();
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(store, tls, access));
        let served = shared.clone();
        let background = Background::start("apiserver", listener, |listener| http::accept(listener, served))?;
        Ok(Self { shared, address, background })
    }

    /// Stops this server and starts another at the same address: the same objects, no history, and versions that start again.
    ///
    /// # Errors
    /// The address cannot be listened at again.
    pub fn restart(self) -> io::Result<Self> {
        self.stop();
        Self::run(TcpListener::bind(self.address)?, self.objects(), self.shared.tls.clone(), self.shared.access.clone())
    }

    /// Closes the port and every connection. Objects, counters and log can still be read.
    pub fn stop(&self) {
        self.background.stop();
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:41234`, or `https://127.0.0.1:41234` with TLS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", if self.shared.tls.is_some() { "https" } else { "http" }, self.address)
    }

    /// Text of a kubeconfig that points here, without credentials.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        kubeconfig::text(&self.url(), "", &User::Anonymous)
    }

    /// Text of a kubeconfig that points here, with the CA that signed this server's certificate and with the credentials of a user.
    #[must_use]
    pub fn kubeconfig_as(&self, authority_pem: &str, user: &User<'_>) -> String {
        kubeconfig::text(&self.url(), authority_pem, user)
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

    /// Lets requests fail. It replaces all failures before.
    pub fn fail(&self, failure: Failure) {
        self.shared.faults.fail(failure);
    }

    /// Lets requests fail, besides those that do already. The first failure that fits a request counts.
    pub fn fail_also(&self, failure: Failure) {
        self.shared.faults.fail_also(failure);
    }

    /// Ends all failures.
    pub fn stop_failing(&self) {
        self.shared.faults.stop_failing();
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

    /// Replaces the server certificate, for new connections.
    ///
    /// # Errors
    /// The key is of no use to a server, or the server speaks plain HTTP.
    pub fn present(&self, identity: &Identity) -> io::Result<()> {
        let tls = self.shared.tls.as_ref().ok_or_else(|| io::Error::other("this server has no TLS"))?;
        tls.present(identity)
    }

    /// Accepts client certificates of these CAs only, from the next request on. If none were accepted at the start, clients are not
    /// asked for any.
    pub fn accept_client_cas(&self, authorities: &[&Authority]) {
        let authorities = authorities.iter().map(|authority| authority.certificate().clone()).collect();
        self.shared.access.rules().authorities = Some(authorities);
    }

    /// Accepts these bearer tokens only, from the next request on.
    pub fn accept_tokens(&self, tokens: &[&str]) {
        self.shared.access.rules().tokens = Some(tokens.iter().map(|token| (*token).to_owned()).collect());
    }

    /// Counts of connections.
    #[must_use]
    pub fn connections(&self) -> ConnectionCounts {
        self.shared.connections.counts()
    }

    /// Breaks every open connection.
    pub fn drop_connections(&self) {
        self.shared.connections.order(Order::Drop);
    }

    /// Asks clients to use other connections: GOAWAY in HTTP/2, `Connection: close` in HTTP/1.1. Pending requests are still answered.
    pub fn go_away(&self) {
        self.shared.connections.order(Order::GoAway);
    }

    /// The bytes of the bodies that were sent for a sort of requests, such as `list services`.
    #[must_use]
    pub fn sent(&self, sort: &str) -> Sent {
        self.shared.journal.sent(sort)
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
