//! The state that all connections of a server share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::authentication::Authenticator;
use crate::connections::Connections;
use crate::faults::Faults;
use crate::request_log::RequestLog;
use crate::store::Store;
use crate::tls::Tls;

/// Shared by the connections of a server and by its `ApiServer` handle.
#[derive(Debug)]
pub(crate) struct ServerState {
    store: Mutex<Store>,
    pub(crate) faults: Faults,
    pub(crate) request_log: Arc<RequestLog>,
    pub(crate) connections: Arc<Connections>,
    /// None if the server speaks plain HTTP.
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) authenticator: Arc<Authenticator>,
}

impl ServerState {
    pub(crate) fn new(store: Store, tls: Option<Arc<Tls>>, authenticator: Arc<Authenticator>) -> Self {
        let (request_log, connections) = (Arc::default(), Arc::default());
        Self { store: Mutex::new(store), faults: Faults::new(), request_log, connections, tls, authenticator }
    }

    /// Locks the store. The lock is never held across an `await`.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
