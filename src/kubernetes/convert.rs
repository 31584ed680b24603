//! Converts API objects ([`super::fields`]) to cluster values. PURE.
//!
//! A broken object affects no other one. A [`Problem`] says what is wrong, and the usable parts of the object are used.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use serde::Deserializer;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fields;
use super::object::{Kind, ObjectId, Problem};
use crate::cluster::ip::{Family, parse_cidr, parse_ip};
use crate::cluster::{
    Change, Conditions, Hints, Node, Protocol, Service, ServiceKey, ServicePort, ServicePortName, ServiceType, Slice, SliceEndpoint,
    SliceKey, SlicePort,
};

/// The longest service port name that fits an iptables comment (255 bytes) together with kube-proxy's longest text around it:
/// `other traffic to SPN will be dropped by KUBE-PROXY-FIREWALL`.
const MAX_SPN: usize = 255 - "other traffic to  will be dropped by KUBE-PROXY-FIREWALL".len();

const DEFAULT_AFFINITY_SECONDS: u32 = 10800;
const MAX_AFFINITY_SECONDS: i32 = 86400;

/// A converted object.
#[derive(Clone, Debug)]
pub struct ConvertedObject {
    /// The change of the cluster.
    pub change: Change,
    /// When the change happened, if the object says so [kube-proxy 4].
    pub trigger: Option<Timestamp>,
    /// The parts that cannot be used.
    pub problem: Option<Problem>,
}

/// Converts an object. Objects that kube-proxy's selectors exclude [kube-proxy 2] are converted to absent ones.
#[must_use]
pub fn object(id: &ObjectId, value: &Value) -> ConvertedObject {
    converted(id, value)
}

/// Converts an object from its JSON text.
#[must_use]
pub fn text(id: &ObjectId, text: &str) -> ConvertedObject {
    converted(id, &mut serde_json::Deserializer::from_str(text))
}

fn converted<'de, D: Deserializer<'de>>(id: &ObjectId, from: D) -> ConvertedObject
where
    D::Error: fmt::Display,
{
    let mut problems = Vec::new();
    let mut trigger = None;
    if id.name.is_empty() {
        let problem = Problem { object: id.clone(), what: "skipped: it has no name".into() };
        return ConvertedObject { change: gone(id), trigger: None, problem: Some(problem) };
    }
    let change = match id.kind {
        Kind::Service => {
            Change::Service(service_key(id), typed(from, &mut problems).and_then(|object| service(id, &object, &mut problems)))
        }
        Kind::EndpointSlice => {
            let object: Option<fields::ApiEndpointSlice> = typed(from, &mut problems);
            let annotations = object.as_ref().and_then(|object| object.metadata.annotations.as_ref());
            trigger = annotations.and_then(|annotations| annotations.trigger_time.as_ref()?.parse().ok());
            Change::Slice(slice_key(id), object.and_then(|object| slice(&object, &mut problems)))
        }
        Kind::Node => Change::Node(typed(from, &mut problems).map(|object| node(&object, &mut problems))),
    };
    let problem = (!problems.is_empty()).then(|| Problem { object: id.clone(), what: problems.join("; ") });
    ConvertedObject { change, trigger, problem }
}

/// The change when an object is deleted.
#[must_use]
pub fn gone(id: &ObjectId) -> Change {
    match id.kind {
        Kind::Service => Change::Service(service_key(id), None),
        Kind::EndpointSlice => Change::Slice(slice_key(id), None),
        Kind::Node => Change::Node(None),
    }
}

/// The key of a Service.
#[must_use]
pub(crate) fn service_key(id: &ObjectId) -> ServiceKey {
    ServiceKey { namespace: id.namespace.as_str().into(), name: id.name.as_str().into() }
}

/// The key of an EndpointSlice.
#[must_use]
pub(crate) fn slice_key(id: &ObjectId) -> SliceKey {
    SliceKey { namespace: id.namespace.as_str().into(), name: id.name.as_str().into() }
}

pub(crate) fn typed<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D, problems: &mut Vec<String>) -> Option<T> {
    match serde_path_to_error::deserialize(from) {
        Ok(object) => Some(object),
        Err(error) => {
            problems.push(format!("skipped: field {}: {}", error.path(), error.inner()));
            None
        }
    }
}

fn service(id: &ObjectId, object: &fields::ApiService, problems: &mut Vec<String>) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let has_other_proxy = object.metadata.labels.as_ref().is_some_and(|labels| labels.proxy_name.is_some());
    if has_other_proxy || matches!(cluster_ip, "" | "None") {
        return None;
    }
    let kind = match spec.kind.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => return None,
        Some(other) => {
            problems.push(format!("skipped: unknown type {other:?}"));
            return None;
        }
    };
    if let Some(why) = unusable_name(&id.namespace).or_else(|| unusable_name(&id.name)) {
        problems.push(format!("skipped: {why}"));
        return None;
    }
    let affinity_seconds = match affinity(spec) {
        Ok(seconds) => seconds,
        Err(why) => {
            problems.push(why);
            return None;
        }
    };
    let raw_external_ips = spec.external_ips.as_deref().unwrap_or_default();
    let external_local =
        spec.external_traffic_policy.as_deref() == Some("Local") && (kind != ServiceType::ClusterIp || !raw_external_ips.is_empty());
    let health_check_node_port = match spec.health_check_node_port {
        _ if kind != ServiceType::LoadBalancer || !external_local => 0,
        None | Some(0) => 0,
        Some(number) => port(number).unwrap_or_else(|| {
            problems.push(format!("healthCheckNodePort {number} is not a port, ignored"));
            0
        }),
    };
    let service = Service {
        kind,
        cluster_ip_v4: family_cluster_ip(spec, Family::V4, problems),
        cluster_ip_v6: family_cluster_ip(spec, Family::V6, problems),
        ports: service_ports(id, spec, problems),
        external_ips: addresses("externalIPs", raw_external_ips, problems),
        load_balancer_vips: load_balancer_vips(object, problems),
        source_ranges: cidrs("loadBalancerSourceRanges", spec.load_balancer_source_ranges.as_deref().unwrap_or_default(), problems),
        affinity_seconds,
        external_local,
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        health_check_node_port,
    };
    Some(service)
}

/// Why a name cannot be used. Names go unescaped into comments, where the characters that the API server allows are harmless.
fn unusable_name(name: &str) -> Option<String> {
    let fine = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    (!fine).then(|| format!("{name:?} is not a name the API server would accept"))
}

fn affinity(spec: &fields::ServiceSpec) -> Result<Option<u32>, String> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return Ok(None);
    }
    let seconds = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()).and_then(|ip| ip.timeout_seconds);
    match seconds {
        None => Ok(Some(DEFAULT_AFFINITY_SECONDS)),
        Some(seconds) if (1..=MAX_AFFINITY_SECONDS).contains(&seconds) => Ok(Some(seconds.unsigned_abs())),
        Some(seconds) => Err(format!("skipped: session affinity timeout of {seconds} s is not within 1-{MAX_AFFINITY_SECONDS}")),
    }
}

/// The cluster IP of a family [kube-proxy 3.1].
fn family_cluster_ip(spec: &fields::ServiceSpec, family: Family, problems: &mut Vec<String>) -> Option<IpAddr> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let name = family.proper_name();
    let text = if families.is_empty() {
        spec.cluster_ip.as_deref()?
    } else {
        let index = families.iter().position(|found| found == name)?;
        spec.cluster_ips.as_deref().unwrap_or_default().get(index)?
    };
    match parse_ip(text) {
        Some(ip) if Family::of(ip) == family => Some(ip),
        // Without ipFamilies the cluster IP decides the family. An invalid one is reported once, for IPv4.
        found if families.is_empty() => {
            if found.is_none() && family == Family::V4 {
                problems.push(format!("skipped: cluster IP {text:?} is not an IP address"));
            }
            None
        }
        _ => {
            problems.push(format!("no {name} rules: cluster IP {text:?} is not an {name} address"));
            None
        }
    }
}

fn service_ports(id: &ObjectId, spec: &fields::ServiceSpec, problems: &mut Vec<String>) -> Vec<ServicePort> {
    // Keyed by name and protocol. The last of two equal keys wins, as in kube-proxy's map.
    let mut ports: BTreeMap<(Arc<str>, Protocol), ServicePort> = BTreeMap::new();
    for object in spec.ports.as_deref().unwrap_or_default() {
        match service_port(id, object) {
            Ok(port) => {
                ports.insert((port.name.clone(), port.protocol), port);
            }
            Err(why) => problems.push(format!("port {:?} ({}) skipped: {why}", object.name.as_deref().unwrap_or_default(), object.port)),
        }
    }
    ports.into_values().collect()
}

fn service_port(id: &ObjectId, object: &fields::ApiServicePort) -> Result<ServicePort, String> {
    let name = object.name.clone().unwrap_or_default();
    if !name.is_empty()
        && let Some(why) = unusable_name(&name)
    {
        return Err(why);
    }
    let protocol = protocol(object.protocol.as_deref())?;
    let number = port(object.port).ok_or("the port is not within 1-65535")?;
    let node_port = match object.node_port {
        None | Some(0) => 0,
        Some(number) => port(number).ok_or_else(|| format!("nodePort {number} is not within 1-65535"))?,
    };
    let spn = ServicePortName { service: service_key(id), port: name.into(), protocol };
    let length = spn.to_string().len();
    if length > MAX_SPN {
        return Err(format!("its full name is {length} bytes long, and more than {MAX_SPN} do not fit an iptables comment"));
    }
    Ok(ServicePort { name: spn.port, protocol, port: number, node_port })
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    Protocol::from_api(text).ok_or_else(|| format!("unknown protocol {:?}", text.unwrap_or_default()))
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

fn addresses(field: &str, texts: &[String], problems: &mut Vec<String>) -> Vec<IpAddr> {
    let mut found = Vec::with_capacity(texts.len());
    for text in texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        match parse_ip(text) {
            Some(ip) => found.push(ip),
            None => problems.push(format!("{field}: {text:?} is not an IP address, ignored")),
        }
    }
    found
}

fn cidrs(field: &str, texts: &[String], problems: &mut Vec<String>) -> Vec<IpNetwork> {
    let mut found = Vec::with_capacity(texts.len());
    for text in texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        match parse_cidr(text) {
            Some(net) => found.push(net),
            None => problems.push(format!("{field}: {text:?} is not a CIDR, ignored")),
        }
    }
    found
}

fn load_balancer_vips(object: &fields::ApiService, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let ours = ingress.iter().filter(|point| point.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
    let texts: Vec<String> = ours.filter_map(|point| point.ip.clone()).collect();
    addresses("status.loadBalancer", &texts, problems)
}

fn slice(object: &fields::ApiEndpointSlice, problems: &mut Vec<String>) -> Option<Slice> {
    let labels = object.metadata.labels.as_ref()?;
    let service = labels.service_name.as_ref().filter(|name| !name.is_empty())?;
    if labels.headless.is_some() {
        return None;
    }
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        // iptables needs addresses. The object itself is valid.
        "FQDN" => return None,
        other => {
            problems.push(format!("skipped: unknown addressType {other:?}"));
            return None;
        }
    };
    let (all_ports, all_endpoints) = (object.ports.as_deref().unwrap_or_default(), object.endpoints.as_deref().unwrap_or_default());
    // Exact capacities save memory: a growing list over-allocates, and there are thousands of lists.
    let mut ports = Vec::with_capacity(all_ports.len());
    for object in all_ports {
        match slice_port(object) {
            Ok(port) => ports.extend(port),
            Err(why) => problems.push(format!("port {:?} skipped: {why}", object.name.as_deref().unwrap_or_default())),
        }
    }
    let mut endpoints = Vec::with_capacity(all_endpoints.len());
    for endpoint in all_endpoints {
        let Some(text) = endpoint.addresses.as_deref().unwrap_or_default().first() else { continue };
        match parse_ip(text).filter(|ip| Family::of(*ip) == family) {
            Some(ip) => endpoints.push(slice_endpoint(ip, endpoint)),
            None => problems.push(format!("endpoint {text:?} skipped: not an address of the slice's type {}", object.address_type)),
        }
    }
    Some(Slice { service: service.as_str().into(), family, ports, endpoints })
}

/// Converts a port. A port without name or number matches no service port and is ignored, as in kube-proxy [kube-proxy 12].
fn slice_port(object: &fields::ApiEndpointPort) -> Result<Option<SlicePort>, String> {
    let (Some(name), Some(number)) = (&object.name, object.port) else { return Ok(None) };
    if number == 0 {
        return Ok(None);
    }
    let number = port(number).ok_or_else(|| format!("{number} is not within 1-65535"))?;
    Ok(Some(SlicePort { name: name.as_str().into(), protocol: protocol(object.protocol.as_deref())?, port: number }))
}

fn slice_endpoint(ip: IpAddr, object: &fields::ApiEndpoint) -> SliceEndpoint {
    let conditions = object.conditions.as_ref();
    let hints = object.hints.as_ref();
    let names = |hints: Option<&[fields::Hint]>| hints.unwrap_or_default().iter().map(|hint| hint.name.clone()).collect();
    SliceEndpoint {
        ip,
        conditions: Conditions {
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        },
        node: object.node_name.as_deref().unwrap_or_default().into(),
        hints: Some(Hints {
            zones: names(hints.and_then(|h| h.for_zones.as_deref())),
            nodes: names(hints.and_then(|h| h.for_nodes.as_deref())),
        })
        .filter(|hints| *hints != Hints::default())
        .map(Box::new),
    }
}

/// The taint of a Node that the cluster autoscaler is about to delete [kube-proxy 9.1].
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

fn node(object: &fields::ApiNode, problems: &mut Vec<String>) -> Node {
    let (spec, status) = (object.spec.as_ref(), object.status.as_ref());
    let texts = [addresses_of(status, "InternalIP"), addresses_of(status, "ExternalIP")].concat();
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    Node {
        zone: object.metadata.labels.as_ref().and_then(|labels| labels.zone.clone()).unwrap_or_default(),
        addresses: addresses("status.addresses", &texts, problems),
        pod_cidrs: cidrs("spec.podCIDRs", &pod_cidrs(spec), problems),
        leaving: object.metadata.deletion_timestamp.is_some() || taints.iter().any(|taint| taint.key == AUTOSCALER_TAINT),
    }
}

pub(crate) fn addresses_of(status: Option<&fields::NodeStatus>, kind: &str) -> Vec<String> {
    let all = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    all.iter().filter(|address| address.kind == kind).map(|address| address.address.clone()).collect()
}

fn pod_cidrs(spec: Option<&fields::NodeSpec>) -> Vec<String> {
    match spec.and_then(|spec| spec.pod_cidrs.clone()) {
        Some(cidrs) if !cidrs.is_empty() => cidrs,
        _ => spec.and_then(|spec| spec.pod_cidr.clone()).into_iter().collect(),
    }
}
