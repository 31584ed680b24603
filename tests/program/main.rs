//! Tests of the program as users start it. Each test makes its own network namespaces, which takes root.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests start programs and wait, and fail where they cannot be set up"
)]

#[path = "../common/kustomization.rs"]
mod kustomization;
#[path = "../common/logged.rs"]
mod logged;
#[path = "../common/predecessors.rs"]
mod predecessors;

mod api_node;
mod api_server;
mod browser;
mod cleanup;
mod cleanup_pod_network;
mod cni;
mod cni_compatibility;
mod cni_node;
mod cni_state;
mod deploy;
mod explain;
mod first_list;
mod flanneld;
mod kube_proxy;
mod manifests;
mod migration;
mod preflight;
mod status_page;

const SEPAL: &str = env!("CARGO_BIN_EXE_sepal");
