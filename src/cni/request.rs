//! The request of a runtime: parses and validates the environment of the plugin [flannel 10.1]. PURE.

use super::error::{CniError, ErrorCode};
use super::version::CniVersion;

/// The longest name of an interface, in bytes.
const NAME_LEN: usize = 15;

/// The operation that the runtime requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Connects a container with the network.
    Add,
    /// Disconnects a container.
    Del,
    /// Checks that a container is still connected.
    Check,
    /// Removes everything that belongs to no valid attachment.
    Gc,
    /// Reports whether ADD would work.
    Status,
    /// Reports the supported versions.
    Version,
}

impl Verb {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// Returns its name in `CNI_COMMAND`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// Returns true if the verb concerns one attachment.
    #[must_use]
    pub(crate) const fn has_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }

    const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }

    /// Checks that a version of the specification has this verb.
    ///
    /// # Errors
    /// It has not.
    pub fn allowed(self, version: CniVersion) -> Result<(), CniError> {
        let since = match self {
            Self::Gc | Self::Status => CniVersion::V1_1_0,
            Self::Check => CniVersion::V0_4_0,
            Self::Add | Self::Del | Self::Version => return Ok(()),
        };
        if version < since {
            return Err(CniError::new(ErrorCode::INCOMPATIBLE_VERSION, format!("config version does not allow {}", self.as_str())));
        }
        Ok(())
    }
}

/// An attachment: a container and one of its interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The runtime's ID of the container.
    pub container: String,
    /// Name of the interface in the container.
    pub interface: String,
}

/// The parameters in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniRequest {
    /// The verb.
    pub verb: Verb,
    /// The attachment; empty for verbs that concern none.
    pub attachment: Attachment,
    /// Path of the container's network namespace; may be empty for DEL.
    pub netns: String,
    /// `CNI_ARGS` as it is given. [`CniRequest::known_args`] parses it, because only some plugins and verbs need it.
    pub args: String,
    /// Folders with plugins, separated by colons (`CNI_PATH`).
    pub path: String,
    /// The container's namespace may be that of the host (`CNI_NETNS_OVERRIDE`).
    pub any_namespace: bool,
}

impl CniRequest {
    /// Reads the parameters from the environment.
    ///
    /// # Errors
    /// A variable is missing or invalid: code 4.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let bad = |message: String| CniError::new(ErrorCode::BAD_ENVIRONMENT, message);
        let value = |name: &str| variable(name).unwrap_or_default();
        let command = value("CNI_COMMAND");
        if command.is_empty() {
            return Err(bad("required env variables [CNI_COMMAND] missing".to_owned()));
        }
        let verb = Verb::named(&command).ok_or_else(|| bad(format!("unknown CNI_COMMAND: {command}")))?;
        let missing: Vec<&str> = verb.needs().iter().copied().filter(|name| value(name).is_empty()).collect();
        if !missing.is_empty() {
            return Err(bad(format!("required env variables [{}] missing", missing.join(","))));
        }
        let attachment = if verb.has_attachment() {
            Attachment { container: value("CNI_CONTAINERID"), interface: value("CNI_IFNAME") }
        } else {
            Attachment::default()
        };
        if verb.has_attachment() {
            if !is_identifier(&attachment.container) {
                return Err(CniError { details: attachment.container, ..bad("invalid characters in containerID".to_owned()) });
            }
            check_interface(&attachment.interface).map_err(|message| bad(message.to_owned()))?;
        }
        let any_namespace = matches!(value("CNI_NETNS_OVERRIDE").as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True");
        Ok(Self { verb, attachment, netns: value("CNI_NETNS"), args: value("CNI_ARGS"), path: value("CNI_PATH"), any_namespace })
    }

    /// Returns the values of the arguments in `CNI_ARGS` that a plugin knows. ADD and CHECK refuse other arguments, unless the runtime
    /// allows them with `IgnoreUnknown`. The other verbs need no arguments, so a malformed `CNI_ARGS` does not fail them.
    ///
    /// # Errors
    /// An argument is malformed or unknown. The messages are upstream's.
    pub(crate) fn known_args<const N: usize>(&self, known: [&str; N]) -> Result<[Option<&str>; N], CniError> {
        if !matches!(self.verb, Verb::Add | Verb::Check) {
            return Ok([None; N]);
        }
        let pairs = pairs(&self.args)?;
        let find = |name: &str| pairs.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let ignore = find("IgnoreUnknown").is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
        let is_known = |key: &str| key == "IgnoreUnknown" || known.contains(&key);
        let unknown: Vec<String> =
            pairs.iter().filter(|(key, _)| !is_known(key)).map(|(key, value)| format!("\"{key}={value}\"")).collect();
        if !ignore && !unknown.is_empty() {
            return Err(CniError::new(ErrorCode::BAD_ENVIRONMENT, format!("ARGS: unknown args [{}]", unknown.join(" "))));
        }
        Ok(known.map(find))
    }
}

/// Returns true for letters, digits, `_`, `.` and `-`, with a letter or digit first, as in container IDs and network names. Such a text is
/// safe as a file name.
#[must_use]
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn check_interface(name: &str) -> Result<(), &'static str> {
    if name.len() > NAME_LEN {
        return Err("interface name is too long");
    }
    if matches!(name, "." | "..") {
        return Err("interface name is . or ..");
    }
    if name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace() || c == '\0') {
        return Err("interface name contains / or : or whitespace characters");
    }
    Ok(())
}

fn pairs(args: &str) -> Result<Vec<(&str, &str)>, CniError> {
    let malformed = |pair| CniError::new(ErrorCode::BAD_ENVIRONMENT, format!("ARGS: invalid pair {pair:?}"));
    let pairs = args.split(';').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| malformed(pair))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<CniRequest, (u32, String)> {
        let value = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        CniRequest::read(value).map_err(|error| (error.code.0, error.message))
    }

    fn add<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let all = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/n"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/bin"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=a;IP=10.0.0.9"),
        ];
        changes.iter().copied().chain(all).collect()
    }

    #[test]
    fn the_environment_is_checked_as_upstream_does() {
        let request = read(&add(&[])).expect("all is there");
        assert_eq!((request.verb, request.attachment.container.as_str(), request.any_namespace), (Verb::Add, "abc", false));
        assert_eq!(request.known_args(["MAC", "IP"]).expect("the rest is ignored"), [None, Some("10.0.0.9")]);
        assert!(read(&add(&[("CNI_ARGS", "IgnoreUnknown=TRUE;K8S=a")])).expect("all is there").known_args(["IP"]).is_ok());
        let strict = read(&add(&[("CNI_ARGS", "K8S_POD_NAME=a")])).expect("all is there");
        assert_eq!(strict.known_args(["IP"]).expect_err("unknown").message, "ARGS: unknown args [\"K8S_POD_NAME=a\"]");
        for (changes, message) in [
            (&[("CNI_COMMAND", "")][..], "required env variables [CNI_COMMAND] missing"),
            (&[("CNI_COMMAND", "FOO")], "unknown CNI_COMMAND: FOO"),
            (
                &[("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", "")],
                "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing",
            ),
            (&[("CNI_CONTAINERID", "../a")], "invalid characters in containerID"),
            (&[("CNI_IFNAME", "0123456789abcdef")], "interface name is too long"),
            (&[("CNI_IFNAME", "..")], "interface name is . or .."),
            (&[("CNI_IFNAME", "a/b")], "interface name contains / or : or whitespace characters"),
        ] {
            assert_eq!(read(&add(changes)), Err((4, message.to_owned())));
        }
        assert!(read(&add(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")])).is_ok(), "a pod that has gone has no namespace");
        assert!(read(&[("CNI_COMMAND", "VERSION")]).is_ok() && read(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/")]).is_ok());
    }

    #[test]
    fn malformed_arguments_fail_only_verbs_that_read_them() {
        for args in ["novalue", "IgnoreUnknown=1;novalue", "=5", "K8S_POD_NAME=a"] {
            for (verb, fails) in [("ADD", true), ("CHECK", true), ("DEL", false), ("GC", false), ("STATUS", false), ("VERSION", false)] {
                let request = read(&add(&[("CNI_COMMAND", verb), ("CNI_ARGS", args)])).expect("the environment is good");
                assert_eq!(request.known_args(["IP"]).is_err(), fails, "{verb} {args}");
            }
        }
        let request = read(&add(&[("CNI_ARGS", "IgnoreUnknown=1;novalue")])).expect("the environment is good");
        assert_eq!(request.known_args(["IP"]).expect_err("malformed").message, "ARGS: invalid pair \"novalue\"");
    }

    #[test]
    fn verbs_have_their_versions() {
        let refused = |verb: Verb, version| verb.allowed(version).err().map(|error| error.message);
        assert_eq!(refused(Verb::Gc, CniVersion::V1_0_0).as_deref(), Some("config version does not allow GC"));
        assert_eq!(refused(Verb::Check, CniVersion::V0_3_1).as_deref(), Some("config version does not allow CHECK"));
        assert_eq!((refused(Verb::Status, CniVersion::V1_1_0), refused(Verb::Del, CniVersion::V0_1_0)), (None, None));
        let error = CniVersion::named("9.9.9").expect_err("no such version");
        assert!(error.code == ErrorCode::INCOMPATIBLE_VERSION && error.details.starts_with("config is \"9.9.9\", plugin supports ["));
    }
}
