//! A fast path for plain YAML: mappings, lists and scalars with only one possible meaning. kubectl prints only that, and most manifests
//! have nothing else. Everything more (anchors, tags, merge keys, repeated keys, words such as `yes`, unusual numbers) is left to
//! `serde_saphyr`. PURE.
//!
//! Reason: `serde_saphyr` alone needs 1.7 times as long. 20,000 Services and EndpointSlices (25 MB) take 1.4 s instead of 0.82 s on one core
//! (release build, serde-saphyr 2.1.1). Delete this file when a new version of `serde_saphyr` is as fast.

use granit_parser::{Event, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Value};

/// The deepest nesting that is read. API objects are not as deep.
const MAX_DEPTH: usize = 100;

/// Words that YAML, or one of its versions, does not read as text, in any capitalisation.
const SPECIAL_WORDS: [&str; 12] = ["true", "false", "null", "y", "n", "yes", "no", "on", "off", "nan", "inf", "infinity"];

/// The value of a text with one document of plain YAML; `None` for everything else.
pub(super) fn value(text: &str) -> Option<Value> {
    let mut reader = Reader { parser: Parser::new_from_str(text) };
    matches!(reader.next()?, Event::StreamStart).then_some(())?;
    matches!(reader.next()?, Event::DocumentStart(_, None)).then_some(())?;
    let first = reader.next()?;
    let value = reader.node(first, 0)?;
    matches!(reader.next()?, Event::DocumentEnd).then_some(())?;
    matches!(reader.next()?, Event::StreamEnd).then_some(value)
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Event<'a>> {
        self.parser.next()?.ok().map(|(event, _)| event)
    }

    /// Reads the node that this event begins. In the patterns, 0 means no anchor.
    fn node(&mut self, event: Event<'a>, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        match event {
            Event::Scalar(text, ScalarStyle::Plain, 0, None) => scalar(&text),
            Event::Scalar(text, _, 0, None) => Some(text.into_owned().into()),
            Event::SequenceStart(_, 0, None) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Some(items.into()),
                        event => items.push(self.node(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(_, 0, None) => {
                let mut fields = Map::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => return Some(fields.into()),
                        Event::Scalar(text, style, 0, None) => match self.node(Event::Scalar(text, style, 0, None), depth + 1)? {
                            Value::String(key) => key,
                            _ => return None,
                        },
                        _ => return None,
                    };
                    let event = self.next()?;
                    let value = self.node(event, depth + 1)?;
                    if fields.insert(key, value).is_some() {
                        return None;
                    }
                }
            }
            _ => None,
        }
    }
}

/// A scalar without quotes.
fn scalar(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" => return Some(Value::Null),
        "true" => return Some(true.into()),
        "false" => return Some(false.into()),
        "0" => return Some(0.into()),
        _ => {}
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let number = digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit()) && digits.starts_with(|c| ('1'..='9').contains(&c));
    if number {
        return text.parse::<i64>().ok().map(Value::from);
    }
    let first = text.chars().next()?;
    if SPECIAL_WORDS.iter().any(|word| word.eq_ignore_ascii_case(text)) {
        return None;
    }
    let plain = first.is_ascii_alphabetic() || ((first.is_ascii_digit() || matches!(first, ':' | '/')) && is_not_a_number(text));
    plain.then(|| text.into())
}

/// True if a text cannot be a number in any notation: an address, a time, a path, a UUID, or a text with letters beyond hexadecimal.
fn is_not_a_number(text: &str) -> bool {
    let count = |sign: u8| text.bytes().filter(|byte| *byte == sign).count();
    let unprefixed = !text.starts_with('0') && text.contains(['a', 'b', 'c', 'd', 'f']);
    text.contains([':', '/']) || count(b'.') > 1 || count(b'-') > 2 || unprefixed || text.contains(|c| "ghjklmpqrstuvwyz".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_library(text: &str) -> Option<Value> {
        serde_saphyr::from_str_with_options(text, serde_saphyr::options! { budget: None }).ok()
    }

    #[test]
    fn plain_yaml_is_read_as_the_library_reads_it() {
        let text = "a: 1\nb: [x, 'y', \"z\\n\", 10.0.0.1, fd00::1, 2001:db8::1, -5, true, null, ]\nc:\n- d: |\n    two\n    lines\n  e:\nf: {}\n\
                    g: 2026-01-02T03:04:05Z\ni: 6f1c1e9e-6d0a-4d4e-9d40-51a2a6a3b7c1\nj: 7d4b9c6f5\nh: >-\n  one\n  line\n";
        let found = value(text);
        assert!(found.is_some());
        assert_eq!(found, by_library(text));
    }

    #[test]
    fn ambiguous_yaml_is_left_to_the_library() {
        for text in [
            "a: &x 1",
            "a: !!str 1",
            "a: *x",
            "a: 1\na: 2",
            "<<: {a: 1}",
            "? [a]\n: 1",
            "1: a",
            "a: 1.5",
            "a: 0x1",
            "a: 017",
            "a: Yes",
            "a: off",
            "a: .inf",
            "a: 1e3",
            "a: 1_000",
            "a: -0",
            "a: 9999999999999999999",
            "a: 1\n---\nb: 2",
            "a: 'x",
            "%YAML 1.1\n---\na: 1",
            "",
        ] {
            assert_eq!(value(text), None, "{text}");
        }
    }

    #[test]
    fn manifests_are_read_as_the_library_reads_them() {
        let mut plain = 0;
        for folder in ["testdata", "testdata/regress"] {
            for file in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path()) {
                let Some(text) = file.extension().filter(|ext| *ext == "yaml").and_then(|_| std::fs::read_to_string(&file).ok()) else {
                    continue;
                };
                for document in text.split("\n---\n") {
                    let Some(found) = value(document) else { continue };
                    plain += 1;
                    assert_eq!(Some(found), by_library(document), "{}", file.display());
                }
            }
        }
        assert!(plain > 100, "{plain} documents are plain");
    }

    proptest! {
        #[test]
        fn scalars_are_read_as_the_library_reads_them(text in "[-+.:/_ 0-9a-hinxoTZeE~'\"#]{0,12}") {
            for document in [format!("a: {text}\n"), format!("- {text}\n- b\n"), format!("{text}: b\n")] {
                if let Some(found) = value(&document) {
                    prop_assert_eq!(Some(found), by_library(&document), "{}", document);
                }
            }
        }

        #[test]
        fn words_are_read_as_the_library_reads_them(text in "(?i)(true|false|null|y|n|yes|no|on|off|\\.?nan|[-+.]{0,2}inf|infinity|[a-z]{1,4})") {
            let document = format!("a: {text}\n");
            if let Some(found) = value(&document) {
                prop_assert_eq!(Some(found), by_library(&document), "{}", document);
            }
        }

        #[test]
        fn documents_are_read_as_the_library_reads_them(text in "([ ]{0,4}(- |)(a|b|c)(:|: |)(x|1|\\||>|\\{|\\}|\\[|\\]|,|'|\"|&a|\\*a|#|-|)\n){1,8}") {
            if let Some(found) = value(&text) {
                prop_assert_eq!(Some(found), by_library(&text), "{}", text);
            }
        }
    }
}
