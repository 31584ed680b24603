//! Parses YAML as kube-proxy does in a configuration file: only the first document counts. Errors name a line and a cause. PURE.

use std::borrow::Cow;

use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

/// The error of a text that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {cause}")]
pub struct BadYaml {
    /// The line of the text, counted from 1.
    pub line: usize,
    /// The cause.
    pub cause: String,
}

/// Decodes the bytes of a file: UTF-8, or UTF-16 with a byte order mark, as Go's YAML reader does. The mark itself is removed.
///
/// # Errors
/// The text is in another encoding.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, BadYaml> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = bytes.chunks(2).map(|pair| unit([pair[0], pair.get(1).copied().unwrap_or_default()]));
        char::decode_utf16(units).collect::<Result<String, _>>().map(Cow::Owned).ok()
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => std::str::from_utf8(rest).map(Cow::Borrowed).ok(),
    };
    text.ok_or_else(|| BadYaml { line: 1, cause: "the file is not UTF-8 text".into() })
}

/// The text up to the end of its first document. A `---` begins the first document, unless content stands before it. The next `---` or
/// `...` ends it. Comments, blank lines and directives do not begin a document.
#[must_use]
pub fn first_document(text: &str) -> &str {
    let mut begun = false;
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        let marker = ["---", "..."]
            .into_iter()
            .find(|marker| line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])));
        match marker {
            Some(_) if begun => return &text[..end],
            Some(marker) => begun = marker == "---",
            None => {
                let content = line.trim();
                begun |= !(content.is_empty() || content.starts_with('#') || line.starts_with('%'));
            }
        }
        end += line.len();
    }
    text
}

/// Parses a text that holds one document.
///
/// # Errors
/// The text is not YAML, or a key comes twice where `duplicates` does not allow it.
pub fn parse(text: &str, duplicates: DuplicateKeyPolicy) -> Result<Value, BadYaml> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { duplicate_keys: duplicates }).map_err(|error| {
        let line = error.location().map_or(1, |at| usize::try_from(at.line()).unwrap_or(1)).max(1);
        BadYaml { line, cause: without_place(&error.to_string()).to_owned() }
    })
}

/// The parser's message without the line number and without the excerpt of the text.
fn without_place(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
    match line.split_once(": ") {
        Some((place, cause)) if place.starts_with("line ") => cause,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_document_ends_at_the_next_marker() {
        for (text, first) in [
            ("", ""),
            ("a: 1\n", "a: 1\n"),
            ("a: 1\n---\n", "a: 1\n"),
            ("a: 1\n---", "a: 1\n"),
            ("a: 1\r\n---\r\nb: 2\r\n", "a: 1\r\n"),
            ("a: 1\n--- # next\nb: [\n", "a: 1\n"),
            ("a: 1\n...\nb: 2\n", "a: 1\n"),
            ("---\na: 1\n---\nb: 2\n", "---\na: 1\n"),
            ("# note\n\n---\na: 1\n---\n", "# note\n\n---\na: 1\n"),
            ("%YAML 1.1\n---\na: 1\n---\n", "%YAML 1.1\n---\na: 1\n"),
            // An empty document is a document.
            ("---\n---\na: 1\n", "---\n"),
            ("---\n# note\n---\na: 1\n", "---\n# note\n"),
            // These are not markers.
            ("a: |\n  ---\n---x: 1\nb: 2\n", "a: |\n  ---\n---x: 1\nb: 2\n"),
        ] {
            assert_eq!(first_document(text), first, "{text:?}");
        }
    }

    #[test]
    fn a_file_may_have_a_byte_order_mark() {
        let utf16 = |to_bytes: fn(u16) -> [u8; 2]| "\u{feff}a: ä".encode_utf16().flat_map(to_bytes).collect::<Vec<u8>>();
        for bytes in [b"a: \xc3\xa4".to_vec(), b"\xef\xbb\xbfa: \xc3\xa4".to_vec(), utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)] {
            assert_eq!(decode(&bytes).as_deref(), Ok("a: ä"), "{bytes:?}");
        }
        assert_eq!(decode(b"a: \xe4").map_err(|bad| bad.to_string()), Err("line 1: the file is not UTF-8 text".into()));
    }

    #[test]
    fn errors_name_a_line_and_a_cause() {
        for (text, want) in [
            ("a: 1\nb: 'x\n", "line 2: unclosed quote"),
            ("a: 1\nb: [\n", "line 2: unclosed bracket"),
            ("a: 1\na: 2\n", "line 2: duplicate"),
        ] {
            let error = parse(text, DuplicateKeyPolicy::Error).expect_err(text).to_string();
            assert!(error.starts_with(want), "{text:?}: {error}");
        }
    }
}
