//! Pods that the CNI plugin connects. This module calls the plugin as a container runtime does.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::netns::Netns;
use crate::pod::{Pod, serve};
use crate::pod_cluster::PodNode;

/// Name of the network in the CNI configuration that the daemon writes.
const NETWORK: &str = "cbr0";

impl PodNode {
    /// Returns the folder for the daemon's flag `--cni-conf-dir`. The daemon writes the CNI configuration there.
    pub fn conf_dir(&self) -> String {
        self.file("net.d")
    }

    /// Returns the addresses that the plugin has reserved for pods.
    pub(crate) fn reserved_addresses(&self) -> Vec<String> {
        let folder = Path::new(&self.file("networks")).join(NETWORK);
        let names = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    /// Connects a new pod by the plugin, with the configuration that the daemon has written, and starts the pod's servers.
    ///
    /// # Errors
    /// If the configuration does not exist yet, or the plugin fails.
    pub fn connect(&self, id: &str) -> io::Result<Pod> {
        let netns = Netns::new();
        let result = self.call_plugin("ADD", id, &netns)?;
        let parse_address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        let ips: Vec<_> = result["ips"].as_array().into_iter().flatten().filter_map(parse_address).collect();
        serve(&netns, &ips);
        Ok(Pod { netns, ips })
    }

    /// Disconnects a pod.
    ///
    /// # Errors
    /// If the plugin fails.
    pub(crate) fn disconnect(&self, id: &str, pod: &Pod) -> io::Result<()> {
        self.call_plugin("DEL", id, &pod.netns).map(drop)
    }

    fn call_plugin(&self, verb: &str, id: &str, netns: &Netns) -> io::Result<Value> {
        let conflist: Value = serde_json::from_str(&fs::read_to_string(Path::new(&self.conf_dir()).join("10-sepal.conflist"))?)?;
        let mut config = conflist["plugins"][0].clone();
        config["cniVersion"] = conflist["cniVersion"].clone();
        config["name"] = conflist["name"].clone();
        // The plugin keeps its files in the node's folder instead of the host's.
        config["dataDir"] = json!(self.file("flannel"));
        config["ipam"] = json!({"dataDir": self.file("networks")});
        let mut command = self.netns.command(&self.program().to_string_lossy());
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", netns.path());
        command.env("CNI_PATH", "/nowhere").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(config.to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let answer = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            return if answer.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&answer)?) };
        }
        Err(io::Error::other(format!("the plugin fails {verb}: {answer}")))
    }
}
