//! The IPAM plugin `host-local`: reserves addresses for containers [flannel 10.4].

pub mod range;
mod resolv_conf;
pub mod store;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use serde::Deserialize;

use super::error::{CniError, CniErrors, ErrorCode};
use super::network_config::NetworkConfig;
use super::request::{Attachment, CniRequest};
use super::result::{CniAddress, CniResult, CniRoute, ip};
use super::version::CniVersion;
use range::{RangeConfig, RangeSet};
use store::{LockedStore, ReservationStore};

/// The type of the IPAM plugin that is part of this program.
pub(crate) const HOST_LOCAL: &str = "host-local";

/// The default folder of the reservations.
const DATA: &str = "/var/lib/cni/networks";
/// The number of addresses in a row that may be reserved before the folder is read.
const TRIES: usize = 64;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IpamConfig {
    ranges: Vec<Vec<RangeConfig>>,
    routes: Vec<CniRoute>,
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
struct RequestedAddresses {
    ip_ranges: Vec<Vec<RangeConfig>>,
    ips: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NetworkKeys {
    ipam: Option<IpamConfig>,
    #[serde(rename = "runtimeConfig")]
    runtime: RequestedAddresses,
    args: Args,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: RequestedAddresses,
}

/// The `host-local` part of a network configuration.
#[derive(Debug)]
pub struct HostLocal {
    store: ReservationStore,
    sets: Vec<RangeSet>,
    wanted: Vec<IpAddr>,
    routes: Vec<CniRoute>,
    resolv_conf: String,
}

/// Returns the folder of a network's reservations.
///
/// # Errors
/// `ipam` in the configuration is invalid.
pub fn store(config: &NetworkConfig) -> Result<ReservationStore, CniError> {
    let around: NetworkKeys = config.parse()?;
    Ok(folder(&around.ipam.unwrap_or_default(), &config.name))
}

fn folder(config: &IpamConfig, network: &str) -> ReservationStore {
    ReservationStore::new(Path::new(if config.data_dir.is_empty() { DATA } else { &config.data_dir }), network)
}

impl HostLocal {
    /// Parses a network configuration and the parameters of the runtime.
    ///
    /// # Errors
    /// A value is invalid.
    pub fn read(config: &NetworkConfig, request: &CniRequest) -> Result<Self, CniError> {
        let around: NetworkKeys = config.parse()?;
        let bad = |message: String| CniError::new(ErrorCode::BAD_CONFIG, message);
        let mut ipam = around.ipam.ok_or_else(|| bad("IPAM config missing 'ipam' key".to_owned()))?;
        let mut ranges = around.runtime.ip_ranges;
        if let Some(subnet) = ipam.subnet {
            ranges.push(vec![RangeConfig { subnet, range_start: ipam.range_start, range_end: ipam.range_end, gateway: ipam.gateway }]);
        }
        ranges.append(&mut ipam.ranges);
        let sets = range::sets(&ranges)?;
        let too_many = [true, false].into_iter().any(|v4| sets.iter().filter(|set| set.is_ipv4() == v4).count() > 1);
        if config.version <= CniVersion::V0_2_0 && too_many {
            return Err(bad(format!("CNI version {} does not support more than 1 address per family", config.version.as_str())));
        }
        let [ip] = request.known_args(["IP"])?;
        let wanted = ip.into_iter().map(str::to_owned).chain(around.args.cni.ips).chain(around.runtime.ips);
        let wanted = wanted.filter(|text| !text.is_empty());
        // Some runtimes request an address with its prefix length.
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

    /// Reserves one address of each range set for an attachment. `in_use` returns the addresses that containers use. It is only called if
    /// no address is free.
    ///
    /// # Errors
    /// No address is free, or the requested address is not. Then nothing is reserved.
    pub fn add(&self, attachment: &Attachment, used_addresses: &FindUsedAddresses<'_>) -> Result<CniResult, CniError> {
        let mut result = CniResult { routes: self.routes.clone(), ..CniResult::default() };
        if !self.resolv_conf.is_empty() {
            result.dns = resolv_conf::read(&self.resolv_conf)?;
        }
        let mut wanted = self.wanted.clone();
        for (at, set) in self.sets.iter().enumerate() {
            let wish = wanted.iter().position(|ip| set.range_of(*ip).is_some()).map(|found| wanted.remove(found));
            let given = self
                .store
                .lock()
                .and_then(|mut locked| give(&mut locked, set, at, wish, attachment, used_addresses))
                .map_err(|error| error.within(&format!("failed to allocate for range {at}")));
            match given {
                Ok(address) => result.ips.push(address),
                Err(error) => return Err(self.undone(error, &result)),
            }
        }
        if wanted.is_empty() {
            return Ok(result);
        }
        let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        let error = CniError::other(format!("failed to allocate all requested IPs: {}", wanted.join(",")));
        Err(self.undone(error, &result))
    }

    fn undone(&self, error: CniError, result: &CniResult) -> CniError {
        let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.ip()).collect();
        error.and(free(&self.store, &addresses))
    }
}

/// Returns the addresses that containers use now.
pub type FindUsedAddresses<'a> = dyn Fn() -> Result<BTreeSet<IpAddr>, CniError> + 'a;

fn give(
    locked: &mut LockedStore<'_>,
    set: &RangeSet,
    at: usize,
    wish: Option<IpAddr>,
    attachment: &Attachment,
    used_addresses: &FindUsedAddresses<'_>,
) -> Result<CniAddress, CniError> {
    let address = |ip: IpAddr, range: &range::AddressRange| {
        let address = IpNetwork::new(ip, range.subnet.prefix()).map_err(|error| CniError::other(error.to_string()))?;
        Ok(CniAddress { interface: None, address, gateway: Some(range.gateway) })
    };
    if let Some(ip) = locked.of(attachment)?.into_iter().find(|ip| set.range_of(*ip).is_some()) {
        let id = &attachment.container;
        return Err(CniError::other(format!("{ip} has been allocated to {id}, duplicate allocation is not allowed")));
    }
    if let Some((ip, range)) = wish.and_then(|ip| set.range_of(ip).map(|range| (ip, range))) {
        if ip == range.gateway {
            return Err(CniError::other(format!("requested ip {ip} is subnet's gateway")));
        }
        if locked.reserve(ip, attachment, at)? {
            return address(ip, range);
        }
        return Err(CniError::other(format!("requested IP address {ip} is not available in range set {set}")));
    }
    // If leaked addresses were freed, the range is searched once more.
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
        if round > 0 || !free_leaked(locked, set, used_addresses)? {
            break;
        }
    }
    Err(CniError::other(format!("no IP addresses available in range set: {set}")))
}

/// Frees the addresses of a range set that no container uses. Returns true if there were any. Young reservations stay, because their
/// containers may be about to get the address.
fn free_leaked(locked: &mut LockedStore<'_>, set: &RangeSet, used_addresses: &FindUsedAddresses<'_>) -> Result<bool, CniError> {
    let old = |ip: &IpAddr| locked.age(*ip).is_some_and(|age| age > super::used_addresses::ON_ITS_WAY);
    let suspects: Vec<IpAddr> = locked.taken()?.into_iter().filter(|ip| set.range_of(*ip).is_some()).filter(old).collect();
    if suspects.is_empty() {
        return Ok(false);
    }
    let used_addresses = used_addresses()?;
    let leaked: Vec<IpAddr> = suspects.into_iter().filter(|ip| !used_addresses.contains(ip)).collect();
    leaked.iter().try_for_each(|ip| locked.free(*ip))?;
    Ok(!leaked.is_empty())
}

/// Frees the addresses of an attachment, and returns them.
///
/// # Errors
/// An address cannot be freed.
pub fn del(store: &ReservationStore, attachment: &Attachment) -> Result<Vec<IpAddr>, CniError> {
    store.lock_existing()?.map_or(Ok(Vec::new()), |mut locked| locked.release(attachment))
}

/// Frees these addresses.
///
/// # Errors
/// An address cannot be freed.
pub fn free(store: &ReservationStore, addresses: &[IpAddr]) -> Result<(), CniError> {
    let Some(mut locked) = store.lock_existing()? else { return Ok(()) };
    let mut errors = CniErrors::default();
    for ip in addresses {
        errors.note(locked.free(*ip));
    }
    errors.into_result()
}

/// Checks that an attachment has an address.
///
/// # Errors
/// It has none.
pub fn check(store: &ReservationStore, attachment: &Attachment) -> Result<(), CniError> {
    let found = store.lock_existing()?.map_or(Ok(Vec::new()), |mut locked| locked.of(attachment))?;
    if found.is_empty() {
        let id = &attachment.container;
        return Err(CniError::other(format!("host-local: Failed to find address added by container {id}")));
    }
    Ok(())
}

/// Frees every address of an attachment that is not valid.
///
/// # Errors
/// An address cannot be freed. All were tried.
pub fn collect(store: &ReservationStore, valid: &BTreeSet<Attachment>) -> Result<(), CniError> {
    let Some(mut locked) = store.lock_existing()? else { return Ok(()) };
    let mut errors = CniErrors::default();
    for found in locked.all()? {
        if !valid.iter().any(|valid| found.owner.is(valid)) {
            errors.note(locked.free(found.ip));
        }
    }
    errors.into_result()
}

/// Runs a verb of the plugin `host-local`.
///
/// # Errors
/// The verb fails.
pub fn run(config: &NetworkConfig, request: &CniRequest) -> Result<Option<CniResult>, CniError> {
    use super::request::Verb;
    match request.verb {
        Verb::Add => HostLocal::read(config, request)?.add(&request.attachment, &super::used_addresses::addresses).map(Some),
        Verb::Del => {
            HostLocal::read(config, request)?;
            del(&store(config)?, &request.attachment).map(|_| None)
        }
        Verb::Check => {
            HostLocal::read(config, request)?;
            check(&store(config)?, &request.attachment).map(|()| None)
        }
        Verb::Gc => collect(&store(config)?, &config.valid()?).map(|()| None),
        Verb::Status => HostLocal::read(config, request).map(|_| None),
        Verb::Version => Ok(None),
    }
}

/// Returns the type of the IPAM plugin of a network; empty if there is none.
///
/// # Errors
/// `ipam` in the configuration is invalid.
pub fn kind(config: &NetworkConfig) -> Result<String, CniError> {
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
