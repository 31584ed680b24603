//! Parsers for values of flags, as in kube-proxy.

use super::duration::GoDuration;
use super::kubeproxy::document::VModule;
use crate::cluster::ip::parse_ip;

/// Parses a bool as Go does.
pub(crate) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// Parses a duration, like `30s` or `1m30s`.
pub(super) fn duration(text: &str) -> Result<GoDuration, String> {
    GoDuration::parse(text).ok_or_else(|| format!("time: invalid duration {text:?} (it is written like 30s or 1m30s)"))
}

/// Parses an IP; empty means the default.
pub(super) fn ip(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || parse_ip(text).is_some() { Ok(text.into()) } else { Err(format!("{text:?} is not a valid IP address")) }
}

/// Parses an IP, or an IP and a port; empty means the default.
pub(super) fn address_and_port(text: &str) -> Result<String, String> {
    let text = text.trim();
    let with_port = || {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (parse_ip(host).is_some() && port.parse::<u16>().is_ok()).then_some(())
    };
    if text.is_empty() || parse_ip(text).is_some() || with_port().is_some() {
        return Ok(text.into());
    }
    Err(format!("{text:?} is neither an IP nor IP:port"))
}

/// The value of one `--feature-gates`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates(pub Vec<(String, bool)>);

/// Parses feature gates, separated by commas. Empty items are skipped.
pub(super) fn gates(text: &str) -> Result<Gates, String> {
    items(text).map(gate).collect::<Result<_, _>>().map(Gates)
}

/// The value of one `--vmodule`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(pub Vec<VModule>);

/// Parses patterns, separated by commas. Empty items are skipped.
pub(super) fn patterns(text: &str) -> Result<Patterns, String> {
    items(text).map(vmodule).collect::<Result<_, _>>().map(Patterns)
}

/// The items of a list that are not empty; `None` if there are none.
pub(super) fn filled(items: &[String]) -> Option<Vec<String>> {
    let items: Vec<String> = items.iter().filter(|item| !item.is_empty()).cloned().collect();
    (!items.is_empty()).then_some(items)
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Parses a feature gate, `NAME=true|false`.
fn gate(text: &str) -> Result<(String, bool), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("missing bool value for {text}"))?;
    let value = go_bool(value.trim()).map_err(|error| format!("invalid value of {name}={value}, err: {error}"))?;
    Ok((name.trim().to_owned(), value))
}

/// Parses one entry of `--vmodule`, `PATTERN=LEVEL`.
fn vmodule(text: &str) -> Result<VModule, String> {
    let (pattern, level) = text
        .split_once('=')
        .filter(|(pattern, _)| !pattern.is_empty())
        .ok_or_else(|| format!("{text:?} does not have the pattern=N format"))?;
    let verbosity = level.parse().map_err(|_| format!("{level:?} in {text:?} is not a level"))?;
    Ok(VModule { file_pattern: pattern.into(), verbosity })
}

/// Parses the value of `--version`.
pub(super) fn version(text: &str) -> Result<String, String> {
    match text {
        "raw" => Ok(text.into()),
        _ => go_bool(text).map(|value| value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_parsed_as_in_go() {
        assert_eq!((go_bool("T"), go_bool("0")), (Ok(true), Ok(false)));
        assert!(go_bool("yes").is_err());
        assert_eq!(ip(" 010.0.0.1"), Ok("010.0.0.1".into()));
        assert_eq!(ip("host"), Err("\"host\" is not a valid IP address".into()));
        for good in ["", "::1", "10.0.0.1", "10.0.0.1:80", "[::1]:80"] {
            assert_eq!(address_and_port(good), Ok(good.into()));
        }
        for bad in ["x", "x:80", "10.0.0.1:http", "10.0.0.1:99999", "[::1]"] {
            assert!(address_and_port(bad).is_err(), "{bad}");
        }
        assert_eq!(gate("AllAlpha=true"), Ok(("AllAlpha".into(), true)));
        assert_eq!(gates("A=true,,B=0,").map(|gates| gates.0.len()), Ok(2));
        assert_eq!(gates(""), Ok(Gates::default()));
        assert!(gate("AllAlpha").is_err() && gate("AllAlpha=maybe").is_err());
        assert_eq!(vmodule("proxier=4"), Ok(VModule { file_pattern: "proxier".into(), verbosity: 4 }));
        assert!(vmodule("proxier").is_err() && vmodule("=4").is_err() && vmodule("a=b").is_err());
        assert_eq!((version("raw"), version("1")), (Ok("raw".into()), Ok("true".into())));
        assert!(version("soon").is_err());
    }
}
