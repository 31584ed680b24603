//! Parses query parameters, and resolves percent escapes.

use std::time::Duration;

use crate::status_error::StatusError;

/// The query parameters of a request. If a parameter occurs twice, the last one counts.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let parse = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (unescape(&key.replace('+', " ")), unescape(&value.replace('+', " ")))
        };
        Self(text.split('&').filter(|part| !part.is_empty()).map(parse).collect())
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A parameter; empty if it is missing.
    pub(super) fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }

    /// True for `true`, `True` and `1`.
    pub(super) fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "True" | "1")
    }

    /// A number; zero if it is missing or empty.
    pub(super) fn number(&self, key: &str) -> Result<u64, StatusError> {
        match self.text(key) {
            "" => Ok(0),
            text => text.parse().map_err(|_| StatusError::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax"))),
        }
    }

    /// A number of seconds, with or without a fraction; `None` if it is missing or empty.
    pub(super) fn seconds(&self, key: &str) -> Result<Option<Duration>, StatusError> {
        match self.text(key) {
            "" => Ok(None),
            text => {
                let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                time.map(Some).ok_or_else(|| StatusError::bad_request(format!("{key}: {text} is not a number of seconds")))
            }
        }
    }

    /// `resourceVersion`; `None` if it is missing or empty.
    pub(super) fn version(&self) -> Result<Option<u64>, StatusError> {
        match self.text("resourceVersion") {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| StatusError::bad_request(format!("invalid resource version \"{text}\""))),
        }
    }
}

/// Resolves escapes such as `%41`. A `%` that starts no escape is kept.
pub(super) fn unescape(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(byte) = bytes.get(index) {
        if let (b'%', Some(high), Some(low)) = (byte, digit(bytes.get(index + 1)), digit(bytes.get(index + 2))) {
            plain.push((high * 16 + low) as u8);
            index += 3;
        } else {
            plain.push(*byte);
            index += 1;
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_unescaped() {
        let query = Query::parse("a=1&labelSelector=app%3Dweb+x&flag=true&a=2&empty&bad=%zz%4");
        assert_eq!((query.text("a"), query.text("labelSelector"), query.text("bad")), ("2", "app=web x", "%zz%4"));
        assert_eq!((query.get("empty"), query.get("none"), query.flag("flag"), query.flag("a")), (Some(""), None, true, false));
        assert_eq!((query.number("a"), query.number("none")), (Ok(2), Ok(0)));
        assert!(query.number("flag").is_err() && query.seconds("flag").is_err() && Query::parse("s=-1").seconds("s").is_err());
        assert_eq!(unescape("%C3%A4%ff"), "ä\u{fffd}");
    }
}
