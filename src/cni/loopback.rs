//! The plugin `loopback` (spec section 10.6).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::netlink::socket::Connection;
use crate::netlink::{Cause, device, veth};

use super::config::Config;
use super::failure::Failure;
use super::netns::{Namespace, NoNamespace};
use super::protocol::{Call, Verb};
use super::result::{Address, Interface, Outcome};

const NAME: &str = "lo";

/// Carries out a verb.
///
/// # Errors
/// It was not carried out.
pub fn run(config: &Config, call: &Call) -> Result<Option<Outcome>, Failure> {
    match call.verb {
        Verb::Add => add(config, call).map(Some),
        Verb::Del => del(call).map(|()| None),
        Verb::Check => check(call).map(|()| None),
        Verb::Gc | Verb::Status | Verb::Version => Ok(None),
    }
}

fn cannot(call: &str) -> impl Fn(Cause) -> Failure {
    move |cause| Failure::other(format!("cannot {call} {NAME}: {cause}"))
}

fn within<T: Send>(call: &Call, work: impl FnOnce() -> Result<T, Cause> + Send) -> Result<Result<T, Cause>, NoNamespace> {
    Namespace::open(&call.netns)?.within(work)
}

fn no_namespace(call: &Call, error: &NoNamespace) -> Failure {
    Failure::other(format!("failed to open netns {:?}: {}", call.netns, error.cause()))
}

fn add(config: &Config, call: &Call) -> Result<Outcome, Failure> {
    let set_up = || {
        let mut inside = Connection::route()?;
        let index = device::find(&mut inside, NAME)?.ok_or(Cause::Unfit("it is not there"))?.link.index;
        veth::set_up(&mut inside, index, false)?;
        Ok(device::addresses(&mut inside, index)?.into_iter().map(|held| held.address.net).collect::<Vec<IpNetwork>>())
    };
    let addresses = within(call, set_up).map_err(|error| no_namespace(call, &error))?.map_err(cannot("set up"))?;
    if let Some(foreign) = addresses.iter().find(|net| !net.ip().is_loopback()) {
        return Err(Failure::other(format!("loopback interface found with non-loopback address {:?}", foreign.ip().to_string())));
    }
    if let Some(previous) = config.previous()? {
        return Ok(previous);
    }
    let is_own = |net: &&IpNetwork| matches!(net.ip(), IpAddr::V4(_)) || net.prefix() == 128;
    let ips = addresses.iter().filter(is_own).map(|net| Address { interface: Some(0), address: *net, gateway: None });
    let interface = Interface { name: NAME.into(), mac: "00:00:00:00:00:00".into(), sandbox: call.netns.clone(), ..Interface::default() };
    Ok(Outcome { interfaces: vec![interface], ips: ips.collect(), ..Outcome::default() })
}

fn del(call: &Call) -> Result<(), Failure> {
    if call.netns.is_empty() {
        return Ok(());
    }
    let set_down = || {
        let mut inside = Connection::route()?;
        device::find(&mut inside, NAME)?.map_or(Ok(()), |found| veth::set_down(&mut inside, found.link.index))
    };
    match within(call, set_down) {
        Ok(done) => done.map_err(cannot("set down")),
        Err(NoNamespace::Gone(_)) => Ok(()),
        Err(error) => Err(no_namespace(call, &error)),
    }
}

fn check(call: &Call) -> Result<(), Failure> {
    let look = || Ok(device::find(&mut Connection::route()?, NAME)?.is_some_and(|found| found.link.up));
    let up = within(call, look).map_err(|error| no_namespace(call, &error))?.map_err(cannot("look at"))?;
    if up { Ok(()) } else { Err(Failure::other("loopback interface is down")) }
}
