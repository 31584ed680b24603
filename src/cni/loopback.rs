//! The plugin `loopback` [flannel 10.6].

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::netlink::socket::Connection;
use crate::netlink::{Cause, device, veth};

use super::error::CniError;
use super::netns::{NamespaceError, NetworkNamespace};
use super::network_config::NetworkConfig;
use super::request::{CniRequest, Verb};
use super::result::{CniAddress, CniInterface, CniResult};

const NAME: &str = "lo";

/// Runs a verb.
///
/// # Errors
/// The verb fails.
pub fn run(config: &NetworkConfig, request: &CniRequest) -> Result<Option<CniResult>, CniError> {
    match request.verb {
        Verb::Add => add(config, request).map(Some),
        Verb::Del => del(request).map(|()| None),
        Verb::Check => check(request).map(|()| None),
        Verb::Gc | Verb::Status | Verb::Version => Ok(None),
    }
}

fn cannot(request: &str) -> impl Fn(Cause) -> CniError {
    move |cause| CniError::other(format!("cannot {request} {NAME}: {cause}"))
}

fn within<T: Send>(request: &CniRequest, work: impl FnOnce() -> Result<T, Cause> + Send) -> Result<Result<T, Cause>, NamespaceError> {
    NetworkNamespace::open(&request.netns)?.within(work)
}

fn no_namespace(request: &CniRequest, error: &NamespaceError) -> CniError {
    CniError::other(format!("failed to open netns {:?}: {}", request.netns, error.cause()))
}

fn add(config: &NetworkConfig, request: &CniRequest) -> Result<CniResult, CniError> {
    let set_up = || {
        let mut inside = Connection::route()?;
        let index = device::find(&mut inside, NAME)?.ok_or(Cause::Other("it is not there"))?.link.index;
        veth::set_up(&mut inside, index, false)?;
        Ok(device::addresses(&mut inside, index)?.into_iter().map(|held| held.address.net).collect::<Vec<IpNetwork>>())
    };
    let addresses = within(request, set_up).map_err(|error| no_namespace(request, &error))?.map_err(cannot("set up"))?;
    if let Some(foreign) = addresses.iter().find(|net| !net.ip().is_loopback()) {
        return Err(CniError::other(format!("loopback interface found with non-loopback address {:?}", foreign.ip().to_string())));
    }
    if let Some(previous) = config.previous()? {
        return Ok(previous);
    }
    let is_own = |net: &&IpNetwork| matches!(net.ip(), IpAddr::V4(_)) || net.prefix() == 128;
    let ips = addresses.iter().filter(is_own).map(|net| CniAddress { interface: Some(0), address: *net, gateway: None });
    let interface =
        CniInterface { name: NAME.into(), mac: "00:00:00:00:00:00".into(), sandbox: request.netns.clone(), ..CniInterface::default() };
    Ok(CniResult { interfaces: vec![interface], ips: ips.collect(), ..CniResult::default() })
}

fn del(request: &CniRequest) -> Result<(), CniError> {
    if request.netns.is_empty() {
        return Ok(());
    }
    let set_down = || {
        let mut inside = Connection::route()?;
        device::find(&mut inside, NAME)?.map_or(Ok(()), |found| veth::set_down(&mut inside, found.link.index))
    };
    match within(request, set_down) {
        Ok(done) => done.map_err(cannot("set down")),
        Err(NamespaceError::Missing(_)) => Ok(()),
        Err(error) => Err(no_namespace(request, &error)),
    }
}

fn check(request: &CniRequest) -> Result<(), CniError> {
    let look = || Ok(device::find(&mut Connection::route()?, NAME)?.is_some_and(|found| found.link.up));
    let up = within(request, look).map_err(|error| no_namespace(request, &error))?.map_err(cannot("look at"))?;
    if up { Ok(()) } else { Err(CniError::other("loopback interface is down")) }
}
