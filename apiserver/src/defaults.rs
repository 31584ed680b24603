//! What a server fills in when objects are written.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::object::{Object, child};
use crate::refusal::Refusal;
use crate::resource::Resource;

/// Hands out cluster addresses and node ports.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    addresses: u32,
    ports: u32,
}

impl Allocator {
    /// Addresses start behind those that fixtures like to name.
    fn address(&mut self) -> String {
        const FIRST: u32 = u32::from_be_bytes([10, 96, 16, 0]);
        self.addresses += 1;
        Ipv4Addr::from(FIRST + (self.addresses - 1) % 0x000f_0000).to_string()
    }

    fn port(&mut self) -> u32 {
        self.ports += 1;
        30_000 + (self.ports - 1) % 2_768
    }
}

/// Fills in an object that is created.
pub(crate) fn on_create(resource: Resource, object: &mut Object, allocator: &mut Allocator) -> Result<(), Refusal> {
    if resource.generations {
        child(object, "metadata")?.insert("generation".into(), 1.into());
    }
    match resource.plural {
        "services" => service(object, allocator)?,
        "namespaces" => {
            child(object, "spec")?.entry("finalizers").or_insert_with(|| json!(["kubernetes"]));
            object.insert("status".into(), json!({"phase": "Active"}));
        }
        "nodes" => {
            child(object, "spec")?;
            child(object, "status")?;
        }
        _ => {}
    }
    Ok(())
}

/// Fills in a Service.
pub(crate) fn service(object: &mut Object, allocator: &mut Allocator) -> Result<(), Refusal> {
    let spec = child(object, "spec")?;
    let kind = text(spec, "type", "ClusterIP");
    if text(spec, "sessionAffinity", "None") == "ClientIP" {
        child(child(spec, "sessionAffinityConfig")?, "clientIP")?.entry("timeoutSeconds").or_insert(10_800.into());
    }
    if kind != "ExternalName" {
        addresses(spec, allocator);
        text(spec, "internalTrafficPolicy", "Cluster");
    }
    let balanced = kind == "LoadBalancer";
    if kind == "NodePort" || balanced || is_filled(spec.get("externalIPs")) {
        text(spec, "externalTrafficPolicy", "Cluster");
    }
    if balanced {
        spec.entry("allocateLoadBalancerNodePorts").or_insert(true.into());
    }
    let node_ports = kind == "NodePort" || balanced && spec.get("allocateLoadBalancerNodePorts") == Some(&Value::Bool(true));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        port.entry("targetPort").or_insert(number);
        if node_ports && port.get("nodePort").and_then(Value::as_u64).is_none_or(|number| number == 0) {
            port.insert("nodePort".into(), allocator.port().into());
        }
    }
    child(child(object, "status")?, "loadBalancer")?;
    Ok(())
}

/// Cluster addresses and their families.
fn addresses(spec: &mut Object, allocator: &mut Allocator) {
    if !is_filled(spec.get("clusterIP")) {
        let first = spec.get("clusterIPs").and_then(|all| all.get(0)).cloned();
        spec.insert("clusterIP".into(), first.unwrap_or_else(|| allocator.address().into()));
    }
    let all = spec.get("clusterIP").cloned().unwrap_or_default();
    let all = spec.entry("clusterIPs").or_insert_with(|| json!([all]));
    let named = all.as_array().into_iter().flatten().filter_map(Value::as_str).filter(|address| *address != "None");
    let mut families: Vec<_> = named.map(|address| if address.contains(':') { "IPv6" } else { "IPv4" }).collect();
    if families.is_empty() {
        families.push("IPv4");
    }
    let families = spec.entry("ipFamilies").or_insert_with(|| json!(families));
    let single = families.as_array().is_none_or(|families| families.len() < 2);
    text(spec, "ipFamilyPolicy", if single { "SingleStack" } else { "RequireDualStack" });
}

/// A text field, set to a default if it is missing.
fn text(object: &mut Object, field: &str, default: &str) -> String {
    object.entry(field).or_insert_with(|| default.into()).as_str().unwrap_or_default().to_owned()
}

/// Neither missing nor empty.
pub(crate) fn is_filled(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}
