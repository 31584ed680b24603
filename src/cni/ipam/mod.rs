//! Addresses for containers, as host-local gives them (spec section 10.4).

pub mod range;
mod resolv_conf;
pub mod store;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::config::Config;
use super::failure::{Code, Failure, Failures};
use super::protocol::{Attachment, Call};
use super::result::{Address, Outcome, Route, ip};
use super::version::Version;
use range::{RangeConfig, RangeSet};
use store::{Locked, Store};

/// The IPAM plugin that is part of this program.
pub(crate) const HOST_LOCAL: &str = "host-local";

/// Where reservations are kept unless the configuration says otherwise.
const DATA: &str = "/var/lib/cni/networks";
/// How many addresses in a row may turn out to be taken before the folder is read.
const TRIES: usize = 64;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IpamConfig {
    ranges: Vec<Vec<RangeConfig>>,
    routes: Vec<Route>,
    data_dir: String,
    resolv_conf: String,
    subnet: Option<IpNetwork>,
    #[serde(deserialize_with = "ip")]
    range_start: Option<IpAddr>,
    #[serde(deserialize_with = "ip")]
    range_end: Option<IpAddr>,
    #[serde(deserialize_with = "ip")]
    gateway: Option<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SettingsUpdate {
    ip_ranges: Vec<Vec<RangeConfig>>,
    ips: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Around {
    ipam: Option<IpamConfig>,
    #[serde(rename = "runtimeConfig")]
    runtime: SettingsUpdate,
    args: Args,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: SettingsUpdate,
}

/// host-local's part of a network.
#[derive(Debug)]
pub struct Ipam {
    store: Store,
    sets: Vec<RangeSet>,
    wanted: Vec<IpAddr>,
    routes: Vec<Route>,
    resolv_conf: String,
}

/// The folder of a network's reservations.
///
/// # Errors
/// The configuration's `ipam` is not as it has to be.
pub fn store(config: &Config) -> Result<Store, Failure> {
    let around: Around = config.parse()?;
    Ok(folder(&around.ipam.unwrap_or_default(), &config.name))
}

fn folder(config: &IpamConfig, network: &str) -> Store {
    Store::new(Path::new(if config.data_dir.is_empty() { DATA } else { &config.data_dir }), network)
}

impl Ipam {
    /// Reads a network's configuration, and what the runtime wishes.
    ///
    /// # Errors
    /// They make no sense.
    pub fn read(config: &Config, call: &Call) -> Result<Self, Failure> {
        let around: Around = config.parse()?;
        let bad = |message: String| Failure::new(Code::BAD_CONFIG, message);
        let mut ipam = around.ipam.ok_or_else(|| bad("IPAM config missing 'ipam' key".to_owned()))?;
        let mut ranges = around.runtime.ip_ranges;
        if let Some(subnet) = ipam.subnet {
            ranges.push(vec![RangeConfig { subnet, range_start: ipam.range_start, range_end: ipam.range_end, gateway: ipam.gateway }]);
        }
        ranges.append(&mut ipam.ranges);
        let sets = range::sets(&ranges)?;
        let too_many = [true, false].into_iter().any(|v4| sets.iter().filter(|set| set.is_ipv4() == v4).count() > 1);
        if config.version <= Version::V0_2_0 && too_many {
            return Err(bad(format!("CNI version {} does not support more than 1 address per family", config.version.as_str())));
        }
        let [ip] = call.known_args(["IP"])?;
        let wanted = ip.into_iter().map(str::to_owned).chain(around.args.cni.ips).chain(around.runtime.ips);
        let wanted = wanted.filter(|text| !text.is_empty());
        // Some runtimes ask for an address with its prefix length.
        let wanted = wanted.map(|text| {
            let ip = text.split('/').next().unwrap_or_default();
            ip.parse().map_err(|_| bad(format!("{text:?} is not an IP address")))
        });
        Ok(Self {
            store: folder(&ipam, &config.name),
            wanted: wanted.collect::<Result<_, _>>()?,
            sets,
            routes: ipam.routes,
            resolv_conf: ipam.resolv_conf,
        })
    }

    /// Gives an attachment one address of each set of ranges; `in_use` says which addresses some container has, and is asked only where
    /// there is no free one.
    ///
    /// # Errors
    /// There is none left, or not the one that was wished. Then none is reserved.
    pub fn add(&self, attachment: &Attachment, in_use: &InUse<'_>) -> Result<Outcome, Failure> {
        let mut outcome = Outcome { routes: self.routes.clone(), ..Outcome::default() };
        if !self.resolv_conf.is_empty() {
            outcome.dns = resolv_conf::read(&self.resolv_conf)?;
        }
        let mut wanted = self.wanted.clone();
        for (at, set) in self.sets.iter().enumerate() {
            let wish = wanted.iter().position(|ip| set.range_of(*ip).is_some()).map(|found| wanted.remove(found));
            let given = self
                .store
                .lock()
                .and_then(|mut locked| give(&mut locked, set, at, wish, attachment, in_use))
                .map_err(|failure| failure.within(&format!("failed to allocate for range {at}")));
            match given {
                Ok(address) => outcome.ips.push(address),
                Err(failure) => return Err(self.undone(failure, &outcome)),
            }
        }
        if wanted.is_empty() {
            return Ok(outcome);
        }
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let failure = Failure::other(format!("failed to allocate all requested IPs: {}", wanted.join(",")));
        Err(self.undone(failure, &outcome))
    }

    fn undone(&self, failure: Failure, outcome: &Outcome) -> Failure {
        let addresses: Vec<IpAddr> = outcome.ips.iter().map(|ip| ip.address.ip()).collect();
        failure.and(free(&self.store, &addresses))
    }
}

/// Says which addresses containers have at present.
pub type InUse<'a> = dyn Fn() -> Result<BTreeSet<IpAddr>, Failure> + 'a;

fn give(
    locked: &mut Locked<'_>,
    set: &RangeSet,
    at: usize,
    wish: Option<IpAddr>,
    attachment: &Attachment,
    in_use: &InUse<'_>,
) -> Result<Address, Failure> {
    let address = |ip: IpAddr, range: &range::Range| {
        let address = IpNetwork::new(ip, range.subnet.prefix()).map_err(|error| Failure::other(error.to_string()))?;
        Ok(Address { interface: None, address, gateway: Some(range.gateway) })
    };
    if let Some(ip) = locked.of(attachment)?.into_iter().find(|ip| set.range_of(*ip).is_some()) {
        let id = &attachment.container;
        return Err(Failure::other(format!("{ip} has been allocated to {id}, duplicate allocation is not allowed")));
    }
    if let Some((ip, range)) = wish.and_then(|ip| set.range_of(ip).map(|range| (ip, range))) {
        if ip == range.gateway {
            return Err(Failure::other(format!("requested ip {ip} is subnet's gateway")));
        }
        if locked.reserve(ip, attachment, at)? {
            return address(ip, range);
        }
        return Err(Failure::other(format!("requested IP address {ip} is not available in range set {set}")));
    }
    // A range with leaks is looked through once more when they are freed.
    for round in 0..2 {
        let mut taken = None;
        for (tries, (ip, range)) in set.candidates(locked.last(at)).enumerate() {
            if tries == TRIES {
                taken = Some(locked.taken()?);
            }
            if !taken.as_ref().is_some_and(|taken| taken.contains(&ip)) && locked.reserve(ip, attachment, at)? {
                return address(ip, range);
            }
        }
        if round > 0 || !free_leaked(locked, set, in_use)? {
            break;
        }
    }
    Err(Failure::other(format!("no IP addresses available in range set: {set}")))
}

/// Frees the addresses of a set that nobody has; says whether there were any. What was reserved a short time ago may be on its way to
/// its container and stays.
fn free_leaked(locked: &mut Locked<'_>, set: &RangeSet, in_use: &InUse<'_>) -> Result<bool, Failure> {
    let old = |ip: &IpAddr| locked.age(*ip).is_some_and(|age| age > super::in_use::ON_ITS_WAY);
    let suspects: Vec<IpAddr> = locked.taken()?.into_iter().filter(|ip| set.range_of(*ip).is_some()).filter(old).collect();
    if suspects.is_empty() {
        return Ok(false);
    }
    let in_use = in_use()?;
    let leaked: Vec<IpAddr> = suspects.into_iter().filter(|ip| !in_use.contains(ip)).collect();
    leaked.iter().try_for_each(|ip| locked.free(*ip))?;
    Ok(!leaked.is_empty())
}

/// Frees what an attachment has; says which addresses that were.
///
/// # Errors
/// One cannot be freed.
pub fn del(store: &Store, attachment: &Attachment) -> Result<Vec<IpAddr>, Failure> {
    store.lock_existing()?.map_or(Ok(Vec::new()), |mut locked| locked.release(attachment))
}

/// Frees these addresses.
///
/// # Errors
/// One cannot be freed.
pub fn free(store: &Store, addresses: &[IpAddr]) -> Result<(), Failure> {
    let Some(mut locked) = store.lock_existing()? else { return Ok(()) };
    let mut failures = Failures::default();
    for ip in addresses {
        failures.note(locked.free(*ip));
    }
    failures.outcome()
}

/// Sees that an attachment has an address.
///
/// # Errors
/// It has none.
pub fn check(store: &Store, attachment: &Attachment) -> Result<(), Failure> {
    let found = store.lock_existing()?.map_or(Ok(Vec::new()), |mut locked| locked.of(attachment))?;
    if found.is_empty() {
        let id = &attachment.container;
        return Err(Failure::other(format!("host-local: Failed to find address added by container {id}")));
    }
    Ok(())
}

/// Frees every address of an attachment that is not valid any more.
///
/// # Errors
/// One cannot be freed; all have been tried.
pub fn collect(store: &Store, valid: &BTreeSet<Attachment>) -> Result<(), Failure> {
    let Some(mut locked) = store.lock_existing()? else { return Ok(()) };
    let mut failures = Failures::default();
    for found in locked.all()? {
        if !valid.iter().any(|valid| found.holder.is(valid)) {
            failures.note(locked.free(found.ip));
        }
    }
    failures.outcome()
}

/// Carries out a verb of the plugin `host-local`.
///
/// # Errors
/// It was not carried out.
pub fn run(config: &Config, call: &Call) -> Result<Option<Outcome>, Failure> {
    use super::protocol::Verb;
    match call.verb {
        Verb::Add => Ipam::read(config, call)?.add(&call.attachment, &super::in_use::addresses).map(Some),
        Verb::Del => {
            Ipam::read(config, call)?;
            del(&store(config)?, &call.attachment).map(|_| None)
        }
        Verb::Check => {
            Ipam::read(config, call)?;
            check(&store(config)?, &call.attachment).map(|()| None)
        }
        Verb::Gc => collect(&store(config)?, &config.valid()?).map(|()| None),
        Verb::Status => Ipam::read(config, call).map(|_| None),
        Verb::Version => Ok(None),
    }
}

/// The name of the plugin that gives a network's addresses; empty where there is none.
///
/// # Errors
/// The configuration's `ipam` is not as it has to be.
pub fn kind(config: &Config) -> Result<String, Failure> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Named {
        ipam: Kind,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Kind {
        #[serde(rename = "type")]
        kind: String,
    }
    config.parse::<Named>().map(|named| named.ipam.kind)
}
