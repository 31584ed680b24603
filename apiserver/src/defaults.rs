//! Sets the default values of objects that clients write.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::object::{Object, child_mut};
use crate::resource::Resource;
use crate::status_error::StatusError;

/// Allocates cluster IPs and node ports.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    addresses: u32,
    ports: u32,
}

impl Allocator {
    /// The next cluster IP. The first is 10.96.16.0, because fixtures use lower addresses.
    fn allocate_address(&mut self) -> String {
        const FIRST: u32 = u32::from_be_bytes([10, 96, 16, 0]);
        self.addresses += 1;
        Ipv4Addr::from(FIRST + (self.addresses - 1) % 0x000f_0000).to_string()
    }

    /// The next node port.
    fn allocate_port(&mut self) -> u32 {
        self.ports += 1;
        30_000 + (self.ports - 1) % 2_768
    }
}

/// Sets the defaults of a new object.
pub(crate) fn set_on_create(resource: Resource, object: &mut Object, allocator: &mut Allocator) -> Result<(), StatusError> {
    if resource.generations {
        child_mut(object, "metadata")?.insert("generation".into(), 1.into());
    }
    match resource.plural {
        "services" => set_on_service(object, allocator)?,
        "namespaces" => {
            child_mut(object, "spec")?.entry("finalizers").or_insert_with(|| json!(["kubernetes"]));
            object.insert("status".into(), json!({"phase": "Active"}));
        }
        "nodes" => {
            child_mut(object, "spec")?;
            child_mut(object, "status")?;
        }
        _ => {}
    }
    Ok(())
}

/// Sets the defaults of a Service, and allocates its addresses and ports.
pub(crate) fn set_on_service(object: &mut Object, allocator: &mut Allocator) -> Result<(), StatusError> {
    let spec = child_mut(object, "spec")?;
    let kind = set_text(spec, "type", "ClusterIP");
    if set_text(spec, "sessionAffinity", "None") == "ClientIP" {
        child_mut(child_mut(spec, "sessionAffinityConfig")?, "clientIP")?.entry("timeoutSeconds").or_insert(10_800.into());
    }
    if kind != "ExternalName" {
        set_addresses(spec, allocator);
        set_text(spec, "internalTrafficPolicy", "Cluster");
    }
    let is_load_balancer = kind == "LoadBalancer";
    if kind == "NodePort" || is_load_balancer || is_set(spec.get("externalIPs")) {
        set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if is_load_balancer {
        spec.entry("allocateLoadBalancerNodePorts").or_insert(true.into());
    }
    let has_node_ports = kind == "NodePort" || is_load_balancer && spec.get("allocateLoadBalancerNodePorts") == Some(&Value::Bool(true));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        set_text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or_default();
        port.entry("targetPort").or_insert(number);
        if has_node_ports && port.get("nodePort").and_then(Value::as_u64).is_none_or(|number| number == 0) {
            port.insert("nodePort".into(), allocator.allocate_port().into());
        }
    }
    child_mut(child_mut(object, "status")?, "loadBalancer")?;
    Ok(())
}

/// Sets the cluster IPs and IP families of a Service.
fn set_addresses(spec: &mut Object, allocator: &mut Allocator) {
    if !is_set(spec.get("clusterIP")) {
        let first = spec.get("clusterIPs").and_then(|all| all.get(0)).cloned();
        spec.insert("clusterIP".into(), first.unwrap_or_else(|| allocator.allocate_address().into()));
    }
    let first = spec.get("clusterIP").cloned().unwrap_or_default();
    let all = spec.entry("clusterIPs").or_insert_with(|| json!([first]));
    let addresses = all.as_array().into_iter().flatten().filter_map(Value::as_str).filter(|address| *address != "None");
    let mut families: Vec<_> = addresses.map(|address| if address.contains(':') { "IPv6" } else { "IPv4" }).collect();
    if families.is_empty() {
        families.push("IPv4");
    }
    let families = spec.entry("ipFamilies").or_insert_with(|| json!(families));
    let is_single = families.as_array().is_none_or(|families| families.len() < 2);
    set_text(spec, "ipFamilyPolicy", if is_single { "SingleStack" } else { "RequireDualStack" });
}

/// Sets a text field to a default if it is missing, and returns its value.
fn set_text(object: &mut Object, field: &str, default: &str) -> String {
    object.entry(field).or_insert_with(|| default.into()).as_str().unwrap_or_default().to_owned()
}

/// True if a value is neither missing, null nor empty.
pub(crate) fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}
