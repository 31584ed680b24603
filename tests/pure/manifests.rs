//! The manifests in `deploy/`: valid by the API's own types, consistent with each other, and consistent with the program.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Namespace, PodSpec, Probe, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sepal::config::kubeproxy::KubeProxyConfiguration;
use sepal::pod_network::net_conf::NetConf;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::SEPAL;
use crate::kustomization::{compose, deploy, documents, only};

/// The kustomizations that operators apply, each by itself.
const MODES: [&str; 3] = ["proxy-only", "network-only", "all"];

/// Every object that an operator may apply or create.
fn all_objects() -> Vec<Value> {
    let mut objects: Vec<Value> = MODES.into_iter().chain(["leases"]).flat_map(compose).collect();
    let files = fs::read_dir(deploy().join("config")).expect("readable").map(|entry| entry.expect("readable").path());
    objects.extend(files.flat_map(|file| documents(&file)));
    objects
}

/// Reads an object as the API server does with strict field validation: nothing unknown, nothing of another type.
fn strict<T: k8s_openapi::Resource + DeserializeOwned + Serialize>(object: &Value) -> Result<T, String> {
    if object["apiVersion"] != T::API_VERSION {
        return Err(format!("{} is {} by now", object["apiVersion"], T::API_VERSION));
    }
    let mut unknown = Vec::new();
    let read: T =
        serde_ignored::deserialize(object, |path| unknown.push(path.to_string().replace(".?", ""))).map_err(|error| error.to_string())?;
    if !unknown.is_empty() {
        return Err(format!("unknown fields: {}", unknown.join(", ")));
    }
    let again = serde_json::to_value(&read).map_err(|error| error.to_string())?;
    if again == *object { Ok(read) } else { Err(format!("read as\n{again:#}\nand is\n{object:#}")) }
}

fn check(object: &Value) -> Result<(), String> {
    match object["kind"].as_str().unwrap_or_default() {
        "DaemonSet" => strict::<DaemonSet>(object).map(drop),
        "ServiceAccount" => strict::<ServiceAccount>(object).map(drop),
        "ClusterRole" => strict::<ClusterRole>(object).map(drop),
        "ClusterRoleBinding" => strict::<ClusterRoleBinding>(object).map(drop),
        "Role" => strict::<Role>(object).map(drop),
        "RoleBinding" => strict::<RoleBinding>(object).map(drop),
        "ConfigMap" => strict::<ConfigMap>(object).map(drop),
        "Namespace" => strict::<Namespace>(object).map(drop),
        kind => Err(format!("no manifest should have kind {kind:?}")),
    }
}

#[test]
fn every_object_is_what_the_api_takes() {
    let objects = all_objects();
    assert!(objects.len() > 15, "only {}", objects.len());
    for object in &objects {
        check(object).unwrap_or_else(|error| panic!("{} {}: {error}", object["kind"], object["metadata"]["name"]));
    }
}

/// The check itself notices outdated API versions and mistyped fields.
#[test]
fn what_the_api_does_not_take_is_noticed() {
    let good = only(&compose("all"), "DaemonSet").clone();
    let spoiled = |pointer: &str, field: &str, value: Value| {
        let mut object = good.clone();
        object.pointer_mut(pointer).expect("it is there")[field] = value;
        check(&object).expect_err(field)
    };
    assert_eq!(spoiled("", "apiVersion", "extensions/v1beta1".into()), "\"extensions/v1beta1\" is apps/v1 by now");
    assert_eq!(spoiled("/spec/template/spec", "hostnetwork", true.into()), "unknown fields: spec.template.spec.hostnetwork");
    let nested = spoiled("/spec/template/spec/containers/0/securityContext", "readonlyRootFilesystem", true.into());
    assert!(nested.starts_with("unknown fields: ") && nested.ends_with("readonlyRootFilesystem"), "{nested}");
    assert!(spoiled("/spec/template/spec", "hostNetwork", "true".into()).contains("invalid type"));
}

fn daemon_set(mode: &str) -> DaemonSet {
    strict(only(&compose(mode), "DaemonSet")).expect("checked above")
}

fn pod(daemon_set: &DaemonSet) -> PodSpec {
    daemon_set.spec.clone().and_then(|spec| spec.template.spec).expect("it has pods")
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

#[test]
fn the_daemon_set_is_made_for_a_node_s_network() {
    for mode in MODES {
        let set = daemon_set(mode);
        let spec = set.spec.as_ref().expect("a spec");
        assert_eq!(spec.selector.match_labels, spec.template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()), "{mode}");
        let rolling = spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref()).expect("a rolling update");
        assert_eq!(rolling.max_unavailable, Some(IntOrString::Int(1)), "{mode}");
        let pod = pod(&set);
        assert_eq!((pod.host_network, pod.priority_class_name.as_deref()), (Some(true), Some("system-node-critical")), "{mode}");
        assert!(pod.host_pid.is_none() && pod.host_ipc.is_none(), "{mode}");
        let tolerates_all = |toleration: &k8s_openapi::api::core::v1::Toleration| {
            toleration.operator.as_deref() == Some("Exists") && toleration.key.is_none() && toleration.effect.is_none()
        };
        assert!(pod.tolerations.iter().flatten().any(tolerates_all), "{mode}");
        for container in containers(&pod) {
            let image = format!("sepal:{}", env!("CARGO_PKG_VERSION"));
            assert_eq!(container.image, Some(image), "{mode} {}", container.name);
        }
    }
}

/// The long-running container has two capabilities and a read-only root file system.
#[test]
fn the_daemon_is_not_privileged() {
    for mode in MODES {
        let pod = pod(&daemon_set(mode));
        assert_eq!(pod.containers.len(), 1, "{mode}");
        let security = pod.containers[0].security_context.clone().expect("a security context");
        assert_eq!(
            (security.privileged, security.allow_privilege_escalation, security.read_only_root_filesystem),
            (Some(false), Some(false), Some(true)),
            "{mode}"
        );
        let capabilities = security.capabilities.expect("capabilities");
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]), "{mode}");
        assert_eq!(capabilities.add, Some(vec!["NET_ADMIN".to_owned(), "NET_RAW".to_owned()]), "{mode}");
        let seccomp = pod.security_context.and_then(|context| context.seccomp_profile).map(|profile| profile.type_);
        assert_eq!(seccomp.as_deref(), Some("RuntimeDefault"), "{mode}");
        for container in pod.init_containers.iter().flatten() {
            let security = container.security_context.clone().expect("a security context");
            let may = security.privileged == Some(true);
            assert_eq!(may, container.name == "kernel-settings", "{mode} {}", container.name);
            assert_eq!(security.read_only_root_filesystem, Some(true), "{mode} {}", container.name);
        }
    }
}

/// Every mount has a volume, every volume is mounted, and the mount paths are the program's defaults.
#[test]
fn mounts_are_where_the_program_looks() {
    let subnet_file = "/run/flannel/subnet.env";
    let net_conf = "/etc/kube-flannel/net-conf.json";
    let help = Command::new(SEPAL).args(["run", "--help"]).output().expect("sepal starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for default in [subnet_file, net_conf] {
        assert!(help.contains(&format!("[default: {default}]")), "{default} is not the default any more");
    }
    let parent = |file: &str| Path::new(file).parent().map(|folder| folder.display().to_string()).expect("a folder");
    for mode in MODES {
        let pod = pod(&daemon_set(mode));
        let mut volumes: BTreeMap<&str, bool> = pod.volumes.iter().flatten().map(|volume| (volume.name.as_str(), false)).collect();
        for container in containers(&pod) {
            let mounts = container.volume_mounts.as_deref().unwrap_or_default();
            for mount in mounts {
                *volumes.get_mut(mount.name.as_str()).unwrap_or_else(|| panic!("{mode}: no volume {}", mount.name)) = true;
            }
            let mounted = |path: &str| mounts.iter().any(|mount| mount.mount_path == path);
            assert!(container.command.as_deref() != Some(&["sepal".into(), "run".into()]) || mounted("/run/xtables.lock"), "{mode}");
            for argument in container.args.iter().flatten() {
                if let Some((_, file)) = argument.split_once("=/") {
                    let path = format!("/{file}");
                    assert!(mounted(&path) || mounted(&parent(&path)), "{mode} {}: {argument} is not in a volume", container.name);
                }
            }
            if container.args.iter().flatten().any(|argument| argument == "--pod-network") {
                assert!(mounted(&parent(subnet_file)) && mounted(&parent(net_conf)), "{mode}: {mounts:?}");
            }
        }
        assert!(volumes.values().all(|mounted| *mounted), "{mode}: {volumes:?}");
        for volume in pod.volumes.iter().flatten().filter(|volume| volume.name != "kube-proxy" && volume.name != "flannel-cfg") {
            let path = volume.host_path.as_ref().map(|host| host.path.clone()).expect("a path of the host");
            let mount = containers(&pod).flat_map(|one| one.volume_mounts.iter().flatten()).find(|mount| mount.name == volume.name);
            let inside = mount.map(|mount| mount.mount_path.clone()).expect("mounted");
            assert!(inside == path || inside == format!("/host{path}"), "{mode}: {path} of the host is at {inside}");
        }
    }
}

/// Probes use the program's health port on loopback, which works for every bind address.
#[test]
fn probes_ask_where_the_program_answers() {
    for mode in MODES {
        let pod = pod(&daemon_set(mode));
        let daemon = &pod.containers[0];
        let asked = daemon.args.iter().flatten().find_map(|argument| argument.strip_prefix("--healthz-bind-address=").map(str::to_owned));
        let address = asked.unwrap_or_else(|| KubeProxyConfiguration::built_in().healthz_bind_address);
        let (_, port) = address.rsplit_once(':').expect("a port");
        let wanted = |probe: &Option<Probe>, path: &str| {
            let get = probe.as_ref().and_then(|probe| probe.http_get.clone()).expect("a GET");
            assert_eq!((get.host.as_deref(), get.path.as_deref()), (Some("127.0.0.1"), Some(path)), "{mode}");
            assert_eq!(get.port, IntOrString::Int(port.parse().expect("a number")), "{mode}");
        };
        wanted(&daemon.startup_probe, "/livez");
        wanted(&daemon.liveness_probe, "/livez");
        wanted(&daemon.readiness_probe, "/readyz");
    }
}

/// Roles are bound to the account that the pods run under.
#[test]
fn permissions_reach_the_pods() {
    for mode in MODES {
        let objects = compose(mode);
        let set = only(&objects, "DaemonSet");
        let account = (&set["spec"]["template"]["spec"]["serviceAccountName"], &set["metadata"]["namespace"]);
        let made = only(&objects, "ServiceAccount");
        assert_eq!((&made["metadata"]["name"], &made["metadata"]["namespace"]), account, "{mode}");
        let lease = compose("leases");
        for binding in objects.iter().chain(&lease).filter(|object| object["kind"].as_str().is_some_and(|kind| kind.ends_with("Binding"))) {
            let subjects = binding["subjects"].as_array().expect("subjects");
            assert!(subjects.iter().any(|subject| (&subject["name"], &subject["namespace"]) == account), "{mode}: {binding}");
            let bound = |object: &&Value| {
                (&object["kind"], &object["metadata"]["name"]) == (&binding["roleRef"]["kind"], &binding["roleRef"]["name"])
                    && object["metadata"]["namespace"] == binding["metadata"]["namespace"]
            };
            assert_eq!(objects.iter().chain(&lease).filter(bound).count(), 1, "{mode}: {binding}");
        }
    }
}

/// The program reads the shipped ConfigMaps without a warning, and the pods mount them by these names.
#[test]
fn configurations_make_sense() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = |name: &str| documents(&deploy().join("config").join(name));
    let text = |object: &Value, key: &str| object["data"][key].as_str().unwrap_or_else(|| panic!("no {key}")).to_owned();

    let proxy = &config("kube-proxy.yaml")[0];
    let (from, to) = (folder.path().join("config.conf"), folder.path().join("out"));
    fs::write(&from, text(proxy, "config.conf")).expect("writable");
    let output = Command::new(SEPAL).arg("--config").arg(&from).arg("--write-config-to").arg(&to).output().expect("sepal starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("WARN") && !said.contains("ERROR"), "{said}");
    let written = fs::read_to_string(&to).expect("it is written");
    assert!(written.contains("kubeconfig: /var/lib/kube-proxy/kubeconfig.conf"), "{written}");
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&text(proxy, "kubeconfig.conf")).expect("a kubeconfig");
    let server = kubeconfig.clusters[0].cluster.as_ref().and_then(|cluster| cluster.server.clone());
    assert_eq!((server.as_deref(), kubeconfig.current_context.as_deref()), (Some("https://api.example.com:6443"), Some("default")));

    let flannel = config("kube-flannel.yaml");
    let made = [proxy.clone(), config("pod-network.yaml")[0].clone(), only(&flannel, "ConfigMap").clone()];
    for object in &made[1..] {
        let conf = NetConf::parse(&text(object, "net-conf.json")).expect("it makes sense");
        assert!(conf.warnings().is_empty(), "{:?}", conf.warnings());
        assert!(written.contains(&format!(
            "clusterCIDR: {}",
            serde_json::from_str::<Value>(&text(object, "net-conf.json")).expect("JSON")["Network"].as_str().expect("text")
        )));
    }
    let name = |object: &Value| (object["metadata"]["namespace"].clone(), object["metadata"]["name"].clone());
    for mode in MODES {
        let objects = compose(mode);
        let set = only(&objects, "DaemonSet");
        for volume in set["spec"]["template"]["spec"]["volumes"].as_array().expect("volumes") {
            if let Some(mounted) = volume["configMap"]["name"].as_str() {
                let wanted = (set["metadata"]["namespace"].clone(), Value::from(mounted));
                assert!(made.iter().any(|object| name(object) == wanted), "{mode}: no ConfigMap {wanted:?}");
            }
        }
    }
    let namespace = only(&flannel, "Namespace");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    assert_eq!(only(&compose("network-only"), "DaemonSet")["metadata"]["namespace"], namespace["metadata"]["name"]);
}
