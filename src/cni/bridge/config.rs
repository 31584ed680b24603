//! The configuration of the plugin `bridge` [flannel 10.3]. PURE.

use serde::Deserialize;
use serde_json::Value;

use crate::cni::error::{CniError, ErrorCode};
use crate::cni::ipam;
use crate::cni::network_config::NetworkConfig;
use crate::cni::request::{Attachment, CniRequest};
use crate::cni::result::CniDns;
use crate::netlink::mac::Mac;

/// The default name of the bridge.
const BRIDGE: &str = "cni0";
/// The largest VLAN ID.
const LAST_VLAN: u16 = 4094;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: i64,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Vec<Value>,
    preserve_default_vlan: Option<bool>,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    dns: CniDns,
    runtime_config: RequestedMac,
    args: Args,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: RequestedMac,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RequestedMac {
    mac: String,
}

/// The configuration of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BridgeConfig {
    /// Name of the bridge.
    pub bridge: String,
    /// The configuration names the bridge, so the bridge may have other uses than containers.
    pub named: bool,
    /// The bridge has the gateway address (`isGateway`).
    pub gateway: bool,
    /// Containers have a default route through the gateway (`isDefaultGateway`).
    pub default_gateway: bool,
    /// Other addresses of the bridge that conflict with the gateway are removed (`forceAddress`).
    pub force_address: bool,
    /// Packets that leave the network through this host are masqueraded (`ipMasq`).
    pub masquerade: bool,
    /// The MTU in bytes; 0 for the kernel's default.
    pub mtu: u32,
    /// Ports send packets back to where they came from (`hairpinMode`).
    pub hairpin: bool,
    /// The bridge receives packets for any MAC address (`promiscMode`).
    pub promiscuous: bool,
    /// The VLAN of the containers; 0 for none.
    pub vlan: u16,
    /// Ports also stay in VLAN 1 (`preserveDefaultVlan`).
    pub keep_default_vlan: bool,
    /// Containers detect duplicates of their IPv6 addresses (`enabledad`).
    pub detect_duplicates: bool,
    /// The container's interface is created but not configured (`disableContainerInterface`).
    pub bare: bool,
    /// Ports cannot reach each other (`portIsolation`).
    pub isolated: bool,
    /// The DNS settings of results. They replace those of IPAM.
    pub dns: CniDns,
    /// The MAC address of the container's interface.
    pub mac: Option<Mac>,
}

impl BridgeConfig {
    /// The attachment of the host's own interface in a VLAN. The container ID is empty, which no container's is.
    pub(super) fn gateway_attachment(&self) -> Attachment {
        Attachment { container: String::new(), interface: format!("{}.{}", self.bridge, self.vlan) }
    }

    /// Parses a network configuration and the parameters of the runtime.
    ///
    /// # Errors
    /// The configuration is invalid, or uses a feature that this plugin does not have.
    pub(super) fn read(config: &NetworkConfig, request: &CniRequest) -> Result<Self, CniError> {
        let keys: Keys = config.parse()?;
        let bad = |message: String| Err(CniError::new(ErrorCode::BAD_CONFIG, message));
        let unsupported = |message: &str| Err(CniError::new(ErrorCode::UNSUPPORTED_FIELD, message));
        if keys.hairpin_mode && keys.promisc_mode {
            return bad("cannot set hairpin mode and promiscuous mode at the same time".to_owned());
        }
        if keys.macspoofchk {
            return unsupported("macspoofchk is not supported: take it out, or use the bridge plugin of containernetworking");
        }
        if !keys.vlan_trunk.is_empty() {
            return unsupported("vlanTrunk is not supported: use vlan, or the bridge plugin of containernetworking");
        }
        if keys.ip_masq && !matches!(keys.ip_masq_backend.as_str(), "" | "iptables") {
            return unsupported("ipMasqBackend has to be \"iptables\"");
        }
        let Some(vlan) = u16::try_from(keys.vlan).ok().filter(|vlan| *vlan <= LAST_VLAN) else {
            return bad(format!("invalid VLAN ID {} (must be between 0 and {LAST_VLAN})", keys.vlan));
        };
        let Ok(mtu) = u32::try_from(keys.mtu) else { return bad(format!("mtu {} is not the size of a packet", keys.mtu)) };
        if keys.disable_container_interface && !ipam::kind(config)?.is_empty() {
            return bad("cannot use IPAM when DisableContainerInterface flag is set".to_owned());
        }
        let [argument] = request.known_args(["MAC"])?;
        let requested = [argument.unwrap_or_default(), &keys.args.cni.mac, &keys.runtime_config.mac];
        let mac = match requested.into_iter().rfind(|mac| !mac.is_empty()) {
            None => None,
            Some(wish) => match wish.parse::<Mac>() {
                Ok(mac) if mac.is_unicast() => Some(mac),
                _ => return bad(format!("{wish:?} is not a hardware address that an interface can have")),
            },
        };
        Ok(Self {
            named: !keys.bridge.is_empty(),
            bridge: if keys.bridge.is_empty() { BRIDGE.to_owned() } else { keys.bridge },
            gateway: keys.is_gateway || keys.is_default_gateway,
            default_gateway: keys.is_default_gateway,
            force_address: keys.force_address,
            masquerade: keys.ip_masq,
            mtu,
            hairpin: keys.hairpin_mode,
            promiscuous: keys.promisc_mode,
            vlan,
            keep_default_vlan: keys.preserve_default_vlan.unwrap_or(true),
            detect_duplicates: keys.enabledad,
            bare: keys.disable_container_interface,
            isolated: keys.port_isolation,
            dns: keys.dns,
            mac,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    #[allow(clippy::needless_pass_by_value, reason = "reads best where it is called")]
    fn read(keys: Value) -> Result<BridgeConfig, (u32, String)> {
        let mut all = Map::from_iter([("name".to_owned(), json!("n"))]);
        all.extend(keys.as_object().cloned().unwrap_or_default());
        let environment = |name: &str| match name {
            "CNI_COMMAND" => Some("ADD".to_owned()),
            "CNI_CONTAINERID" | "CNI_IFNAME" | "CNI_NETNS" | "CNI_PATH" => Some("a".to_owned()),
            "CNI_ARGS" => Some("MAC=02:00:00:00:00:01".to_owned()),
            _ => None,
        };
        let request = CniRequest::read(environment).expect("all is there");
        let refused = |error: CniError| (error.code.0, error.message);
        BridgeConfig::read(&NetworkConfig::of((&all).into()).expect("a frame"), &request).map_err(refused)
    }

    #[test]
    fn the_last_requested_mac_address_counts() {
        let mac = |keys: Value| read(keys).expect("good").mac.map(|mac| mac.0[5]);
        assert_eq!(mac(json!({"bridge": null, "mtu": null})), Some(1));
        assert_eq!(mac(json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}})), Some(2));
        let both = json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "runtimeConfig": {"mac": "02:00:00:00:00:03"}});
        assert_eq!(mac(both), Some(3));
    }

    #[test]
    fn unsupported_features_are_refused() {
        let good = read(json!({"isDefaultGateway": true, "more": {"of": "it"}, "forceAddress": true})).expect("good");
        assert!(good.gateway && good.default_gateway && good.keep_default_vlan && good.bridge == "cni0");
        for (keys, code, words) in [
            (json!({"hairpinMode": true, "promiscMode": true}), 7, "cannot set hairpin mode and promiscuous mode at the same time"),
            (json!({"macspoofchk": true}), 2, "macspoofchk is not supported"),
            (json!({"vlanTrunk": [{"id": 5}]}), 2, "vlanTrunk is not supported"),
            (json!({"ipMasq": true, "ipMasqBackend": "nftables"}), 2, "ipMasqBackend has to be"),
            (json!({"vlan": 4095}), 7, "invalid VLAN ID 4095"),
            (json!({"vlan": -1}), 7, "invalid VLAN ID -1"),
            (json!({"mtu": -5}), 7, "mtu -5 is not the size of a packet"),
            (json!({"mtu": "x"}), 7, "failed to load netconf: mtu: invalid type: string \"x\", expected i64"),
            (json!({"disableContainerInterface": true, "ipam": {"type": "x"}}), 7, "cannot use IPAM when"),
            (json!({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}), 7, "\"ff:ff:ff:ff:ff:ff\" is not a hardware address"),
        ] {
            let (found, message) = read(keys).expect_err(words);
            assert!(found == code && message.starts_with(words), "{found} {message}");
        }
    }
}
