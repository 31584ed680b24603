//! A node with an API server of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use sepal_apiserver::{ApiServer, Options};
use sepal_lab::Netns;
use serde_json::Value;
use tempfile::TempDir;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A network namespace, an API server on its loopback, and a folder with the server's `kubeconfig`.
pub(crate) struct ApiNode {
    pub(crate) netns: Netns,
    pub(crate) server: ApiServer,
    pub(crate) folder: TempDir,
}

impl ApiNode {
    pub(crate) fn new(netns: Netns, objects: Vec<Value>) -> Self {
        let server = serve(&netns, objects);
        let node = Self { netns, server, folder: tempfile::tempdir().expect("a folder") };
        std::fs::write(node.path("kubeconfig"), node.server.kubeconfig()).expect("writable");
        node
    }

    /// The path of a file in the folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// Starts an API server on the loopback of a namespace. It has these objects and no others.
pub(crate) fn serve(netns: &Netns, objects: Vec<Value>) -> ApiServer {
    serve_at(netns, ANY_PORT, objects)
}

/// Starts an API server at an address of a namespace. It has these objects and no others.
pub(crate) fn serve_at(netns: &Netns, address: SocketAddr, objects: Vec<Value>) -> ApiServer {
    netns.run_thread(move || ApiServer::serve_objects(TcpListener::bind(address).expect("a free port"), objects).expect("it serves"))
}

/// Starts an API server on the loopback of a namespace, with TLS and authentication as the options say.
pub(crate) fn serve_with(netns: &Netns, objects: Vec<Value>, options: Options) -> ApiServer {
    netns.run_thread(move || ApiServer::serve_with(TcpListener::bind(ANY_PORT).expect("a free port"), objects, options).expect("it serves"))
}
